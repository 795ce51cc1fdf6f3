# SPDX-License-Identifier: GPL-3.0-or-later
"""The actions plan and run, as real Ansible objects."""

from __future__ import annotations

import os
import pathlib
import typing as t
from unittest.mock import MagicMock

import pytest
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.plugins.loader import connection_loader
from ansible.template import Templar

from ansible_collections.startline.lab.plugins.action import plan as plan_action
from ansible_collections.startline.lab.plugins.action import run as run_action
from ansible_collections.startline.lab.plugins.plugin_utils import _experiment
from ansible_collections.startline.lab.plugins.plugin_utils._requirements import Absent

TEXT = "groups: {party: {count: 2}}\ncommand: run {{ rank }}\nartifacts: [{src: ../work}]\nrepeats: 2\n"


@pytest.fixture
def project(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "experiments/demo.yml").write_text(TEXT, encoding="utf-8")
    return tmp_path


def act(module: t.Any, check_mode: bool = False, **args: t.Any) -> dict[str, t.Any]:
    task = MagicMock(Task)
    task.action, task.args, task.async_val, task.check_mode, task.diff = "plan", args, 0, check_mode, False
    play_context = PlayContext()
    loader = DataLoader()
    action = module.ActionModule(
        task=task,
        connection=connection_loader.get("local", play_context, os.devnull),
        play_context=play_context,
        loader=loader,
        templar=Templar(loader=loader),
        shared_loader_obj=None,
    )
    found: dict[str, t.Any] = action.run(task_vars={})
    return found


def plan(project: pathlib.Path, **args: t.Any) -> dict[str, t.Any]:
    return act(plan_action, project_dir=str(project), **args)


def test_a_plan_opens_a_run(project: pathlib.Path) -> None:
    result = plan(project, exp="demo")
    assert result["changed"]
    assert not result["resumed"]
    assert result["plan"]["source"] == "experiments/demo.yml"
    assert result["plan"]["artifacts"][0]["src"] == "work"
    assert result["summary"].startswith("demo\n")
    assert result["run_dir"] == str(project / ".startline/runs" / result["run_id"])
    assert (pathlib.Path(result["run_dir"]) / "run.json").is_file()


def test_the_same_command_goes_on_until_the_run_is_finished(project: pathlib.Path) -> None:
    first = plan(project, exp="demo")
    second = plan(project, exp="demo")
    assert (second["run_id"], second["resumed"], second["changed"]) == (first["run_id"], True, False)
    private = str(project / ".startline")
    assert act(run_action, check_mode=True, run_id=first["run_id"], private_dir=private)["changed"]
    assert act(run_action, run_id=first["run_id"], private_dir=private)["changed"]
    assert not act(run_action, run_id=first["run_id"], private_dir=private)["changed"]
    assert plan(project, exp="demo")["run_id"] != first["run_id"]


def test_another_plan_is_another_run(project: pathlib.Path) -> None:
    first = plan(project, exp="demo")
    other = plan(project, exp="demo", set="repeats=3")
    assert other["run_id"] != first["run_id"]
    assert plan(project, exp="demo", run=first["run_id"])["resumed"]
    with pytest.raises(AnsibleActionFail, match="made of another plan"):
        plan(project, exp="demo", run=other["run_id"])
    assert plan(project, run=other["run_id"])["plan"] == other["plan"], "a run keeps the plan that it was made of"


def test_a_changed_program_is_another_run(project: pathlib.Path) -> None:
    (project / "work/run.py").write_text("one", encoding="utf-8")
    first = plan(project, exp="demo")
    (project / "work/run.py").write_text("two", encoding="utf-8")
    assert plan(project, exp="demo")["run_id"] != first["run_id"]
    with pytest.raises(AnsibleActionFail, match="begun with another content of work"):
        plan(project, exp="demo", run=first["run_id"])


def test_what_is_recorded_of_a_run_can_be_read_without_taking_it(project: pathlib.Path) -> None:
    first = plan(project, exp="demo")
    before = (pathlib.Path(first["run_dir"]) / "run.json").read_bytes()
    (project / "experiments/demo.yml").unlink()
    again = plan(project, run=first["run_id"], validate_only=True)
    assert {key: again[key] for key in ("plan", "run_id", "created", "expires", "run_dir")} == {
        key: first[key] for key in ("plan", "run_id", "created", "expires", "run_dir")
    }
    assert (pathlib.Path(first["run_dir"]) / "run.json").read_bytes() == before


