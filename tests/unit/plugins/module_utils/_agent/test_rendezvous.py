# SPDX-License-Identifier: GPL-3.0-or-later
"""What the rendezvous does by itself, without a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import resource
import signal
import time
import typing as t

import pytest

from ansible_collections.startline.lab.plugins.module_utils._agent import barrier, clock, config, rendezvous, wire

from .test_barrier import report
from .world import World


def test_the_time_daemon_is_asked_once_for_all_who_measure_at_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "asked"
    daemon = tmp_path / "bin" / "chronyc"
    daemon.parent.mkdir()
    daemon.write_text(f"#!/bin/sh\necho >> {asked}\n")
    daemon.chmod(0o700)
    monkeypatch.setenv("PATH", str(daemon.parent), prepend=os.pathsep)
    world = World(tmp_path / "world", [])

    async def measure() -> None:
        desk = rendezvous.Rendezvous(config.load(str(world.directory / "rendezvous" / "agent.json")))
        for _attempt in range(1000):
            desk.standing()
        await asyncio.gather(*desk._tasks)

    asyncio.run(measure())
    assert asked.read_text() == "\n"


def restored(world: World) -> rendezvous.Rendezvous:
    """What starts after whatever was there before."""
    desk = rendezvous.Rendezvous(config.load(str(world.directory / "rendezvous" / "agent.json")))
    os.makedirs(desk._directory, exist_ok=True)
    desk._restore()
    return desk


def test_a_journal_that_was_cut_anywhere_goes_on(tmp_path: pathlib.Path) -> None:
    world = World(tmp_path, ["party-0", "party-1"])
    epoch = wire.Epoch(world.trial()["run_id"], "r1", 1)

    async def story() -> None:
        desk = restored(world)
        trial = desk.submit(world.trial())
        desk._event(trial, barrier.Connected("party-0"))
        journal = pathlib.Path(trial.journal)
        whole = journal.read_bytes()
        begun = whole.index(b"\n") + 1
        assert whole.count(b"\n") == 3
        for size in range(begun, len(whole) + 1):
            journal.write_bytes(whole[:size])
            again = restored(world)
            again._next_turn()
            again._event(again._trials[epoch], barrier.Connected("party-1"))
            last = restored(world)._trials[epoch].barrier
            assert last is not None
            assert last.members["party-1"].state == "connected", f"cut after {size} bytes"
        for size in (0, 1, begun - 1):  # never submitted, then
            journal.write_bytes(whole[:size])
            again = restored(world)
            assert epoch not in again._trials
            again.submit(world.trial())
            assert epoch in restored(world)._trials

    asyncio.run(story())


def test_the_clock_of_a_rendezvous_goes_on_with_the_next_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members know T by it. It follows a step of the wall clock when nobody measures by it any more."""
    world = World(tmp_path, ["party-0"])
    step = 0
    real = clock.read

    def read() -> clock.Reading:
        return real()._replace(wall_ns=real().wall_ns + step)

    def away(desk: rendezvous.Rendezvous) -> int:
        """How far its clock is from the wall clock before any step, in whole seconds."""
        return round((desk.time_ns() - time.time_ns()) / 1e9)

    monkeypatch.setattr(clock, "read", read)

    async def story() -> None:
        nonlocal step
        desk = restored(world)
        first = desk.submit(world.trial())
        step = 10 * 10**9
        assert [away(desk), away(restored(world))] == [0, 0]
        desk.abort({"reason": "enough"})
        await first.ended.wait()
        assert first.barrier is not None
        assert first.barrier.phase == "settled"
        first.barrier.phase = "ended"  # its members are still there
        second = desk.submit(world.trial(trial_id="r2"))
        assert (second.barrier is not None, away(desk)) == (True, 0)
        desk.abort({"reason": "enough"})
        await second.ended.wait()
        first.barrier.phase = "settled"
        desk.submit(world.trial(trial_id="r3"))
        assert [away(desk), away(restored(world))] == [10, 10]
        step = 20 * 10**9
        assert away(restored(world)) == 10
        monkeypatch.setattr(clock, "boot", lambda: "another")
        assert away(restored(world)) == 20
        (pathlib.Path(desk._directory) / "clock.json").write_text("{")
        assert away(restored(world)) == 20

    asyncio.run(story())


