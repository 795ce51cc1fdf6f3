# SPDX-License-Identifier: GPL-3.0-or-later
"""Which run a command means, and the controller's record of it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import pathlib
import stat
import subprocess
import sys
import typing as t

import pytest

from ansible_collections.startline.lab.plugins.plugin_utils import _run
from ansible_collections.startline.lab.plugins.plugin_utils._errors import RunError
from ansible_collections.startline.lab.plugins.plugin_utils._run import Controller, RunRecord, RunStore

NOW = dt.datetime(2026, 11, 21, 9, 30, tzinfo=dt.UTC)
NEW = "dkg-20261121T093000Z-3fa9"
DEAD, ALIVE = Controller("here", 1, "a"), Controller("here", 2, "b")
PLAN = {"experiment": "dkg", "digest": "d1", "expires_after": 7200, "worst_case": 1800}


def record(number: int = 1, **changes: t.Any) -> RunRecord:
    base = RunRecord(
        run_id=f"dkg-20261120T00000{number}Z-0000",
        experiment="dkg",
        digest="d1",
        artifacts={"w/dkg": "a1"},
        controller=DEAD,
        created=f"2026-11-20T00:00:0{number}Z",
        expires="2026-11-21T11:30:00Z",
    )
    return dataclasses.replace(base, **changes)


def choose(*records: RunRecord, requested: str | None = None, awx: str | None = None) -> _run.Choice:
    return _run.choose_run(
        records,
        experiment="dkg",
        digest="d1",
        artifacts={"w/dkg": "a1"},
        requested=requested,
        awx=awx,
        new_id=NEW,
        is_alive=lambda controller: controller == ALIVE,
    )


# --- ids --------------------------------------------------------------------------------------------------------------


def test_run_ids_are_utc_and_sort_by_time() -> None:
    east = NOW.astimezone(dt.timezone(dt.timedelta(hours=9)))
    assert _run.new_run_id("dkg", east, b"\x3f\xa9\x00") == NEW


@pytest.mark.parametrize(
    ("job", "workflow", "run_id"),
    [("17", None, "dkg-awx17"), (17, 9, "dkg-awx9"), (None, None, None), ("", "", None)],
)
def test_an_awx_run_is_derived_from_the_job(job: t.Any, workflow: t.Any, run_id: str | None) -> None:
    assert _run.awx_run_id("dkg", job, workflow) == run_id


def test_an_awx_job_has_a_number() -> None:
    with pytest.raises(RunError, match="not the id of an AWX job"):
        _run.awx_run_id("dkg", "../x", None)


# --- the decision -----------------------------------------------------------------------------------------------------


def test_without_records_a_run_is_new() -> None:
    assert choose() == _run.Choice(NEW, None)


def test_the_newest_unfinished_run_of_the_plan_goes_on() -> None:
    assert choose(record(1), record(2)).resumed == record(2)


@pytest.mark.parametrize(
    "changes",
    [
        {"finished": True},
        {"digest": "d2"},
        {"artifacts": {"w/dkg": "a2"}},
        {"experiment": "automon"},
        {"controller": ALIVE},
    ],
    ids=["finished", "another plan", "another program", "another experiment", "its controller lives"],
)
def test_other_runs_are_left_alone(changes: dict[str, t.Any]) -> None:
    assert choose(record(1, **changes)).run_id == NEW


def test_an_older_broken_run_goes_on_beside_a_newer_one_that_lives() -> None:
    assert choose(record(1), record(2, controller=ALIVE)).resumed == record(1)


def test_an_awx_job_has_its_own_run_whatever_else_there_is() -> None:
    assert choose(record(1), awx="dkg-awx17") == _run.Choice("dkg-awx17", None)
    mine = record(1, run_id="dkg-awx17")
    assert choose(mine, awx="dkg-awx17").resumed == mine


def test_a_named_run_goes_on_even_when_it_is_finished() -> None:
    finished = record(1, finished=True)
    assert choose(finished, record(2), requested=finished.run_id).resumed == finished


@pytest.mark.parametrize(
    ("known", "requested", "message"),
    [
        (
            record(1),
            "dkg-nope",
            r"was not started from here\..* newest first: dkg-20261120T000001Z-0000 \(unfinished\)\.",
        ),
        (record(1, finished=True), "nope", r"newest first: dkg-20261120T000001Z-0000\."),
        (record(1), "dkg-20261120T000002Z-0000", r"Did you mean dkg-20261120T000001Z-0000\?|was not started"),
        (record(1, digest="d2"), record(1).run_id, "made of another plan"),
        (record(1, artifacts={"w/dkg": "a2"}), record(1).run_id, r"begun with another content of w/dkg\."),
        (record(1, experiment="automon"), record(1).run_id, "give -e exp=automon"),
        (record(1, controller=ALIVE), record(1).run_id, "led by process 2 on here"),
    ],
)
def test_a_named_run_that_cannot_go_on(known: RunRecord, requested: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        choose(known, requested=requested)


def test_in_awx_a_named_run_needs_no_record() -> None:
    assert choose(requested="dkg-awx3", awx="dkg-awx17") == _run.Choice("dkg-awx3", None)
    with pytest.raises(RunError, match="was not started from here"):
        choose(requested="other-awx3", awx="dkg-awx17")


@pytest.mark.parametrize(
    ("expires", "expected"),
    [
        ("2026-11-21T11:30:00Z", "2026-11-21T11:30:00Z"),
        ("2026-11-21T10:00:00Z", "2026-11-21T10:00:00Z"),
        ("2026-11-21T09:59:59Z", "2026-11-21T11:30:00Z"),
        ("2026-11-20T00:00:00Z", "2026-11-21T11:30:00Z"),
    ],
    ids=["plenty", "just enough", "too late to end", "over"],
)
def test_a_run_keeps_its_expiry_while_it_can_still_end(expires: str, expected: str) -> None:
    found = _run.choose_expiry(record(expires=expires), now=NOW, expires_after=7200, worst_case=1800)
    assert found == expected


def test_a_new_run_expires_after_its_time() -> None:
    assert _run.choose_expiry(None, now=NOW, expires_after=90, worst_case=1) == "2026-11-21T09:31:30Z"


# --- processes --------------------------------------------------------------------------------------------------------


def test_this_process_lives_and_one_of_its_number_before_it_does_not() -> None:
    me = _run.this_controller(os.getpid())
    assert _run.is_alive(me)
    assert not _run.is_alive(dataclasses.replace(me, started="another boot/1"))


def test_a_process_that_ended_is_dead_also_while_nobody_has_waited_for_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        leader = _run.this_controller(child.pid)
        assert _run.is_alive(leader)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it ended, and is a zombie
        assert not _run.is_alive(leader)
    assert not _run.is_alive(leader)
    with pytest.raises(RunError, match="is gone"):
        _run.this_controller(child.pid)


def test_of_another_machine_a_controller_may_live() -> None:
    assert _run.is_alive(Controller("elsewhere", 1, "x"))


# --- the store --------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: pathlib.Path) -> RunStore:
    return RunStore(tmp_path / ".startline")


def open_run(store: RunStore, controller: Controller = DEAD, **changes: t.Any) -> tuple[RunRecord, bool, list[str]]:
    arguments: dict[str, t.Any] = {
        "artifacts": {},
        "requested": None,
        "awx": None,
        "controller": controller,
        "now": NOW,
        "entropy": b"\x3f\xa9",
        **changes,
    }
    return _run.open_run(store, PLAN, **arguments)


def test_a_run_is_recorded_in_private(store: RunStore) -> None:
    opened, resumed, broken = open_run(store)
    assert (opened.run_id, resumed, broken) == (NEW, False, [])
    assert opened.expires == "2026-11-21T11:30:00Z"
    path = store.path(NEW)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.iterdir()} == {"run.json": 0o600, "plan.json": 0o600}
    assert store.read(NEW) == opened
    assert store.read_plan(NEW) == PLAN


def test_the_same_command_goes_on_with_a_broken_run_and_takes_it(store: RunStore) -> None:
    gone = dataclasses.replace(_run.this_controller(os.getpid()), started="before")
    first, _resumed, _broken = open_run(store, gone)
    me = _run.this_controller(os.getpid())
    second, resumed, _broken = open_run(store, me, now=NOW + dt.timedelta(minutes=5), entropy=b"\0\0")
    assert resumed
    assert second == dataclasses.replace(first, controller=me)
    third, resumed, _broken = open_run(store, Controller(me.host, 1, "x"), entropy=b"\0\1")
    assert (resumed, third.run_id) == (False, "dkg-20261121T093000Z-0001"), "one whose controller lives is left alone"


def test_a_finished_run_is_followed_by_a_new_one(store: RunStore) -> None:
    me = _run.this_controller(os.getpid())
    open_run(store, me)
    assert store.finish(NEW)
    assert not store.finish(NEW)
    assert open_run(store, me, entropy=b"\0\0")[1] is False


def test_records_that_cannot_be_read_are_named_and_passed_over(store: RunStore) -> None:
    open_run(store)
    for name, text in (("cut", '{"format": '), ("foreign", '{"format": "x"}'), ("list", "[]")):
        (store.path(NEW).parent / name).mkdir()
        (store.path(NEW).parent / name / "run.json").write_text(text, encoding="utf-8")
    records, broken = store.records()
    assert [r.run_id for r in records] == [NEW]
    assert broken == ["cut", "foreign", "list"]
    (store.path(NEW) / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match="cannot be read"):
        store.read(NEW)


def test_an_unknown_run_lists_those_there_are(store: RunStore) -> None:
    open_run(store)
    with pytest.raises(RunError, match=f"Runs that were: {NEW}"):
        store.finish("dkg-awx1")
    with pytest.raises(RunError, match="not the id of a run"):
        store.path("../../etc")


def test_a_reader_never_sees_half_a_record(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, _resumed, _broken = open_run(store)

    def fail(*_args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        store.finish(NEW)
    assert store.read(NEW) == opened
    assert sorted(p.name for p in store.path(NEW).iterdir()) == ["plan.json", "run.json"]


def test_two_commands_at_once_do_not_take_the_same_run(store: RunStore, tmp_path: pathlib.Path) -> None:
    program = (
        "import sys, os, json, pathlib, datetime as dt\n"
        "from ansible_collections.startline.lab.plugins.plugin_utils import _run\n"
        "input()\n"
        f"store = _run.RunStore(pathlib.Path({str(tmp_path / '.startline')!r}))\n"
        f"plan = json.loads({json.dumps(json.dumps(PLAN))})\n"
        "me = _run.this_controller(os.getpid())\n"
        "now, entropy = dt.datetime.now(dt.UTC), os.urandom(2)\n"
        "r = _run.open_run(store, plan, artifacts={}, requested=None, awx=None,"
        " controller=me, now=now, entropy=entropy)\n"
        "print(r[0].run_id, r[1], flush=True)\n"
        "input()\n"
    )
    gone = dataclasses.replace(_run.this_controller(os.getpid()), started="before")
    open_run(store, gone)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for _child in range(4)
    ]
    try:
        for child in children:
            assert child.stdin
            child.stdin.write("\n")
            child.stdin.flush()
        lines = [child.stdout.readline().split() for child in children if child.stdout]
    finally:
        for child in children:
            child.communicate("\n", timeout=30)
    assert sorted(resumed for _run_id, resumed in lines) == ["False", "False", "False", "True"]
    assert len({run_id for run_id, _resumed in lines}) == 4
