# SPDX-License-Identifier: GPL-3.0-or-later
"""Evidence: what is kept of a run, whether it is all there, and what it is worth.

The upper half is pure: given the plan, the names of the objects in the run's S3 prefix, and the contents of trial.json
and meta.json, it says which attempt of a trial counts, what is missing by name, and the verdict with its reasons. What
counts as evidence of a member is what its meta.json lists, and that must agree with what trial.json, which came another
way, says of it. The lower half is `Store`, the I/O: one prefix in S3 and the same tree in a local directory.

    valid       everything planned happened, all of it is here, every checksum agrees
    degraded    usable with a reservation that is named: a clock known less well than asked, a failed warm-up
    invalid     not to be used: a trial did not run, a member failed, a log is missing or changed

This util is PRIVATE to the collection.
"""

from __future__ import annotations

import base64
import collections
import concurrent.futures
import contextlib
import dataclasses
import datetime as dt
import hashlib
import json
import mimetypes
import os
import pathlib
import re
import statistics
import tempfile
import time
import typing as t

from ansible_collections.startline.lab.plugins.module_utils._agent import mailbox
from ansible_collections.startline.lab.plugins.plugin_utils import _network_check
from ansible_collections.startline.lab.plugins.plugin_utils._aws import is_aws_error
from ansible_collections.startline.lab.plugins.plugin_utils._errors import StartlineError, listed

MANIFEST: t.Final = "manifest.json"
RUN: t.Final = "run.json"
#: Written after the manifest, about what it lists: they cannot be in it.
DERIVED: t.Final = frozenset({MANIFEST, RUN, "report.html"})
#: Every member has at least these, however its command ended.
STREAMS: t.Final = ("stdout", "stderr")
VERDICTS: t.Final = ("valid", "degraded", "invalid")

Json = t.Mapping[str, t.Any]


class EvidenceError(StartlineError):
    """Evidence cannot be listed, fetched or stored."""


def worst(verdicts: t.Iterable[str]) -> str:
    """The worst of `verdicts`; none at all is valid."""
    return max(verdicts, key=VERDICTS.index, default="valid")


# --- names in S3 ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stored:
    """An object of the run. `key` is relative to the run's prefix, `modified` is S3's time of it (UNIX seconds)."""

    key: str
    size: int
    etag: str = ""
    modified: float = 0.0

    @property
    def attempt(self) -> tuple[str, int] | None:
        """The trial and attempt that it belongs to."""
        match = _IN_TRIAL.match(self.key)
        return (match["trial"], int(match["attempt"])) if match else None


_IN_TRIAL: t.Final = re.compile(r"trials/(?P<trial>[^/]+)/(?P<attempt>[1-9]\d{0,8})/.")


def trial_key(trial_id: str, attempt: int) -> str:
    """Key of an attempt's trial.json."""
    return f"trials/{trial_id}/{attempt}/trial.json"


def member_key(trial_id: str, attempt: int, member: str, path: str = "meta.json") -> str:
    """Key of a file of a member."""
    return f"trials/{trial_id}/{attempt}/{member}/{path}"


def is_safe_key(key: str) -> bool:
    """Whether `key` stays inside a directory that it is joined to. Hosts choose names, and hosts are not trusted."""
    return "\0" not in key and not any(part in ("", ".", "..") for part in key.split("/"))


def shown(name: str) -> str:
    """A name that a host chose, for a terminal: nothing in it can act."""
    return name if name.isprintable() else ascii(name)


# --- which attempt counts ---------------------------------------------------------------------------------------------


def attempts_made(keys: t.Iterable[str]) -> dict[str, list[int]]:
    """The attempts of each trial that left anything, in order."""
    made: dict[str, set[int]] = collections.defaultdict(set)
    for key in keys:
        match = _IN_TRIAL.match(key)
        if match:
            made[match["trial"]].add(int(match["attempt"]))
    return {trial: sorted(attempts) for trial, attempts in made.items()}


