# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs one trial of a plan behind the start barrier. Documented in plugins/modules/trial.py."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.startline.lab.plugins.action import start_barrier
from ansible_collections.startline.lab.plugins.plugin_utils import _barrier_call, _network_check, _trial
from ansible_collections.startline.lab.plugins.plugin_utils._errors import StartlineError
from ansible_collections.startline.lab.plugins.plugin_utils._plan import check_format

ARGUMENT_SPEC: dict[str, t.Any] = {
    "plan": {"type": "dict", "required": True},
    "trial_id": {"type": "str", "required": True},
    "attempt": {"type": "int", "default": 1},
    "run_id": {"type": "str", "required": True},
    "hosts": {"type": "dict", "required": True},
    "bucket": {"type": "str"},
    "region": {"type": "str"},
    "endpoint_url": {"type": "str"},
    "checks": {"type": "dict", "default": {}},
    "wait": start_barrier.ARGUMENT_SPEC["wait"],
}


class ActionModule(start_barrier.ActionModule):
    """Renders the trial, hands it to the rendezvous, and renders it anew for those who can start, if they are others."""

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        self._supports_check_mode = True
        result = ActionBase.run(self, tmp, task_vars)
        del tmp
        _validated, arguments = self.validate_argument_spec(argument_spec=ARGUMENT_SPEC)
        try:
            return {**result, **self._trial(**arguments), "changed": True}
        except StartlineError as error:
            raise AnsibleActionFail(str(error)) from error

    def _trial(
        self,
        plan: dict[str, t.Any],
        trial_id: str,
        attempt: int,
        hosts: dict[str, t.Any],
        checks: dict[str, t.Any],
        wait: str,
        **where: t.Any,
    ) -> dict[str, t.Any]:
        check_format(plan)
        trial = _trial.find(plan, trial_id)
        network = _network_check.for_trial(plan, trial, checks)
        shaped = _network_check.with_delays(plan, trial["network"], network["delays"]) if network else plan
        formation = _trial.Formation.planned(plan, trial)
        while True:
            composed = _trial.compose_trial(
                shaped, trial, hosts, attempt=attempt, formation=formation, network_check=network, **where
            )
            submission = _barrier_call.submission(composed)
            self.check(submission)
            if self._task.check_mode:
                return {"msg": f"{trial_id}: would run on {', '.join(formation.meant)}"}
            found = self.submit(submission, wait)
            # It ends: whoever is not of the roster and not ready is no candidate any more, so there are ever fewer.
            if found.get("outcome") != "reform":
                return _barrier_call.judged(found)
            self._display.display(f"{trial_id}: {found['reasons'][0]}")
            formation, attempt = formation.formed(found), attempt + 1
