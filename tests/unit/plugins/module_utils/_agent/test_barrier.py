# SPDX-License-Identifier: GPL-3.0-or-later
"""The barrier: tables for what it decides, and hypothesis for what must hold whatever happens.

The properties run the barrier against real `member.Trial` machines over a network that loses, repeats, delays and
reorders messages, with agents and the rendezvous killed and restarted at any moment.
"""

from __future__ import annotations

import collections
import json
import re
import typing as t

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.startline.lab.plugins.module_utils._agent import barrier, clock, member, named, wire

EPOCH = wire.Epoch("run", "r1", 1)
CLOCK = clock.Clock("ntp", 0, 1000, 200_000).to_json()
EXIT = {
    "code": 0,
    "signal": None,
    "timed_out": False,
    "stopped": False,
    "at_ns": 5,
    "duration_ns": 1,
    "leftovers": 0,
    "stepped_ns": 0,
    "detail": None,
}


def submission(names: t.Iterable[str] = ("a", "b"), **changes: t.Any) -> dict[str, t.Any]:
    return {
        "run_id": "run",
        "trial_id": "r1",
        "attempt": 1,
        "members": [{"name": name, "rank": rank} for rank, name in enumerate(names)],
        "deadline": 60.0,
        "timeout": 30.0,
        "delivery_deadline": 100.0,
        "seats": None,
        "grace": 5.0,
        "form": False,
        "formed_from": None,
        "on_early_exit": "continue",
        "max_clock_error": 0.05,
        "on_clock_error": "mark",
        **changes,
    }


def at(seconds: float) -> barrier.Now:
    return barrier.Now(1000 + seconds, int((5000 + seconds) * 1e9))


def report(state: str, **changes: t.Any) -> dict[str, t.Any]:
    reached = wire.STATES.index(state)
    return {
        "state": state,
        "failed": None,
        "clock": CLOCK if reached >= 3 else None,
        "clock_after": CLOCK if reached >= 6 else None,
        "armed_ns": None,
        "start_ns": 10 if reached >= 4 else None,
        "noticed_ns": 5 if reached >= 4 else None,
        "fired_ns": 100_010 if reached >= 4 else None,
        "exit": EXIT if reached >= 5 else None,
        "files": [] if reached >= 6 else None,
        **changes,
    }


class Scene:
    """A barrier with its clock, for tests that tell a story."""

    def __init__(self, names: t.Iterable[str] = ("a", "b"), **changes: t.Any) -> None:
        self.names = list(names)
        self.now = 0.0
        self.barrier = barrier.Barrier(submission(self.names, **changes), at(0))

    def connect(self, *names: str) -> list[barrier.Action]:
        return [action for name in names for action in self.barrier.step(barrier.Connected(name), at(self.now))]

    def say(self, name: str, state: str, **changes: t.Any) -> list[barrier.Action]:
        """A member reports; times around T are given as if T was 10 ns."""
        said = report(state, **changes)
        for key in ("start_ns", "noticed_ns", "fired_ns"):
            if said[key] is not None and self.barrier.start_ns is not None:
                said[key] += self.barrier.start_ns - 10
        return self.barrier.step(barrier.Reported(name, EPOCH, said), at(self.now))

    def tick(self, now: float) -> list[barrier.Action]:
        self.now = now
        return self.barrier.step(barrier.Tick(), at(now))

    def all_say(self, state: str, **changes: t.Any) -> list[barrier.Action]:
        return [action for name in self.names for action in self.say(name, state, **changes)]

    def armed(self) -> list[barrier.Action]:
        self.connect(*self.names)
        self.all_say("prepared")
        return self.all_say("armed")


