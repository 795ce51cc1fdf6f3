# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of the process: up, down, status.

Crash-only: the daemon has no orderly end. `down` kills it and clears the machine of what is ours. After a `kill -9`
that is the same path, so it is walked every day.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import select
import subprocess
import sys
import time
import typing as t
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from localcloud import hosts, image, machine
from localcloud.machine import INSTANCES, LOGS, RUN, CloudError, Process

RECORD = RUN / "daemon.json"
_COMMAND_LOCK = Path("/run/lock/startline.lock")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Status:
    up: bool
    endpoint: str | None = None
    pid: int | None = None
    image: str | None = None
    hosts: list[dict[str, str | None]] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)  # of a daemon that was killed
    logs: str = str(LOGS)


def up(wait: float, say: t.Callable[[str], None]) -> None:
    """Start the daemon and wait until it serves. Changes nothing when it does already."""
    with _one_command():
        record = _record()
        if record:
            say(f"local cloud is up: {record['endpoint']} ({record['image']})")
            return
        if left := machine.leftovers():
            say(f"clearing what a killed daemon left ({len(left)})")
            _clear()
        ready = image.ensure(say=say)
        image.remove_others(ready)
        began = time.monotonic()
        endpoint = _start(wait)
        say(f"local cloud is up: {endpoint} ({ready.name}, {time.monotonic() - began:.1f} s)")


def down(say: t.Callable[[str], None]) -> None:
    """Leave nothing: no process, mount, namespace, interface, route, rule or changed limit."""
    with _one_command():
        was_there = bool(machine.leftovers())
        _clear()
        if left := machine.leftovers():
            raise CloudError("still there: " + "; ".join(left), "Run `python -m localcloud down` again.")
        say("local cloud is down" if was_there else "local cloud was not up")


def status() -> Status:
    record = _record()
    if record is None:
        return Status(up=False, leftovers=machine.leftovers())
    with urllib.request.urlopen(f"{record['endpoint']}/_startline/status", timeout=10) as answer:  # noqa: S310 (ours)
        alive = json.load(answer)
    return Status(up=True, endpoint=record["endpoint"], pid=record["pid"], image=record["image"], hosts=alive)


def _clear() -> None:
    machine.cgroup_kill()
    if INSTANCES.exists():
        for directory in INSTANCES.iterdir():
            hosts.keep_packages(directory)
    machine.sweep()


def _record() -> dict[str, t.Any] | None:
    """What the living daemon said of itself when it was ready to serve."""
    try:
        record: dict[str, t.Any] = json.loads(RECORD.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return record if Process(record["pid"], record["started"]).alive() else None


@contextlib.contextmanager
def _one_command() -> t.Iterator[None]:
    """One up or down at a time; the others wait for it."""
    _COMMAND_LOCK.parent.mkdir(parents=True, exist_ok=True)
    with _COMMAND_LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start(wait: float) -> str:
    """Start the daemon in a session of its own: its endpoint once it is ready, CloudError with its word if not."""
    RUN.mkdir(parents=True, exist_ok=True)
    LOGS.mkdir(parents=True, exist_ok=True)
    for old in LOGS.glob("i-*.log"):
        old.unlink()
    reader, writer = os.pipe()
    with (LOGS / "daemon.log").open("w") as output:
        process = subprocess.Popen(
            # Its control group is how it is ended: from the first moment, whoever started it and whatever it recorded.
            machine.cgroup_command("daemon", [sys.executable, "-m", "localcloud", "daemon", str(writer)]),
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(machine.PROJECT)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(writer,),
            start_new_session=True,
        )
    os.close(writer)
    said, ends = b"", time.monotonic() + wait
    with os.fdopen(reader, "rb", buffering=0) as answer:
        while select.select([answer], [], [], max(0.0, ends - time.monotonic()))[0] and (chunk := answer.read(65536)):
            said += chunk
    word = json.loads(said or "{}")
    if "endpoint" in word:
        return str(word["endpoint"])
    _clear()
    process.wait()
    problem = word.get("problem", f"the daemon died, or was not ready within {wait:g} s")
    raise CloudError(problem, f"Log: {LOGS / 'daemon.log'}")


def serve(ready: int) -> None:
    """The daemon itself: tell `ready` (a file descriptor) the endpoint or the problem, then serve for ever."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=logging.INFO)
    requests = logging.getLogger("localcloud.requests")
    requests.addHandler(logging.FileHandler(LOGS / "api.log", mode="w"))
    requests.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    requests.propagate = False
    with os.fdopen(ready, "w") as answer:
        try:
            run, word = _prepare()
        except (CloudError, OSError) as problem:
            json.dump({"problem": str(problem)}, answer)
            raise SystemExit(1) from problem
        except BaseException as problem:
            json.dump({"problem": f"{type(problem).__name__}: {problem}"}, answer)
            raise
        json.dump(word, answer)
    run()


def _prepare() -> tuple[t.Callable[[], None], dict[str, t.Any]]:
    from localcloud import api, instances

    INSTANCES.mkdir(parents=True, exist_ok=True)
    machine.raise_limits()
    ready = image.ensure()
    image.hold(ready)
    api.prepare_moto(ready)
    cloud = instances.Cloud(ready)
    cloud.fabric.up()
    run = api.listen(cloud)
    word = {"pid": os.getpid(), "started": Process.current().started, "endpoint": api.ENDPOINT, "image": ready.name}
    # Whoever reads the record finds the daemon serving: it listens already.
    temporary = RECORD.with_suffix(".new")
    temporary.write_text(json.dumps(word))
    temporary.rename(RECORD)
    log.info("up: %s", word)
    return run, word
