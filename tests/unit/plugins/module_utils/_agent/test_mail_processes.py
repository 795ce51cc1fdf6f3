# SPDX-License-Identifier: GPL-3.0-or-later
"""Members that reach the rendezvous through S3: real agents, a real rendezvous, moto's S3 on loopback."""

from __future__ import annotations

import json
import pathlib
import subprocess
import time
import typing as t

import pytest

from ansible_collections.startline.lab.plugins.module_utils._agent import mailbox
from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent.store import BUCKET, MotoStore
from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent.world import PACE, RUN, World, until

Make = t.Callable[..., World]

PREFIX = f"dkg/{RUN}"


@pytest.fixture
def store() -> t.Iterator[MotoStore]:
    made = MotoStore()
    yield made
    made.close()


@pytest.fixture
def mailed(make_world: Make, store: MotoStore) -> t.Callable[[int], World]:
    """Makes a world whose members all use S3."""

    def make(count: int = 2) -> World:
        world = make_world(count)
        world.use_mailboxes(store.url, *world.members)
        return world

    return make


def trial(world: World, command: str = "true", trial_id: str = "r1", **changes: t.Any) -> dict[str, t.Any]:
    """A trial whose clocks, which nothing disciplines here, may be as uncertain as letters are slow."""
    return world.trial(command, trial_id, **{"max_clock_error": 30, **changes})


def connected(world: World, *members: str) -> None:
    until(lambda: world.status()["connected"] == sorted(members), what=f"the connection of {members}")


def running(world: World) -> tuple[pathlib.Path, subprocess.Popen[str]]:
    """A trial of two members that has begun; its commands end when the file is there."""
    flag = world.directory / "go"
    world.start_all()
    connected(world, "party-0", "party-1")
    waiting = world.submit(trial(world, f"until [ -e {flag} ]; do sleep 0.05; done", deadline=60))
    until(lambda: world.state("party-0") == "fired" == world.state("party-1"), 40, "the start")
    return flag, waiting


def outbox(member: str) -> str:
    return mailbox.object_key(PREFIX, mailbox.OUT, member)


def key_of(world: World, member: str) -> bytes:
    return bytes.fromhex(json.loads((world.directory / member / "mailbox.json").read_text())["key"])


def test_a_trial_with_letters_alone_is_like_any_other(mailed: t.Callable[..., World], store: MotoStore) -> None:
    world = mailed(3)
    world.start_all()
    evidence = {"bucket": BUCKET, "prefix": PREFIX, "region": "us-east-1", "endpoint_url": store.url}
    commands = {"party-2": "echo broken >&2; exit 7"}
    result = world.run(trial(world, "cat hosts.config; echo log > a.log", commands=commands, evidence=evidence))
    assert result["reasons"] == ["party-2 exited with code 7: broken"]
    assert [row["state"] for row in result["members"].values()] == ["delivered"] * 3
    assert result["skew"]["n"] == 3
    assert result["skew"]["min_us"] > 0
    base = f"{PREFIX}/trials/r1/1/"
    assert store.keys(base) >= {f"{base}party-{i}/{name}" for i in range(2) for name in ("stdout", "a.log")}
    assert store.get(f"{base}party-0/stdout") == b"127.0.0.1\n" * 3
    # Later than the slowest look into a mailbox, and nobody heard of it too late.
    assert result["lead_s"] > 2 * PACE.fast
    for name, row in result["members"].items():
        assert row["clock"]["source"] == "rendezvous", name
        assert abs(row["clock"]["offset_s"]) <= row["clock"]["bound_s"], "all clocks are the same one here"
    logs = "".join(world.log(name) for name in ("rendezvous", *world.members))
    assert "X-Amz-Signature" not in logs
    assert key_of(world, "party-0").hex() not in logs


def test_who_may_not_list_the_bucket_is_told_that_nothing_is_there(
    mailed: t.Callable[..., World], store: MotoStore
) -> None:
    """As on AWS, where that is a refusal: the agents come first, when no letter is there yet."""
    store.hides = True
    world = mailed(2)
    world.start(*world.members)
    until(lambda: len(store.keys(f"{PREFIX}/barrier/out/")) == 2, what="the first letters")
    world.start("rendezvous")
    assert world.run(trial(world))["verdict"] == "valid"
    assert "no grant is good" not in world.log("party-0")