def kinds(actions: t.Iterable[barrier.Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def test_everything_goes_well() -> None:
    scene = Scene()
    actions = scene.armed()
    assert kinds(actions) == ["Start", "Start"]
    start = scene.barrier.start_ns
    assert start is not None
    assert start - at(0).wall_ns == barrier.lead_ns([200_000, 200_000], 2)
    scene.now = 1
    scene.all_say("fired")
    scene.now = 5
    assert kinds(scene.all_say("exited")) == ["Ended"]
    assert kinds(scene.all_say("delivered")) == ["Settle", "Settle", "Settled"]
    result = scene.barrier.result()
    assert (result["outcome"], result["verdict"], result["reasons"]) == ("completed", "valid", [])
    assert result["skew"] == {
        "n": 2,
        "min_us": 100.0,
        "p50_us": 100.0,
        "p99_us": 100.0,
        "max_us": 100.0,
        "bound_us": 1.0,
        "last": "b",
        "why": "ordinary wake-up",
    }
    assert scene.barrier.wake_at is None
    json.dumps(result, allow_nan=False)


def network(verdict: str, *reasons: str) -> dict[str, t.Any]:
    return {"verdict": verdict, "reasons": list(reasons), "pairs": []}


def test_what_was_measured_of_the_network_is_in_the_result_and_marks_it() -> None:
    for found, verdict, reasons in (
        (network("valid"), "valid", []),
        (network("degraded", "a to b: rtt"), "degraded", ["network: a to b: rtt"]),
        (network("degraded"), "degraded", ["network: it is not the one asked for"]),
    ):
        scene = Scene(network_check=found)
        scene.armed()
        scene.now = 5
        for state in ("fired", "exited", "delivered"):
            scene.all_say(state)
        result = scene.barrier.result()
        assert (result["verdict"], result["reasons"], result["network"]) == (verdict, reasons, found)


def test_a_network_that_is_refused_starts_nobody() -> None:
    scene = Scene(network_check=network("invalid", "a to b: rtt", "b to a: rate"))
    assert scene.barrier.wake_at == at(0).steady
    assert kinds(scene.tick(0)) == ["Ended", "Settled"]
    result = scene.barrier.result()
    assert (result["outcome"], result["verdict"], result["start"]) == ("aborted", "invalid", None)
    assert result["reasons"] == ["network: a to b: rtt; network: b to a: rate"]
    assert kinds(scene.barrier.greet("a", at(0))) == ["Stop"]


def test_the_missing_are_named_with_their_last_state() -> None:
    scene = Scene(["a", "b", "c", "d"])
    scene.connect("a", "b", "d")
    scene.say("a", "armed")
    scene.say("b", "prepared")
    scene.say("d", "armed")
    scene.barrier.step(barrier.Lost("d"), at(1))
    actions = scene.tick(60)
    assert kinds(actions) == ["Stop", "Stop", "Ended", "Settled"]
    result = scene.barrier.result()
    assert (result["outcome"], result["verdict"]) == ("aborted", "invalid")
    assert result["reasons"] == ["after 60 s not armed: b (prepared), c (absent), d (armed, connection lost)"]
    assert {name: row["state"] for name, row in result["members"].items()} == {
        "a": "armed",
        "b": "prepared",
        "c": "absent",
        "d": "armed",
    }


def test_a_member_that_cannot_prepare_ends_the_wait_at_once() -> None:
    scene = Scene()
    scene.connect("a", "b")
    actions = scene.say("b", "connected", failed="cannot prepare: No space left on device")
    assert "Ended" in kinds(actions)
    assert scene.barrier.result()["reasons"] == ["b: cannot prepare: No space left on device"]


@pytest.mark.parametrize(
    ("on_error", "outcome", "verdict"), [("mark", None, "degraded"), ("refuse", "aborted", "invalid")]
)
def test_a_clock_that_is_not_known_well(on_error: str, outcome: str | None, verdict: str) -> None:
    scene = Scene(on_clock_error=on_error)
    scene.connect("a", "b")
    scene.say("a", "armed")
    scene.say("b", "armed", clock={**CLOCK, "bound_ns": 60_000_000})
    assert scene.barrier.outcome == outcome
    result = scene.barrier.result()
    assert result["verdict"] == verdict
    assert "b: clock known to 0.060 s only (ntp), more than 0.050 s" in result["reasons"]


def test_another_epoch_is_refused() -> None:
    scene = Scene()
    scene.connect("a", "b")
    for epoch in (EPOCH._replace(attempt=2), EPOCH._replace(run="other"), EPOCH._replace(trial="r2")):
        actions = scene.barrier.step(barrier.Reported("a", epoch, report("armed")), at(0))
        assert kinds(actions) == ["Refuse"]
    assert scene.barrier.members["a"].state == "connected"


def test_a_stranger_is_refused_and_not_counted() -> None:
    scene = Scene()
    scene.connect("a", "b", "x")
    scene.say("a", "armed")
    assert kinds(scene.say("x", "armed")) == ["Refuse"]
    assert scene.barrier.phase == "gathering"


def test_a_member_that_claims_to_have_started_before_t() -> None:
    scene = Scene()
    scene.connect("a", "b")
    scene.say("a", "fired")
    assert scene.barrier.result()["reasons"] == ["a: said fired before T was published"]


def test_an_abort_before_publication_starts_nobody() -> None:
    scene = Scene()
    scene.connect("a", "b")
    scene.say("a", "armed")
    assert kinds(scene.barrier.step(barrier.Abort("enough"), at(1))) == ["Stop", "Stop", "Ended", "Settled"]
    assert kinds(scene.say("b", "armed")) == ["Stop"]
    assert scene.barrier.start_ns is None


def test_an_abort_after_publication_is_decided_at_t() -> None:
    scene = Scene()
    scene.armed()
    assert scene.barrier.step(barrier.Abort("enough"), at(0.001)) == []
    assert scene.barrier.wake_at is not None
    t_steady = scene.barrier.wake_at - 1000
    assert t_steady < 1
    assert kinds(scene.tick(t_steady)) == ["Stop", "Stop"]
    scene.all_say("exited", exit={**EXIT, "code": None, "signal": 15, "stopped": True})
    assert scene.barrier.result()["reasons"] == [
        "stopped: enough",
        "a was ended by signal 15",
        "b was ended by signal 15",
    ]


def test_the_dead_do_not_hold_the_others() -> None:
    scene = Scene()
    scene.armed()
    scene.now = 1
    scene.all_say("fired")
    scene.say("a", "exited")
    scene.barrier.step(barrier.Lost("b"), at(2))
    assert scene.barrier.wake_at is not None
    actions = scene.tick(scene.barrier.wake_at - 1000)
    assert kinds(actions) == ["Stop", "Ended"]
    assert scene.now < 60
    scene.say("a", "delivered")
    scene.tick(scene.now + 100)
    result = scene.barrier.result()
    assert result["reasons"] == ["b did not say how its command ended (last state: fired, connection lost)"]
    assert result["verdict"] == "invalid"


def test_evidence_that_does_not_come_is_named_and_taken_when_it_comes_after_all() -> None:
    scene = Scene()
    scene.armed()
    scene.all_say("exited")
    scene.say("a", "delivered")
    assert kinds(scene.tick(100)) == ["Settled"]
    assert scene.barrier.result()["reasons"] == ["b did not deliver its evidence within 100 s"]
    assert kinds(scene.say("b", "delivered")) == ["Settle", "Settled"]
    assert scene.barrier.result()["verdict"] == "valid"


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ({"code": 3, "detail": "boom"}, "b exited with code 3: boom"),
        ({"code": None, "signal": 9}, "b was ended by signal 9"),
        ({"code": None, "signal": 15, "timed_out": True}, "b was still running after 30 s and was killed"),
        ({"code": None, "detail": "its launcher was killed"}, "b ended, nobody knows how: its launcher was killed"),
    ],
)
def test_a_command_that_fails_makes_the_trial_invalid(end: dict[str, t.Any], words: str) -> None:
    scene = Scene()
    scene.armed()
    scene.say("a", "delivered")
    scene.say("b", "delivered", exit={**EXIT, **end})
    result = scene.barrier.result()
    assert (result["verdict"], result["reasons"]) == ("invalid", [words])


CLOCK_FAULTS = [
    ({"clock": {**CLOCK, "stepped_ns": 2 * 10**9}}, "clock was stepped by +2.000 s before T"),
    ({"exit": {**EXIT, "stepped_ns": -2 * 10**9}}, "clock was stepped by -2.000 s during the trial"),
    (
        {"clock_after": {**CLOCK, "bound_ns": 10**9}},
        "clock known to 1.000 s only (ntp) after the trial, more than 0.050 s",
    ),
    (
        {"clock_after": {**CLOCK, "drifted_ns": 10**8}},
        "clock drifted by +0.100 s during the trial, more than both measurements explain",
    ),
    ({"clock": {**CLOCK, "offset_ns": 2 * 10**9, "note": "ntp claims much"}}, "ntp claims much"),
    ({"clock_after": None}, "clock could not be measured again after the trial"),
]


@pytest.mark.parametrize(("on_error", "verdict"), [("mark", "degraded"), ("refuse", "invalid")])
@pytest.mark.parametrize(("changes", "words"), CLOCK_FAULTS)
def test_a_clock_that_was_wrong_in_the_trial(
    changes: dict[str, t.Any], words: str, on_error: str, verdict: str
) -> None:
    scene = Scene(on_clock_error=on_error)
    scene.armed()
    scene.say("a", "delivered")
    scene.say("b", "delivered", **changes)
    result = scene.barrier.result()
    assert (result["verdict"], result["reasons"]) == (verdict, [f"b: {words}"])


