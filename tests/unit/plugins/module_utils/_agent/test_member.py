# SPDX-License-Identifier: GPL-3.0-or-later
"""One trial as a host sees it, in stories; test_barrier.py drives it through whatever may happen."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.startline.lab.plugins.module_utils._agent import clock, member, wire

EPOCH = wire.Epoch("run", "r1", 1)
MS = 10**6
GOOD = clock.Clock("ntp", 0, 1 * MS, rtt_ns=1 * MS)


def kinds(actions: t.Iterable[member.Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def armed() -> member.Trial:
    trial = member.Trial(EPOCH, {"upload": False, "network": None, "max_clock_error": 0.05})
    trial.step(member.Prepared())
    trial.step(member.Measured(GOOD, 0))
    assert kinds(trial.step(member.Ready(0))) == ["Save", "Say"]
    assert trial.state == "armed"
    return trial


def started() -> member.Trial:
    trial = armed()
    assert kinds(trial.step(member.StartSaid(10 * MS, 1000 * MS, 0))) == ["Save", "Fire"]
    return trial


def test_t_that_is_said_while_it_arms_anew_is_waited_for_again() -> None:
    trial = member.Trial.from_json(armed().to_json())
    assert kinds(trial.resume()) == ["Save", "Arm", "Measure"]
    assert trial.step(member.StartSaid(10 * MS, 1000 * MS, 0)) == []
    trial.step(member.Measured(GOOD, 0))
    assert kinds(trial.step(member.Ready(0))) == ["Save", "Say"], "the rendezvous says T again to who is armed"
    assert kinds(trial.step(member.StartSaid(10 * MS, 1000 * MS, 0))) == ["Save", "Fire"]


def test_who_was_let_go_says_so_until_it_is_heard() -> None:
    trial = armed()
    assert kinds(trial.step(member.AbortSaid("stopped"))) == ["Release", "Save", "Say"]
    assert trial.failed == "released: stopped"
    again = member.Trial.from_json(trial.to_json())
    assert kinds(again.step(member.LinkUp())) == ["Say"]
    assert kinds(again.step(member.AbortSaid("stopped"))) == ["Save"], "the answer"
    assert (again.settled, again.duty) == (True, {})
    assert kinds(again.step(member.AbortSaid("stopped"))) == []
    assert kinds(again.step(member.LinkUp())) == []


def test_rules_of_a_trial_without_a_start_are_removed_before_it_is_forgotten() -> None:
    trial = member.Trial(EPOCH, {"upload": False, "network": {"phases": []}, "max_clock_error": 0.05})
    assert kinds(trial.step(member.Prepared())) == ["Save", "Say", "Arm", "Measure", "Shape"]
    trial.step(member.Shaped(0, 0, {}))
    assert kinds(trial.step(member.AbortSaid("stopped"))) == ["Release", "Save", "Say", "Unshape"]
    assert trial.step(member.AbortSaid("stopped")) == []
    assert not trial.settled
    assert kinds(trial.step(member.Cleared())) == ["Save", "Say", "Save"]
    assert trial.settled


@pytest.mark.parametrize("gone", [True, False])
def test_rules_that_cannot_be_removed_are_said_to_stand_and_hold_nothing_up(gone: bool) -> None:
    trial = member.Trial(EPOCH, {"upload": False, "network": {"phases": []}, "max_clock_error": 0.05})
    trial.step(member.Prepared())
    trial.step(member.Shaped(0, 0, {}))
    assert trial.report()["network"]["cleared"] is None
    trial.step(member.Measured(GOOD, 0))
    trial.step(member.Ready(0))
    trial.step(member.StartSaid(10 * MS, 1000 * MS, 0))
    exit = {"code": 0, "at_ns": 20 * MS}
    assert kinds(trial.step(member.Exited(exit))) == ["Save", "Say", "Unshape"]
    assert kinds(trial.step(member.Cleared("they stand", gone))) == ["Save", "Say", "Measure"]
    told = trial.report()["network"]
    assert (told["cleared"], told["problem"]) == (gone, "they stand")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (GOOD, False),
        (GOOD._replace(bound_ns=MS // 2), False),
        (GOOD._replace(wall_ns=2 * 10**9, bound_ns=0), True),  # stepped
        (GOOD._replace(wall_ns=2 * 10**9, bound_ns=60 * MS), True),  # and not well known since
        (GOOD._replace(bound_ns=0, offset_ns=10**9), True),
        (GOOD._replace(bound_ns=0, rtt_ns=3 * MS), True),
        (GOOD._replace(bound_ns=60 * MS, rtt_ns=3 * MS), False),  # the one before is better, and is kept
    ],
)
def test_what_a_clock_has_become_is_told_when_it_may_decide(found: clock.Clock, told: bool) -> None:
    trial = armed()
    actions = trial.step(member.Measured(found, 0))
    assert kinds(actions) == (["Save", "Say"] if told else [])
    assert trial.state == "armed"


def test_a_clock_that_grows_too_old_is_told() -> None:
    trial = armed()
    hour = 3600 * 10**9
    found = GOOD._replace(wall_ns=hour, steady_ns=hour, raw_ns=hour, bound_ns=100 * MS)
    assert 50 * MS < found.bound_ns < GOOD.bound_at(found.reading)
    assert kinds(trial.step(member.Measured(found, 0))) == ["Save", "Say"]


def test_what_the_rendezvous_clock_was_slewed_by_until_t_was_said_is_in_the_bound() -> None:
    trial = armed()
    trial.step(member.StartSaid(10 * MS, 1000 * MS, 0, ahead_ns=-7 * MS))
    trial.step(member.Fired(10 * MS, 10 * MS, GOOD.reading))
    assert trial.clock is not None
    assert trial.clock["bound_ns"] == GOOD.bound_ns + 7 * MS
    trial.step(member.Exited({"at_ns": 20 * MS}))
    trial.step(member.Measured(GOOD._replace(offset_ns=40 * MS, ahead_ns=-47 * MS), 30 * MS))
    assert trial.clock_after is not None
    assert trial.clock_after["drifted_ns"] == 0


def test_a_launcher_that_dies_once_t_was_accepted_leaves_evidence() -> None:
    trial = started()
    left = {"pid": 7, "command": "server"}
    port = {"protocol": "tcp", "port": 80, **left}
    actions = trial.step(member.LauncherGone(20 * MS, remaining=[left], ports=[port]))
    assert kinds(actions) == ["Save", "Say", "Measure"]
    assert trial.failed is None
    assert trial.exit is not None
    assert (trial.exit["remaining"], trial.exit["ports"]) == ([left], [port])
    assert trial.exit["detail"] == "its launcher was killed"
    trial.step(member.Measured(GOOD, 30 * MS))
    assert kinds(trial.step(member.Collected([]))) == ["Save", "Save", "Say"]
    assert trial.state == "delivered"


def test_a_host_that_was_restarted_after_t_was_accepted_delivers_what_there_is() -> None:
    before = started()
    trial = member.Trial.from_json(before.to_json())
    trial.outlive_boot()
    assert trial.resume() == []
    actions = trial.step(member.LauncherGone(None))
    assert kinds(actions) == ["Save", "Say", "Collect"], "another boot's clock is not compared with what was measured"
    assert trial.exit is not None
    assert (trial.exit["detail"], trial.exit["at_ns"]) == ("the host was restarted", before.start_ns)


@pytest.mark.parametrize("accepted", [False, True])
def test_a_command_that_cannot_be_started_is_a_failure(accepted: bool) -> None:
    trial = started() if accepted else armed()
    trial.step(member.LauncherGone(20 * MS, "cannot start the command: no such directory"))
    assert (trial.state, trial.failed) == ("armed", "cannot start the command: no such directory")


def test_of_a_settled_trial_only_its_end_is_kept() -> None:
    trial = started()
    trial.step(member.LauncherGone(20 * MS))
    trial.step(member.Measured(GOOD, 30 * MS))
    trial.step(member.Collected([]))
    assert kinds(trial.step(member.SettledSaid())) == ["Save"]
    kept = member.Trial.from_json(trial.to_json())
    assert (kept.duty, kept.network, kept.exit) == ({}, None, trial.exit)
    assert kinds(kept.resume()) == []
    assert kinds(kept.step(member.LinkUp())) == []
    assert kinds(kept.step(member.SettledSaid())) == []