def next_attempts(
    plan: Json, keys: t.Iterable[str], results: t.Mapping[str, Json | None]
) -> dict[str, dict[str, t.Any]]:
    """Where a run that was broken off goes on: ``{trial_id: {"attempt": int, "finished": bool, "verdict": str|None}}``.

    A trial is finished when its last attempt came to a verdict that can be used. An attempt without trial.json is still
    open and is taken up again under its number: the rendezvous attaches to it if it is still there. One that ended
    invalid is followed by the next number, which fences off whatever is left of it.

    Args:
        plan: the plan.
        keys: of the objects in the run's prefix.
        results: contents of the trial.json objects by key; None for one that cannot be read.
    """
    made = attempts_made(keys)
    state = {}
    for trial in plan["trials"]:
        trial_id = trial["trial_id"]
        last = max(made.get(trial_id, ()), default=1)
        key = trial_key(trial_id, last)
        result = results.get(key)
        verdict = _verdict(result) if result else None
        finished = verdict in ("valid", "degraded") and _is_settled(result)
        over = key in results and (result is None or _is_settled(result))
        state[trial_id] = {
            "attempt": last if finished or not over else last + 1,
            "finished": finished,
            "verdict": verdict,
        }
    return state


def _verdict(result: Json) -> str:
    verdict = result.get("verdict")
    return verdict if verdict in VERDICTS else "invalid"


def _is_settled(result: Json | None) -> bool:
    return result is not None and result.get("phase", "settled") == "settled"


# --- what is missing --------------------------------------------------------------------------------------------------


def awaited(
    plan: Json,
    keys: t.Collection[str],
    results: t.Mapping[str, Json | None],
    attempts: t.Mapping[str, int],
    trials: t.Collection[str],
) -> list[str]:
    """Keys that collecting still has to wait for.

    A trial.json is written when all have delivered or were given up: only who is said to have delivered is waited for.
    """
    made = attempts_made(keys)
    waiting = []
    for trial in plan["trials"]:
        trial_id = trial["trial_id"]
        if trial_id not in trials:
            continue
        attempt = max([attempts.get(trial_id, 1), *made.get(trial_id, ())])
        key = trial_key(trial_id, attempt)
        result = results.get(key)
        if key not in keys or (result is not None and not _is_settled(result)):
            waiting.append(key)
        elif result is not None:
            rows = _members(result)
            metas = (member_key(trial_id, attempt, name) for name in rows if rows[name].get("state") == "delivered")
            waiting += [meta for meta in metas if meta not in keys]
    return waiting


@dataclasses.dataclass(frozen=True)
class TrialEvidence:
    """What there is of one trial.

    `delivered` are the members of which everything is here; `missing` and `changed` name, per member, what is not here
    and what is not as it was on the host. `attempt` is None for a trial that never ran.
    """

    trial_id: str
    attempt: int | None
    verdict: str
    reasons: tuple[str, ...]
    expected: tuple[str, ...]
    delivered: tuple[str, ...]
    missing: t.Mapping[str, tuple[str, ...]]
    changed: t.Mapping[str, tuple[str, ...]]