def test_what_a_command_leaves_behind_is_named() -> None:
    scene = Scene()
    scene.armed()
    scene.say("a", "delivered")
    port = {"protocol": "udp", "port": 9000, "pid": 8, "command": "serve"}
    scene.say("b", "delivered", exit={**EXIT, "remaining": [{"pid": 7, "command": "dd"}], "ports": [port]})
    result = scene.barrier.result()
    assert (result["verdict"], result["reasons"]) == (
        "degraded",
        ["b left dd (pid 7) running, which cannot be ended", "b left udp port 9000, held by serve (pid 8)"],
    )


def test_an_honest_clock_may_be_wrong() -> None:
    """Off by two seconds, but measured: T was said on the rendezvous' clock."""
    scene = Scene(on_clock_error="refuse")
    scene.armed()
    wrong = {**CLOCK, "source": "rendezvous", "offset_ns": 2 * 10**9}
    scene.all_say("delivered", clock=wrong, clock_after=wrong)
    result = scene.barrier.result()
    assert result["verdict"] == "valid"
    assert result["members"]["a"]["clock"]["offset_s"] == 2.0


# ---- seats -----------------------------------------------------------------------------------------------------------


def seats(members: str, wanted: int, least: int) -> dict[str, t.Any]:
    return {"members": members.split(), "seats": wanted, "least": least}


def seated(*groups: dict[str, t.Any], **changes: t.Any) -> Scene:
    names = [name for group in groups for name in group["members"]]
    return Scene(names, seats=list(groups), **changes)


def roles(scene: Scene) -> dict[str, str]:
    return {name: row["role"] for name, row in scene.barrier.result()["members"].items()}


def test_at_full_strength_nobody_waits_and_spares_are_let_go() -> None:
    scene = seated(seats("a b s", 2, 1))
    scene.connect("a", "b", "s")
    scene.say("a", "armed")
    scene.say("s", "armed")
    assert scene.barrier.wake_at == 1000 + 5.0, "the grace has begun"
    actions = scene.say("b", "armed")
    assert [(type(a).__name__, a.member) for a in actions] == [("Start", "a"), ("Start", "b"), ("Stop", "s")]
    result = scene.barrier.result()
    assert (result["roster"], result["replaced"], result["dropped"], result["reasons"]) == (["a", "b"], [], [], [])
    assert roles(scene) == {"a": "starter", "b": "starter", "s": "spare"}


def test_a_spare_takes_the_place_of_one_that_has_failed_at_once() -> None:
    scene = seated(seats("a b s", 2, 2))
    scene.connect("a", "b", "s")
    scene.say("a", "armed")
    scene.say("s", "armed")
    assert kinds(scene.say("b", "connected", failed="disk full")) == ["Start", "Start", "Stop"]
    assert scene.barrier.result()["roster"] == ["a", "s"]
    assert scene.barrier.result()["replaced"] == [{"member": "b", "was": "connected: disk full"}]
    scene.now = 2
    for name in ("a", "s"):
        scene.say(name, "delivered")
    assert scene.barrier.result()["verdict"] == "valid", "a place that was filled is no fault"
    assert scene.barrier.phase == "settled"


def test_a_spare_takes_the_place_of_one_that_is_late_after_the_grace() -> None:
    scene = seated(seats("a b s", 2, 2))
    scene.connect("a", "b", "s")
    scene.say("a", "armed")
    scene.now = 20
    scene.say("s", "armed")
    assert scene.tick(24.9) == []
    assert kinds(scene.tick(25)) == ["Start", "Start", "Stop"]
    assert scene.barrier.result()["replaced"] == [{"member": "b", "was": "connected"}]


def test_the_grace_begins_anew_when_the_seats_cannot_be_filled_any_more() -> None:
    scene = seated(seats("a b s", 2, 2))
    scene.connect("a", "b", "s")
    scene.say("a", "armed")
    scene.say("s", "armed")
    scene.now = 3
    scene.barrier.step(barrier.Lost("s"), at(3))
    assert scene.barrier.wake_at == 1060.0
    assert scene.tick(6) == []
    scene.connect("s")
    assert scene.tick(10.9) == []
    assert "Start" in kinds(scene.tick(11))


def test_a_quorum_starts_without_the_stragglers_who_never_start() -> None:
    scene = seated(seats("a b c", 3, 2))
    scene.connect("a", "b")
    scene.say("a", "armed")
    scene.say("b", "armed")
    assert kinds(scene.tick(5)) == ["Start", "Start"]
    assert scene.connect("c") == []
    assert [type(a).__name__ for a in scene.barrier.greet("c", at(6))] == ["Stop"]
    assert kinds(scene.say("c", "armed")) == ["Stop"]
    scene.now = 7
    for name in ("a", "b"):
        scene.say(name, "delivered")
    result = scene.barrier.result()
    assert (result["phase"], result["outcome"], result["verdict"]) == ("settled", "completed", "degraded")
    assert result["reasons"] == ["2 of 3 seats filled (a ... c)", "c was dropped (absent)"]
    assert result["skew"]["n"] == 2


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ([], "after 60 s only 1 of the 2 needed are left; not armed: b (connected), c (absent)"),
        (
            [("b", "no space")],
            "after 60 s only 1 of the 2 needed are left; not armed: b (connected: no space), c (absent)",
        ),
        ([("b", "no space"), ("c", "no user")], "only 1 of the 2 needed are left; b: no space; c: no user"),
    ],
)
def test_too_few_for_the_quorum_are_named(said: list[tuple[str, str]], reason: str) -> None:
    scene = seated(seats("a b c", 3, 2))
    scene.connect("a", "b")
    scene.say("a", "armed")
    for name, failed in said:
        scene.say(name, "connected", failed=failed)
    scene.tick(60)
    assert scene.barrier.result()["reasons"] == [reason]
    assert scene.barrier.outcome == "aborted"


def test_each_group_has_its_own_quorum() -> None:
    scene = seated(seats("a b c", 3, 2), seats("x", 1, 1))
    scene.connect("a", "b", "c", "x")
    for name in "abc":
        scene.say(name, "armed")
    scene.tick(60)
    assert scene.barrier.result()["reasons"] == ["after 60 s not armed: x (connected)"]


def test_who_has_failed_is_not_taken_back() -> None:
    scene = seated(seats("a b s", 2, 1))
    scene.connect("a", "b", "s")
    scene.say("a", "connected", failed="broken")
    assert kinds(scene.say("a", "armed")) == ["Stop"]
    scene.say("b", "armed")
    assert "Start" in kinds(scene.say("s", "armed"))
    assert scene.barrier.result()["roster"] == ["b", "s"]


