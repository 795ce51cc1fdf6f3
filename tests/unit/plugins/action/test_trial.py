# SPDX-License-Identifier: GPL-3.0-or-later
"""The action trial: what it submits, and that it forms anew until somebody can start."""

from __future__ import annotations

import json
import typing as t
from unittest import mock

import pytest
import yaml
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.task import Task
from ansible.template import Templar

from ansible_collections.startline.lab.plugins.action import trial as action_plugin
from ansible_collections.startline.lab.plugins.modules import trial as documented
from ansible_collections.startline.lab.plugins.plugin_utils import _network_check, _plan
from ansible_collections.startline.lab.plugins.plugin_utils._experiment import load_experiment

TEXT = "groups: {a: {count: 2, spares: 1}}\ncommand: run {{ rank }} of {{ size }}\nbarrier: {quorum: 50%}\n"
HOSTS = {f"a-{index}": {"address": f"10.0.0.{index + 1}"} for index in range(3)}


def answer(attempt: int, outcome: str, roles: dict[str, str], **changes: t.Any) -> dict[str, t.Any]:
    roster = [name for name, role in roles.items() if role == "starter"]
    return {
        "format": "startline-trial/1",
        "epoch": {"run": "run-1", "trial": "r1", "attempt": attempt},
        "outcome": outcome,
        "verdict": "valid",
        "reasons": ["forms anew"] if outcome == "reform" else [],
        "roster": roster,
        "members": {n: {"role": role, "state": "armed", "connected": True} for n, role in roles.items()},
        "skew": None,
        "replaced": [{"member": n, "was": "absent"} for n, role in roles.items() if role == "replaced"],
        "dropped": [],
        **changes,
    }


def run(
    answers: list[dict[str, t.Any]], check_mode: bool = False, **arguments: t.Any
) -> tuple[dict[str, t.Any], list[dict[str, t.Any]]]:
    """The action's result, and what it has submitted."""
    plan = _plan.expand(load_experiment(TEXT, "experiments/demo.yml"))
    task = mock.MagicMock(Task)
    task.action, task.async_val, task.check_mode, task.diff = "startline.lab.trial", False, check_mode, False
    task.args = {"plan": plan, "trial_id": "r1", "run_id": "run-1", "hosts": HOSTS, **arguments}
    loader = DataLoader()
    action = action_plugin.ActionModule(
        task, mock.MagicMock(), mock.MagicMock(), loader, Templar(loader=loader, variables={}), mock.MagicMock()
    )
    submitted: list[dict[str, t.Any]] = []
    left = list(answers)

    def execute(command: str, in_data: bytes) -> dict[str, t.Any]:
        submitted.append(json.loads(in_data))
        return {"rc": 0, "stdout": json.dumps(left.pop(0)), "stderr": ""}

    with mock.patch.object(action, "_low_level_execute_command", mock.Mock(side_effect=execute)):
        return action.run(task_vars={}), submitted


def test_a_trial_that_starts_as_planned_is_submitted_once() -> None:
    roles = {"a-0": "starter", "a-1": "starter", "a-2": "spare"}
    result, submitted = run([answer(3, "completed", roles)], attempt=3, bucket="b", region="us-east-1")
    assert (result["verdict"], result["changed"]) == ("valid", True)
    assert [trial["attempt"] for trial in submitted] == [3]
    assert [member["command"] for member in submitted[0]["members"]] == ["run 0 of 2", "run 1 of 2", ":"]
    assert submitted[0]["evidence"]["bucket"] == "b"


def test_others_who_can_start_get_files_and_commands_of_their_own() -> None:
    first = answer(1, "reform", {"a-0": "starter", "a-1": "replaced", "a-2": "starter"})
    second = answer(2, "completed", {"a-0": "starter", "a-2": "starter"})
    result, submitted = run([first, second])
    assert result["epoch"]["attempt"] == 2
    assert [trial["attempt"] for trial in submitted] == [1, 2]
    assert [(m["name"], m["command"]) for m in submitted[1]["members"]] == [
        ("a-0", "run 0 of 2"),
        ("a-2", "run 1 of 2"),
    ]
    assert submitted[1]["files"] == {"hosts.config": "10.0.0.1\n10.0.0.3\n"}
    assert submitted[1]["seats"] == [{"members": ["a-0", "a-2"], "seats": 2, "least": 1}]
    assert submitted[1]["formed_from"] == [
        {"attempt": 1, "roster": ["a-0", "a-2"], "replaced": [{"member": "a-1", "was": "absent"}], "dropped": []}
    ]


def test_a_trial_is_given_what_was_measured_of_its_network() -> None:
    shaped = f"{TEXT}network: {{a: {{a: {{rtt: 80ms}}}}}}\n"
    plan = _plan.expand(load_experiment(shaped, "experiments/demo.yml"))
    report = _network_check.judge_check(
        plan, plan["checks"][1], {}, {}, attempt=2, delays=[["30ms"]], problems=["there is more already"]
    )
    roles = {"a-0": "starter", "a-1": "starter", "a-2": "spare"}
    answers = [answer(1, "completed", roles)]
    _result, (submitted,) = run(answers, plan=plan, checks={"network-1": report})
    assert submitted["network_check"]["reasons"] == ["there is more already"]
    assert submitted["networks"]["n1"]["phases"][0]["rules"][0]["delay"] == "30ms"
    answers = [answer(1, "completed", roles)]
    _result, (submitted,) = run(answers, plan=plan)
    assert submitted["network_check"]["verdict"] == "degraded", "what should have been measured and was not"
    _result, (submitted,) = run([answer(1, "completed", roles)])
    assert submitted["network_check"] is None


def test_a_trial_that_nobody_starts_fails() -> None:
    aborted = answer(1, "aborted", {}, verdict="invalid", reasons=["after 60 s not armed: a-0 (absent)"])
    result, _submitted = run([aborted])
    assert result["failed"]
    assert "a-0 (absent)" in result["msg"]


def test_check_mode_makes_everything_and_submits_nothing() -> None:
    result, submitted = run([], check_mode=True)
    assert result["msg"] == "r1: would run on a-0, a-1"
    assert submitted == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trial_id": "r7"}, "the plan has no trial r7"),
        ({"plan": {}}, "a plan of the format"),
        ({"hosts": {}}, "no address is known of a-0, a-1"),
    ],
)
def test_what_cannot_be_run_is_refused(changes: dict[str, t.Any], words: str) -> None:
    with pytest.raises(AnsibleActionFail, match=words):
        run([], **changes)


def test_the_documentation_has_the_arguments_that_are_checked() -> None:
    options = yaml.safe_load(documented.DOCUMENTATION)["options"]
    wanted = {
        name: {key: value for key, value in option.items() if key != "description"} for name, option in options.items()
    }
    assert wanted == action_plugin.ARGUMENT_SPEC