def judge_trial(
    plan: Json,
    trial: Json,
    run_id: str,
    attempt: int | None,
    contents: t.Mapping[str, Json | None],
    digests: t.Mapping[str, tuple[int, str]],
) -> TrialEvidence:
    """The verdict on one trial.

    Args:
        plan: the plan.
        trial: one of its trials.
        run_id: the run.
        attempt: that counts; None if none left anything.
        contents: of trial.json and meta.json objects by key; None for one that cannot be read.
        digests: (size, sha256) of what was really fetched, by key.
    """
    trial_id, expected = trial["trial_id"], tuple(trial["members"])
    candidates = (*trial["members"], *trial["spares"])
    if attempt is None:
        return TrialEvidence(trial_id, None, "invalid", ("was not run, or left nothing",), expected, (), {}, {})
    epoch = {"run": run_id, "trial": trial_id, "attempt": attempt}
    key = trial_key(trial_id, attempt)
    result = contents.get(key)
    problems: list[str] = []  # each makes the trial invalid
    doubts: list[str] = []  # each makes it degraded
    verdict, reasons = "invalid", []
    if result is None:
        problems.append("trial.json cannot be read" if key in contents else "trial.json is missing")
    else:
        verdict, reasons = _verdict(result), [str(reason) for reason in result.get("reasons") or []]
        if result.get("epoch") != epoch:
            problems.append(f"trial.json is of another epoch: {json.dumps(result.get('epoch'), sort_keys=True)}")
        if result.get("outcome") != "completed" and not reasons:
            problems.append(f"ended as {result.get('outcome')!r}")
        if not _is_settled(result):
            problems.append("trial.json was written before the trial had settled")
    rows, aborted = _members(result or {}), (result or {}).get("outcome") == "aborted"
    if result is not None and not aborted:
        # Evidence is due from those who started, and the plan says who and how few may.
        roster = result.get("roster")
        started = [name for name in candidates if isinstance(roster, list) and name in roster]
        problems += _too_few(plan, trial, started)
        expected = tuple(started) or expected
        for fault, reason in _network_faults(plan, trial, result):
            (problems if fault else doubts).append(reason)
    strangers = sorted(set(rows) - set(candidates))
    if strangers:
        problems.append(f"trial.json names members that the plan does not: {listed(strangers)}")
    delivered: list[str] = []
    missing: dict[str, tuple[str, ...]] = {}
    changed: dict[str, tuple[str, ...]] = {}
    for member in () if aborted else expected:  # nobody starts in an aborted trial: no logs
        gone, differing = _audit(trial_id, attempt, member, epoch, rows.get(member), contents, digests)
        if gone:
            missing[member] = tuple(gone)
            problems.append(f"{member}: {listed(map(shown, gone), 5)} missing")
        if differing:
            changed[member] = tuple(differing)
            problems.append(f"{member}: {listed(map(shown, differing), 5)} not as on the host")
        if not gone and not differing:
            delivered.append(member)
        if result is not None:
            # The rendezvous has its own words for what it saw; ours are for what it did not see.
            named = any(re.search(rf"(?<![\w-]){re.escape(member)}(?![\w-])", reason) for reason in reasons)
            if not (named and verdict == "invalid"):
                row, stopped = rows.get(member), bool(result.get("early_exit"))
                problems += [f"{member} {failing}" for failing in _failings(row, stopped)]
            doubt = _clock_doubt(plan, rows.get(member))
            if doubt and not (named and verdict != "valid"):
                (problems if plan["barrier"]["on_clock_error"] == "refuse" else doubts).append(f"{member} {doubt}")
    verdict = worst([verdict, "invalid" if problems else "degraded" if doubts else "valid"])
    if verdict != "valid" and not (reasons or problems or doubts):
        problems.append("trial.json gives no reason for its verdict")
    return TrialEvidence(
        trial_id,
        attempt,
        verdict,
        tuple(dict.fromkeys([*reasons, *problems, *doubts])),
        expected,
        tuple(delivered),
        missing,
        changed,
    )


def _network_faults(plan: Json, trial: Json, result: Json) -> list[tuple[bool, str]]:
    """What speaks against the network that a trial had, by what is recorded of its measurement; True makes it invalid."""
    check = next((check for check in plan["checks"] if check["network"] and check["network"] == trial["network"]), None)
    if check is None or result.get("outcome") != "completed":
        return []
    refuse = plan["network_check"]["on_deviation"] == "refuse"
    network = result.get("network")
    if not isinstance(network, dict) or network.get("network") != trial["network"]:
        return [(refuse, f"network: {trial['network']} was not measured")]
    try:
        judged = _network_check.verdict(network)
    except _network_check.ProbeError as exc:
        return [(refuse, f"network: {exc}")]
    if check["probes"] and not network["pairs"] and not judged["reasons"]:
        return [(refuse, f"network: no pair of {trial['network']} was measured")]
    return [(judged["verdict"] == "invalid", f"network: {reason}") for reason in judged["reasons"]]


def _members(result: Json) -> dict[str, Json]:
    rows = result.get("members")
    return {str(name): row for name, row in rows.items() if isinstance(row, dict)} if isinstance(rows, dict) else {}