def test_others_than_were_meant_end_a_trial_that_forms_anew() -> None:
    scene = seated(seats("a b s", 2, 2), form=True)
    scene.connect("a", "b", "s")
    scene.say("a", "armed")
    scene.say("s", "armed")
    assert kinds(scene.tick(5)) == ["Stop", "Stop", "Stop", "Ended", "Settled"]
    result = scene.barrier.result()
    assert (result["outcome"], result["start_ns"], result["roster"]) == ("reform", None, ["a", "s"])
    assert result["reasons"] == ["forms anew: b (connected) was replaced by s"]
    assert kinds(scene.say("b", "armed")) == ["Stop"]


def test_the_next_attempt_tells_what_it_was_formed_from() -> None:
    dropped = {"member": "c", "was": "absent"}
    earlier = {"attempt": 1, "roster": ["a", "b"], "replaced": [], "dropped": [dropped]}
    scene = seated(seats("a b", 3, 2), form=True, formed_from=[earlier])
    scene.connect("a", "b")
    scene.say("a", "armed")
    assert kinds(scene.say("b", "armed")) == ["Start", "Start"], "nobody else is to be waited for"
    scene.now = 3
    scene.all_say("delivered")
    result = scene.barrier.result()
    assert (result["verdict"], result["formed_from"], result["dropped"]) == ("degraded", [earlier], [dropped])
    assert result["reasons"] == ["2 of 3 seats filled (a ... b)", "c was dropped (absent)"]


def test_who_delayed_t() -> None:
    scene = Scene(["a", "b", "c"])
    scene.connect("a", "b", "c")
    scene.say("b", "armed")
    scene.now = 2
    scene.say("c", "prepared")
    scene.say("a", "armed")
    scene.now = 5
    scene.say("c", "armed")
    assert scene.barrier.result()["last_armed"] == {
        "member": "c",
        "at": 5005.0,
        "behind_s": 3.0,
        "states": {"connected": 5000.0, "prepared": 5002.0, "armed": 5005.0},
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"members": []}, "members is empty"),
        ({"members": [{"name": "a", "rank": 0}] * 2}, "the name a is there more than once"),
        ({"seats": [seats("a", 1, 1)]}, "seats: b has to be a candidate"),
        ({"seats": [seats("a b x", 1, 1)]}, "seats: x has to be a candidate"),
        ({"seats": [seats("a b", 1, 1), seats("b", 1, 1)]}, "seats: b has to be a candidate"),
        ({"seats": [seats("a b", 1, 2)]}, r"seats\[0\]: least has to be 1 to 1, not 2"),
        ({"seats": [seats("a b", 3, 3)]}, r"seats\[0\]: least has to be 1 to 2, not 3"),
    ],
)
def test_seats_that_cannot_be(changes: dict[str, t.Any], words: str) -> None:
    problem = barrier.seats_problem(submission(**changes))
    assert problem is not None
    assert re.search(words, problem)
    assert barrier.seats_problem(submission()) is None


@given(st.data())
def test_a_choice_is_the_first_who_are_ready(data: st.DataObject) -> None:
    names = [f"m{i}" for i in range(data.draw(st.integers(1, 8)))]
    wanted = data.draw(st.integers(1, len(names)))
    group = barrier.Seats(tuple(names), wanted, data.draw(st.integers(1, wanted)))
    standing = {
        name: barrier.Standing(*data.draw(st.sampled_from([("armed", True, None), ("prepared", True, None),
                                                           ("armed", False, None), ("armed", True, "broken")])))
        for name in names
    }  # fmt: skip
    roster, best = barrier.choose([group], standing)
    ready = [name for name in names if standing[name].ready]
    assert (roster is None) == (len(ready) < group.least)
    if roster is not None:
        assert list(roster) == ready[: group.seats]
        hopeful = [name for name in names if standing[name].failed is None]
        assert best == (list(roster) == hopeful[: group.seats])
    short = barrier.shortage([group], standing, final=True)
    assert bool(short) == (len(ready) < group.least)
    assert all(name in short[0] for name in names if short and name not in ready)


# ---- early exit ------------------------------------------------------------------------------------------------------

STOPPED = {**EXIT, "code": None, "signal": 15, "stopped": True}


@pytest.mark.parametrize(
    ("policy", "end", "stops", "verdict"),
    [
        ("continue", {"code": 3}, False, "invalid"),
        ("stop_on_failure", {"code": 0}, False, "valid"),
        ("stop_on_failure", {"code": 3}, True, "invalid"),
        ("stop_on_failure", {"code": None, "signal": 9}, True, "invalid"),
        ("stop", {"code": 0}, True, "valid"),
        ("stop", {"code": 3}, True, "invalid"),
    ],
)
def test_an_early_exit(policy: str, end: dict[str, t.Any], stops: bool, verdict: str) -> None:
    scene = Scene(["a", "b", "c"], on_early_exit=policy)
    scene.armed()
    scene.now = 1
    scene.all_say("fired")
    actions = scene.say("b", "exited", exit={**EXIT, **end})
    assert [a.member for a in actions if isinstance(a, barrier.Stop)] == (["a", "c"] if stops else [])
    for name in "abc":
        scene.say(name, "delivered", exit={**EXIT, **end} if name == "b" else STOPPED if stops else EXIT)
    result = scene.barrier.result()
    assert result["early_exit"] == ("b" if stops else None)
    assert result["verdict"] == verdict
    assert all(reason.startswith("b ") for reason in result["reasons"]), "who was stopped is not at fault"
    assert result["members"]["a"]["stopped"] is stops


def test_an_end_before_t_stops_the_others_at_t() -> None:
    scene = Scene(on_early_exit="stop_on_failure")
    scene.armed()
    answer = scene.say("a", "armed", start_ns=5, failed="the launcher was killed")
    assert answer == [barrier.Stop("a", "the launcher was killed")], "it may forget the trial"
    assert scene.barrier.wake_at is not None
    assert scene.barrier.wake_at < 1001
    assert [(type(a).__name__, a.member) for a in scene.tick(scene.barrier.wake_at - 1000)] == [("Stop", "b")]


def test_t_is_put_off_while_it_cannot_be_told_in_time() -> None:
    scene = Scene()
    scene.armed()
    first = scene.barrier.start_ns
    lead = barrier.lead_ns([200_000, 200_000], 2) / 1e9
    assert first is not None
    assert not scene.barrier.held(at(lead * 0.4))
    assert scene.barrier.held(at(lead * 0.6))
    late = at(lead * 3)
    told = scene.barrier.step(barrier.Held(), late)
    second = scene.barrier.start_ns
    assert told == [barrier.Start("a", second), barrier.Start("b", second)]
    assert second == late.wall_ns + 2 * barrier.lead_ns([200_000, 200_000], 2), "twice as far away"
    assert scene.barrier.result()["lead_s"] == pytest.approx(2 * lead)
    for _time in range(20):
        scene.barrier.step(barrier.Held(), late)
    assert not scene.barrier.held(at(1000)), "what takes longer than any lead is not waited for"