def test_both_transports_in_one_trial(make_world: Make, store: MotoStore) -> None:
    world = make_world(3)
    world.use_mailboxes(store.url, "party-1")
    world.start_all()
    result = world.run(trial(world))
    assert (result["verdict"], result["reasons"]) == ("valid", [])
    bounds = {name: row["clock"]["bound_s"] for name, row in result["members"].items()}
    assert bounds["party-1"] > max(bounds["party-0"], bounds["party-2"]), "letters take longer"


def test_who_is_missing_is_named(mailed: t.Callable[..., World]) -> None:
    world = mailed(2)
    world.start("rendezvous", "party-0")
    result = world.run(trial(world, deadline=20))
    assert result["reasons"] == ["after 20 s not armed: party-1 (absent)"]
    until(lambda: "released" in world.log("party-0"), what="the release")


@pytest.mark.parametrize("moment", ["absent", "armed", "fired", "settled"])
def test_a_rendezvous_killed_and_restarted_loses_nothing(mailed: t.Callable[..., World], moment: str) -> None:
    world = mailed(2)
    flag = world.directory / "go"
    asked = trial(world, f"until [ -e {flag} ]; do sleep 0.05; done; echo done >> ../../count", deadline=60)
    world.start("rendezvous")
    waiting: t.Any = world.submit(asked)
    if moment == "absent":
        until(lambda: world.state("party-0") == "absent", what="the submission")
    else:
        world.start("party-0")
        until(lambda: world.state("party-0") == "armed", what="arming")
    if moment in ("fired", "settled"):
        world.start("party-1")
        until(lambda: world.state("party-0") == "fired" == world.state("party-1"), 40, "the start")
    if moment == "settled":
        flag.touch()
        before, waiting = world.result(waiting), None
    world.kill("rendezvous")
    world.start("rendezvous")
    if moment in ("absent", "armed"):
        world.start(*(["party-0"] if moment == "absent" else []), "party-1")
    flag.touch()
    result = world.result(waiting) if waiting is not None else world.run(asked)
    assert result["verdict"] == "valid", result["reasons"]
    if moment == "settled":
        assert {**result, "members": None} == {**before, "members": None}
    for name in world.members:
        assert (world.spool(name).parent / "count").read_text() == "done\n"


def test_agents_killed_armed_and_under_a_trial(mailed: t.Callable[..., World]) -> None:
    world = mailed(2)
    world.start("rendezvous", "party-0")
    flag = world.directory / "go"
    waiting = world.submit(trial(world, f"until [ -e {flag} ]; do sleep 0.05; done; exit 5", deadline=60))
    until(lambda: world.state("party-0") == "armed", what="arming")
    world.kill("party-0")
    world.start("party-0", "party-1")
    until(lambda: world.state("party-0") == "fired" == world.state("party-1"), 40, "the start")
    world.kill("party-1")
    flag.touch()
    until((world.spool("party-1") / "exit.json").exists, what="the end of the command")
    world.start("party-1")
    assert [row["exit_code"] for row in world.result(waiting)["members"].values()] == [5, 5]


def test_a_second_agent_of_the_same_name_takes_over_and_the_first_keeps_silent(
    mailed: t.Callable[..., World], make_world: Make, store: MotoStore
) -> None:
    world, elsewhere = mailed(1), make_world(1)
    world.start("rendezvous", "party-0")
    connected(world, "party-0")
    # As after a host was replaced while the old one still lives: same key, own disk.
    elsewhere.use_mailboxes(store.url, "party-0")
    path = str(world.directory / "party-0/mailbox.json")
    elsewhere.configure("party-0", mailbox=path)
    elsewhere.start("party-0")
    until(lambda: "fenced" in world.log("party-0"), what="the fence")
    connected(world, "party-0")
    assert world.run(trial(world, "echo here > ../../here"))["verdict"] == "valid"
    assert (elsewhere.spool("party-0").parent / "here").exists()
    assert not (world.spool("party-0").parent / "here").exists()
    assert "fenced" not in elsewhere.log("party-0")


