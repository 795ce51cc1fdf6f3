# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Measures the networks that trials need before they run. Documented in plugins/modules/network_check.py."""

from __future__ import annotations

import itertools
import pathlib
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.startline.lab.plugins.action import start_barrier
from ansible_collections.startline.lab.plugins.plugin_utils import _barrier_call, _network_check
from ansible_collections.startline.lab.plugins.plugin_utils._aws import AWS_ARGUMENT_SPEC, AwsOptions, is_aws_error
from ansible_collections.startline.lab.plugins.plugin_utils._errors import StartlineError
from ansible_collections.startline.lab.plugins.plugin_utils._evidence import Store
from ansible_collections.startline.lab.plugins.plugin_utils._plan import check_format

ARGUMENT_SPEC: dict[str, t.Any] = {
    "plan": {"type": "dict", "required": True},
    "run_id": {"type": "str", "required": True},
    "hosts": {"type": "dict", "required": True},
    "trials": {"type": "list", "elements": "str"},
    "bucket": {"type": "str", "required": True},
    **AWS_ARGUMENT_SPEC,
}


class ActionModule(start_barrier.ActionModule):
    """Runs each check as a trial, fetches what the hosts printed, and judges it."""

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        self._supports_check_mode = True
        result = ActionBase.run(self, tmp, task_vars)
        del tmp
        _validated, args = self.validate_argument_spec(argument_spec=ARGUMENT_SPEC)
        try:
            check_format(args["plan"])
            wanted = _network_check.needed(args["plan"], args["trials"])
            if self._task.check_mode or not wanted:
                names = ", ".join(check["check_id"] for check in wanted)
                return {**result, "changed": False, "checks": {}, "msg": f"would measure {names or 'nothing'}"}
            reports = self._measure(args, wanted)
        except StartlineError as error:
            raise AnsibleActionFail(str(error)) from error
        except Exception as error:
            if not is_aws_error(error):
                raise
            raise AnsibleActionFail(f"s3://{args['bucket']}: {error}") from error
        return {**result, "changed": True, "checks": reports, "msg": _network_check.summary(reports)}

    def _measure(self, args: dict[str, t.Any], wanted: list[dict[str, t.Any]]) -> dict[str, dict[str, t.Any]]:
        """The reports by network."""
        plan, prefix = args["plan"], f"{args['plan']['experiment']}/{args['run_id']}"
        options = AwsOptions.from_args(args)
        store = Store(options.client("s3"), args["bucket"], prefix, pathlib.Path())
        evidence = {
            "bucket": args["bucket"],
            "prefix": prefix,
            "region": options.region,
            "endpoint_url": options.endpoint_url,
        }

        def measure(
            shaped: t.Mapping[str, t.Any], check: dict[str, t.Any], attempt: int
        ) -> tuple[_network_check.Results, bool]:
            """What was measured, and whether all took part."""
            composed = _network_check.compose_check(
                shaped, check, args["hosts"], run_id=args["run_id"], attempt=attempt, evidence=evidence
            )
            submission = _barrier_call.submission(composed)
            self.check(submission)
            found = self.submit(submission, "delivered")
            if "format" not in found:
                raise StartlineError(found["msg"])
            name = submission["trial_id"]
            bodies = store.read_members(name, attempt, check["members"], "stdout")
            outputs = {member: body.decode("utf-8", "replace") for member, body in bodies.items()}
            absent = _network_check.absent(check, found)
            return _network_check.read_outputs(_network_check.probes_of(check), outputs, absent), not absent

        reports: dict[str, dict[str, t.Any]] = {}
        baseline: _network_check.Results = {}
        for check in wanted:
            attempt = store.next_attempt(_network_check.trial_id(check))
            network = check["network"]
            if network is None:
                baseline, _complete = measure(plan, check, attempt)
                continue
            delays, problems = _network_check.compensation(plan, network, baseline)
            shaped = _network_check.with_delays(plan, network, delays)
            known = {"delays": delays, "problems": problems}
            nothing = problems or not check["probes"]
            measured = {} if nothing else dict(measure(shaped, check, attempt)[0])
            report = _network_check.judge_check(plan, check, measured, baseline, attempt=attempt, **known)
            known["again"], complete = 0, True
            for before in itertools.count():
                # Once more, as with all that is off; but a host that is still missing is waited for no longer.
                again = _network_check.off(check, report, before) if complete else None
                if again is None:
                    break
                attempt += 1
                later, complete = measure(shaped, again, attempt)
                measured = _network_check.renewed(measured, again, later)
                known["again"] += len(again["probes"])
                report = _network_check.judge_check(plan, check, measured, baseline, attempt=attempt, **known)
            reports[network] = report
            self._display.display(f"{network}: {_network_check.summary({network: reports[network]})}")
        return reports