@pytest.mark.parametrize("how", [{"validate_only": True}, {"check_mode": True}])
def test_a_plan_alone_writes_nothing(project: pathlib.Path, how: dict[str, bool]) -> None:
    result = plan(project, exp="demo", **how)
    assert len(result["plan"]["trials"]) == 2
    assert "run_id" not in result
    assert not (project / ".startline").exists()


def test_a_file_outside_the_project(project: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("own") / "mine.yml"
    path.write_text("groups: {a: {}}\ncommand: 'true'\n", encoding="utf-8")
    result = plan(project, exp=str(path), validate_only=True)
    assert (result["experiment"], result["plan"]["source"]) == ("mine", str(path))


def test_a_path_within_the_project_is_the_same_experiment(
    project: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_name = plan(project, exp="demo", validate_only=True)
    monkeypatch.chdir(project / "experiments")
    for path in ("demo.yml", "./demo.yml", str(project / "experiments/demo.yml"), "experiments/demo.yml"):
        assert plan(project, exp=path, validate_only=True)["plan"] == by_name["plan"]


def test_all_problems_are_in_one_message_and_as_data(project: pathlib.Path) -> None:
    (project / "experiments/demo.yml").write_text(TEXT.replace("../work", "../wrok"), encoding="utf-8")
    result = plan(project, exp="demo", set="repeats=0,groups.party.cuont=1")
    assert result["failed"]
    assert result["msg"].splitlines() == [
        "The experiment has 3 problems.",
        "  experiments/demo.yml:3: artifacts[0].src: there is no file or directory wrok",
        "    src is relative to the experiment file.",
        "  -e set: groups.party.cuont: is not a key that means anything here",
        "    Did you mean count? Known here: site, count, spares, instance_type, image, volume_size, command, environment.",
        "  -e set: repeats: must be at least 1, not 0",
        "    How often each point is measured.",
    ]
    assert result["problems"][0]["line"] == 3
    assert not (project / ".startline").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "Which experiment.*There are: demo"),
        ({"exp": "", "run": ""}, "Which experiment"),
        ({"run": "demo-awx1"}, "plan .*cannot be read"),
        ({"run": "nonsense"}, "not the id of a run"),
        ({"exp": "demo", "awx_job_id": "x"}, "not the id of an AWX job"),
        ({"exp": "demo", "run": "demo-awx1"}, "was not started from here"),
    ],
)
def test_what_cannot_be_is_said_plainly(project: pathlib.Path, args: dict[str, str], message: str) -> None:
    with pytest.raises(AnsibleActionFail, match=message):
        plan(project, **args)


def test_an_unknown_experiment_lists_those_there_are(project: pathlib.Path) -> None:
    assert "Did you mean demo? There are: demo." in plan(project, exp="dmeo")["msg"]


def test_a_file_that_is_not_utf_8(project: pathlib.Path) -> None:
    (project / "experiments/demo.yml").write_bytes(b"description: \xff\n")
    with pytest.raises(AnsibleActionFail, match=r"experiments/demo\.yml: is not UTF-8 \(byte 13\)"):
        plan(project, exp="demo")


def test_without_pydantic_runs_are_resumed_but_no_experiment_is_read(
    project: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = plan(project, exp="demo")["run_id"]
    missing = ModuleNotFoundError("No module named 'pydantic'", name="pydantic")
    monkeypatch.setattr(_experiment, "pydantic", Absent(missing))
    with pytest.raises(AnsibleActionFail, match=r"an experiment needs pydantic: pip install -r requirements\.txt"):
        plan(project, exp="demo")
    assert plan(project, run=run_id)["resumed"]


def test_an_awx_job_has_its_own_run(project: pathlib.Path) -> None:
    assert plan(project, exp="demo", awx_job_id="17")["run_id"] == "demo-awx17"
    assert plan(project, exp="demo", awx_job_id="18", awx_workflow_job_id="9")["run_id"] == "demo-awx9"


def test_a_record_that_cannot_be_read_is_passed_over(project: pathlib.Path) -> None:
    first = plan(project, exp="demo")
    (pathlib.Path(first["run_dir"]) / "run.json").write_text("{", encoding="utf-8")
    assert plan(project, exp="demo")["run_id"] != first["run_id"]