def test_letters_that_are_forged_replayed_or_garbage_are_refused(
    mailed: t.Callable[..., World], store: MotoStore
) -> None:
    world = mailed(2)
    world.start_all()
    connected(world, "party-0", "party-1")
    old = store.get(outbox("party-1"))
    key, address = key_of(world, "party-1"), mailbox.Address(RUN, "party-1")
    present = mailbox.unseal(key, address, mailbox.OUT, old)
    lie = {"type": "report", "epoch": {"run": RUN, "trial": "r1", "attempt": 1}, "state": "armed"}
    forged = present._replace(number=10**6, sent=present.sent + 1, messages=(*present.messages, lie))
    own = key_of(world, "party-0")  # a member that has gone over can seal, but not as another
    letters = {
        "not sealed with the key": mailbox.seal(own, address, mailbox.OUT, forged),
        "of another run": mailbox.seal(key, mailbox.Address("dkg-2", "party-1"), mailbox.OUT, forged),
        "not sealed": b"\xff" * 5000,
        "larger than": b"x" * (mailbox.LIMIT + 1),
        "an agent before the present one": mailbox.seal(key, address, mailbox.OUT, present._replace(author=1)),
    }
    for reason, body in letters.items():
        store.put(outbox("party-1"), body)
        until(lambda reason=reason: reason in world.log("rendezvous"), what=f"the refusal: {reason}")
    store.put(outbox("nobody"), mailbox.seal(own, address, mailbox.OUT, forged))
    store.put(outbox("../../x"), b"")
    result = world.run(trial(world))
    assert (result["verdict"], result["reasons"]) == ("valid", [])
    # The agent has seen that its mailbox was tampered with, and gone on.
    assert "our letter was written over" in world.log("party-1")
    # A letter of the agent that was true once says nothing any more, nor does it bring the member back.
    world.kill("party-1")
    world.kill("rendezvous")
    store.put(outbox("party-1"), old)
    world.start("rendezvous")
    connected(world, "party-0")
    again = world.run(trial(world, trial_id="r2", deadline=20))
    assert again["reasons"] == ["after 20 s not armed: party-1 (absent)"]
    assert "Traceback" not in world.log("rendezvous")


def test_an_inbox_that_is_forged_is_refused_by_the_agent(mailed: t.Callable[..., World], store: MotoStore) -> None:
    world = mailed(1)
    world.start_all()
    connected(world, "party-0")
    inbox = mailbox.object_key(PREFIX, mailbox.IN, "party-0")
    address = mailbox.Address(RUN, "party-0")
    present = mailbox.unseal(key_of(world, "party-0"), address, mailbox.IN, store.get(inbox))
    start = {"type": "abort", "epoch": {"run": RUN, "trial": "r1", "attempt": 1}, "reason": "forged"}
    forged = present._replace(number=10**6, sent=present.sent + 1, messages=(start,))
    for body in (b"garbage", mailbox.seal(b"no key", address, mailbox.IN, forged)):
        before = world.log("party-0").count("a letter refused")
        store.put(inbox, body)
        until(lambda before=before: world.log("party-0").count("a letter refused") > before, what="the refusal")
    assert world.run(trial(world))["verdict"] == "valid"
    assert "forged" not in world.log("party-0")


def test_an_object_store_that_is_away_throttles_or_fails_costs_time_alone(
    mailed: t.Callable[..., World], store: MotoStore
) -> None:
    world = mailed(2)
    flag, waiting = running(world)
    refused = iter([(503, "SlowDown"), (500, "InternalError"), (429, "TooManyRequests")] * 10000)
    store.fault = lambda environ: next(refused)
    flag.touch()
    until(lambda: "mailbox unreachable" in world.log("party-0"), what="the agent's complaint")
    until(lambda: "mailboxes unreachable" in world.log("rendezvous"), 40, "the complaint of the rendezvous")
    store.fault = lambda environ: None
    result = world.result(waiting)
    # On a busy machine it may be away for longer than a measurement of the clock is waited for.
    late = {f"{member}: clock could not be measured again after the trial" for member in world.members}
    assert set(result["reasons"]) <= late
    assert {row["state"] for row in result["members"].values()} == {"delivered"}
    assert "mailboxes reached again" in world.log("rendezvous")
    assert "lost" not in world.log("rendezvous"), "who could not be heard is not gone"