def test_a_step_of_the_wall_clock_and_a_restart_end_no_trial(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deadlines are of the boot's steady time; of another boot there is only the wall clock."""
    world = World(tmp_path, ["party-0"])
    real, step = time.time, 0
    monkeypatch.setattr(time, "time", lambda: real() + step)

    async def story() -> None:
        nonlocal step
        desk = restored(world)
        trial = desk.submit(world.trial(deadline=20))
        for away in (0, 3600, -3600):
            step = away
            again = restored(world)
            assert again._now().steady == pytest.approx(desk._now().steady, abs=0.5)
            found = again._trials[trial.epoch].barrier
            assert found is not None
            assert found.wake_at is not None
            assert found.wake_at > again._now().steady
            assert found.phase == "gathering"
        monkeypatch.setattr(clock, "boot", lambda: "another")
        step = 3600
        assert restored(world)._now().steady == pytest.approx(time.time(), abs=0.5)

    asyncio.run(story())


@pytest.mark.parametrize("step_ns", [0, 700_000, -700_000, 10**9])
def test_every_step_of_the_wall_clock_since_the_anchor_is_in_the_bound(tmp_path: pathlib.Path, step_ns: int) -> None:
    """Also one that is too small to follow."""
    desk = rendezvous.Rendezvous(config.load(str(World(tmp_path, []).directory / "rendezvous" / "agent.json")))
    anchor = desk._anchor
    asked = anchor._replace(wall_ns=anchor.wall_ns + step_ns)
    desk._reference = clock.Clock("ntp", 0, 1000)._replace(**asked._asdict())
    assert desk._bound_ns(asked) == 1000 + abs(step_ns)
    assert desk._bound_ns(anchor) == 1000 + abs(step_ns), (
        "stepped since chrony was asked: our clock has no part in that"
    )


class Ear:
    """A peer that keeps what it is sent."""

    def __init__(self, member: str) -> None:
        self.member = member
        self.heard: list[dict[str, t.Any]] = []

    def send(self, line: bytes) -> None:
        self.heard.append(json.loads(line))


def test_of_a_trial_that_is_over_its_result_alone_is_kept(tmp_path: pathlib.Path) -> None:
    """A sweep has thousands, and the rendezvous' host little memory."""
    world = World(tmp_path, ["party-0", "party-1"])
    given = world.trial()
    epoch = wire.Epoch(given["run_id"], "r1", 1)

    def say(desk: rendezvous.Rendezvous, member: str, state: str, t_ns: int | None) -> list[dict[str, t.Any]]:
        said = {"type": "report", "epoch": epoch, **report(state), "start_ns": t_ns}
        ear = Ear(member)
        desk.reported(t.cast(t.Any, ear), said)
        return ear.heard

    async def story() -> None:
        desk = restored(world)
        trial = desk.submit(given)
        for member in world.members:
            desk._event(trial, barrier.Connected(member))
            say(desk, member, "armed", None)
        assert trial.barrier is not None
        t_ns = trial.barrier.start_ns
        for state in ("fired", "exited"):
            for member in world.members:
                say(desk, member, state, t_ns)
        say(desk, "party-0", "delivered", t_ns)
        long = os.path.getsize(trial.journal)
        say(desk, "party-1", "delivered", t_ns)
        before = trial.result()
        assert before["verdict"] == "valid", before["reasons"]
        await trial.settled.wait()
        assert (trial.kept, trial.barrier, trial.submission, trial.names) == (True, None, {}, {})
        assert os.path.getsize(trial.journal) < long
        for one in (desk, restored(world)):
            again = one.submit(given)
            assert again.settled.is_set()
            assert again.result() == before
            assert one.status()["trials"][0]["members"] == {"party-0": "delivered", "party-1": "delivered"}
            with pytest.raises(rendezvous.RequestError, match="other arguments"):
                one.submit({**given, "timeout": 1})
            assert [message["type"] for message in say(one, "party-1", "delivered", t_ns)] == ["settled"]
            assert [message["type"] for message in say(one, "party-1", "prepared", None)] == ["abort"]
            with pytest.raises(rendezvous.RequestError, match="under way"):
                one.abort({})
            one.submit(world.trial(trial_id="r2"))  # its turn comes
            assert one.status()["trials"][-1]["phase"] == "gathering"
            await asyncio.sleep(0)

    asyncio.run(story())


def test_what_cannot_be_written_is_neither_decided_nor_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path, ["party-0"])

    class Ended(BaseException):
        """Of the process."""

    def end(status: int) -> t.NoReturn:
        assert status == 1
        raise Ended

    async def story() -> None:
        desk = restored(world)
        trial = desk.submit(world.trial())
        before = pathlib.Path(trial.journal).read_bytes()
        assert trial.barrier is not None
        standing = trial.barrier.members
        monkeypatch.setattr(rendezvous.os, "_exit", end)
        # Half a line is on the disk when it is full.
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
        try:
            with pytest.raises(Ended):
                desk._event(trial, barrier.Connected("party-0"))
            with pytest.raises(rendezvous.RequestError, match=r"cannot write .*r2\.1\.journal: File too large"):
                desk.submit(world.trial(trial_id="r2", command="x" * len(before)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, old)
        assert pathlib.Path(trial.journal).read_bytes() == before
        assert trial.barrier.members == standing
        assert trial.decided == []
        assert "r2" not in [epoch.trial for epoch in desk._trials]

    asyncio.run(story())
    assert "journal unwritable" in capfd.readouterr().err
