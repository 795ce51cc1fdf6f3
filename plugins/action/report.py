# SPDX-License-Identifier: GPL-3.0-or-later
"""Draw a run's report from its results. Documented in plugins/modules/report.py."""

from __future__ import annotations

import pathlib
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.startline.lab.plugins.plugin_utils._errors import StartlineError


class ActionModule(ActionBase):
    """See plugins/modules/report.py."""

    _requires_connection = False
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Write report.html beside the results, and return it in a few lines."""
        self._supports_check_mode = True
        result = super().run(tmp, task_vars)
        del tmp
        _valid, args = self.validate_argument_spec(
            argument_spec={
                "path": {"type": "path", "required": True},
                "s3_uri": {"type": "str"},
            },
        )
        try:
            # Here, because it brings matplotlib: a second that no other action should pay for.
            from ansible_collections.startline.lab.plugins.plugin_utils import _report

            results = _report.load(pathlib.Path(args["path"]))
            page = _report.render(results)
            changed = _report.write(results, page, dry=self._task.check_mode)
        except ImportError as exc:
            raise AnsibleActionFail(f"the report needs {exc.name}: pip install -r requirements.txt") from exc
        except StartlineError as exc:
            raise AnsibleActionFail(str(exc)) from exc
        return {
            **result,
            "changed": changed,
            "report": str(results.report),
            "summary": _report.summary(results, s3_uri=args["s3_uri"]),
            "verdict": results.run["verdict"],
        }
