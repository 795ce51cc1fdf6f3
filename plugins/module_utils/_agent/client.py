# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks the rendezvous on this host through its control socket; waits at a named barrier through the agent's.

PRIVATE to the collection.
"""

from __future__ import annotations

import socket
import time
import typing as t

from . import wire
from .config import Config

#: Seconds between tries to reach a rendezvous or an agent that is not there: it may be about to start again.
PAUSE = 0.25
#: Seconds past the end of a wait after which not even its refusal is waited for any longer.
WAIT_SLACK = 10.0


class ClientError(Exception):
    """A request was refused, or nobody is there to take it; the text says why."""


def ask(config: Config, request: t.Mapping[str, t.Any], patience: float, give_up: t.Optional[float] = None) -> t.Any:
    """The result of a request. A rendezvous that is away is waited for, `patience` seconds each time.

    Requests may be repeated without harm, so a connection that breaks is no failure. `give_up` is the time (monotonic)
    at which even a rendezvous that is there is not waited for any longer.
    """
    missed_since = time.monotonic()
    while True:
        try:
            answer = _exchange(config.socket, request, give_up)
            break
        except socket.timeout:
            raise ClientError("the rendezvous has not answered in time") from None
        except (OSError, wire.WireError) as error:
            now = time.monotonic()
            if isinstance(error, _Broken):
                missed_since = now  # it was there until just now
            if now - missed_since >= patience or (give_up is not None and now >= give_up):
                raise ClientError(f"cannot reach the rendezvous at {config.socket}: {error}") from error
            time.sleep(PAUSE)
    if not answer.get("ok"):
        raise ClientError(str(answer.get("error")))
    return answer.get("result")


class _Broken(OSError):
    """The connection ended before the answer."""


def _exchange(path: str, request: t.Mapping[str, t.Any], give_up: t.Optional[float]) -> t.Dict[str, t.Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(path)
        connection.sendall(wire.dump(request))
        connection.settimeout(None if give_up is None else max(0.001, give_up - time.monotonic()))
        answer = bytearray()
        while not answer.endswith(b"\n"):
            try:
                more = connection.recv(1024 * 1024)
            except ConnectionError as error:
                raise _Broken(str(error)) from error
            if not more:
                raise _Broken("it closed the connection")
            answer += more
    found = wire.decode(bytes(answer))
    if not isinstance(found, dict):
        raise wire.WireError("the answer is not an object")
    return found


def wait(name: str, timeout: t.Optional[float], environment: t.Mapping[str, str]) -> t.Callable[[], None]:
    """Wait until all hosts of the trial have come to the barrier `name`, and for the instant at which they go on.

    Gives what is left to do after it: to say how punctual that was.

    Raises:
        ClientError: they have not come in time, or will not; it names them.
    """
    try:
        path = environment["STARTLINE_SOCKET"]
        attempt = int(environment["STARTLINE_ATTEMPT"])
        epoch = wire.Epoch(environment["STARTLINE_RUN"], environment["STARTLINE_TRIAL"], attempt)
    except (KeyError, ValueError):
        raise ClientError("this is not the command of a trial: STARTLINE_SOCKET and others are not set") from None
    request = {"epoch": epoch.to_json(), "name": name, "timeout": timeout, "generation": None}
    # How long a wait lasts that does not say so, only the agent knows; to an agent that is away it is a minute.
    give_up = time.monotonic() + (60.0 if timeout is None else timeout) + WAIT_SLACK
    while True:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                lines = _converse(connection, path, request, give_up)
                joined = next(lines)
                if request["generation"] is None:
                    give_up = time.monotonic() + joined["timeout"] + WAIT_SLACK
                    connection.settimeout(max(0.001, give_up - time.monotonic()))
                request["generation"] = joined["generation"]
                at_ns = next(lines)["at_ns"]
                time.sleep(max(0, at_ns - time.monotonic_ns()) / 1e9)
                late_ns = time.monotonic_ns() - at_ns
                kept = socket.socket(fileno=connection.detach())
                return lambda: kept.sendall(wire.dump({"late_ns": late_ns}))
        except (OSError, StopIteration, wire.WireError) as error:
            if time.monotonic() >= give_up:
                raise ClientError(f"barrier {name}: no answer in time ({error or 'the agent has gone'})") from error
            time.sleep(PAUSE)


def _converse(
    connection: socket.socket, path: str, request: t.Mapping[str, t.Any], give_up: float
) -> t.Iterator[t.Dict[str, t.Any]]:
    """Say a request; the answers, one by one."""
    connection.settimeout(max(0.001, give_up - time.monotonic()))
    connection.connect(path)
    connection.sendall(wire.dump(request))
    lines = wire.Lines()
    while True:
        more = connection.recv(65536)
        if not more:
            return
        for line in lines.feed(more):
            answer = wire.decode(line)
            if not isinstance(answer, dict):
                raise wire.WireError("an answer is not an object")
            if "error" in answer:
                raise ClientError(str(answer["error"]))
            yield answer
