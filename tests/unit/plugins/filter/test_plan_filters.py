# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters that read a plan: as functions, and once through a real playbook."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import subprocess
import sys
import typing as t

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.startline.lab.plugins.plugin_utils import _launch, _plan, _trial
from ansible_collections.startline.lab.plugins.plugin_utils._experiment import load_experiment

ROOT = pathlib.Path(__file__).parents[4]
RUN = "demo-20261121T093000Z-3fa9"
TEXT = """
groups: {party: {count: 2}}
command: run {{ rank }} {{ '{{ rank }}' }}
environment: {A: '{{ size }}'}
repeats: 2
"""
HOSTS = {"party-0": {"address": "10.0.0.10"}, "party-1": {"address": "10.0.0.9"}}


@pytest.fixture(scope="module")
def plan() -> dict[str, t.Any]:
    return _plan.expand(load_experiment(TEXT, "experiments/demo.yml"))


def call(name: str, *args: t.Any, **kwargs: t.Any) -> t.Any:
    module = importlib.import_module(f"ansible_collections.startline.lab.plugins.filter.{name}")
    filters = module.FilterModule().filters()
    assert list(filters) == [name]
    return filters[name](*args, **kwargs)


def test_trials(plan: dict[str, t.Any]) -> None:
    attempts = {"r1": {"attempt": 2, "finished": False}, "r2": {"attempt": 1, "finished": True}}
    assert call("trials", plan, attempts=attempts) == [{"trial_id": "r1", "attempt": 2}]


def test_hosts_config(plan: dict[str, t.Any]) -> None:
    assert call("hosts_config", plan, HOSTS) == "10.0.0.9\n10.0.0.10\n"


def test_sites(plan: dict[str, t.Any]) -> None:
    assert call("sites", plan, "us-east-1") == _launch.sites(plan, "us-east-1")


def test_launches(plan: dict[str, t.Any]) -> None:
    image = {"id": "ami-01234567"}
    found = call("launches", plan, RUN, "x", region="us-east-1", image=image)
    assert found == _launch.launches(plan, RUN, "x", default_region="us-east-1", default_image=image)
    delayed = _plan.expand(
        load_experiment(f"{TEXT}network: {{party: {{party: {{rtt: 40ms}}}}}}", "experiments/demo.yml")
    )
    (launch,) = call("launches", delayed, RUN, "x", region="us-east-1", image=image, netem_image={"name": "*-netem"})
    assert launch["image"] == {"name": "*-netem"}


def test_needed(plan: dict[str, t.Any]) -> None:
    assert call("needed", plan, []) == []
    assert call("needed", plan, ["party-1"]) == ["party-1"]


CALLS: dict[str, dict[str, t.Any]] = {
    "trials": {},
    "needed": {"missing": []},
    "hosts_config": {"hosts": {}},
    "sites": {},
    "launches": {"run_id": "x", "expires": "y", "region": "us-east-1"},
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("foreign", [{}, "text", None])
def test_what_is_no_plan_is_refused(name: str, foreign: t.Any) -> None:
    with pytest.raises(AnsibleFilterError, match="a plan of the format startline-plan/1 is needed"):
        call(name, foreign, **CALLS[name])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hosts_config", "no address is known of party-0, party-1"),
        ("sites", "names no region"),
        ("launches", "names no image"),
    ],
)
def test_errors_say_what_to_do(plan: dict[str, t.Any], name: str, message: str) -> None:
    with pytest.raises(AnsibleFilterError, match=message):
        call(name, plan, **CALLS[name])


def test_through_a_playbook(tmp_path: pathlib.Path) -> None:
    """What a template yields is not a template: the command keeps the braces that the experiment asked for."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/demo.yml").write_text(TEXT, encoding="utf-8")
    found = "plan.plan | startline.lab.trials"
    play = [
        {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "tasks": [
                {"startline.lab.plan": {"exp": "demo", "project_dir": str(tmp_path)}, "register": "plan"},
                {"ansible.builtin.set_fact": {"left": "{{ " + found + " }}"}},
                {"ansible.builtin.assert": {"that": "item.attempt == 1"}, "loop": "{{ left }}"},
                {
                    "ansible.builtin.copy": {
                        "content": "{{ {'left': left, 'plan': plan.plan, 'run_dir': plan.run_dir} | to_json }}",
                        "dest": str(tmp_path / "out.json"),
                        "mode": "0600",
                    },
                    "vars": {"ansible_python_interpreter": sys.executable},
                },
            ],
        }
    ]
    (tmp_path / "play.yml").write_text(json.dumps(play), encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", str(tmp_path / "play.yml")],
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_LOCAL_TEMP": str(tmp_path / "ansible"),
        },
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        output, _nothing = process.communicate(timeout=120)
    assert process.returncode == 0, output
    out = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    composed = [
        _trial.compose_trial(out["plan"], _trial.find(out["plan"], entry["trial_id"]), HOSTS, run_id=RUN)
        for entry in out["left"]
    ]
    commands = [[member["command"] for member in trial["members"]] for trial in composed]
    assert commands == [["run 0 {{ rank }}", "run 1 {{ rank }}"]] * 2
    _plan.check_plan(out["plan"])
    record = json.loads((pathlib.Path(out["run_dir"]) / "run.json").read_text(encoding="utf-8"))
    assert record["controller"]["pid"] == process.pid, "the process that leads the play, not a worker of it"
