# SPDX-License-Identifier: GPL-3.0-or-later
"""What the controller submits, and what it says of the answer."""

from __future__ import annotations

import json
import typing as t

import pytest

from ansible_collections.startline.lab.plugins.plugin_utils import _barrier_call as call


def arguments(**changes: t.Any) -> dict[str, t.Any]:
    return {
        "run_id": "run-1",
        "trial_id": "r1",
        "attempt": 1,
        "members": [
            {"name": "a-0", "rank": 0, "command": "true", "environment": {"N": 3, "ON": True, "E": None}, "links": {}},
            {"name": "a-1", "rank": 1, "command": "true", "environment": {}, "links": {}},
        ],
        "files": {"hosts.config": "10.0.0.1\n"},
        "links": {},
        "deadline": 60.0,
        "timeout": 100.0,
        "delivery_deadline": 600.0,
        "seats": None,
        "grace": 5,
        "on_early_exit": "continue",
        "max_clock_error": 0.05,
        "on_clock_error": "mark",
        "collect": [],
        "user": "",
        "evidence": None,
        **changes,
    }


def result(**changes: t.Any) -> dict[str, t.Any]:
    return {
        "format": "startline-trial/1",
        "epoch": {"run": "run-1", "trial": "r1", "attempt": 1},
        "outcome": "completed",
        "verdict": "valid",
        "reasons": [],
        "roster": ["a-0", "a-1"],
        "members": {"a-0": {}, "a-1": {}},
        "skew": {"n": 2, "min_us": 100.0, "p50_us": 100.0, "max_us": 300.0, "bound_us": 250.0, "last": "a-1"},
        **changes,
    }


def test_a_submission_is_what_the_rendezvous_takes() -> None:
    trial = call.submission(arguments())
    call.check(trial)
    assert trial["members"][0]["environment"] == {"N": "3", "ON": "true", "E": ""}
    assert trial["user"] is None
    json.dumps(trial, allow_nan=False)


MEMBER = arguments()["members"][0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"members": []}, "members is empty"),
        ({"members": [MEMBER, {**MEMBER, "rank": 1}]}, "the name a-0 is there more than once"),
        ({"members": [MEMBER, {**MEMBER, "name": "b"}]}, "the rank 0 is there more than once"),
        ({"deadline": 0.0}, "deadline is not in"),
        ({"timeout": float("inf")}, "timeout is not in"),
        ({"files": {"../x": ""}}, "not a plain relative path"),
        ({"trial_id": "a/b"}, "trial_id does not match"),
        ({"members": [{**MEMBER, "environment": {"A B": "1"}}]}, "environment does not match"),
    ],
)
def test_what_is_no_trial_is_named(changes: dict[str, t.Any], words: str) -> None:
    with pytest.raises(call.SubmissionError, match=words):
        call.check(call.submission(arguments(**changes)))


def test_the_wait_has_an_end() -> None:
    trial = call.submission(arguments())
    assert 160 < call.time_limit(trial, "exited") < 260
    assert call.time_limit(trial, "delivered") == call.time_limit(trial, "exited") + 600


@pytest.mark.parametrize(
    ("code", "output", "errors", "problem", "again"),
    [
        (0, "Welcome!\n" + json.dumps(result()) + "\n", "", "", False),
        (0, "Welcome!\n[]\n", "", "not a trial", False),
        (1, "", "startline-agent: r1 is stale\n", "r1 is stale", False),
        (1, "", "startline-agent: cannot reach the rendezvous at x: no\n", "cannot reach", True),
        (1, "", "startline-agent: the rendezvous has not answered in time\n", "in time", False),
        (127, "", "sh: startline-agent: not found\n", "not installed", False),
        (255, "", "Connection closed by remote host\n", "Connection closed", True),
        (2, "", "startline-agent: cannot read /etc/startline/agent.json: Permission denied\n", "Permission", False),
    ],
)
def test_answers(code: int, output: str, errors: str, problem: str, again: bool) -> None:
    answer = call.parse(code, output, errors)
    assert problem in answer.problem
    assert answer.again is again
    assert (answer.result is not None) is (not problem)


def test_a_good_trial_is_told_in_a_line() -> None:
    found = call.judged(result())
    assert found["msg"] == (
        "r1: valid; 2 of 2 started within 0.2 ms (p50 0.1 ms, clocks known to 0.2 ms), the last was a-1"
    )
    assert "failed" not in found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"outcome": "aborted", "verdict": "invalid", "reasons": ["not armed: a-1 (absent)"]}, "nobody was started"),
        ({"verdict": "invalid", "reasons": ["a-1 exited with code 3"]}, "r1: invalid. a-1 exited with code 3"),
        ({"verdict": "invalid", "reasons": [f"a-{i}" for i in range(100)]}, "and 88 more"),
    ],
)
def test_a_bad_trial_fails_and_says_who_and_why(changes: dict[str, t.Any], words: str) -> None:
    found = call.judged(result(**changes))
    assert found["failed"]
    assert words in found["msg"]


def test_a_degraded_trial_does_not_fail() -> None:
    found = call.judged(result(verdict="degraded", reasons=["a-1: clock known to 0.060 s only"]))
    assert "failed" not in found
    assert "clock known" in found["msg"]


def test_of_a_silent_coordinator_every_member_is_named() -> None:
    away = call.Answer(problem="cannot reach the coordinator", again=True)
    found = call.unknown(call.submission(arguments()), away, 200)
    assert found["failed"]
    assert "Nothing is known of a-0, a-1" in found["msg"]
    assert "attaches" in found["msg"]


def test_who_is_refused_is_not_told_to_attach() -> None:
    refused = call.Answer(problem="r1 is of an older attempt")
    assert "attach" not in call.unknown(call.submission(arguments()), refused, 200)["msg"]