def _files(holder: Json | None) -> dict[str, tuple[int, str]]:
    """path -> (size, sha256), as trial.json and meta.json list files. What is not such a list is none."""
    files = (holder or {}).get("files")
    entries = [entry for entry in files if isinstance(entry, dict)] if isinstance(files, list) else []
    return {str(entry.get("path")): (entry.get("size", -1), entry.get("sha256", "")) for entry in entries}


def _audit(
    trial_id: str,
    attempt: int,
    member: str,
    epoch: Json,
    row: Json | None,
    contents: t.Mapping[str, Json | None],
    digests: t.Mapping[str, tuple[int, str]],
) -> tuple[list[str], list[str]]:
    """What is missing of a member, and what is not as the host had it."""
    key = member_key(trial_id, attempt, member)
    meta = contents.get(key)
    if meta is None:
        return (["meta.json"], []) if key not in contents else ([], ["meta.json"])
    files, said = _files(meta), _files(row)
    changed = ["meta.json"] if meta.get("epoch") != epoch or meta.get("member") != member else []
    if said.pop("meta.json", digests[key]) != digests[key] and not changed:
        changed.append("meta.json")
    if said and said != files:
        changed += sorted(path for path in said.keys() | files.keys() if said.get(path) != files.get(path))
    missing = [name for name in STREAMS if name not in files]
    for path, entry in files.items():
        here = digests.get(member_key(trial_id, attempt, member, path))
        if here is None:
            missing.append(path)
        elif here != entry and path not in changed:
            changed.append(path)
    skipped = meta.get("skipped")  # what matched on the host and could not be collected there
    for item in skipped if isinstance(skipped, list) else []:
        if isinstance(item, dict):
            missing.append(f"{item.get('path')} ({item.get('reason')})")
    return missing, changed


def _too_few(plan: Json, trial: Json, started: t.Collection[str]) -> list[str]:
    """Groups of which fewer have started than the plan allows."""
    group_of = {member["name"]: member["group"] for member in plan["members"]}
    counted = collections.Counter(group_of[name] for name in started)
    return [
        f"trial.json says that {counted[group]} of {group} started, and {least} are needed"
        for group, least in trial["least"].items()
        if counted[group] < least
    ]


def _failings(row: Json | None, stopped: bool) -> list[str]:
    """What the member's row in trial.json says against it. `stopped`: an early exit has stopped the others."""
    if row is None:
        return ["is not in trial.json"]
    if stopped and row.get("stopped") and not row.get("timed_out"):
        return []
    if row.get("timed_out"):
        return ["was still running at the end of its time"]
    if row.get("signal") is not None:
        return [f"was ended by signal {row['signal']}"]
    if row.get("exit_code") is None:
        return [f"has no exit code (last state: {row.get('state')})"]
    return [f"exited with code {row['exit_code']}"] if row["exit_code"] != 0 else []


def _clock_doubt(plan: Json, row: Json | None) -> str | None:
    """What is wrong with how well a member's clock was known."""
    if row is None or row.get("late_us") is None:
        return None
    bound, limit = (row.get("clock") or {}).get("bound_s"), plan["barrier"]["max_clock_error"]
    if bound is None:
        return "started on a clock that nobody has measured"
    return f"has a clock known to {bound:.3f} s only, more than {limit:.3f} s" if bound > limit else None


def judge_run(plan: Json, trials: t.Sequence[TrialEvidence]) -> tuple[str, list[str]]:
    """The verdict on the run: that of its worst trial, where a warm-up that went wrong is a reservation only."""
    warmups = {trial["trial_id"] for trial in plan["trials"] if trial.get("warmup")}
    verdicts, reasons = [], []
    for trial in sorted(trials, key=lambda item: -VERDICTS.index(item.verdict)):
        if trial.verdict != "valid":
            warmup = trial.trial_id in warmups
            verdicts.append("degraded" if warmup else trial.verdict)
            more = f" (and {len(trial.reasons) - 3} more)" if len(trial.reasons) > 3 else ""
            reasons.append(f"{'warm-up' if warmup else 'trial'} {trial.trial_id}: {'; '.join(trial.reasons[:3])}{more}")
    return worst(verdicts), reasons


# --- manifest.json and run.json ---------------------------------------------------------------------------------------


