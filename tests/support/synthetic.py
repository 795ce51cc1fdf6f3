# SPDX-License-Identifier: GPL-3.0-or-later
"""Made-up runs in the shapes that the plan, the agents and the rendezvous write, for tests of what reads them."""

from __future__ import annotations

import hashlib
import itertools
import json
import pathlib
import random
import typing as t

from ansible_collections.startline.lab.plugins.plugin_utils import _network_check

RUN_ID = "dkg-20261121T093000Z-3fa9"
T0 = 1795253400.0  # 2026-11-21 09:30:00 UTC

Objects = dict[str, bytes]


def plan(
    axes: t.Mapping[str, t.Sequence[t.Any]] | None = None, repeats: int = 2, parties: int = 3, warmups: int = 0
) -> dict[str, t.Any]:
    """A plan: `parties` and a blockchain, over `axes`."""
    axes = {"protocol": ["normal", "corrupted"]} if axes is None else axes
    members = [f"party-{index}" for index in range(parties)] + ["blockchain-0"]
    trials = []
    for warmup, repeat in [(True, n + 1) for n in range(warmups)] + [(False, n + 1) for n in range(repeats)]:
        for values in itertools.product(*axes.values()):
            point = dict(zip(axes, values, strict=True))
            suffix = f"{'w' if warmup else 'r'}{repeat}"
            trial_id = ".".join([*(f"{name}-{value}" for name, value in point.items()), suffix])
            trials.append(
                {
                    "trial_id": trial_id,
                    "point": point,
                    "parameters": point,
                    "repeat": repeat,
                    "warmup": warmup,
                    "members": members,
                    "spares": [],
                    "least": {"party": parties, "blockchain": 1},
                    "network": None,
                    "timeout": 120,
                }
            )
    return {
        "format": "startline-plan/1",
        "experiment": "dkg",
        "description": "Any-trust distributed key generation",
        "digest": "d" * 64,
        "seed": 7,
        "groups": {
            "party": {"site": "us", "count": parties, "instance_type": "t3a.medium"},
            "blockchain": {"site": "us", "count": 1, "instance_type": "t3a.medium"},
        },
        "sites": {"us": {"gateway": None}},
        "members": [{"name": name, "group": name.rpartition("-")[0], "site": "us"} for name in members],
        "barrier": {"deadline": 60, "max_clock_error": 0.05, "on_clock_error": "mark"},
        "networks": {},
        "checks": [],
        "trials": trials,
    }


#: What lies between the members of a plan that is `shaped`, as the experiment's model makes it.
CHECK: t.Final = {
    "on_deviation": "mark",
    "compensate": False,
    "tolerance": {"rtt": 2.0, "jitter": 25.0, "loss": 0.1, "rate": 5.0},
}


def shaped(of: t.Mapping[str, t.Any], **shape: str) -> dict[str, t.Any]:
    """The plan `of`, whose trials have 80 ms and 8 Mbit/s between their members, or another `shape`."""
    names = [member["name"] for member in of["members"]]
    shape = shape or {"delay": "40ms", "jitter": "1ms", "rate": "8mbit"}
    link = {"from": names, "to": names, "shape": shape, "rate_per": "host"}
    trials = [{**trial, "network": "network-1"} for trial in of["trials"]]
    plan = {
        **of,
        "networks": {"network-1": {"links": [link], "timeline": []}},
        "network_check": CHECK,
        "trials": trials,
    }
    return {**plan, "checks": _network_check.plan_checks(plan, seed=7)}


def measure(
    of: t.Mapping[str, t.Any], off: t.Collection[tuple[str, str]] = (), silent: t.Collection[str] = ()
) -> dict[str, t.Any]:
    """The report on the network of a plan that is `shaped`: right but for the pairs `off`, and for hosts that say nothing."""
    chance = random.Random(5)  # noqa: S311
    bare, check = of["checks"]
    measured = {}
    for probe in _network_check.probes_of(check):
        rtt, rate = (probe.rtt / 2, probe.rate / 2) if probe.pair in off else (probe.rtt, float(probe.rate))
        trips = [chance.gauss(rtt + 0.2, probe.jitter) for _number in range(100)]
        measured[probe.pair] = _network_check.Measured(tuple(trips), rate * chance.uniform(0.98, 1.01))
        if silent and probe.source in silent:
            problem = f"{probe.source} did not take part (absent)"
            measured[probe.pair] = _network_check.Measured((), None, problem, problem)
    baseline = {probe.pair: _network_check.Measured((0.2,) * 100) for probe in _network_check.probes_of(bare)}
    return _network_check.judge_check(of, check, measured, baseline, attempt=1)


