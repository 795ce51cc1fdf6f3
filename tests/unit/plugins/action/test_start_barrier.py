# SPDX-License-Identifier: GPL-3.0-or-later
"""The action start_barrier: its arguments, and a coordinator that cannot be reached."""

from __future__ import annotations

import json
import typing as t
from unittest import mock

import pytest
import yaml
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.task import Task
from ansible.template import Templar

from ansible_collections.startline.lab.plugins.action import start_barrier
from ansible_collections.startline.lab.plugins.module_utils._agent import barrier, wire
from ansible_collections.startline.lab.plugins.modules import start_barrier as documented
from ansible_collections.startline.lab.plugins.plugin_utils import _barrier_call

ARGUMENTS: dict[str, t.Any] = {
    "run_id": "run-1",
    "trial_id": "r1",
    "members": [{"name": "a-0", "rank": 0, "command": "true"}],
    "deadline": 1,
    "timeout": 1,
}
RESULT = {
    "format": "startline-trial/1",
    "epoch": {"run": "run-1", "trial": "r1", "attempt": 1},
    "outcome": "completed",
    "verdict": "valid",
    "reasons": [],
    "members": {"a-0": {"state": "delivered"}},
    "skew": None,
}


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(start_barrier, "time", made)
    return made


def run(answers: list[t.Any], check_mode: bool = False, **arguments: t.Any) -> tuple[dict[str, t.Any], mock.Mock]:
    """The action's result, with `answers` for its commands; the last is repeated."""
    task = mock.MagicMock(Task)
    task.action, task.async_val, task.check_mode, task.diff = "startline.lab.start_barrier", False, check_mode, False
    task.args = {**ARGUMENTS, **arguments}
    loader = DataLoader()
    action = start_barrier.ActionModule(
        task, mock.MagicMock(), mock.MagicMock(), loader, Templar(loader=loader, variables={}), mock.MagicMock()
    )
    left = list(answers)

    def execute(command: str, in_data: bytes) -> dict[str, t.Any]:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return {"rc": 0, "stdout": json.dumps(answer), "stderr": ""} if answer.get("format") else answer

    command = mock.Mock(side_effect=execute)
    with mock.patch.object(action, "_low_level_execute_command", command):
        return action.run(task_vars={}), command


def test_one_command_with_the_trial_on_its_input() -> None:
    result, command = run([RESULT])
    assert result["verdict"] == "valid"
    assert result["changed"]
    ((line,), options) = command.call_args
    assert line.startswith("/usr/bin/startline-agent submit --wait delivered --limit ")
    trial = json.loads(options["in_data"])
    plain = {"environment": {}, "links": {}, "network": None, "addresses": [], "site": None}
    assert trial["members"] == [{"name": "a-0", "rank": 0, "command": "true", **plain}]


def test_check_mode_asks_nobody() -> None:
    result, command = run([RESULT], check_mode=True)
    assert result["changed"]
    command.assert_not_called()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"members": None}, "members"),
        ({"wait": "soon"}, "wait"),
        ({"deadline": "often"}, "deadline"),
        ({"deadline": -1}, "deadline is not in"),
        ({"on_early_exit": "panic"}, "on_early_exit"),
        ({"dedline": 1}, "dedline"),
        ({"members": [{"name": "a-0", "rank": 0}]}, "command"),
    ],
)
def test_arguments_that_cannot_be(changes: dict[str, t.Any], words: str) -> None:
    with pytest.raises(AnsibleActionFail, match=words):
        run([RESULT], **changes)


def test_a_broken_connection_is_made_again(clock: Clock) -> None:
    broken = {"rc": 255, "stdout": "", "stderr": "Connection reset by peer"}
    result, command = run([AnsibleConnectionFailure("no route"), broken, RESULT])
    assert result["verdict"] == "valid"
    assert command.call_count == 3


def test_a_coordinator_that_never_answers_is_given_up_and_not_unreachable(clock: Clock) -> None:
    begin = clock.now
    result, _command = run([AnsibleConnectionFailure("no route to host")])
    assert result["failed"]
    assert "no route to host" in result["msg"]
    assert "Nothing is known of a-0" in result["msg"]
    assert "unreachable" not in result
    assert clock.now - begin < 1000


def test_a_refusal_is_final(clock: Clock) -> None:
    result, command = run([{"rc": 1, "stdout": "", "stderr": "startline-agent: r1 is stale"}])
    assert result["failed"]
    assert "r1 is stale" in result["msg"]
    assert command.call_count == 1


def test_the_documentation_has_the_arguments_that_are_checked() -> None:
    def flat(options: dict[str, t.Any], nested: str) -> dict[str, t.Any]:
        return {
            name: (
                option.get("type"),
                option.get("required", False),
                option.get("default"),
                option.get("choices"),
                option.get("elements"),
                flat(option[nested], nested) if nested in option else None,
            )
            for name, option in options.items()
        }

    documentation = yaml.safe_load(documented.DOCUMENTATION)
    assert {"roster", "dropped", "barriers"} <= yaml.safe_load(documented.RETURN).keys()
    assert flat(documentation["options"], "suboptions") == flat(start_barrier.ARGUMENT_SPEC, "options")


def submission(arguments: dict[str, t.Any]) -> dict[str, t.Any]:
    """What is submitted of a task's arguments."""
    validated = ArgumentSpecValidator(start_barrier.ARGUMENT_SPEC).validate(arguments)
    assert not validated.error_messages
    return _barrier_call.submission(
        {name: value for name, value in validated.validated_parameters.items() if name != "wait"}
    )


def test_the_examples_are_what_it_takes() -> None:
    for play in yaml.safe_load(documented.EXAMPLES):
        _barrier_call.check(submission({**play["tasks"][0]["startline.lab.start_barrier"], "run_id": "run-1"}))


def test_the_documentation_has_what_is_returned() -> None:
    trial = wire.checked(submission(ARGUMENTS), wire.SUBMISSION, "trial")
    result = barrier.Barrier(trial, barrier.Now(0.0, 0)).result()
    returned = yaml.safe_load(documented.RETURN)
    assert set(returned) == {*result, "msg", "evidence", "waited_at_most_s"}
    assert set(returned["members"]["sample"]["party-0"]) == set(result["members"]["a-0"])
