# SPDX-License-Identifier: GPL-3.0-or-later
"""Named barriers with real processes: commands of a trial that wait for those on other hosts."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import stat
import subprocess
import typing as t

import pytest

from ansible_collections.startline.lab.plugins.module_utils._agent import client
from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent.world import AGENT, RUN, World, until

Make = t.Callable[..., World]


def wait(world: World, name: str, *arguments: str) -> str:
    """A shell command that waits, in the command of a trial. It has the configuration of nobody."""
    options = " ".join(arguments)
    return f"PYTHONPATH={world.environment['PYTHONPATH']} {world.python} -m {AGENT} wait {name} {options}"


def journal(world: World) -> pathlib.Path:
    """What the rendezvous has been told of the trial."""
    return world.directory / "rendezvous" / "state" / "rendezvous" / RUN / "r1.1.journal"


def out(world: World, member: str) -> str:
    return (world.spool(member) / "stdout").read_text(encoding="utf-8")


def test_all_go_on_at_one_instant_again_and_again(make_world: Make) -> None:
    world = make_world(3)
    world.start_all()
    first = f"{wait(world, 'loop')} || exit 9; date +%s%N"
    command = f"sleep 0.$STARTLINE_RANK; for i in 1 2 3; do {first}; done"
    result = world.run(world.trial(command))
    assert (result["verdict"], result["reasons"]) == ("valid", [])
    meetings = result["barriers"]
    assert [(m["name"], m["generation"], m["arrived"], m["reason"]) for m in meetings] == [
        ("loop", generation, 3, None) for generation in (1, 2, 3)
    ]
    assert meetings[0]["last"]["member"] == "party-2"
    for number, meeting in enumerate(meetings):
        assert meeting["released"] > meeting["last"]["at"] >= meeting["first"]["at"]
        assert meeting["skew"]["n"] == 3
        assert meeting["skew"]["min_us"] >= 0, "nobody goes on before the instant"
        assert meeting["skew"]["max_us"] < 500_000
        for member in world.members:
            went_on = int(out(world, member).split()[number]) / 1e9
            assert meeting["released"] < went_on < meeting["released"] + 1


def test_the_missing_are_named_and_the_next_meeting_is_in_step(make_world: Make) -> None:
    world = make_world(2)
    world.start_all()
    flag = world.directory / "go"
    here = f"{wait(world, 'a', '--timeout', '0.4')} 2>&1; echo $?; touch {flag}; {wait(world, 'a')} && echo met"
    there = (
        f"until [ -e {flag} ]; do sleep 0.02; done; {wait(world, 'a')} 2>&1; echo $?; {wait(world, 'a')} && echo met"
    )
    result = world.run(world.trial(commands={"party-0": here, "party-1": there}))
    assert result["verdict"] == "valid"
    said = "startline-agent: barrier a: after 0.4 s missing: party-1 (fired)\n1\nmet\n"
    assert out(world, "party-0") == said
    assert out(world, "party-1") == said, "who comes too late hears the same"
    assert [m["reason"] is None for m in result["barriers"]] == [False, True]


def test_a_member_that_has_ended_is_not_waited_for(make_world: Make) -> None:
    world = make_world(2)
    world.start_all()
    result = world.run(world.trial(commands={"party-0": f"{wait(world, 'b')} 2>&1; echo $?", "party-1": "true"}))
    assert out(world, "party-0") in [
        f"startline-agent: barrier b: will not come any more: party-1 ({state})\n1\n"
        for state in ("exited", "delivered")
    ]
    assert result["ended"] - result["start"] < 15, "long before the deadline"


@pytest.mark.parametrize("victim", ["rendezvous", "party-0"])
def test_a_meeting_outlives_the_rendezvous_and_the_agent(make_world: Make, victim: str) -> None:
    world = make_world(2)
    world.start_all()
    flag = world.directory / "go"
    commands = {
        "party-0": f"{wait(world, 'c')} && echo met",
        "party-1": f"until [ -e {flag} ]; do sleep 0.02; done; {wait(world, 'c')} && echo met",
    }
    waiting = world.submit(world.trial(commands=commands))
    until(lambda: journal(world).exists() and b'"Waits"' in journal(world).read_bytes(), what="the arrival")
    world.kill(victim)
    world.start(victim)
    flag.touch()
    result = world.result(waiting)
    assert result["verdict"] == "valid", result["reasons"]
    assert [out(world, member) for member in world.members] == ["met\n", "met\n"]
    assert [(m["generation"], m["arrived"]) for m in result["barriers"]] == [(1, 2)]


def test_outside_of_a_trial_there_is_nobody_to_wait_for(make_world: Make) -> None:
    world = make_world(1)
    world.start_all()
    with pytest.raises(client.ClientError, match="not the command of a trial"):
        client.wait("x", None, {})
    path = str(world.directory / "party-0" / "run" / "agent.sock")
    until(lambda: os.path.exists(path), what="the socket")
    environment = {
        "STARTLINE_SOCKET": path,
        "STARTLINE_RUN": RUN,
        "STARTLINE_TRIAL": "r1",
        "STARTLINE_ATTEMPT": "1",
    }
    with pytest.raises(client.ClientError, match=rf"the command of {RUN}/r1/1 does not run on this host"):
        client.wait("x", None, environment)


def test_nobody_answers(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAIT_SLACK", 0.0)
    environment = {
        "STARTLINE_SOCKET": str(tmp_path / "none"),
        "STARTLINE_RUN": RUN,
        "STARTLINE_TRIAL": "r1",
        "STARTLINE_ATTEMPT": "1",
    }
    with pytest.raises(client.ClientError, match="barrier x: no answer in time"):
        client.wait("x", 0.1, environment)


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not JSON"),
        (b"[]\n", "the request is not an object"),
        (b'{"op": "abort"}\n', "the request has no epoch"),
        (b'{"epoch": {"run": "x", "trial": "../..", "attempt": 1}, "name": "a"}\n', "does not match"),
        (b'{"epoch": {"run": "x", "trial": "r1", "attempt": 1}, "name": "a/b"}\n', "name does not match"),
        (b'{"epoch": {"run": "x", "trial": "r1", "attempt": 1}, "name": "a"}\n', "does not run on this host"),
        (b'{"epoch": {"run": "x", "trial": "r1", "attempt": 1}, "name": "a", "timeout": -1}\n', "timeout is not in"),
        (b"x" * 10000, "4096"),
    ],
)
def test_garbage_gets_a_reason_and_harms_nobody(make_world: Make, said: bytes, answer: str) -> None:
    world = make_world(1)
    world.start_all()
    path = world.directory / "party-0" / "run" / "agent.sock"
    until(path.exists, what="the socket")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(said)
        answered = json.loads(connection.recv(65536))
    assert answer in answered["error"]
    assert world.run(world.trial(f"{wait(world, 'alone')} && echo met"))["verdict"] == "valid"
    assert out(world, "party-0") == "met\n"


def test_a_waiter_that_is_killed_has_come_all_the_same(make_world: Make) -> None:
    world = make_world(2)
    world.start_all()
    flag = world.directory / "go"
    come = f"until grep -q '\"Waits\"' {journal(world)}; do sleep 0.02; done"
    killed = f"{wait(world, 'd')} & {come}; kill -9 $!; touch {flag}; sleep 0.5"
    other = f"until [ -e {flag} ]; do sleep 0.02; done; {wait(world, 'd')} && echo met"
    result = world.run(world.trial(commands={"party-0": killed, "party-1": other}))
    assert out(world, "party-1") == "met\n"
    assert [(m["arrived"], m["reason"]) for m in result["barriers"]] == [(2, None)]


def test_the_command_line_says_how(make_world: Make) -> None:
    world = make_world(1)
    done = subprocess.run(
        [world.python, "-m", AGENT, "wait", "--help"],
        env=world.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--timeout" in done.stdout
