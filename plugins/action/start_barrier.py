# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Hands one trial to the rendezvous and waits for it. Documented in plugins/modules/start_barrier.py."""

from __future__ import annotations

import contextlib
import json
import signal
import time
import typing as t

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

from ansible_collections.startline.lab.plugins.plugin_utils import _barrier_call

ARGUMENT_SPEC: dict[str, t.Any] = {
    "run_id": {"type": "str", "required": True},
    "trial_id": {"type": "str", "required": True},
    "attempt": {"type": "int", "default": 1},
    "members": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "rank": {"type": "int", "required": True},
            "command": {"type": "str", "required": True},
            "environment": {"type": "dict", "default": {}},
            "links": {"type": "dict", "default": {}},
            "network": {"type": "str"},
            "addresses": {"type": "list", "elements": "str", "default": []},
            "site": {"type": "str"},
        },
    },
    "networks": {"type": "dict", "default": {}},
    "files": {"type": "dict", "default": {}},
    "site_files": {"type": "dict"},
    "links": {"type": "dict", "default": {}},
    "deadline": {"type": "float", "default": 60},
    "timeout": {"type": "float", "default": 3600},
    "delivery_deadline": {"type": "float", "default": _barrier_call.DELIVERY_DEADLINE},
    "seats": {
        "type": "list",
        "elements": "dict",
        "options": {
            "members": {"type": "list", "elements": "str", "required": True},
            "seats": {"type": "int", "required": True},
            "least": {"type": "int", "required": True},
        },
    },
    "grace": {"type": "float", "default": 10},
    "on_early_exit": {"type": "str", "choices": ["continue", "stop_on_failure", "stop"], "default": "continue"},
    "max_clock_error": {"type": "float", "default": 0.05},
    "on_clock_error": {"type": "str", "choices": ["mark", "refuse"], "default": "mark"},
    "collect": {"type": "list", "elements": "str", "default": []},
    "user": {"type": "str"},
    "evidence": {
        "type": "dict",
        "options": {
            "bucket": {"type": "str", "required": True},
            "prefix": {"type": "str", "required": True},
            "region": {"type": "str"},
            "endpoint_url": {"type": "str"},
        },
    },
    "wait": {"type": "str", "choices": ["exited", "delivered"], "default": "delivered"},
}


class _Stalled(Exception):
    """A command on the coordinator has not come back although its time is over."""


class ActionModule(ActionBase):
    """Argument check, one command on the coordinator, result."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        self._supports_check_mode = True
        result = super().run(tmp, task_vars)
        del tmp
        _validated, arguments = self.validate_argument_spec(argument_spec=ARGUMENT_SPEC)
        wait = arguments.pop("wait")
        trial = _barrier_call.submission(arguments)
        self.check(trial)
        if self._task.check_mode:
            result.update(changed=True, msg=f"{trial['trial_id']}: would run on {len(trial['members'])} members")
            return result
        result.update(_barrier_call.judged(self.submit(trial, wait)))
        result["changed"] = True
        return result

    def check(self, trial: dict[str, t.Any]) -> None:
        """Refuse what the rendezvous would refuse."""
        try:
            _barrier_call.check(trial)
        except _barrier_call.SubmissionError as error:
            raise AnsibleActionFail(str(error)) from error

    def submit(self, trial: dict[str, t.Any], wait: str) -> dict[str, t.Any]:
        """What became of the trial, as trial.json says it. What breaks on the way is tried again until the trial's time is over."""
        limit = _barrier_call.time_limit(trial, wait)
        give_up = time.monotonic() + limit
        payload = json.dumps(trial).encode("ascii")
        pause, said = 0.2, ""
        while True:
            left = give_up - time.monotonic()
            command = f"/usr/bin/startline-agent submit --wait {wait} --limit {max(left, 1):.0f}"
            try:
                with _bounded(left + 15):
                    answer = self._low_level_execute_command(command, in_data=payload)
                attempt = _barrier_call.parse(answer["rc"], answer["stdout"], answer["stderr"])
            except (AnsibleConnectionFailure, _Stalled, OSError) as error:
                attempt = _barrier_call.Answer(problem=f"cannot reach the coordinator: {error}", again=True)
            if attempt.result is not None:
                return attempt.result
            if not attempt.again or time.monotonic() + pause >= give_up:
                return _barrier_call.unknown(trial, attempt, limit)
            if attempt.problem != said:
                said = attempt.problem
                # A warning would be shown with the task's result: too late for who could mend it.
                self._display.display(
                    f"{trial['trial_id']}: {said}. Trying again for {give_up - time.monotonic():.0f} s."
                )
            # The master connection, if any, may be the one that is dead.
            with contextlib.suppress(Exception):
                self._connection.reset()
            time.sleep(pause)
            pause = min(5.0, pause * 2)


@contextlib.contextmanager
def _bounded(seconds: float) -> t.Iterator[None]:
    """Raise `_Stalled` in the block after `seconds`, unless a timer of the task itself is running."""

    def expired(_number: int, _frame: t.Any) -> None:
        raise _Stalled(f"no answer within {seconds:.0f} s")

    if signal.getitimer(signal.ITIMER_REAL)[0]:
        yield  # the task has a timeout of its own
        return
    try:
        before = signal.signal(signal.SIGALRM, expired)
    except ValueError:
        yield  # not in the main thread
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
