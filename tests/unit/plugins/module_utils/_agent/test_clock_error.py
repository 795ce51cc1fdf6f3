# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts whose clocks are wrong start right, and the reported bound is true: benchmarks/clock_error.py, shortened."""

from __future__ import annotations

import pathlib
import random
import time

import pytest

from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent.test_meeting import journal, wait
from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent.world import until
from benchmarks import clock_error


def test_the_true_start_is_within_the_reported_bound(tmp_path: pathlib.Path) -> None:
    found = clock_error.measure(members=3, trials=5, seed=4, directory=tmp_path)
    assert clock_error.violations(found) == []
    rows = [row for trial, _skew, _allowed in found for row in trial]
    assert len(rows) == 15
    assert max(abs(row.wall) for row in rows) > 10 * max(row.bound for row in rows), "the clocks were wrong"


def test_a_step_between_arming_and_t_moves_no_start(tmp_path: pathlib.Path) -> None:
    world = clock_error.WrongWorld(tmp_path, ["party-0", "party-1"], random.Random(1))  # noqa: S311
    try:
        world.start("rendezvous", "party-0")
        waiting = world.submit(world.trial("true"))
        until(lambda: world.state("party-0") == "armed", what="arming")
        world.step("party-0", 0.0, 2.0)
        world.start("party-1")
        result = world.result(waiting)
        row = result["members"]["party-0"]
        assert result["outcome"] == "completed"
        assert result["reasons"] == ["party-0: clock was stepped by +2.000 s before T"]
        assert result["verdict"] == "degraded"
        true_late_us = (world.true_start("party-0", "r1") - result["start_ns"]) / 1e3
        assert abs(true_late_us - row["late_us"]) <= row["bound_us"] < 50_000
    finally:
        world.close()


def test_who_measured_before_the_rendezvous_clock_was_slewed_says_so(tmp_path: pathlib.Path) -> None:
    world = clock_error.WrongWorld(tmp_path, ["party-0", "party-1"], random.Random(1))  # noqa: S311
    try:
        world.start("rendezvous", "party-0")
        waiting = world.submit(world.trial("true"))
        until(lambda: world.state("party-0") == "armed", what="arming")
        world.slew("rendezvous", 0.0, 0.5, -0.08)
        time.sleep(0.6)
        world.start("party-1")
        result = world.result(waiting)
        assert (result["verdict"], result["reasons"]) == ("valid", [])
        ahead_ns = world.ahead_ns(result["start_ns"])
        assert ahead_ns == pytest.approx(-40e6, rel=0.01)
        for member, least_us in (("party-0", 39_000), ("party-1", 0)):
            row = result["members"][member]
            true_late_us = (world.true_start(member, "r1") + ahead_ns - result["start_ns"]) / 1e3
            assert abs(true_late_us - row["late_us"]) <= row["bound_us"]
            assert least_us <= row["bound_us"] < least_us + 10_000
    finally:
        world.close()


def test_a_meeting_after_the_rendezvous_clock_was_slewed_is_as_uncertain_as_that(tmp_path: pathlib.Path) -> None:
    world = clock_error.WrongWorld(tmp_path, ["party-0", "party-1"], random.Random(1))  # noqa: S311
    try:
        world.start_all()
        slewed = tmp_path / "slewed"
        # Who waits has the clock of its host.
        own = f"export STARTLINE_WRONG_CLOCK={tmp_path}/$STARTLINE_MEMBER/clock"
        early, late = (
            wait(world, name).replace(" ", f":{tmp_path}/wrong ", 1)  # PYTHONPATH stands in front
            for name in ("early", "late")
        )
        waiting = world.submit(world.trial(f"{own}; {early}; until [ -e {slewed} ]; do sleep 0.02; done; {late}"))
        until(lambda: world.state("party-0") == "fired", what="the start")
        until(lambda: b'"Passed"' in journal(world).read_bytes(), what="the first meeting")
        world.slew("rendezvous", 0.0, 0.5, -0.08)
        time.sleep(0.6)
        slewed.touch()
        result = world.result(waiting)
        assert (result["verdict"], result["reasons"]) == ("valid", [])
        before, after = (meeting["skew"]["bound_us"] for meeting in result["barriers"])
        assert before < 10_000
        assert 39_000 <= after < 50_000
    finally:
        world.close()


def test_a_step_while_others_are_waited_for_can_be_refused(tmp_path: pathlib.Path) -> None:
    world = clock_error.WrongWorld(tmp_path, ["party-0", "party-1"], random.Random(1))  # noqa: S311
    try:
        world.start("rendezvous", "party-0")
        waiting = world.submit(world.trial("true", on_clock_error="refuse"))
        until(lambda: world.state("party-0") == "armed", what="arming")
        world.step("party-0", 0.0, 2.0)
        result = world.result(waiting)  # the next measurement sees it: nobody has to come for that
        assert (result["outcome"], result["start_ns"]) == ("aborted", None)
        assert result["reasons"] == ["party-0: clock was stepped by +2.000 s before T"]
    finally:
        world.close()


def test_a_clock_that_is_wrong_and_says_so_may_start_and_one_that_is_stepped_is_told(tmp_path: pathlib.Path) -> None:
    world = clock_error.WrongWorld(tmp_path, ["party-0"], random.Random(2))  # noqa: S311
    try:
        world.start_all()
        first = world.run(world.trial("true", on_clock_error="refuse"))
        assert (first["verdict"], first["reasons"]) == ("valid", [])
        assert abs(first["members"]["party-0"]["clock"]["offset_s"]) > 0.1, "its wall clock is wrong"
        go = tmp_path / "go"
        waiting = world.submit(world.trial(f"until [ -e {go} ]; do sleep 0.02; done", "r2"))
        until(lambda: world.state("party-0", "r2") == "fired", what="the start")
        until((world.spool("party-0", "r2") / "fired.json").exists, what="the record of it")
        world.step("party-0", 0.0, -2.0)
        go.touch()
        second = world.result(waiting)
        assert second["reasons"] == ["party-0: clock was stepped by -2.000 s during the trial"]
        assert second["verdict"] == "degraded"
        offsets = [second["members"]["party-0"][name]["offset_s"] for name in ("clock", "clock_after")]
        assert abs(offsets[1] - offsets[0] + 2.0) < 0.01
    finally:
        world.close()