def put_network(objects: Objects, of: t.Mapping[str, t.Any], report: t.Mapping[str, t.Any]) -> None:
    """Let the trials have been run on the network of this report, and told so."""
    for trial in of["trials"]:
        own = _network_check.for_trial(of, trial, {"network-1": report}) or {}
        reasons = [f"network: {reason}" for reason in own["reasons"]]
        key = f"trials/{trial['trial_id']}/1/trial.json"
        edit(objects, key, network=own, verdict=own["verdict"], reasons=reasons)


def entry(path: str, body: bytes) -> dict[str, t.Any]:
    """A file as meta.json lists it."""
    return {"path": path, "size": len(body), "sha256": hashlib.sha256(body).hexdigest()}


def dump(document: t.Any) -> bytes:
    return json.dumps(document).encode()


def trial_objects(trial: t.Mapping[str, t.Any], *, attempt: int = 1, at: float = T0, run_id: str = RUN_ID) -> Objects:
    """Everything that a trial that went well leaves in S3, by key."""
    trial_id, members = trial["trial_id"], trial["members"]
    chance = random.Random(f"{trial_id}/{attempt}")  # noqa: S311
    epoch = {"run": run_id, "trial": trial_id, "attempt": attempt}
    start, objects, rows = at + 0.2, {}, {}
    for rank, member in enumerate(members):
        where = f"trials/{trial_id}/{attempt}/{member}"
        bodies = {"stdout": f"{member} of {trial_id}\n".encode(), "stderr": b"", "comm.log": chance.randbytes(64)}
        files = [entry(path, body) for path, body in bodies.items()]
        duration = round(chance.uniform(1.5, 2.5), 6)
        late = round(chance.lognormvariate(5, 0.8), 3)
        clock = {"source": "chrony", "offset_s": 0.00001, "bound_s": 0.0004, "rtt_s": 0.0002, "note": None}
        exit_ = {
            "exit_code": 0,
            "signal": None,
            "timed_out": False,
            "stopped": False,
            "duration_s": duration,
            "exited_at": start + duration,
        }
        rows[member] = {
            "rank": rank,
            "role": "starter",
            "state": "delivered",
            "connected": True,
            "armed_at": at + 0.05,
            "fired_at": start + late / 1e6,
            "late_us": late,
            "bound_us": clock["bound_s"] * 1e6,
            "clock": clock,
            **exit_,
            "reason": None,
            "files": files,
        }
        host = {
            "hostname": f"ip-10-77-0-{rank + 4}",
            "kernel": "6.1.0-31-amd64",
            "os": "Debian GNU/Linux 12 (bookworm)",
        }
        host |= {"python": "3.11.2", "cpus": 2, "memory": 4 << 30}
        host |= {
            "instance": {
                "id": f"i-{rank:017x}",
                "type": "t3a.medium",
                "zone": "us-east-1a",
                "image": "ami-0123456789abcdef0",
            }
        }
        meta = {
            "format": "startline-meta/1",
            "member": member,
            "epoch": epoch,
            **exit_,
            "clock": clock,
            "host": host,
            "files": files,
            "skipped": [],
        }
        objects |= {f"{where}/{path}": body for path, body in bodies.items()}
        objects[f"{where}/meta.json"] = dump(meta)
        rows[member]["files"] = [*files, entry("meta.json", objects[f"{where}/meta.json"])]
    late = sorted((row["late_us"], name) for name, row in rows.items())
    result = {
        "format": "startline-trial/1",
        "epoch": epoch,
        "phase": "settled",
        "outcome": "completed",
        "verdict": "valid",
        "reasons": [],
        "roster": list(members),
        "early_exit": None,
        "submitted": at,
        "armed": at + 0.08,
        "published": at + 0.08,
        "start": start,
        "start_ns": int(start * 1e9),
        "ended": max(row["exited_at"] for row in rows.values()),
        "lead_s": 0.12,
        "last_armed": {
            "member": late[0][1],
            "at": at + 0.08,
            "behind_s": 0.012,
            "states": {"connected": at, "prepared": at + 0.02, "armed": at + 0.08},
        },
        "replaced": [],
        "dropped": [],
        "formed_from": [],
        "barriers": [],
        "skew": {
            "n": len(late),
            "min_us": late[0][0],
            "p50_us": late[len(late) // 2][0],
            "p99_us": late[-1][0],
            "max_us": late[-1][0],
            "bound_us": 400.0,
            "last": late[-1][1],
            "why": "ordinary wake-up",
        },
        "members": rows,
    }
    objects[f"trials/{trial_id}/{attempt}/trial.json"] = dump(result)
    return objects


def aborted(
    trial: t.Mapping[str, t.Any], missing: str, *, attempt: int = 1, at: float = T0, run_id: str = RUN_ID
) -> Objects:
    """What a trial leaves whose barrier was not met because `missing` never came."""
    key = f"trials/{trial['trial_id']}/{attempt}/trial.json"
    result = json.loads(trial_objects(trial, attempt=attempt, at=at, run_id=run_id)[key])
    reason = f"after 60 s not armed: {missing} (absent)"
    result.update(outcome="aborted", verdict="invalid", reasons=[reason], armed=None, published=None, start=None)
    result.update(start_ns=None, ended=at + 60, lead_s=None, skew=None)
    empty = dict.fromkeys(
        ("armed_at", "fired_at", "late_us", "bound_us", "clock", "exit_code", "exited_at", "duration_s")
    )
    for name, row in result["members"].items():
        row.update(empty, state="absent" if name == missing else "armed", files=[])
    return {key: dump(result)}


def run_objects(of: t.Mapping[str, t.Any]) -> Objects:
    """A run in which everything went well."""
    objects = {"plan.json": dump(of), f"artifacts/{'a' * 64}": b"artifact"}
    for number, trial in enumerate(of["trials"]):
        objects |= trial_objects(trial, at=T0 + 3.1 * number)
    return objects


def edit(objects: Objects, key: str, **changes: t.Any) -> None:
    """Change fields of a JSON object."""
    objects[key] = dump({**json.loads(objects[key]), **changes})


def edit_row(objects: Objects, key: str, member: str, **changes: t.Any) -> None:
    """Change what a trial.json says of a member."""
    result = json.loads(objects[key])
    result["members"][member].update(changes)
    objects[key] = dump(result)


class Bucket:
    """What `Store` uses of boto3's S3 client, in memory. `modified` is the time of the next object that is put."""

    def __init__(self, prefix: str, objects: Objects, modified: float = T0 + 100) -> None:
        self.prefix, self.modified = prefix, modified
        self.held: dict[str, tuple[bytes, float]] = {
            f"{prefix}/{key}": (body, modified) for key, body in objects.items()
        }
        self.got: list[str] = []
        self.lists = 0
        self.on_list: t.Callable[[int], None] = lambda count: None

    def _entries(self, prefix: str) -> list[dict[str, t.Any]]:
        import datetime as dt

        return [
            {
                "Key": key,
                "Size": len(body),
                "ETag": f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"',
                "LastModified": dt.datetime.fromtimestamp(modified, dt.UTC),
            }
            for key, (body, modified) in sorted(self.held.items())
            if key.startswith(prefix)
        ]

    def get_paginator(self, _name: str) -> Bucket:
        return self

    def paginate(self, *, Bucket: str, Prefix: str) -> t.Iterator[dict[str, t.Any]]:
        self.lists += 1
        self.on_list(self.lists)
        for item in self._entries(Prefix):
            yield {"Contents": [item]}

    def list_objects_v2(self, *, Bucket: str, Prefix: str, MaxKeys: int) -> dict[str, t.Any]:
        return {"Contents": self._entries(Prefix)[:MaxKeys]}

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, t.Any]:
        import io

        self.got.append(Key.removeprefix(f"{self.prefix}/"))
        return {"Body": io.BytesIO(self.held[Key][0])}

    def put_object(self, *, Bucket: str, Key: str, Body: bytes, **_more: t.Any) -> None:
        self.held[Key] = (Body, self.modified)


def results(root: pathlib.Path, of: t.Mapping[str, t.Any], objects: Objects) -> pathlib.Path:
    """Collect `objects` as the results of a run of the plan `of` below `root`: the run's directory."""
    from ansible_collections.startline.lab.plugins.plugin_utils._evidence import Store

    prefix = f"{of['experiment']}/{RUN_ID}"
    held: Objects = dict(objects)
    bucket = Bucket(prefix, held)
    for trial in of["trials"]:  # S3's times as they would be
        keys = [key for key in bucket.held if f"/trials/{trial['trial_id']}/" in key]
        for key in keys:
            if key.endswith("/trial.json"):
                ended = json.loads(bucket.held[key][0])["ended"]
                bucket.held[key] = (bucket.held[key][0], float(int(ended) + 1))
    store = Store(bucket, "bucket", prefix, root / prefix)
    store.collect(of, RUN_ID, wait=0, provenance={"controller": {"startline.lab": "0.1.0", "python": "3.11.7"}})
    return root / prefix
