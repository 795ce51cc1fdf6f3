# SPDX-License-Identifier: GPL-3.0-or-later
"""Which run a command means: a new one, or one that was broken off and goes on.

The controller keeps a private record of each run that was started from its clone,
``.startline/runs/<run_id>/run.json``, beside the plan and the run's keys. The same command again goes on with the
newest run of the same plan that is not finished and whose controller is gone; a run whose controller lives is left
alone. The decision is pure (`choose_run`); `RunStore` does the I/O.

This util is PRIVATE to the collection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import fcntl
import json
import os
import pathlib
import re
import subprocess
import tempfile
import typing as t

from ansible_collections.startline.lab.plugins.plugin_utils._errors import RunError, listed, nearest

_FORMAT: t.Final = "startline-run-record/1"
_RUN_ID: t.Final = re.compile(r"(?P<experiment>[a-z0-9][a-z0-9_-]{0,39})-(?:\d{8}T\d{6}Z-[0-9a-f]{4}|awx\d+)")


@dataclasses.dataclass(frozen=True)
class Controller:
    """The process that leads a run. `started` tells it from a later process with the same `pid`."""

    host: str
    pid: int
    started: str


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What the controller remembers of a run.

    `digest` is the plan's. `artifacts` has the sha256 of what each artifact held (by its path in the plan) when the run
    began. `created` and `expires` are UTC, ISO 8601 with a Z.
    """

    run_id: str
    experiment: str
    digest: str
    artifacts: dict[str, str]
    controller: Controller
    created: str
    expires: str
    finished: bool = False


@dataclasses.dataclass(frozen=True)
class Choice:
    """The run to lead. `resumed` is its record where it goes on, None where it is new."""

    run_id: str
    resumed: RunRecord | None