def manifest(
    run_id: str,
    objects: t.Iterable[Stored],
    digests: t.Mapping[str, tuple[int, str]],
    trials: t.Sequence[TrialEvidence],
) -> dict[str, t.Any]:
    """Every object with size and sha256; those of attempts that do not count are marked. N of N per trial."""
    counting = {trial.trial_id: trial.attempt for trial in trials}
    listing = []
    for stored in sorted(objects, key=lambda item: item.key):
        size, sha256 = digests.get(stored.key, (stored.size, None))
        entry: dict[str, t.Any] = {"key": stored.key, "size": size, "sha256": sha256}
        # Checks of the network are no trials of the plan; each was believed by the trials that followed it.
        if stored.attempt and counting.get(stored.attempt[0], stored.attempt[1]) != stored.attempt[1]:
            entry["superseded"] = True
        listing.append(entry)
    return {
        "format": "startline-manifest/1",
        "run_id": run_id,
        "trials": {
            trial.trial_id: {
                "attempt": trial.attempt,
                "expected": len(trial.expected),
                "delivered": len(trial.delivered),
                "missing": {member: list(names) for member, names in trial.missing.items()},
                "changed": {member: list(names) for member, names in trial.changed.items()},
            }
            for trial in trials
        },
        "objects": listing,
    }


def describe_run(
    plan: Json,
    run_id: str,
    trials: t.Sequence[TrialEvidence],
    objects: t.Sequence[Stored],
    contents: t.Mapping[str, Json | None],
    provenance: Json,
) -> dict[str, t.Any]:
    """run.json, format startline-run/1: the verdict and the main figures. Times are UNIX seconds."""
    verdict, reasons = judge_run(plan, trials)
    made = attempts_made(item.key for item in objects)
    written = {item.key: item.modified for item in objects}
    rows = []
    for planned, evidence in zip(plan["trials"], trials, strict=True):
        key = trial_key(evidence.trial_id, evidence.attempt or 0)
        result = contents.get(key) or {}
        members = _members(result)
        ends = [row["exited_at"] for row in members.values() if row.get("exited_at") is not None]
        durations = [row["duration_s"] for row in members.values() if row.get("duration_s") is not None]
        rows.append(
            {
                "trial_id": evidence.trial_id,
                "point": planned["point"],
                "repeat": planned["repeat"],
                "warmup": bool(planned.get("warmup")),
                "attempt": evidence.attempt,
                "attempts": len(made.get(evidence.trial_id, ())),
                "verdict": evidence.verdict,
                "reasons": list(evidence.reasons),
                "outcome": result.get("outcome"),
                "submitted": result.get("submitted"),
                "armed": result.get("armed"),
                "start": result.get("start"),
                "last_exit": max(ends, default=None),
                "settled": written.get(key) or None,
                "duration_s": max(durations, default=None),
                "skew": result.get("skew"),
                "hosts": len(evidence.expected),
                "delivered": len(evidence.delivered),
                "missing": {member: list(names) for member, names in evidence.missing.items()},
                "changed": {member: list(names) for member, names in evidence.changed.items()},
            }
        )
    counted = [row for row in rows if not row["warmup"]]
    tally = collections.Counter("not_run" if row["attempt"] is None else row["verdict"] for row in counted)
    begins = [row["submitted"] for row in rows if row["submitted"] is not None]
    finishes = [row["settled"] or row["last_exit"] for row in rows if row["settled"] or row["last_exit"]]
    return {
        "format": "startline-run/1",
        "run_id": run_id,
        "experiment": plan["experiment"],
        "description": plan["description"],
        "plan_digest": plan["digest"],
        "seed": plan["seed"],
        "verdict": verdict,
        "reasons": reasons,
        "figures": {
            "trials": {
                "planned": len(counted),
                **{name: tally[name] for name in (*VERDICTS, "not_run")},
                "warmups": len(rows) - len(counted),
            },
            "hosts": len(plan["members"]),
            "logs": {
                "expected": sum(row["hosts"] for row in rows),
                "delivered": sum(row["delivered"] for row in rows),
            },
            "skew_us": _skew(plan, trials, contents),
            "durations": _durations(counted),
        },
        "first_submitted": min(begins, default=None),
        "last_settled": max(finishes, default=None),
        "max_clock_error_s": plan["barrier"]["max_clock_error"],
        "provenance": dict(provenance),
        "trials": rows,
    }