def test_a_letter_that_cannot_be_read_holds_up_nobody_else(mailed: t.Callable[..., World], store: MotoStore) -> None:
    world = mailed(2)
    flag, waiting = running(world)

    def refuse(environ: dict[str, t.Any]) -> tuple[int, str] | None:
        unread = environ["REQUEST_METHOD"] == "GET" and environ["PATH_INFO"].endswith(outbox("party-1"))
        return (503, "SlowDown") if unread else None

    store.fault = refuse
    flag.touch()
    until(lambda: "a letter could not be read" in world.log("rendezvous"), 40, "the complaint of the rendezvous")
    until(lambda: world.state("party-0") == "delivered", 40, "the evidence of the other")
    store.fault = lambda environ: None
    result = world.result(waiting)
    assert {row["state"] for row in result["members"].values()} == {"delivered"}
    assert "mailboxes unreachable" not in world.log("rendezvous")
    assert "lost" not in world.log("rendezvous")


def test_an_outage_is_over_for_the_next_trial(mailed: t.Callable[..., World], store: MotoStore) -> None:
    """Its lead goes by how fast letters are now, not by the letter that the outage held up."""
    world = mailed(2)
    world.start_all()
    connected(world, "party-0", "party-1")
    store.fault = lambda environ: (503, "SlowDown") if environ["PATH_INFO"].endswith("/party-1") else None
    outage = 10.0
    assert world.run(trial(world, deadline=outage))["reasons"] == [f"after {outage:g} s not armed: party-1 (connected)"]
    waiting = world.submit(trial(world, trial_id="r2", deadline=60))
    until(lambda: world.state("party-0", "r2") == "armed", what="that the next trial waits for party-1")
    store.fault = lambda environ: None
    result = world.result(waiting)
    assert result["verdict"] == "valid", result["reasons"]
    assert result["lead_s"] < outage


def test_grants_are_renewed_and_survive_the_agent(mailed: t.Callable[..., World], store: MotoStore) -> None:
    world = mailed(1)
    path = world.directory / "party-0/mailbox.json"
    given = json.loads(path.read_text())["grants"]
    # Signatures tell the second: signed in the same one, the rendezvous' grants would be equal to the controller's.
    until(lambda: int(time.time()) > int(path.stat().st_mtime), what="the next second")
    world.start_all()
    connected(world, "party-0")
    record = world.directory / "party-0/state/mailbox.json"
    until(lambda: json.loads(record.read_text())["grants"] != given, 60, what="grants of the rendezvous")
    assert record.stat().st_mode & 0o077 == 0

    def signature(url: str) -> str:
        return url.rpartition("X-Amz-Signature=")[2]

    def refuse(grants: dict[str, str]) -> None:
        ended = {signature(url) for url in grants.values()}
        store.fault = lambda environ: (403, "AccessDenied") if signature(environ["QUERY_STRING"]) in ended else None

    refuse(given)  # the controller's have ended
    world.kill("party-0")
    world.start("party-0")
    assert world.run(trial(world))["verdict"] == "valid"
    refuse(json.loads(record.read_text())["grants"])  # the agent was away for long, and configured anew
    world.kill("party-0")
    world.start("party-0")
    assert world.run(trial(world, trial_id="r2"))["verdict"] == "valid"


def test_nobody_lists_but_the_rendezvous(mailed: t.Callable[..., World], store: MotoStore) -> None:
    world = mailed(3)
    world.start(*world.members)
    until(lambda: len(store.keys(f"{PREFIX}/barrier/out/")) == 3, what="the first letters")
    ours = store.requests["LIST"]
    until(lambda: store.requests["GET"] > 20, what="some looks")
    assert store.requests["LIST"] == ours
