# SPDX-License-Identifier: GPL-3.0-or-later
"""Note that a run is finished. Documented in plugins/modules/run.py."""

from __future__ import annotations

import pathlib
import typing as t

from ansible_collections.startline.lab.plugins.plugin_utils import _run
from ansible_collections.startline.lab.plugins.plugin_utils._action import Arguments, ControllerAction, Result


class ActionModule(ControllerAction):
    """Marks the controller's record of a run. See plugins/modules/run.py."""

    ARGUMENT_SPEC: t.ClassVar = {
        "run_id": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["finished"], "default": "finished"},
        "private_dir": {"type": "path", "required": True},
    }

    def perform(self, args: Arguments) -> Result:
        """Note it."""
        store = _run.RunStore(pathlib.Path(args["private_dir"]))
        if self._task.check_mode:
            return {"changed": not store.read(args["run_id"]).finished}
        return {"changed": store.finish(args["run_id"])}

    def subject(self, args: Arguments) -> str:
        """The run."""
        return f"the record of {args['run_id']}"
