# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts of a run: that they answer, or that nothing is left of them. Documented in plugins/modules/fleet.py."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.startline.lab.plugins.plugin_utils._aws import AWS_ARGUMENT_SPEC, AwsOptions, is_aws_error
from ansible_collections.startline.lab.plugins.plugin_utils._errors import FleetError, StartlineError
from ansible_collections.startline.lab.plugins.plugin_utils._fleet import Fleet, group_counts


class ActionModule(ActionBase):
    """See plugins/modules/fleet.py."""

    _requires_connection = False
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Ask EC2 about the run's hosts, and wait or refuse."""
        self._supports_check_mode = True
        result = super().run(tmp, task_vars)
        del tmp
        _valid, args = self.validate_argument_spec(
            argument_spec={
                "run_id": {"type": "str", "required": True},
                "state": {"type": "str", "choices": ["answering", "absent"], "default": "answering"},
                "plan": {"type": "dict"},
                "regions": {"type": "list", "elements": "str"},
                "deadline": {"type": "float", "default": 300.0},
                **AWS_ARGUMENT_SPEC,
            },
            required_if=[("state", "answering", ("plan",)), ("state", "absent", ("regions",))],
        )
        try:
            if args["state"] == "absent":
                return {**result, "changed": False, **self._absent(args)}
            return {**result, **self._answering(args)}
        except StartlineError as exc:
            raise AnsibleActionFail(str(exc)) from exc
        except Exception as exc:
            if not is_aws_error(exc):
                raise
            raise AnsibleActionFail(f"EC2 did not answer for the hosts of {args['run_id']}: {exc}") from exc

    def _answering(self, args: dict[str, t.Any]) -> dict[str, t.Any]:
        plan, options = args["plan"], AwsOptions.from_args(args)
        if self._task.check_mode:
            return {"changed": False, "skipped": True, "msg": "a fleet that was not launched cannot answer"}
        regions = dict.fromkeys(site["region"] or options.region for site in plan["sites"].values())
        fleet = Fleet({region: options.client("ec2", region) for region in regions}, args["run_id"])
        changed = fleet.number(group_counts(plan["members"]))
        hosts = fleet.await_ssh([member["name"] for member in plan["members"]], args["deadline"])
        return {
            "changed": changed,
            "hosts": {
                host.name: {"name": host.name, "login_address": host.login_address, **dataclasses.asdict(host)}
                for host in hosts
            },
        }

    def _absent(self, args: dict[str, t.Any]) -> dict[str, t.Any]:
        options = AwsOptions.from_args(args)
        left = Fleet({r: options.client("ec2", r) for r in args["regions"]}, args["run_id"]).leftovers()
        if left and not self._task.check_mode:
            raise FleetError(
                f"{len(left)} resources of {args['run_id']} are left: {', '.join(left)}.\n"
                f"Run it again: ansible-playbook playbooks/destroy.yml -e run={args['run_id']}"
            )
        return {"left": left}
