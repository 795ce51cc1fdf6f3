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
from pathlib import Path

from localcloud import hosts, image, machine
from localcloud.machine import INSTANCES, LOGS, RUN, CloudError
from localcloud.network import API_ADDRESS, TIME_PORT

# Written when the daemon serves, and locked for as long as it lives.
RECORD = RUN / "daemon.json"
_COMMAND_LOCK = Path("/run/lock/startline.lock")
_READY_WITHIN = 60.0

log = logging.getLogger(__name__)


def up(say: t.Callable[[str], None]) -> None:
    """Start the daemon and wait until it serves. Changes nothing when it does already."""
    with _one_command():
        if record := _record():
            say(f"local cloud is up: {record['endpoint']} ({record['image']})")
            return
        if left := machine.leftovers():
            say(f"clearing what a killed daemon left ({len(left)})")
            _clear()
        ready = image.ensure(say=say)
        image.remove_others(ready)
        began = time.monotonic()
        endpoint = _start()
        say(f"local cloud is up: {endpoint} ({ready.name}, {time.monotonic() - began:.1f} s)")


def down(say: t.Callable[[str], None]) -> None:
    """Leave nothing: no process, mount, namespace, interface, route, rule or changed limit."""
    with _one_command():
        was_there = bool(machine.leftovers())
        _clear()
        if left := machine.leftovers():
            raise CloudError("still there: " + "; ".join(left), "Run `python -m localcloud down` again.")
        say("local cloud is down" if was_there else "local cloud was not up")


def make_image(rebuild: bool, say: t.Callable[[str], None]) -> Path:
    with _one_command():
        if rebuild and _record():
            raise CloudError("hosts stand on the image", "First: python -m localcloud down")
        return image.ensure(rebuild, say).root


def status() -> dict[str, t.Any]:
    """`up`, and with a living daemon what it recorded and its `hosts`; without one the `leftovers`."""
    record = _record()
    if record is None:
        return {"up": False, "leftovers": machine.leftovers()}
    with urllib.request.urlopen(f"{record['endpoint']}/_startline/status", timeout=10) as answer:  # noqa: S310 (ours)
        return {"up": True, **record, "logs": str(LOGS), "hosts": json.load(answer)}


def _clear() -> None:
    machine.cgroup_kill()
    hosts.keep_packages()
    machine.sweep()


def _record() -> dict[str, t.Any] | None:
    """What the living daemon said of itself when it was ready to serve."""
    with contextlib.suppress(FileNotFoundError), RECORD.open() as record:
        try:
            fcntl.flock(record, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return t.cast("dict[str, t.Any]", json.load(record))
    return None


@contextlib.contextmanager
def _one_command() -> t.Iterator[None]:
    """One command that changes something at a time; the others wait for it."""
    _COMMAND_LOCK.parent.mkdir(parents=True, exist_ok=True)
    with _COMMAND_LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start() -> str:
    """Start the daemon: its endpoint once it serves, CloudError with its word if it does not."""
    for directory in (RUN, LOGS, INSTANCES, Path("/run/netns")):
        directory.mkdir(parents=True, exist_ok=True)
    for old in LOGS.glob("i-*.log"):
        old.unlink()
    # What the daemon and its hosts mount is seen by them alone, and gone with the last of them; namespaces too.
    private = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /run/netns && exec "$@"', "startline"]
    command = [*private, sys.executable, "-m", "localcloud", "daemon"]
    reader, writer = os.pipe()
    with (LOGS / "daemon.log").open("w") as output, os.fdopen(writer) as word_of_it:
        process = subprocess.Popen(
            # Its control group is how it is ended: from the first moment, whoever started it and whatever it recorded.
            machine.cgroup_command("daemon", command),
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(machine.PROJECT)},
            stdin=subprocess.DEVNULL,
            stdout=word_of_it,
            stderr=output,
            start_new_session=True,
        )
    with os.fdopen(reader) as answer:
        heard = select.select([answer], [], [], _READY_WITHIN)[0]
        word = json.loads((answer.readline() if heard else "") or "{}")
    if "endpoint" not in word:
        _clear()
        process.wait()
        problem = word.get("problem", f"the daemon died, or was not ready within {_READY_WITHIN:g} s")
        raise CloudError(problem, f"Log: {LOGS / 'daemon.log'}")
    return str(word["endpoint"])


def serve() -> None:
    """The daemon itself: say the endpoint or the problem in one line, then serve for ever."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=logging.INFO)
    requests = logging.getLogger("localcloud.requests")
    requests.addHandler(logging.FileHandler(LOGS / "api.log", mode="w"))
    requests.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    requests.propagate = False
    try:
        serve_for_ever, word = _prepare()
    except BaseException as problem:
        said = str(problem) if isinstance(problem, CloudError) else f"{type(problem).__name__}: {problem}"
        print(json.dumps({"problem": said}), flush=True)
        raise
    # Whoever finds the record finds it whole and locked.
    record = RECORD.with_suffix(".new").open("w")
    fcntl.flock(record, fcntl.LOCK_EX)
    json.dump(word, record)
    record.flush()
    RECORD.with_suffix(".new").rename(RECORD)
    print(json.dumps(word), flush=True)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whoever listened goes away
    log.info("up: %s", word)
    serve_for_ever()


def _prepare() -> tuple[t.Callable[[], None], dict[str, t.Any]]:
    from localcloud import api, instances

    machine.raise_limits()
    ready = image.ensure()
    api.prepare_moto(ready)
    cloud = instances.Cloud(ready.root)
    api.check_ports()
    cloud.fabric.up()
    _serve_time(ready.root)
    return api.listen(cloud), {"endpoint": api.ENDPOINT, "pid": os.getpid(), "image": ready.name}


def _serve_time(root: Path) -> None:
    """Amazon Time Sync, which VPCs show at 169.254.169.123: serves the machine's clock and never touches it.

    The program is the image's: the machine's own time service is none of our business, and chrony's package would replace it.
    """
    # In a mount namespace of its own, so that nothing is written into the image, which hosts stand on.
    inside = 'mount -t tmpfs tmpfs "$0/run" && exec chroot "$0" chronyd -x -d -u root "$@"'
    directives = (
        f"bindaddress {API_ADDRESS}",
        f"port {TIME_PORT}",
        "allow",
        "local stratum 3",  # Amazon's servers say 3 or 4
        "cmdport 0",  # nobody steers it
        "bindcmdaddress /",
        "pidfile /run/chronyd.pid",
    )
    command = ["unshare", "--mount", "sh", "-c", inside, str(root), *directives]
    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
