# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts of a run: that they answer, or that nothing is left of them. Documented in plugins/modules/fleet.py."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.startline.lab.plugins.plugin_utils._action import Arguments, ControllerAction, Result
from ansible_collections.startline.lab.plugins.plugin_utils._aws import AWS_ARGUMENT_SPEC, AwsOptions
from ansible_collections.startline.lab.plugins.plugin_utils._errors import FleetError
from ansible_collections.startline.lab.plugins.plugin_utils._fleet import Fleet, group_counts


class ActionModule(ControllerAction):
    """Asks EC2 about the run's hosts, and waits or refuses. See plugins/modules/fleet.py."""

    ARGUMENT_SPEC: t.ClassVar = {
        "run_id": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["counted", "answering", "absent"], "default": "answering"},
        "plan": {"type": "dict"},
        "regions": {"type": "list", "elements": "str"},
        "deadline": {"type": "float", "default": 300.0},
        **AWS_ARGUMENT_SPEC,
    }
    REQUIRED_IF = (
        ("state", "counted", ("plan",)),
        ("state", "answering", ("plan",)),
        ("state", "absent", ("regions",)),
    )

    def perform(self, args: Arguments) -> Result:
        """Do what `state` says."""
        state: t.Callable[[Arguments, AwsOptions], Result] = getattr(self, f"_{args['state']}")
        return state(args, AwsOptions.from_args(args))

    def subject(self, args: Arguments) -> str:
        """The run."""
        return f"the hosts of {args['run_id']}"

    def _counted(self, args: Arguments, options: AwsOptions) -> Result:
        wanted = group_counts(args["plan"]["members"])
        there = _fleet(args, options).count()
        return {"changed": False, "missing": {name: max(0, count - there[name]) for name, count in wanted.items()}}

    def _answering(self, args: Arguments, options: AwsOptions) -> Result:
        plan = args["plan"]
        if self._task.check_mode:
            return {"changed": False, "skipped": True, "msg": "a fleet that was not launched cannot answer"}
        fleet = _fleet(args, options)
        changed = fleet.number(group_counts(plan["members"]))
        hosts = fleet.await_ssh([member["name"] for member in plan["members"]], args["deadline"])
        return {
            "changed": changed,
            "hosts": {
                host.name: {"name": host.name, "login_address": host.login_address, **dataclasses.asdict(host)}
                for host in hosts
            },
        }

    def _absent(self, args: Arguments, options: AwsOptions) -> Result:
        left = Fleet({r: options.client("ec2", r) for r in args["regions"]}, args["run_id"]).leftovers()
        if left and not self._task.check_mode:
            raise FleetError(
                f"{len(left)} resources of {args['run_id']} are left: {', '.join(left)}.\n"
                f"Run it again: ansible-playbook playbooks/destroy.yml -e run={args['run_id']}"
            )
        return {"changed": False, "left": left}


def _fleet(args: Arguments, options: AwsOptions) -> Fleet:
    """The run's instances in all regions of its plan."""
    regions = dict.fromkeys(site["region"] or options.region for site in args["plan"]["sites"].values())
    return Fleet({region: options.client("ec2", region) for region in regions}, args["run_id"])