@pytest.mark.parametrize("why", ["asked for", "the trial's time is over"])
def test_nobody_is_told_to_start_once_the_others_were_stopped(why: str) -> None:
    scene = Scene()
    scene.armed()
    scene.barrier.step(barrier.Lost("b"), at(0.01))
    if why == "asked for":
        scene.barrier.step(barrier.Abort(why), at(0.02))
    assert scene.tick(1 if why == "asked for" else 1000)[:2] == [barrier.Stop("a", why), barrier.Stop("b", why)]
    scene.connect("b")
    assert scene.barrier.greet("b", at(scene.now)) == [barrier.Stop("b", why)]
    assert scene.say("b", "armed") == [barrier.Stop("b", why)]


def test_a_clock_that_is_not_told_is_not_known_well_enough() -> None:
    scene = Scene(on_clock_error="refuse")
    scene.connect("a", "b")
    scene.all_say("prepared")
    scene.say("a", "armed")
    scene.say("b", "armed", clock=None)
    assert scene.barrier.start_ns is None
    assert scene.barrier.result()["reasons"] == ["b: says that it is armed, and nothing of its clock"]


def test_a_failure_is_heard_although_the_state_was_further() -> None:
    scene = Scene(on_early_exit="stop_on_failure")
    scene.armed()
    scene.now = 0.01
    actions = scene.say("b", "prepared", failed="was not armed when T was said")
    assert scene.barrier.members["b"] == barrier.Standing("armed", True, "was not armed when T was said")
    assert actions == []
    assert [(type(a).__name__, a.member) for a in scene.tick(1)] == [("Stop", "a")], "at T"
    scene.say("a", "delivered", exit={**EXIT, "stopped": True})
    result = scene.barrier.result()
    assert result["phase"] == "settled"
    assert result["reasons"] == ["b failed after it was armed: was not armed when T was said"]


def test_a_host_that_was_made_anew_after_its_start_keeps_what_was_told() -> None:
    scene = Scene()
    scene.armed()
    scene.all_say("fired")
    scene.say("b", "connected", failed="knows nothing of this trial")
    row = scene.barrier.result()["members"]["b"]
    assert (row["state"], row["late_us"], row["reason"]) == ("fired", 100.0, "knows nothing of this trial")


def test_who_heard_of_t_too_late_marks_the_trial() -> None:
    scene = Scene()
    scene.armed()
    scene.all_say("fired")
    scene.say("a", "delivered", noticed_ns=50_000_010, fired_ns=50_100_010)
    scene.say("b", "delivered", noticed_ns=400_000_010, fired_ns=500_000_010)
    result = scene.barrier.result()
    assert result["verdict"] == "degraded"
    assert result["reasons"] == ["b started 0.500 s late: T reached it 0.400 s after T"]


def test_a_clock_that_is_stepped_while_armed_can_be_refused_before_t() -> None:
    scene = Scene(on_clock_error="refuse")
    scene.connect("a", "b")
    scene.say("a", "armed")
    scene.say("a", "armed", clock={**CLOCK, "stepped_ns": 2 * 10**9})
    scene.say("b", "armed")
    result = scene.barrier.result()
    assert (result["outcome"], result["start_ns"]) == ("aborted", None)
    assert result["reasons"] == ["a: clock was stepped by +2.000 s before T"]


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (1, 1), (50, 2), (51, 3), (75, 3), (99, 4), (100, 4)])
def test_percentile(percent: float, expected: float) -> None:
    assert barrier.percentile([1, 2, 3, 4], percent) == expected


def test_lead_grows_with_the_slowest_and_has_an_end() -> None:
    assert barrier.lead_ns([], 1) < barrier.lead_ns([10**8], 1) < barrier.LEAD_MAX_NS
    assert barrier.lead_ns([10**12], 10) == barrier.LEAD_MAX_NS


# ---- whatever happens ------------------------------------------------------------------------------------------------


