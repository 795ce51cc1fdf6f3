# SPDX-License-Identifier: GPL-3.0-or-later
"""Quorum, spares and early exits with real processes."""

from __future__ import annotations

import json
import typing as t

import pytest

from ansible_collections.startline.lab.plugins.plugin_utils import _barrier_call, _plan, _trial
from ansible_collections.startline.lab.plugins.plugin_utils._experiment import load_experiment
from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent.world import RUN, World, until

Make = t.Callable[..., World]

TEXT = """
groups:
  party: {count: 3, spares: 1}
command: cat hosts.config; echo {{ rank }} of {{ size }} {{ hosts | map(attribute='name') | join(' ') }}
timeout: 20
barrier: {deadline: 20, grace: 300ms, quorum: 2}
"""


def run_planned(world: World, text: str = TEXT) -> tuple[dict[str, t.Any], list[str]]:
    """What the action `trial` does, with the rendezvous of a world; and the outcome of each attempt."""
    plan = _plan.expand(load_experiment(text, "experiments/demo.yml"))
    hosts = {member["name"]: {"address": f"10.0.0.{9 + member['index']}"} for member in plan["members"]}
    formation = _trial.Formation.planned(plan, plan["trials"][0])
    outcomes = []
    while True:
        attempt = len(outcomes) + 1
        composed = _trial.compose_trial(
            plan, plan["trials"][0], hosts, run_id=RUN, attempt=attempt, formation=formation
        )
        trial = _barrier_call.submission({**composed, "delivery_deadline": 20.0})
        _barrier_call.check(trial)
        result = world.run(trial)
        outcomes.append(result["outcome"])
        if result["outcome"] != "reform":
            return result, outcomes
        formation = formation.formed(result)


def output(world: World, member: str, attempt: int) -> str:
    return (world.spool(member, attempt=attempt) / "stdout").read_text(encoding="utf-8")


def test_a_spare_steps_in_and_everything_is_made_for_those_who_start(make_world: Make) -> None:
    world = make_world(4)
    world.start("rendezvous", "party-0", "party-2", "party-3")
    result, outcomes = run_planned(world)
    assert outcomes == ["reform", "completed"]
    assert (result["verdict"], result["reasons"]) == ("valid", [])
    assert result["roster"] == ["party-0", "party-2", "party-3"]
    assert result["replaced"] == [{"member": "party-1", "was": "absent"}]
    assert [entry["attempt"] for entry in result["formed_from"]] == [1]
    config = "10.0.0.9\n10.0.0.11\n10.0.0.12\n"
    for rank, member in enumerate(result["roster"]):
        assert output(world, member, 2) == f"{config}{rank} of 3 party-0 party-2 party-3\n"
    assert not list(world.directory.glob("*/state/trials/*/r1/1/fired.json")), "nobody started in the first attempt"
    # The straggler comes at last, and starts in no attempt.
    world.start("party-1")
    until(lambda: "party-1" in world.status()["connected"], what="the straggler")
    assert not list((world.directory / "party-1" / "state" / "trials").glob("*/*/*/fired.json"))


def test_a_quorum_goes_without_those_who_do_not_come(make_world: Make) -> None:
    world = make_world(4)
    world.start("rendezvous", "party-2", "party-0")
    result, outcomes = run_planned(world)
    assert outcomes == ["reform", "completed"]
    assert result["verdict"] == "degraded"
    assert result["reasons"] == ["2 of 3 seats filled (party-0 ... party-2)", "party-1 was dropped (absent)"]
    assert output(world, "party-2", 2) == "10.0.0.9\n10.0.0.11\n1 of 2 party-0 party-2\n"


def test_at_full_strength_there_is_one_attempt_and_the_spare_is_let_go(make_world: Make) -> None:
    world = make_world(4)
    world.start_all()
    result, outcomes = run_planned(world)
    assert (outcomes, result["verdict"], result["dropped"]) == (["completed"], "valid", [])
    assert result["members"]["party-3"]["role"] == "spare"
    until(lambda: "not needed" in json.dumps(world.log("party-3")), what="the spare's release")


def test_a_controller_that_comes_back_finds_the_attempt_that_was_formed(make_world: Make) -> None:
    world = make_world(4)
    world.start("rendezvous", "party-0", "party-2", "party-3")
    one, outcomes = run_planned(world)
    two, again = run_planned(world)
    assert outcomes == again == ["reform", "completed"]
    assert one["start_ns"] == two["start_ns"]


@pytest.mark.parametrize("victim", [None, "rendezvous"])
def test_the_grace_is_kept_also_over_a_restart(make_world: Make, victim: str | None) -> None:
    world = make_world(2)
    world.start("rendezvous", "party-0")
    seats = [{"members": ["party-0", "party-1"], "seats": 2, "least": 1}]
    waiting = world.submit(world.trial("echo here", seats=seats, grace=2))
    until(lambda: world.state("party-0") == "armed", what="arming")
    if victim:
        world.kill(victim)
        world.start(victim)
    result = world.result(waiting)
    assert result["published"] - result["members"]["party-0"]["armed_at"] >= 1.9
    assert (result["roster"], result["verdict"]) == (["party-0"], "degraded")


@pytest.mark.parametrize(("policy", "code", "verdict"), [("stop", 0, "valid"), ("stop_on_failure", 3, "invalid")])
def test_the_first_end_stops_the_others_at_once(make_world: Make, policy: str, code: int, verdict: str) -> None:
    world = make_world(3)
    world.start_all()
    commands = {"party-1": f"sleep 0.3; exit {code}", "party-2": "trap '' TERM; sleep 600 & wait; sleep 600"}
    result = world.run(world.trial("sleep 600", commands=commands, on_early_exit=policy, timeout=60))
    assert (result["early_exit"], result["verdict"]) == ("party-1", verdict)
    assert result["reasons"] == ([f"party-1 exited with code {code}"] if code else [])
    assert result["members"]["party-0"]["duration_s"] < 5
    assert result["members"]["party-2"]["signal"] == 9, "one that does not listen is killed"
    assert result["ended"] - result["start"] < 12
