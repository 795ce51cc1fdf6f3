# SPDX-License-Identifier: GPL-3.0-or-later
"""Children of the agent for what has time: each does one job after the other, behind everything else on the host.

PRIVATE to the collection.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import typing as t

from .reactor import Reactor, Timer

#: A tenth of a processor that others want, all of one that nobody wants.
BEHIND = 10
#: Seconds for which a child waits for its next job. Trials that follow each other closely share what it has loaded and its
#: connections, which to make anew takes longer than the job; beside a long trial there is none.
LINGER = 5.0

Done = t.Callable[[t.Any], None]
Serve = t.Callable[[t.Any], t.Any]


class Workers:
    """Does jobs, in a child that is idle, or else in a new one: none waits for another.

    `make` is called once in a child, for what does its jobs there: JSON in, JSON out.
    """

    def __init__(self, reactor: Reactor, make: t.Callable[[], Serve]) -> None:
        self._reactor = reactor
        self._make = make
        self._idle: t.List[_Worker] = []

    def do(self, job: t.Any, done: Done) -> None:
        """Have `job` done; `done` gets what came of it, or None if the child has failed or was killed."""
        worker = self._idle.pop() if self._idle else self._hire()
        worker.do(job, done)

    def _hire(self) -> _Worker:
        channel = self._reactor.companion(lambda theirs: _serve(self._make, theirs))
        return _Worker(self._reactor, channel, self._idle)


class _Worker:
    """One child, as the agent sees it. It is in `idle` while it waits for a job."""

    def __init__(self, reactor: Reactor, channel: socket.socket, idle: t.List[_Worker]) -> None:
        self._reactor = reactor
        self._channel = channel
        self._idle = idle
        self._out, self._in = bytearray(), bytearray()
        self._done: t.Optional[Done] = None
        self._rest: t.Optional[Timer] = None

    def do(self, job: t.Any, done: Done) -> None:
        if self._rest is not None:
            self._rest.cancel()
        self._done = done
        self._out += json.dumps(job).encode("ascii") + b"\n"
        # Not at once: if the child is gone, `done` would be called before this has returned.
        self._reactor.watch(self._channel.fileno(), selectors.EVENT_READ | selectors.EVENT_WRITE, self._on_ready)

    def _on_ready(self) -> None:
        try:
            while self._out:
                del self._out[: self._channel.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self._end()
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
        self._reactor.watch(self._channel.fileno(), events, self._on_ready)
        try:
            more = self._channel.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        if not more:
            self._end()
            return
        self._in += more
        if self._in.endswith(b"\n"):
            result = json.loads(self._in.decode("ascii"))
            self._in.clear()
            self._idle.append(self)
            self._rest = self._reactor.after(LINGER, self._end)
            self._tell(result)

    def _tell(self, result: t.Any) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(result)

    def _end(self) -> None:
        """It has nothing to do any more, or is gone."""
        if self._rest is not None:
            self._rest.cancel()
        self._reactor.unwatch(self._channel.fileno())
        self._channel.close()
        if self in self._idle:
            self._idle.remove(self)
        self._tell(None)


# ---- in the forked child ---------------------------------------------------------------------------------------------


def _serve(make: t.Callable[[], Serve], channel: socket.socket) -> None:
    _step_back()
    serve = make()
    with channel.makefile("rwb") as stream:
        for line in stream:
            stream.write(json.dumps(serve(json.loads(line.decode("ascii")))).encode("ascii") + b"\n")
            stream.flush()


def _step_back() -> None:
    """Let others go first. A nice value counts among processes of one session only where the kernel groups by session (sched(7),
    autogroup): then it is the group's that counts."""
    os.setsid()
    os.nice(BEHIND)
    with contextlib.suppress(OSError):
        with open("/proc/self/autogroup", "w", encoding="ascii") as stream:
            stream.write(str(BEHIND))
