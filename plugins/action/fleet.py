# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts of a run: that they answer, or that nothing is left of them. Documented in plugins/modules/fleet.py."""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ansible_collections.startline.lab.plugins.plugin_utils._action import Arguments, ControllerAction, Result
from ansible_collections.startline.lab.plugins.plugin_utils._aws import AWS_ARGUMENT_SPEC, AwsOptions
from ansible_collections.startline.lab.plugins.plugin_utils._errors import FleetError
from ansible_collections.startline.lab.plugins.plugin_utils._fleet import Fleet, Login, find_runs, group_counts


class ActionModule(ControllerAction):
    """Asks EC2 about the run's hosts, and waits or refuses. See plugins/modules/fleet.py."""

    ARGUMENT_SPEC: t.ClassVar = {
        "run_id": {"type": "str"},
        "state": {"type": "str", "choices": ["counted", "answering", "found", "absent"], "default": "answering"},
        "plan": {"type": "dict"},
        "experiment": {"type": "str"},
        "regions": {"type": "list", "elements": "str"},
        "deadline": {"type": "float", "default": 300.0},
        "login_user": {"type": "str"},
        "private_key_file": {"type": "path"},
        **AWS_ARGUMENT_SPEC,
    }
    REQUIRED_IF = (
        ("state", "counted", ("plan", "run_id")),
        ("state", "answering", ("plan", "run_id")),
        ("state", "absent", ("run_id",)),
    )

    def perform(self, args: Arguments) -> Result:
        """Do what `state` says."""
        state: t.Callable[[Arguments, AwsOptions], Result] = getattr(self, f"_{args['state']}")
        return state(args, AwsOptions.from_args(args))

    def subject(self, args: Arguments) -> str:
        """The run, or those that are looked for."""
        return f"the hosts of {args['run_id'] or args['experiment'] or 'all runs'}"

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
        hosts = fleet.await_ssh([member["name"] for member in plan["members"]], args["deadline"], _login(args))
        return {
            "changed": changed,
            "hosts": {
                host.name: {"name": host.name, "login_address": host.login_address, **dataclasses.asdict(host)}
                for host in hosts
            },
        }

    def _found(self, args: Arguments, options: AwsOptions) -> Result:
        runs = find_runs(_clients(args, options), run_id=args["run_id"] or None, experiment=args["experiment"] or None)
        return {"changed": False, "runs": runs}

    def _absent(self, args: Arguments, options: AwsOptions) -> Result:
        clients = _clients(args, options)
        if not args["regions"]:
            there = find_runs(clients, run_id=args["run_id"]).get(args["run_id"], [])
            clients = {region: clients[region] for region in there}
        left = Fleet(clients, args["run_id"]).leftovers()
        if left and not self._task.check_mode:
            raise FleetError(
                f"{len(left)} resources of {args['run_id']} are left: {', '.join(left)}.\n"
                f"Run it again: ansible-playbook playbooks/destroy.yml -e run={args['run_id']}"
            )
        return {"changed": False, "left": left}


def _clients(args: Arguments, options: AwsOptions) -> dict[str, t.Any]:
    """EC2 in the regions that are named, or in all that the account has enabled."""
    regions = args["regions"] or sorted(
        region["RegionName"] for region in options.client("ec2").describe_regions()["Regions"]
    )
    return {region: options.client("ec2", region) for region in regions}


def _login(args: Arguments) -> Login | None:
    """How to get through gateways, where the plan has any."""
    if not any(site["gateway"] for site in args["plan"]["sites"].values()):
        return None
    if not args["login_user"] or not args["private_key_file"]:
        raise FleetError("hosts behind a gateway are asked through it: give login_user and private_key_file")
    os.makedirs(os.path.expanduser("~/.ansible/cp"), mode=0o700, exist_ok=True)  # where Ansible keeps its connections
    return Login(args["login_user"], args["private_key_file"])


def _fleet(args: Arguments, options: AwsOptions) -> Fleet:
    """The run's instances in all regions of its plan."""
    regions = dict.fromkeys(site["region"] or options.region for site in args["plan"]["sites"].values())
    return Fleet({region: options.client("ec2", region) for region in regions}, args["run_id"])
