# SPDX-License-Identifier: GPL-3.0-or-later
"""Note that a run is finished. Documented in plugins/modules/run.py."""

from __future__ import annotations

import pathlib
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.startline.lab.plugins.plugin_utils import _run
from ansible_collections.startline.lab.plugins.plugin_utils._errors import StartlineError


class ActionModule(ActionBase):
    """See plugins/modules/run.py."""

    _requires_connection = False
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Mark the controller's record of a run."""
        self._supports_check_mode = True
        result = super().run(tmp, task_vars)
        del tmp
        _valid, args = self.validate_argument_spec(
            argument_spec={
                "run_id": {"type": "str", "required": True},
                "state": {"type": "str", "choices": ["finished"], "default": "finished"},
                "private_dir": {"type": "path", "required": True},
            },
        )
        store = _run.RunStore(pathlib.Path(args["private_dir"]))
        try:
            if self._task.check_mode:
                return {**result, "changed": not store.read(args["run_id"]).finished}
            return {**result, "changed": store.finish(args["run_id"])}
        except StartlineError as exc:
            raise AnsibleActionFail(str(exc)) from exc
        except OSError as exc:
            raise AnsibleActionFail(f"{exc.filename}: {exc.strerror}") from exc
