# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent's children do for it, with real ones."""

from __future__ import annotations

import collections.abc
import gc
import os
import signal
import subprocess
import time
import typing as t

import pytest

from ansible_collections.startline.lab.plugins.module_utils._agent import workers
from ansible_collections.startline.lab.plugins.module_utils._agent.reactor import Reactor
from ansible_collections.startline.lab.plugins.module_utils._agent.workers import Workers


def children() -> set[int]:
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as stream:
        return {int(word) for word in stream.read().split()}


@pytest.fixture
def reactor() -> collections.abc.Iterator[Reactor]:
    numbers = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
    handlers, others = [signal.getsignal(number) for number in numbers], children()
    yield Reactor()
    gc.unfreeze()
    signal.set_wakeup_fd(-1)
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)
    for pid in children() - others:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def turn(reactor: Reactor, results: list[t.Any], count: int, limit: float = 20.0) -> None:
    """Run until there are so many results."""
    give_up = reactor.after(limit, reactor.stop)

    def look() -> None:
        reactor.stop() if len(results) >= count else reactor.after(0.01, look)

    reactor._running = True
    look()
    reactor.run()
    give_up.cancel()
    assert len(results) == count


def make() -> workers.Serve:
    """Says who it is and how many jobs it has had; sleeps, or kills itself, when it is told so."""
    jobs = 0

    def serve(job: t.Any) -> t.Any:
        nonlocal jobs
        jobs += 1
        if job == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if job == "fail":
            raise ValueError(job)
        if isinstance(job, float):
            time.sleep(job)
        return [os.getpid(), jobs, os.nice(0), len(job) if isinstance(job, str) else job]

    return serve


def test_jobs_one_after_the_other_are_one_childs(reactor: Reactor) -> None:
    staff, results = Workers(reactor, make), []
    # More than a socket holds, both ways.
    for job in ("a", "b" * 3_000_000, ["c" * 3_000_000]):
        staff.do(job, results.append)
        turn(reactor, results, len(results) + 1)
    assert {pid for pid, *_rest in results} == {results[0][0]} != {os.getpid()}
    assert [jobs for _pid, jobs, *_rest in results] == [1, 2, 3]
    assert [answer for *_rest, answer in results] == [1, 3_000_000, ["c" * 3_000_000]]
    assert {nice for _pid, _jobs, nice, _answer in results} == {min(19, os.nice(0) + workers.BEHIND)}


def test_a_job_does_not_wait_for_another(reactor: Reactor) -> None:
    staff, results = Workers(reactor, make), []
    staff.do(2.0, results.append)
    staff.do("quick", results.append)
    turn(reactor, results, 1)
    assert results[0][3] == len("quick")
    turn(reactor, results, 2)
    assert results[0][0] != results[1][0]


@pytest.mark.parametrize("job", ["die", "fail"])
def test_a_job_that_its_child_dies_of_is_said_and_the_next_gets_another(reactor: Reactor, job: str) -> None:
    staff, results = Workers(reactor, make), []
    staff.do("a", results.append)
    turn(reactor, results, 1)
    staff.do(job, results.append)
    turn(reactor, results, 2)
    staff.do("b", results.append)
    turn(reactor, results, 3)
    first, died, other = results
    assert (died, first[1], other[1]) == (None, 1, 1)
    assert first[0] != other[0]


def test_a_child_that_was_killed_while_idle_gets_no_job(reactor: Reactor) -> None:
    staff, results = Workers(reactor, make), []
    staff.do("a", results.append)
    turn(reactor, results, 1)
    os.kill(results[0][0], signal.SIGKILL)
    gone: list[bool] = []

    def look() -> None:
        reactor.after(0.01, look) if staff._idle else gone.append(True)

    look()
    turn(reactor, gone, 1)
    staff.do("b", results.append)
    turn(reactor, results, 2)
    assert results[1][0] != results[0][0]
    assert results[1][1] == 1


def test_a_job_for_a_child_whose_end_is_not_known_yet_fails_later(reactor: Reactor) -> None:
    """Not within the call, in the middle of whatever the caller does."""
    staff, results = Workers(reactor, make), []
    staff.do("a", results.append)
    turn(reactor, results, 1)
    os.kill(results[0][0], signal.SIGKILL)
    os.waitid(os.P_PID, results[0][0], os.WEXITED | os.WNOWAIT)
    staff.do("b", results.append)
    assert len(results) == 1
    turn(reactor, results, 2)
    assert results[1] is None


def test_a_child_without_a_job_ends(reactor: Reactor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LINGER", 0.2)
    staff, results = Workers(reactor, make), []
    staff.do("a", results.append)
    turn(reactor, results, 1)
    gone: list[bool] = []

    def look() -> None:
        gone.append(True) if not os.path.exists(f"/proc/{results[0][0]}") else reactor.after(0.01, look)

    look()
    turn(reactor, gone, 1)
    assert staff._idle == []


@pytest.mark.parametrize("spawns", [True, False], ids=["Python 3.8", "Python 3.7"])
def test_a_program_is_heard_and_one_that_is_not_there_says_nothing(
    reactor: Reactor, monkeypatch: pytest.MonkeyPatch, spawns: bool
) -> None:
    if not spawns:
        monkeypatch.delattr(os, "posix_spawnp")
    results: list[bytes] = []
    program = ["sh", "-c", "echo heard; cat; ls /proc/$$/fd"]
    reactor.command(program, results.append)
    turn(reactor, results, 1)
    reactor.command(["/no/such/program"], results.append)
    turn(reactor, results, 2)
    # Of this process nothing is open in it but what anybody who spawns a program leaves to it; nothing if it is forked.
    alone = subprocess.run(program, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, close_fds=not spawns)
    assert results == [alone.stdout, b""]