def _skew(
    plan: Json, trials: t.Sequence[TrialEvidence], contents: t.Mapping[str, Json | None]
) -> dict[str, t.Any] | None:
    """Lateness after T over all starts of the counted trials (us), and the worst clock bound among them."""
    warmups = {trial["trial_id"] for trial in plan["trials"] if trial.get("warmup")}
    late, bounds = [], []
    for trial in trials:
        if trial.trial_id not in warmups:
            for row in _members(contents.get(trial_key(trial.trial_id, trial.attempt or 0)) or {}).values():
                if row.get("late_us") is not None:
                    late.append(float(row["late_us"]))
                    bounds += [float(row["bound_us"])] if row.get("bound_us") is not None else []
    if not late:
        return None
    return {"n": len(late), "p50": statistics.median(late), "max": max(late), "bound": max(bounds, default=None)}


def _durations(rows: t.Sequence[Json]) -> list[dict[str, t.Any]]:
    """Per point: from T to the last exit, over the repeats that can be used (s)."""
    points: dict[str, dict[str, t.Any]] = {}
    for row in rows:
        label = point_label(row["point"])
        values = points.setdefault(label, {"point": row["point"], "label": label, "values": []})["values"]
        if row["verdict"] != "invalid" and row["duration_s"] is not None:
            values.append(row["duration_s"])
    return [
        {
            **{key: value for key, value in point.items() if key != "values"},
            "n": len(point["values"]),
            "mean_s": statistics.fmean(point["values"]) if point["values"] else None,
            "min_s": min(point["values"], default=None),
            "max_s": max(point["values"], default=None),
        }
        for point in points.values()
    ]


def point_label(point: Json) -> str:
    """``protocol=normal, parties=8``, or what a sweep of one point is called."""
    return ", ".join(f"{name}={value}" for name, value in point.items()) or "the only point"


# --- the I/O ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Collected:
    """What `collect` found: run.json, whether anything local or remote changed, and what it waited for in vain."""

    run: dict[str, t.Any]
    changed: bool
    late: tuple[str, ...]


