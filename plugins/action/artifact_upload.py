# SPDX-License-Identifier: GPL-3.0-or-later
"""Store a run's artifacts in S3. Documented in plugins/modules/artifact_upload.py."""

from __future__ import annotations

import pathlib
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.startline.lab.plugins.plugin_utils._artifact import ArtifactStore, packed
from ansible_collections.startline.lab.plugins.plugin_utils._aws import AWS_ARGUMENT_SPEC, AwsOptions, is_aws_error
from ansible_collections.startline.lab.plugins.plugin_utils._errors import ArtifactError, RequirementError


class ActionModule(ActionBase):
    """See plugins/modules/artifact_upload.py."""

    _requires_connection = False
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Pack, upload what is missing, and return where hosts fetch each artifact."""
        self._supports_check_mode = True
        result = super().run(tmp, task_vars)
        del tmp
        _valid, args = self.validate_argument_spec(
            argument_spec={
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
            },
        )
        try:
            store = ArtifactStore(AwsOptions.from_args(args).client("s3"), args["bucket"], args["prefix"])
        except RequirementError as exc:
            raise AnsibleActionFail(str(exc)) from exc
        stored, changed = [], False
        for artifact in args["artifacts"]:
            try:
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
            except ArtifactError as exc:
                raise AnsibleActionFail(str(exc)) from exc
            except Exception as exc:
                if not is_aws_error(exc):
                    raise
                raise AnsibleActionFail(
                    f"artifact {artifact['src']} could not be stored in s3://{args['bucket']}/{args['prefix']}: {exc}"
                ) from exc
        return {**result, "changed": changed, "artifacts": stored}