class Host:
    """A host with a real `member.Trial`, as `agent.Agent` would run it: record on disk, launcher that outlives the
    agent."""

    def __init__(self, name: str, world: Universe) -> None:
        self.name = name
        self.world = world
        self.up = False
        self.alive = True
        self.trial: member.Trial | None = None
        self.disk: str | None = None
        self.launcher: str | None = None  # ready, sleeping, running, ended
        self.start_here = 0
        self.fires = 0
        self.shaped = False  # the trial has a network
        self.rules: int | None = None  # the phase that is in force
        self.patience = float("inf")  # when it has waited long enough
        self.jobs: list[member.Shape | member.Unshape] = []
        self.waits = 0  # the generation of the barrier "x" that it has come to
        self.decided: dict[int, tuple[str, t.Any]] = {}

    def do(self, actions: t.Iterable[member.Action]) -> None:
        assert self.trial is not None
        for action in actions:
            kind = type(action).__name__
            if kind == "Save":
                self.disk = json.dumps(self.trial.to_json())
            elif kind == "Say" and self.up:
                self.world.send("rendezvous", self.name, ("report", {**self.trial.report()}))
            elif kind == "Arm":
                assert self.launcher in ("ready", None), "armed again, over a command that was started"
                self.launcher = "ready"
            elif kind == "Fire":
                assert self.launcher in ("ready", None)
                assert json.loads(self.disk or "")["start_ns"], "fired before the disk knew it"
                if self.launcher == "ready":
                    self.launcher, self.start_here = "sleeping", t.cast(member.Fire, action).start_ns
            elif kind == "Release" and self.launcher == "ready":
                self.launcher = None
            elif kind == "Kill" and self.launcher in ("sleeping", "running"):
                self.launcher = "ended"
            elif isinstance(action, (member.Shape, member.Unshape)):
                self.jobs.append(action)

    def shape(self) -> None:
        """What `network.Shaper` does: one after another, and an agent that dies takes what waits with it."""
        while self.jobs and self.alive:
            job = self.jobs.pop(0)
            if isinstance(job, member.Shape):
                self.rules = job.phase
                self.take(member.Shaped(job.phase, self.world.wall_ns, {}))
            else:
                assert job.phase in (None, self.rules), "would be taken for somebody else's change"
                self.rules = None
                self.take(member.Cleared())

    def take(self, event: member.Event) -> None:
        if self.trial is not None and self.alive:
            self.do(self.trial.step(event))

    def receive(self, message: tuple[str, t.Any]) -> None:
        kind, what = message
        if not (self.alive and self.up):
            return
        if kind == "prepare":
            if self.trial is None:
                self.patience = self.world.seconds + what
                network = {"phases": [{"at": 0}, {"at": 1}]} if self.shaped else None
                duty = {"upload": False, "network": network, "max_clock_error": 0.05, "patience": what}
                self.trial = member.Trial(EPOCH, duty)
                self.take(member.Prepared())
            else:
                self.do([member.Say()])
        elif self.trial is None:
            if kind == "start":
                stranger = member.Trial(EPOCH, {})
                stranger.failed = "knows nothing"
                self.world.send("rendezvous", self.name, ("report", stranger.report()))
        elif kind == "start":
            self.take(member.StartSaid(what, what + barrier.LATE_LIMIT_NS, self.world.wall_ns))
        elif kind == "abort":
            self.take(member.AbortSaid(what))
        elif kind == "settled":
            self.take(member.SettledSaid())
        elif kind in ("release", "deny"):
            generation, decision = what
            known = self.decided.setdefault(generation, (kind, decision))
            assert known[0] == kind, "a meeting was decided in two ways"
            assert kind == "deny" or known[1] == decision, "two instants were said of a meeting"

    def wait(self, again: bool = False) -> None:
        """What `waiters.Waiters` does: come to the next meeting once the one before it is decided, and say it again."""
        if not (self.alive and self.up) or self.launcher != "running":
            return
        if not again and self.waits in (0, *self.decided):
            self.waits += 1
        if self.waits and self.waits not in self.decided:
            self.world.send("rendezvous", self.name, ("wait", named.Waits(self.name, "x", self.waits, 3.0)))

    def live(self) -> None:
        """What is due happens: launchers wake, commands end, the agent sees it."""
        if self.launcher == "sleeping" and self.world.wall_ns >= self.start_here:
            self.launcher = "running"
            self.fires += 1
            assert self.rules is not None or not self.shaped, "started without its network"
        if self.trial is None or not self.alive:
            return
        self.shape()
        if self.world.seconds >= self.patience:
            self.take(member.OutOfPatience())
        if self.launcher == "ready":
            self.take(member.Ready(self.world.wall_ns))
            self.take(member.Measured(clock.Clock(**CLOCK), self.world.wall_ns))
        if self.launcher in ("running", "ended") and self.trial.committed and self.fires:
            self.take(member.Fired(self.start_here, self.start_here, clock.Reading(0, 0, 0)))
        if self.launcher == "ended":
            if self.trial.reached("fired"):
                self.take(member.Exited(EXIT))
                self.shape()
                self.take(member.Measured(clock.Clock(**CLOCK), self.world.wall_ns))
                self.take(member.Collected([]))
            else:
                self.take(member.LauncherGone(0))
        self.shape()
        if self.trial.over and not self.jobs:
            assert self.rules is None, "rules were left"

    def lose_launcher(self) -> None:
        """It is killed while it waits."""
        if self.alive and self.launcher == "ready":
            self.launcher = None
            self.take(member.LauncherGone(0))

    def crash(self) -> None:
        self.alive = self.up = False
        self.patience = float("inf")
        self.jobs.clear()
        if self.launcher == "ready":
            self.launcher = None  # its pipe was closed without T

    def restart(self) -> None:
        self.alive = True
        if self.disk is not None:
            self.trial = member.Trial.from_json(json.loads(self.disk))
            self.do(self.trial.resume())
            if not (self.trial.committed or self.trial.over):
                self.patience = self.world.seconds + self.trial.duty["patience"]
            if self.trial.committed and not self.trial.over and self.launcher is None:
                self.take(member.LauncherGone(0))
            if self.trial.committed and not self.trial.over and self.trial.reached("fired"):
                self.take(member.PhaseDue(0))