class Store:
    """A run's prefix in S3, and the same tree in a local directory."""

    WORKERS: t.Final = 16

    def __init__(
        self,
        client: t.Any,
        bucket: str,
        prefix: str,
        root: pathlib.Path,
        *,
        sleep: t.Callable[[float], None] = time.sleep,
        monotonic: t.Callable[[], float] = time.monotonic,
    ) -> None:
        """`client` is boto3's S3 client; `prefix` the run's, ``<exp>/<run_id>``; `root` the run's local directory."""
        self._client = client
        self._bucket = bucket
        self._prefix = prefix.strip("/")
        self._root = root
        self._sleep, self._monotonic = sleep, monotonic

    @property
    def uri(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}"

    def objects(self, below: str = "") -> list[Stored]:
        """Everything in the run's prefix, or `below` a part of it, but the barrier's letters.

        Raises:
            EvidenceError: a key that would leave the local directory.
        """
        found = []
        for page in self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=f"{self._prefix}/{below}"
        ):
            for item in page.get("Contents", ()):
                key = item["Key"][len(self._prefix) + 1 :]
                if not key or key.endswith("/"):
                    continue  # the console's empty "folders"
                if key.startswith(mailbox.PLACE):
                    continue
                if not is_safe_key(key):
                    raise EvidenceError(
                        f"{self.uri} has an object whose name is no path: {key!r}. Find out who wrote it; remove it"
                    )
                found.append(Stored(key, item["Size"], item["ETag"].strip('"'), item["LastModified"].timestamp()))
        return found

    def attempts(self, plan: Json) -> dict[str, dict[str, t.Any]]:
        """`next_attempts` of the run as it is in S3."""
        keys = [item.key for item in self.objects()]
        last = {trial_key(trial, made[-1]) for trial, made in attempts_made(keys).items()}
        return next_attempts(plan, keys, self._read_all(sorted(last.intersection(keys))))

    def next_attempt(self, trial_id: str) -> int:
        """The first number under which nothing of a trial is stored yet."""
        made = attempts_made(item.key for item in self.objects(f"trials/{trial_id}/"))
        return max(made.get(trial_id, ()), default=0) + 1

    def read_members(self, trial_id: str, attempt: int, members: t.Iterable[str], path: str) -> dict[str, bytes]:
        """A file of each member, of those that delivered it."""
        wanted = {member_key(trial_id, attempt, member, path): member for member in members}
        keys = [item.key for item in self.objects(f"trials/{trial_id}/{attempt}/") if item.key in wanted]
        return {wanted[key]: body for key, body in self._bodies(keys).items()}

    def collect(
        self,
        plan: Json,
        run_id: str,
        *,
        wait: float,
        attempts: t.Mapping[str, int] | None = None,
        trials: t.Collection[str] | None = None,
        provenance: Json | None = None,
    ) -> Collected:
        """Wait for the evidence, bring it home, judge it, write and upload manifest.json and run.json.

        Args:
            plan: the plan.
            run_id: the run.
            wait: seconds to wait at most for what is still on its way.
            attempts: of each trial, the attempt that was made last; older ones do not count.
            trials: whose evidence is waited for: those that were submitted. All of the plan by default.
            provenance: kept in run.json as it is.
        """
        attempts = attempts or {}
        expected = set(trials) if trials is not None else {trial["trial_id"] for trial in plan["trials"]}
        objects, late = self._wait(plan, attempts, expected, wait)
        kept = [item for item in objects if item.key not in DERIVED]
        changed, digests = self._fetch(kept)
        contents = {key: _parse(self._root / key) for key in digests if key.endswith(("/trial.json", "/meta.json"))}
        made = attempts_made(item.key for item in kept)
        judged = []
        for trial in plan["trials"]:
            last = max(made.get(trial["trial_id"], ()), default=None)
            if last is not None:  # an attempt that left nothing is not replaced by an older one
                last = max(last, attempts.get(trial["trial_id"], 1))
            judged.append(judge_trial(plan, trial, run_id, last, contents, digests))
        run = describe_run(plan, run_id, judged, kept, contents, provenance or {})
        self._root.mkdir(parents=True, exist_ok=True)
        for name, document in ((MANIFEST, manifest(run_id, kept, digests, judged)), (RUN, run)):
            body = (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()
            path = self._root / name
            if not path.exists() or path.read_bytes() != body:
                _write(path, body)
                changed = True
            changed |= self.publish(name, path)
        return Collected(run, changed, tuple(late))

    def publish(self, key: str, path: pathlib.Path) -> bool:
        """Upload the file at `path` as `key`, unless the same is there. True when it was uploaded."""
        if not is_safe_key(key):
            raise EvidenceError(f"{key!r} is no name for an object of a run: it must be a relative path")
        try:
            body = path.read_bytes()
        except OSError as exc:
            raise EvidenceError(f"cannot read {path}: {exc.strerror}") from exc
        md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
        # The first key with a prefix is the prefix itself, if there is such a key.
        there = self._client.list_objects_v2(Bucket=self._bucket, Prefix=f"{self._prefix}/{key}", MaxKeys=1)
        if any(
            item["Key"] == f"{self._prefix}/{key}" and item["ETag"] == f'"{md5}"' for item in there.get("Contents", ())
        ):
            return False
        kind = mimetypes.guess_type(key)[0] or "application/octet-stream"
        self._client.put_object(
            Bucket=self._bucket,
            Key=f"{self._prefix}/{key}",
            Body=body,
            ContentType=f"{kind}; charset=utf-8" if kind.startswith("text/") else kind,
            ChecksumSHA256=base64.b64encode(hashlib.sha256(body).digest()).decode(),
        )
        return True

    def _wait(
        self, plan: Json, attempts: t.Mapping[str, int], trials: t.Collection[str], seconds: float
    ) -> tuple[list[Stored], list[str]]:
        """The listing once nothing is awaited any more or the time is over, and what is still not there."""
        end, pause = self._monotonic() + seconds, 0.2
        read: dict[str, tuple[str, Json | None]] = {}  # trial.json objects: key -> (etag, content)
        while True:
            objects = self.objects()
            etags = {item.key: item.etag for item in objects}
            stale = [key for key in etags if key.endswith("/trial.json") and read.get(key, ("", None))[0] != etags[key]]
            read.update({key: (etags[key], content) for key, content in self._read_all(stale).items()})
            late = awaited(
                plan, etags.keys(), {key: content for key, (_etag, content) in read.items()}, attempts, trials
            )
            left = end - self._monotonic()
            if not late or left <= 0:
                return objects, late
            self._sleep(min(pause, left))
            pause = min(pause * 1.5, 5.0)

    def _read_all(self, keys: t.Iterable[str]) -> dict[str, Json | None]:
        return {key: _decode(body) for key, body in self._bodies(keys).items()}

    def _bodies(self, keys: t.Iterable[str]) -> dict[str, bytes]:
        def read(key: str) -> tuple[str, bytes]:
            return key, self._client.get_object(Bucket=self._bucket, Key=f"{self._prefix}/{key}")["Body"].read()

        with concurrent.futures.ThreadPoolExecutor(self.WORKERS) as pool:
            return dict(pool.map(read, keys))

    def _fetch(self, objects: t.Sequence[Stored]) -> tuple[bool, dict[str, tuple[int, str]]]:
        """Make the local tree hold `objects`: whether anything was fetched, and (size, sha256) of each by key."""

        def fetch(item: Stored) -> tuple[str, bool, tuple[int, str]]:
            path = self._root / item.key
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                if path.stat().st_size == item.size:
                    with path.open("rb") as stream:
                        size, sha256, md5 = _hashes(stream)
                    # Else the ETag is of another kind (multipart, KMS), or the object is another one: fetch it again.
                    if md5 == item.etag:
                        return item.key, False, (size, sha256)
            return item.key, True, self._download(item, path)

        with concurrent.futures.ThreadPoolExecutor(self.WORKERS) as pool:
            fetched = list(pool.map(fetch, objects))
        return any(new for _key, new, _digest in fetched), {key: digest for key, _new, digest in fetched}

    def _download(self, item: Stored, path: pathlib.Path) -> tuple[int, str]:
        """Fetch one object. The file appears whole or not at all."""
        for again in (True, True, False):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                body = self._client.get_object(Bucket=self._bucket, Key=f"{self._prefix}/{item.key}")["Body"]
                with _replacing(path) as stream:
                    size, sha256, _md5 = _hashes(body, stream)
                break
            except OSError as exc:
                raise EvidenceError(f"{self.uri}/{item.key} cannot be stored at {path}: {exc.strerror or exc}") from exc
            except Exception as exc:
                # boto3 retries requests; a body that breaks off while it is read is ours to ask for again.
                if not (again and is_aws_error(exc)):
                    raise
        return size, sha256


def _hashes(source: t.Any, copy: t.BinaryIO | None = None) -> tuple[int, str, str]:
    """(size, sha256, md5) of a stream, which is copied on the way. S3's ETag of a simple object is its md5."""
    size, sha256, md5 = 0, hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    while chunk := source.read(1 << 18):
        size += len(chunk)
        sha256.update(chunk)
        md5.update(chunk)
        if copy:
            copy.write(chunk)
    return size, sha256.hexdigest(), md5.hexdigest()


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> t.Iterator[t.BinaryIO]:
    """A stream whose content becomes the file at `path` when the block ends well, and nothing otherwise."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".fetching-")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
        os.chmod(name, 0o644)  # mkstemp's 0600 would keep colleagues out of results
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _write(path: pathlib.Path, body: bytes) -> None:
    with _replacing(path) as stream:
        stream.write(body)


def _decode(body: bytes) -> Json | None:
    """The JSON object in `body`; None if there is none."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _parse(path: pathlib.Path) -> Json | None:
    return _decode(path.read_bytes())


def utc(seconds: float) -> str:
    """``2026-11-21 09:30:00 UTC``."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
