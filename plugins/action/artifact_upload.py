# SPDX-License-Identifier: GPL-3.0-or-later
"""Store a run's artifacts in S3. Documented in plugins/modules/artifact_upload.py."""

from __future__ import annotations

import pathlib
import typing as t

from ansible_collections.startline.lab.plugins.plugin_utils._action import Arguments, ControllerAction, Result
from ansible_collections.startline.lab.plugins.plugin_utils._artifact import ArtifactStore, packed
from ansible_collections.startline.lab.plugins.plugin_utils._aws import AWS_ARGUMENT_SPEC, AwsOptions


class ActionModule(ControllerAction):
    """Packs, uploads what is missing, and returns where hosts fetch each artifact.

    See plugins/modules/artifact_upload.py.
    """

    ARGUMENT_SPEC: t.ClassVar = {
        "artifacts": {
            "type": "list",
            "elements": "dict",
            "required": True,
            "options": {
                "src": {"type": "path", "required": True},
                "dest": {"type": "str", "required": True},
                "groups": {"type": "list", "elements": "str"},
            },
        },
        "project_dir": {"type": "path", "required": True},
        "bucket": {"type": "str", "required": True},
        "prefix": {"type": "str", "required": True},
        **AWS_ARGUMENT_SPEC,
    }

    def perform(self, args: Arguments) -> Result:
        """Store them."""
        store = ArtifactStore(AwsOptions.from_args(args).client("s3"), args["bucket"], args["prefix"])
        stored, changed = [], False
        for artifact in args["artifacts"]:
            with packed(pathlib.Path(args["project_dir"]) / artifact["src"]) as ready:
                if not self._task.check_mode:
                    changed |= store.store(ready)
                stored.append(
                    {
                        "dest": artifact["dest"],
                        "groups": artifact["groups"],
                        "kind": ready.kind,
                        "sha256": ready.sha256,
                        "size": ready.size,
                        "url": store.address(ready),
                    }
                )
        return {"changed": changed, "artifacts": stored}

    def subject(self, args: Arguments) -> str:
        """The artifacts and their place."""
        names = ", ".join(artifact["src"] for artifact in args["artifacts"])
        return f"storing the artifacts ({names}) in s3://{args['bucket']}/{args['prefix']}"