class Universe:
    """The rendezvous with its journal, the hosts, and the network between them."""

    def __init__(self, count: int, **changes: t.Any) -> None:
        self.seconds = 0.0
        self.hosts = {f"h{i}": Host(f"h{i}", self) for i in range(count)}
        self.wires: list[tuple[str, str, tuple[str, t.Any]]] = []
        self.trial = submission(self.hosts, **changes)
        self.barrier = barrier.Barrier(self.trial, self.now)
        self.journal: list[tuple[barrier.Event, barrier.Now]] = []
        self.begin = self.now
        self.published = 0
        self.roster: set[str] = set()
        self.aborted = False
        self.stopped: set[str] = set()
        #: Of those who start: the furthest state and the first failure that the rendezvous was told since T was published.
        self.told: dict[str, tuple[str, str | None]] = {}
        self.released: dict[int, int] = {}
        #: Seconds that saying T is held up, before each try.
        self.stalls: list[float] = []

    @property
    def now(self) -> barrier.Now:
        return at(self.seconds)

    @property
    def wall_ns(self) -> int:
        return self.now.wall_ns

    def send(self, to: str, of: str, message: tuple[str, t.Any]) -> None:
        self.wires.append((to, of, message))

    def event(self, event: barrier.Event) -> None:
        before = self.barrier.start_ns
        self.journal.append((event, self.now))
        was = self.barrier.phase
        actions = self.barrier.step(event, self.now)
        if isinstance(event, barrier.Abort) and was == "gathering":
            self.aborted = True
        if isinstance(event, barrier.Reported) and event.member in self.told:
            state, failed = self.told[event.member]
            furthest = max(state, event.report["state"], key=wire.STATES.index)
            self.told[event.member] = (furthest, failed or event.report["failed"])
        if was == "gathering" and self.barrier.outcome == "aborted":
            self.check_names(self.barrier.result()["reasons"][0])
        if before is None and self.barrier.start_ns is not None:
            self.published += 1
            assert self.barrier.outcome is None
            self.roster = set(self.barrier.result()["roster"])
            assert all(self.barrier.members[name].ready for name in self.roster)
            self.told = dict.fromkeys(self.roster, ("armed", None))
            for group in barrier.seats_of(self.trial):
                assert group.least <= len(self.roster & set(group.members)) <= group.seats
            if self.trial["form"]:
                meant = {name for group in barrier.seats_of(self.trial) for name in group.meant}
                assert self.roster == meant, "started others than the files were made for"
            for stall in self.stalls:
                self.seconds += stall
                if not self.barrier.held(self.now):
                    break
                # As the rendezvous does: nobody has been told yet.
                self.journal.append((barrier.Held(), self.now))
                rest = [action for action in actions if not isinstance(action, barrier.Start)]
                actions = [*rest, *self.barrier.step(barrier.Held(), self.now)]
                assert (self.barrier.start_ns or 0) > self.wall_ns
                assert {a.member for a in actions if isinstance(a, barrier.Start)} == self.roster
        self.perform(actions)

    def perform(self, actions: t.Iterable[barrier.Action]) -> None:
        for action in actions:
            if isinstance(action, barrier.Prepare):
                self.send(action.member, "", ("prepare", action.patience))
            elif isinstance(action, barrier.Start):
                assert not self.stopped & self.roster, "told to start after the others were stopped"
                self.send(action.member, "", ("start", action.start_ns))
            elif isinstance(action, barrier.Stop):
                self.stopped.add(action.member)
                self.send(action.member, "", ("abort", action.reason))
            elif isinstance(action, barrier.Settle):
                self.send(action.member, "", ("settled", None))
            elif isinstance(action, named.Release):
                assert {host.name for host in self.hosts.values() if host.waits >= action.generation} == self.roster
                assert action.generation in self.released or action.at_ns > self.wall_ns
                assert self.released.setdefault(action.generation, action.at_ns) == action.at_ns
                self.send(action.member, "", ("release", (action.generation, action.at_ns)))
            elif isinstance(action, named.Deny):
                self.send(action.member, "", ("deny", (action.generation, action.reason)))

    def deliver(self, index: int) -> None:
        to, of, message = self.wires.pop(index)
        if to == "rendezvous" and message[0] == "wait":
            self.event(message[1])
        elif to == "rendezvous":
            fields = dict(message[1])
            self.event(barrier.Reported(of, fields.pop("epoch"), fields))
        else:
            self.hosts[to].receive(message)

    def connect(self, host: Host) -> None:
        if host.alive and not host.up:
            host.up = True
            self.event(barrier.Connected(host.name))
            self.perform(self.barrier.greet(host.name, self.now))
            host.take(member.LinkUp())
            host.wait(again=True)

    def disconnect(self, host: Host) -> None:
        if host.up:
            host.up = False
            self.event(barrier.Lost(host.name))

    def replay(self) -> barrier.Barrier:
        again = barrier.Barrier(self.trial, self.begin)
        for event, now in self.journal:
            again.step(event, now)
        return again

    def restart_rendezvous(self) -> None:
        again = self.replay()
        assert again.result() == self.barrier.result()
        self.barrier = again
        self.wires.clear()
        for host in self.hosts.values():
            if host.up:
                self.disconnect(host)

    def advance(self, seconds: float) -> None:
        """Time passes; alarms come when they are due."""
        until = self.seconds + seconds
        for _alarm in range(100):
            wake = self.barrier.wake_at
            due = until if wake is None else min(until, max(self.seconds, wake - at(0).steady))
            self.seconds = due
            for host in self.hosts.values():
                host.live()
            if wake is not None and self.now.steady >= wake:
                self.event(barrier.Tick())
            elif due >= until:
                return
        raise AssertionError("alarms without end")

    def check_names(self, reason: str) -> None:
        """Who gave up because others were missing names each of them, with its last state."""
        members = self.barrier.members
        for group in barrier.seats_of(self.trial):
            missing = [name for name in group.members if not members[name].ready]
            if reason.startswith("after ") and len(group.members) - len(missing) < group.least:
                assert all(f"{name} ({members[name]})" in reason for name in missing), "not everybody is named"

    def check_deadlines(self) -> None:
        """Every wait ends in time."""
        limits = {
            "gathering": self.begin.steady + self.trial["deadline"],
            "running": (self.barrier.start_ns or 0) / 1e9
            - 4000
            + self.trial["timeout"]
            + wire.STOP_GRACE
            + barrier.EXIT_SLACK,
        }
        if self.barrier.phase == "ended":
            limits["ended"] = self.barrier.result()["ended"] - 4000 + self.trial["delivery_deadline"]
        assert self.now.steady <= limits.get(self.barrier.phase, float("inf")) + 0.001, f"still {self.barrier.phase}"

    def check(self) -> None:
        assert self.published <= 1
        self.check_deadlines()
        for name, (state, failed) in self.told.items():
            assert self.barrier.members[name].state == state, "the last state is not the one that was told"
            assert (self.barrier.members[name].failed is None) == (failed is None), "a failure was not heard"
        if self.aborted:
            assert self.barrier.outcome == "aborted"
        for host in self.hosts.values():
            assert host.fires <= 1, "fired twice"
            if host.fires:
                assert self.published == 1, "fired before everybody was armed"
                assert self.barrier.outcome not in ("aborted", "reform"), "fired after an abort"
                assert host.name in self.roster, "fired although it was let go"
        instants = collections.defaultdict(set)
        for host in self.hosts.values():
            for generation, decision in host.decided.items():
                instants[generation].add(decision)
        for found in instants.values():
            assert len({kind for kind, _what in found}) == 1, "some went on and some did not"
            assert len(found) == 1 or all(kind == "deny" for kind, _what in found)


ALL = 63
#: As often as each kind is listed: most worlds get as far as a start, and through it.
STEPS = st.sampled_from(
    ["settle down"] * 6
    + ["deliver"] * 3
    + ["wait"] * 4
    + ["advance", "soon"] * 2
    + ["exit"] * 2
    + ["next phase", "lose", "repeat", "wait again", "connect", "disconnect", "crash", "restart", "restart rendezvous"]
    + ["rare"]
).flatmap(
    lambda what: {
        "settle down": st.tuples(st.just(what), st.one_of(st.just(ALL), st.integers(1, ALL))),
        "advance": st.tuples(st.just(what), st.sampled_from([0.001, 0.05, 2.0, 20.0])),
        "soon": st.tuples(st.just("advance"), st.just(0.1)),
        "rare": st.tuples(st.sampled_from(["abort", "break", "no rules"] + ["advance"] * 6), st.integers(0, 5)),
    }.get(what, st.tuples(st.just(what), st.integers(0, 30)))
)


