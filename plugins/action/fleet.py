# SPDX-License-Identifier: GPL-3.0-or-later
"""Number the hosts of a run and wait until they answer. Documented in plugins/modules/fleet.py."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.startline.lab.plugins.plugin_utils._aws import AWS_ARGUMENT_SPEC, AwsOptions
from ansible_collections.startline.lab.plugins.plugin_utils._fleet import Fleet, FleetError, group_counts


class ActionModule(ActionBase):
    """See plugins/modules/fleet.py."""

    _requires_connection = False
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Ask EC2, tag, wait, and return the hosts by member name."""
        self._supports_check_mode = True
        result = super().run(tmp, task_vars)
        del tmp
        _valid, args = self.validate_argument_spec(
            argument_spec={
                "run_id": {"type": "str", "required": True},
                "plan": {"type": "dict", "required": True},
                "deadline": {"type": "float", "default": 300.0},
                **AWS_ARGUMENT_SPEC,
            },
        )
        plan, options = args["plan"], AwsOptions.from_args(args)
        regions = dict.fromkeys(site.get("region") or options.region for site in plan["sites"].values())
        if self._task.check_mode:
            return {**result, "changed": False, "skipped": True, "msg": "a fleet that was not launched cannot answer"}
        try:
            fleet = Fleet({region: options.client("ec2", region) for region in regions}, args["run_id"])
            changed = fleet.number(group_counts(plan["members"]))
            hosts = fleet.await_ssh([member["name"] for member in plan["members"]], args["deadline"])
        except FleetError as exc:
            raise AnsibleActionFail(str(exc)) from exc
        except Exception as exc:
            if type(exc).__module__.partition(".")[0] not in ("boto3", "botocore"):
                raise
            raise AnsibleActionFail(f"EC2 refused to describe or tag the hosts of {args['run_id']}: {exc}") from exc
        return {
            **result,
            "changed": changed,
            "hosts": {host.name: {"name": host.name, "login_address": host.login_address, **dataclasses.asdict(host)} for host in hosts},
        }
