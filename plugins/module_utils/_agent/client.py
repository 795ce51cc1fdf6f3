# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks the rendezvous on this host through its control socket.

PRIVATE to the collection.
"""

from __future__ import annotations

import socket
import time
import typing as t

from . import wire
from .config import Config

#: Seconds between tries to reach a rendezvous that is not there: it may be about to start again.
PAUSE = 0.25


class ClientError(Exception):
    """The rendezvous has refused a request, or cannot be reached; the text says why."""


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