def run_steps(universe: Universe, steps: t.Iterable[tuple[str, t.Any]]) -> None:
    hosts = list(universe.hosts.values())
    for what, argument in steps:
        if what in ("deliver", "lose", "repeat") and universe.wires:
            index = argument % len(universe.wires)
            if what == "repeat":
                universe.wires.append(universe.wires[index])
            elif what == "lose":
                del universe.wires[index]
            else:
                universe.deliver(index)
        elif what == "connect":
            universe.connect(hosts[argument % len(hosts)])
        elif what == "disconnect":
            universe.disconnect(hosts[argument % len(hosts)])
        elif what == "crash":
            host = hosts[argument % len(hosts)]
            universe.disconnect(host)
            host.crash()
        elif what == "restart":
            host = hosts[argument % len(hosts)]
            if not host.alive:
                host.restart()
        elif what == "exit":
            host = hosts[argument % len(hosts)]
            if host.launcher == "running":
                host.launcher = "ended"
        elif what == "break":
            hosts[argument % len(hosts)].lose_launcher()
        elif what == "no rules":
            hosts[argument % len(hosts)].take(member.Shaped(argument % 2, 0, {}, "tc failed"))
        elif what == "next phase":
            hosts[argument % len(hosts)].take(member.PhaseDue(1))
        elif what in ("wait", "wait again"):
            hosts[argument % len(hosts)].wait(again=what == "wait again")
        elif what == "advance":
            universe.advance(argument)
        elif what == "abort":
            universe.event(barrier.Abort("asked for"))
        elif what == "restart rendezvous":
            universe.restart_rendezvous()
        elif what == "settle down":
            # All is well, for some of the hosts (the bits of the argument).
            calm = {host.name for index, host in enumerate(hosts) if argument >> index & 1}
            for name in sorted(calm):
                universe.connect(universe.hosts[name])
                universe.hosts[name].live()
            while True:
                ready = [index for index, (to, of, _what) in enumerate(universe.wires) if {to, of} & calm]
                if not ready:
                    break
                universe.deliver(ready[0])
                for name in sorted(calm):
                    universe.hosts[name].live()
        universe.check()


@st.composite
def universes(draw: st.DrawFn, most: int = 6) -> Universe:
    """Hosts, dealt to one or two groups with quorum and spares, or not."""
    count = draw(st.integers(1, most))
    changes: dict[str, t.Any] = {
        "form": draw(st.booleans()),
        "grace": draw(st.sampled_from([0.0, 1.0, 10.0])),
        "on_early_exit": draw(st.sampled_from(["continue", "stop_on_failure", "stop"])),
    }
    if draw(st.booleans()):
        names = [f"h{i}" for i in range(count)]
        cut = draw(st.integers(1, count))
        changes["seats"] = []
        for members in (names[:cut], names[cut:]):
            if members:
                wanted = draw(st.integers(1, len(members) + 1))
                least = draw(st.integers(1, min(wanted, len(members))))
                changes["seats"].append({"members": members, "seats": wanted, "least": least})
    universe = Universe(count, **changes)
    universe.stalls = draw(st.lists(st.sampled_from([0.0, 0.05, 0.3, 40.0]), max_size=3))
    for host in universe.hosts.values():
        host.shaped = draw(st.booleans())
    return universe


@settings(max_examples=200, deadline=None)
@given(universes(), st.one_of(st.lists(STEPS, max_size=20), st.lists(STEPS, min_size=20, max_size=60)))
def test_whatever_happens(universe: Universe, steps: list[tuple[str, t.Any]]) -> None:
    run_steps(universe, steps)
    # Left alone, it ends: by its own alarms and nothing else. So does the wait of every host.
    while universe.barrier.wake_at is not None:
        universe.advance(max(0.0, universe.barrier.wake_at - universe.now.steady))
        universe.check()
    universe.advance(universe.trial["deadline"] + barrier.PATIENCE)
    assert [host.name for host in universe.hosts.values() if host.alive and host.launcher == "ready"] == []
    result = universe.barrier.result()
    assert result["phase"] == "settled"
    assert set(result["members"]) == set(universe.hosts)
    assert set(result["roster"] or ()) <= set(universe.hosts)
    if universe.published:
        # Every meeting was decided, and everyone has one role.
        assert all(m["reason"] is not None or m["released"] is not None for m in result["barriers"])
        assert {name for name, row in result["members"].items() if row["role"] == "starter"} == universe.roster
        for name, (state, failed) in universe.told.items():
            if failed is not None or state != "delivered":
                assert any(reason.startswith(f"{name} ") for reason in result["reasons"]), f"{name} is not named"
    else:
        assert result["outcome"] in ("aborted", "reform")
    assert all(row["state"] in wire.STATES for row in result["members"].values())
    assert result["verdict"] == "valid" or result["reasons"]
    if result["verdict"] == "valid":
        assert all(universe.hosts[name].fires == 1 for name in universe.roster)
        assert all(
            len(universe.roster & set(group.members)) == group.seats for group in barrier.seats_of(universe.trial)
        )
    json.dumps(result, allow_nan=False)
    assert universe.replay().result() == result


def test_a_host_whose_agent_was_restarted_waits_no_longer_than_another() -> None:
    universe = Universe(2)
    run_steps(universe, [("settle down", 1), ("crash", 0), ("restart", 0)])
    host = universe.hosts["h0"]
    assert host.launcher == "ready"
    universe.advance(universe.trial["deadline"] + barrier.PATIENCE + 1)
    assert host.launcher is None
    assert host.trial is not None
    assert host.trial.failed == "the rendezvous was not heard of in time"


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.lists(STEPS, max_size=30))
def test_a_world_that_calms_down_before_the_deadline_completes(count: int, steps: list[tuple[str, t.Any]]) -> None:
    """Nothing gets stuck: unless the trial was lost by then, everybody starts once all faults are over."""
    universe = Universe(count)
    run_steps(universe, [step for step in steps if step[0] not in ("abort", "advance", "break")])
    for host in universe.hosts.values():
        universe.disconnect(host)  # a connection does not outlive the loss of what it carries
        if not host.alive:
            host.restart()
    for _round in range(3):
        run_steps(universe, [("settle down", ALL)])
    assert universe.barrier.outcome != "aborted"
    assert universe.published == 1
    universe.advance(0.2)
    for index in range(count):
        run_steps(universe, [("exit", index)])
    universe.advance(0.1)
    run_steps(universe, [("settle down", ALL)])
    universe.advance(0.1)
    run_steps(universe, [("settle down", ALL)])
    assert universe.barrier.result()["verdict"] == "valid"


@pytest.mark.parametrize("state", ["armed", "fired", "exited"])
def test_a_t_that_was_not_published_is_no_start(state: str) -> None:
    """Whoever says so: it is named, and nothing of what it says of a start is counted."""
    early = Scene()
    early.connect("a", "b")
    early.all_say("prepared")
    early.say("a", state, start_ns=7, noticed_ns=5, fired_ns=9)
    early.say("b", "armed")
    assert early.barrier.start_ns is None
    assert early.barrier.result()["skew"] is None
    assert f"said {state} before T was published" in str(early.barrier.result()["members"]["a"]["reason"])
    scene = Scene()
    scene.armed()
    scene.say("a", state, start_ns=11, noticed_ns=5, fired_ns=10**9)
    scene.say("b", "fired")
    result = scene.barrier.result()
    assert result["skew"]["n"] == 1
    assert result["members"]["a"]["reason"] == "says another T than was published"
    assert (result["members"]["a"]["state"], result["members"]["a"]["late_us"]) == ("armed", None)
