# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a run's evidence home and judge it. Documented in plugins/modules/evidence.py."""

from __future__ import annotations

import pathlib
import typing as t

from ansible_collections.startline.lab.plugins.plugin_utils import _provenance
from ansible_collections.startline.lab.plugins.plugin_utils._action import Arguments, ControllerAction, Result
from ansible_collections.startline.lab.plugins.plugin_utils._aws import AWS_ARGUMENT_SPEC, AwsOptions
from ansible_collections.startline.lab.plugins.plugin_utils._evidence import Store


class ActionModule(ControllerAction):
    """Does with the run's prefix what `state` says. See plugins/modules/evidence.py."""

    ARGUMENT_SPEC: t.ClassVar = {
        "state": {"type": "str", "choices": ["attempts", "collected", "published"], "default": "collected"},
        "bucket": {"type": "str", "required": True},
        "prefix": {"type": "str", "required": True},
        "plan": {"type": "dict"},
        "results_dir": {"type": "path"},
        "wait": {"type": "float", "default": 300},
        "attempts": {"type": "dict", "default": {}},
        "trials": {"type": "list", "elements": "str"},
        "project_dir": {"type": "path"},
        "provenance": {"type": "dict", "default": {}},
        "files": {"type": "dict"},
        **AWS_ARGUMENT_SPEC,
    }
    REQUIRED_IF = (
        ("state", "attempts", ("plan",)),
        ("state", "collected", ("plan", "results_dir")),
        ("state", "published", ("files",)),
    )

    def perform(self, args: Arguments) -> Result:
        """Do what `state` says."""
        state, prefix = args["state"], args["prefix"].strip("/")
        root = pathlib.Path(args["results_dir"] or ".") / prefix
        store = Store(AwsOptions.from_args(args).client("s3"), args["bucket"], prefix, root)
        result: Result = {"s3_uri": store.uri}
        if self._task.check_mode and state != "attempts":
            return {**result, "changed": False, "skipped": True, "msg": f"not {state} in check mode"}
        return {**result, **getattr(self, f"_{state}")(store, root, args)}

    def subject(self, args: Arguments) -> str:
        """The run's place."""
        return f"s3://{args['bucket']}/{args['prefix'].strip('/')}"

    def _attempts(self, store: Store, root: pathlib.Path, args: Arguments) -> Result:
        attempts = store.attempts(args["plan"])
        finished = [trial_id for trial_id, state in attempts.items() if state["finished"]]
        return {"changed": False, "attempts": attempts, "finished": finished}

    def _collected(self, store: Store, root: pathlib.Path, args: Arguments) -> Result:
        project_dir = args["project_dir"] and pathlib.Path(args["project_dir"])
        found = store.collect(
            args["plan"],
            root.name,
            wait=args["wait"],
            # As `state: attempts` returns them, or plain numbers.
            attempts={
                trial_id: int(state["attempt"] if isinstance(state, dict) else state)
                for trial_id, state in args["attempts"].items()
            },
            trials=args["trials"],
            provenance={**_provenance.controller(project_dir), **args["provenance"]},
        )
        return {
            "changed": found.changed,
            "path": str(root),
            "late": list(found.late),
            **{key: found.run[key] for key in ("verdict", "reasons", "figures")},
        }

    def _published(self, store: Store, root: pathlib.Path, args: Arguments) -> Result:
        files = {key: pathlib.Path(path).expanduser() for key, path in sorted(args["files"].items())}
        uploaded = [key for key, path in files.items() if store.publish(key, path)]
        return {"changed": bool(uploaded), "uploaded": uploaded}