def format_time(moment: dt.datetime) -> str:
    """UTC to the second: ``2026-11-21T09:30:00Z``."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def new_run_id(experiment: str, now: dt.datetime, entropy: bytes) -> str:
    """``dkg-20261121T093000Z-3fa9``: sorts by time; two bytes of `entropy` keep runs of the same second apart."""
    return f"{experiment}-{now.astimezone(dt.UTC):%Y%m%dT%H%M%SZ}-{entropy[:2].hex()}"


def awx_run_id(experiment: str, job: str | int | None, workflow_job: str | int | None) -> str | None:
    """The run of an AWX job: derived, so that a cancelled job can be found again; the same for all jobs of a workflow.

    Jobs and workflow jobs are numbered together in AWX, so the two kinds cannot meet.
    """
    number = workflow_job or job
    if not number:
        return None
    if not str(number).isdecimal():
        raise RunError(f"{number!r} is not the id of an AWX job")
    return f"{experiment}-awx{number}"


def choose_run(
    records: t.Iterable[RunRecord],
    *,
    experiment: str,
    digest: str,
    artifacts: t.Mapping[str, str],
    requested: str | None,
    awx: str | None,
    new_id: str,
    is_alive: t.Callable[[Controller], bool],
) -> Choice:
    """Which run a command leads. Pure.

    Args:
        records: of the runs that were started from this clone.
        experiment: the experiment's name.
        digest: the plan's digest.
        artifacts: sha256 of each artifact as it is now. Trials of different programs are never mixed in a run.
        requested: the run that the user names.
        awx: the run of this AWX job, if it is one.
        new_id: what a new run would be called.
        is_alive: whether a run's controller may still be at work; where that cannot be told, it is.

    Raises:
        RunError: the named run is unknown, of another experiment or plan, or led by another process.
    """
    known = {record.run_id: record for record in records}
    if requested:
        return _requested(known, requested, experiment, digest, artifacts, awx, is_alive)
    if awx:
        # The id is the identity: what the job did so far is in S3 and in tags, not on a disk that AWX throws away.
        record = known.get(awx)
        return Choice(awx, record if record and record.digest == digest else None)
    candidates = [
        record
        for record in known.values()
        if record.experiment == experiment
        and record.digest == digest
        and record.artifacts == artifacts
        and not record.finished
        and not is_alive(record.controller)
    ]
    newest = max(candidates, key=lambda record: (record.created, record.run_id), default=None)
    return Choice(newest.run_id, newest) if newest else Choice(new_id, None)


def _requested(
    known: t.Mapping[str, RunRecord],
    requested: str,
    experiment: str,
    digest: str,
    artifacts: t.Mapping[str, str],
    awx: str | None,
    is_alive: t.Callable[[Controller], bool],
) -> Choice:
    record = known.get(requested)
    if record is None:
        match = _RUN_ID.fullmatch(requested)
        if awx and match and match["experiment"] == experiment:
            return Choice(requested, None)  # another job's run: its state is not on this disk
        guess = nearest(requested, known)
        hint = f" Did you mean {guess}?" if guess else ""
        newest_first = sorted(known.values(), key=lambda r: r.created, reverse=True)
        there = listed(f"{r.run_id}{'' if r.finished else ' (unfinished)'}" for r in newest_first)
        raise RunError(f"run {requested} was not started from here.{hint} Runs that were, newest first: {there}.")
    if record.experiment != experiment:
        raise RunError(
            f"run {requested} is of the experiment {record.experiment}, not {experiment}: "
            f"give -e exp={record.experiment}"
        )
    if record.digest != digest:
        raise RunError(
            f"run {requested} was made of another plan: the experiment file, -e set or the seed has changed since. "
            "Undo the change to go on with it, or leave out -e run to start a new run."
        )
    changed = sorted(src for src in {*artifacts, *record.artifacts} if artifacts.get(src) != record.artifacts.get(src))
    if changed:
        raise RunError(
            f"run {requested} was begun with another content of {listed(changed)}. "
            "Undo the change to go on with it, or leave out -e run to start a new run."
        )
    if not record.finished and is_alive(record.controller):
        raise RunError(
            f"run {requested} is being led by process {record.controller.pid} on {record.controller.host}. "
            "Wait for it, or stop that process first."
        )
    return Choice(requested, record)


def choose_expiry(record: RunRecord | None, *, now: dt.datetime, expires_after: float, worst_case: float) -> str:
    """When the run's hosts power themselves off.

    A run that goes on keeps its time as long as it can still end by then: its hosts have it armed. Otherwise it gets
    a new one.
    """
    if record is not None:
        expires = dt.datetime.fromisoformat(record.expires)
        if (expires - now).total_seconds() >= worst_case:
            return record.expires
    return format_time(now + dt.timedelta(seconds=expires_after))


# --- I/O --------------------------------------------------------------------------------------------------------------


def process_started(pid: int) -> str | None:
    """What tells process `pid` from every other one of its number, on this machine, ever; None if there is no such
    process.
    """
    if not os.path.isdir("/proc/self"):  # not Linux: to the second
        found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return found.stdout.strip() or None
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold anything; after it come the state and, 20th, the start in ticks since boot.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else f"{boot}/{fields[18]}"


def this_controller(pid: int) -> Controller:
    """The process `pid` of this machine, which leads the run."""
    started = process_started(pid)
    if started is None:
        raise RunError(f"the controller process {pid} is gone")
    return Controller(os.uname().nodename, pid, started)


def is_alive(controller: Controller) -> bool:
    """Whether a controller may still be at work. Of another machine (a clone on a shared disk) that cannot be told:
    it may.
    """
    return controller.host != os.uname().nodename or process_started(controller.pid) == controller.started


class RunStore:
    """The private directory of the runs that were started from a clone: ``<directory>/runs/<run_id>/``, mode 0700."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._runs = directory / "runs"

    def path(self, run_id: str) -> pathlib.Path:
        """The private directory of a run."""
        if not _RUN_ID.fullmatch(run_id):
            raise RunError(
                f"{run_id!r} is not the id of a run: <experiment>-<UTC time>-<4 hex digits>, or <experiment>-awx<job>"
            )
        return self._runs / run_id

    @contextlib.contextmanager
    def locked(self) -> t.Iterator[None]:
        """Alone with the records, so that two commands at the same instant do not take the same run."""
        _make_private(self._runs)
        with open(self._runs / ".lock", "a", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def records(self) -> tuple[list[RunRecord], list[str]]:
        """All records in the order of their ids, and the directories whose record cannot be read."""
        found, broken = [], []
        for path in sorted(self._runs.glob("*/run.json")):
            try:
                found.append(self._parse(json.loads(path.read_text(encoding="utf-8")), path.parent.name))
            except (OSError, ValueError, KeyError, TypeError):
                broken.append(path.parent.name)
        return found, broken

    @staticmethod
    def _parse(data: t.Any, run_id: str) -> RunRecord:
        if data["format"] != _FORMAT or data["run_id"] != run_id:
            raise ValueError(f"not the record of {run_id}")
        dt.datetime.fromisoformat(data["expires"])
        names = [field.name for field in dataclasses.fields(RunRecord) if field.name != "controller"]
        return RunRecord(controller=Controller(**data["controller"]), **{name: data[name] for name in names})

    def read(self, run_id: str) -> RunRecord:
        """One record.

        Raises:
            RunError: it is not there, or cannot be read.
        """
        path = self.path(run_id) / "run.json"
        try:
            return self._parse(json.loads(path.read_text(encoding="utf-8")), run_id)
        except FileNotFoundError:
            there = listed(record.run_id for record in reversed(self.records()[0]))
            raise RunError(f"run {run_id} was not started from here. Runs that were: {there}.") from None
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise RunError(f"the record {path} cannot be read: {exc}") from exc

    def write(self, record: RunRecord) -> None:
        """Keep a record. Whoever reads sees the old one or the new one, whole."""
        self._write(record.run_id, "run.json", {"format": _FORMAT, **dataclasses.asdict(record)})

    def write_plan(self, run_id: str, plan: t.Mapping[str, t.Any]) -> None:
        """Keep the plan of a run beside its record."""
        self._write(run_id, "plan.json", plan)

    def read_plan(self, run_id: str) -> dict[str, t.Any]:
        """The plan that a run was made of.

        Raises:
            RunError: it is not there, or cannot be read.
        """
        path = self.path(run_id) / "plan.json"
        try:
            plan: dict[str, t.Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as exc:
            raise RunError(f"the plan {path} cannot be read: {exc}") from exc
        return plan

    def finish(self, run_id: str) -> bool:
        """Note that nothing is left to do for a run. True if that is news."""
        with self.locked():
            record = self.read(run_id)
            if record.finished:
                return False
            self.write(dataclasses.replace(record, finished=True))
            return True

    def _write(self, run_id: str, name: str, data: t.Any) -> None:
        directory = self.path(run_id)
        _make_private(self._runs)
        _make_private(directory)
        descriptor, scratch = tempfile.mkstemp(prefix=f".{name}.", dir=directory)  # mkstemp's mode is 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump(data, stream, indent=2, ensure_ascii=False)
                stream.write("\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(scratch, directory / name)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(scratch)
            raise


def _make_private(directory: pathlib.Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)  # whatever the umask was, and who made it


def open_run(
    store: RunStore,
    plan: t.Mapping[str, t.Any],
    *,
    artifacts: t.Mapping[str, str],
    requested: str | None,
    awx: str | None,
    controller: Controller,
    now: dt.datetime,
    entropy: bytes,
) -> tuple[RunRecord, bool, list[str]]:
    """Choose the run of a command and take it: its record names `controller` from here on.

    Returns:
        The record, whether the run goes on, and the directories whose record could not be read.
    """
    with store.locked():
        records, broken = store.records()
        choice = choose_run(
            records,
            experiment=plan["experiment"],
            digest=plan["digest"],
            artifacts=artifacts,
            requested=requested,
            awx=awx,
            new_id=new_run_id(plan["experiment"], now, entropy),
            is_alive=lambda other: other != controller and is_alive(other),
        )
        expires = choose_expiry(
            choice.resumed, now=now, expires_after=plan["expires_after"], worst_case=plan["worst_case"]
        )
        record = RunRecord(
            run_id=choice.run_id,
            experiment=plan["experiment"],
            digest=plan["digest"],
            artifacts=dict(artifacts),
            controller=controller,
            created=choice.resumed.created if choice.resumed else format_time(now),
            expires=expires,
            finished=False,
        )
        store.write_plan(record.run_id, plan)
        store.write(record)
    return record, choice.resumed is not None, broken
