# SPDX-License-Identifier: GPL-3.0-or-later
"""Draw a run's report from its results. Documented in plugins/modules/report.py."""

from __future__ import annotations

import pathlib
import typing as t

from ansible_collections.startline.lab.plugins.plugin_utils._action import Arguments, ControllerAction, Result
from ansible_collections.startline.lab.plugins.plugin_utils._errors import RequirementError


class ActionModule(ControllerAction):
    """Writes report.html beside the results, and returns it in a few lines. See plugins/modules/report.py."""

    ARGUMENT_SPEC: t.ClassVar = {
        "path": {"type": "path", "required": True},
        "s3_uri": {"type": "str"},
    }

    def perform(self, args: Arguments) -> Result:
        """Draw it."""
        try:
            # Here, because it brings matplotlib: a second that no other action should pay for.
            from ansible_collections.startline.lab.plugins.plugin_utils import _report
        except ImportError as exc:
            raise RequirementError("the report", exc) from exc
        results = _report.load(pathlib.Path(args["path"]))
        changed = _report.write(results, _report.render(results), dry=self._task.check_mode)
        return {
            "changed": changed,
            "report": str(results.report),
            "summary": _report.summary(results, s3_uri=args["s3_uri"]),
            "verdict": results.run["verdict"],
        }

    def subject(self, args: Arguments) -> str:
        """The results."""
        return f"the report of {args['path']}"
