# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures the network from one host: runs the tools that a file names, when it says so, and prints what they said.

PRIVATE to the collection. It is the command of a check, which is a trial: every member has the same file, which tells each
its servers and its steps. The members meet at a named barrier once their servers listen; `at` counts from there, so that
nobody is measured who is not ready, and nobody measures what another one measures. What the tools say is for the
controller to read.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import threading
import time
import typing as t

from .log import log

FORMAT = "startline-probes/1"
RESULT_FORMAT = "startline-probe/1"
#: What a server says when it can be reached.
LISTENING = b"listening"
#: Characters of a tool's output that are kept.
OUTPUT = 1000000


class ProbeFault(Exception):
    """There is nothing to run; the text says why."""


def run(path: str, member: str, meet: t.Callable[[float], None]) -> t.Dict[str, t.Any]:
    """Carry out a member's part of the file at `path`: what each of its steps came to.

    `meet` waits until all members have come to it, for so many seconds at most.

    Raises:
        ProbeFault: the file does not say what to do here.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            program = json.load(stream)
        if program["format"] != FORMAT:
            raise ProbeFault("{} has the format {}, not {}".format(path, program["format"], FORMAT))
        own, ready = program["members"][member], program["ready"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProbeFault(f"{path} does not say what {member} has to probe: {error!r}") from error
    servers: t.List[subprocess.Popen[bytes]] = []
    try:
        for command in own["servers"]:
            try:
                servers.append(_serve(command, ready))
            except OSError as error:  # whoever cannot reach it says so
                log("cannot run", command=command[0], error=error.strerror)
        meet(ready)
        start = time.monotonic()
        results = _carry_out(own["steps"], start)
        for server in servers:  # each ends with its one client
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(max(0.0, start + own["until"] - time.monotonic()))
    finally:
        for server in servers:
            _end(server)
    return {"format": RESULT_FORMAT, "member": member, "results": results}


def _serve(command: t.Sequence[str], limit: float) -> subprocess.Popen[bytes]:
    """Start a server; back when it listens, or will not."""
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    said = t.cast("t.IO[bytes]", server.stdout)
    heard, give_up = b"", time.monotonic() + limit
    with selectors.DefaultSelector() as selector:
        selector.register(said, selectors.EVENT_READ)
        while LISTENING not in heard and selector.select(max(0.0, give_up - time.monotonic())):
            more = os.read(said.fileno(), 4096)
            if not more:
                break
            heard += more
    # It may say more than a pipe holds, and nobody listens.
    threading.Thread(target=said.read, daemon=True).start()
    return server


def _end(server: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _carry_out(steps: t.Sequence[t.Mapping[str, t.Any]], start: float) -> t.List[t.Dict[str, t.Any]]:
    """Run each step at its time, whatever has become of those before it."""
    results: t.List[t.Dict[str, t.Any]] = [{} for _step in steps]

    def carry_out(number: int, step: t.Mapping[str, t.Any]) -> None:
        time.sleep(max(0.0, start + step["at"] - time.monotonic()))
        results[number] = dict(step, began=round(time.monotonic() - start, 3), **_run(step["command"], step["limit"]))

    threads = [threading.Thread(target=carry_out, args=entry) for entry in enumerate(steps)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def _run(command: t.Sequence[str], limit: float) -> t.Dict[str, t.Any]:
    """What a tool came to: exit code, what it said, and the problem if it did not come to its end."""
    code: t.Optional[int] = None
    output = errors = b""
    problem = None
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=limit,
            check=False,
        )
        code, output, errors = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        output, errors = error.stdout or b"", error.stderr or b""
        problem = f"{command[0]} was still running after {limit:g} s and was ended"
    except OSError as error:
        problem = f"cannot run {command[0]}: {error.strerror}"
    texts = [said[:OUTPUT].decode("utf-8", "replace") for said in (output, errors)]
    return {"code": code, "output": texts[0], "errors": texts[1], "problem": problem}
