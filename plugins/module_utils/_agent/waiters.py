# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the programs of a trial wait for those on other hosts: ``startline-agent wait``, as the agent sees it.

PRIVATE to the collection. A UNIX socket that everybody on the host may open, and that does this one thing. A line each
way, in JSON:

    -> {"epoch": {...}, "name": "ready", "timeout": 5}     timeout may be left out; generation is said on a second try
    <- {"generation": 1, "timeout": 5}                     you wait; if I die, come again and say this generation
    <- {"at_ns": ...} or {"error": "..."}                  go on at this instant of CLOCK_MONOTONIC
    -> {"late_ns": ...}                                    so much after it I did

The first waiter of a host makes it arrive; others that come meanwhile go on with it. What was decided last under a name
is on the disk before a waiter hears of it, so that each generation is passed once, whoever dies.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
import typing as t

from . import launcher, wire
from .log import log
from .reactor import Reactor, Timer

#: Waiters at once, and names, of one host: more is not a program that waits.
MAX_CLIENTS, MAX_NAMES = 1000, 1000
#: Seconds that a client has for its request.
REQUEST_LIMIT = 10.0
#: Bytes of a line.
LINE_LIMIT = 4096
RECORD = "waits.json"

_Key = t.Tuple[wire.Epoch, str, int]

_REQUEST = wire.record(
    epoch=wire.record(run=wire.RUN, trial=wire.TRIAL, attempt=wire.integer(1, 10**6)),
    name=wire.NAME,
    timeout=wire.maybe(wire.number(0, 10**8)),
    generation=wire.maybe(wire.GENERATION),
)
_LATE = wire.record(late_ns=wire.NANOSECONDS)


class Place(t.NamedTuple):
    """A trial whose command runs here: its spool, and how long a wait lasts unless it says something else."""

    spool: str
    timeout: float


class _Client:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.lines = wire.Lines(LINE_LIMIT)
        self.limit: t.Optional[Timer] = None
        self.key: t.Optional[_Key] = None
        self.bound_ns: t.Optional[int] = None  # once it was told the instant


class _Waiting:
    """A generation that this host has come to, and nobody has decided yet."""

    def __init__(self, timeout: float) -> None:
        self.give_up = time.monotonic() + timeout
        self.clients: t.List[_Client] = []


class Waiters:
    """All programs of this host that wait.

    `place` gives a trial, if its command runs here; `instant` puts an instant of the rendezvous' clock on
    CLOCK_MONOTONIC, and says how well it is known (ns), if that clock was so far ahead of its oscillator (ns) when it was
    decided; `say` sends a message to the rendezvous, if there is a link.
    """

    def __init__(
        self,
        path: str,
        reactor: Reactor,
        place: t.Callable[[wire.Epoch], t.Optional[Place]],
        instant: t.Callable[[wire.Epoch, int, int], t.Tuple[int, int]],
        say: t.Callable[..., None],
    ) -> None:
        self.path = path
        self._reactor = reactor
        self._place, self._instant, self._tell = place, instant, say
        self._listener: t.Optional[socket.socket] = None
        self._clients: t.Set[_Client] = set()
        self._waiting: t.Dict[_Key, _Waiting] = {}

    def listen(self) -> None:
        """Open the socket. Without it trials run all the same."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Under its name only when it takes connections; the one of an agent before us stands until then.
        new = self.path + ".new"
        try:
            os.makedirs(os.path.dirname(self.path), 0o755, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)
            mask = os.umask(0o111)  # for the user of any command; it does one thing
            try:
                listener.bind(new)
            finally:
                os.umask(mask)
            listener.listen(128)
            os.rename(new, self.path)
        except OSError as error:
            listener.close()
            log("nobody can wait here", path=self.path, error=str(error))
            return
        listener.setblocking(False)
        self._listener = listener
        self._reactor.watch(listener.fileno(), selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        for client in list(self._clients):
            self._drop(client)
        if self._listener is not None:
            self._listener.close()

    # -- the rendezvous --

    def link_up(self) -> None:
        """Say again who waits: the message may have been lost."""
        for epoch, name, generation in list(self._waiting):
            self._say(epoch, name, generation)

    def decided(self, message: wire.Message) -> None:
        """The rendezvous has released or denied a generation."""
        epoch, name, generation = message["epoch"], message["name"], message["generation"]
        waiting = self._waiting.pop((epoch, name, generation), None)
        place = self._place(epoch)
        if waiting is None or place is None:
            return
        record = _read(place)
        decision = {"generation": generation, **{key: message.get(key) for key in ("at_ns", "ahead_ns", "reason")}}
        record[name] = decision
        _write(place, record)
        for client in waiting.clients:
            self._answer(client, epoch, decision)

    def over(self, epoch: wire.Epoch) -> None:
        """The trial's command has ended."""
        for key in [key for key in self._waiting if key[0] == epoch]:
            for client in self._waiting.pop(key).clients:
                self._refuse(client, "the trial is over on this host")

    def _say(self, epoch: wire.Epoch, name: str, generation: int) -> None:
        left = max(0.0, self._waiting[epoch, name, generation].give_up - time.monotonic())
        self._tell("wait", epoch=epoch, name=name, generation=generation, timeout=left)

    # -- clients --

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            connection, _address = self._listener.accept()
        except OSError:
            return  # gone again
        connection.setblocking(False)
        client = _Client(connection)
        if len(self._clients) >= MAX_CLIENTS:
            self._refuse(client, "too many programs wait on this host")
            return
        self._clients.add(client)
        client.limit = self._reactor.after(REQUEST_LIMIT, lambda: self._drop(client))
        self._reactor.watch(connection.fileno(), selectors.EVENT_READ, lambda: self._on_readable(client))

    def _on_readable(self, client: _Client) -> None:
        try:
            data = client.connection.recv(LINE_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        try:
            for line in client.lines.feed(data):
                self._take(client, wire.decode(line))
        except wire.WireError as error:
            self._refuse(client, str(error))

    def _take(self, client: _Client, said: t.Any) -> None:
        if client not in self._clients:
            return
        if client.key is None:
            self._join(client, wire.checked(said, _REQUEST, "the request"))
        elif client.bound_ns is not None:
            late_ns = wire.checked(said, _LATE, "the report")["late_ns"]
            epoch, name, generation = client.key
            where = {"epoch": epoch, "name": name, "generation": generation}
            self._tell("passed", late_ns=late_ns, bound_ns=client.bound_ns, **where)
            self._drop(client)
        else:
            raise wire.WireError("nothing more is to be said yet")

    def _join(self, client: _Client, request: t.Dict[str, t.Any]) -> None:
        if client.limit is not None:
            client.limit.cancel()
        epoch, name = wire.Epoch(**request["epoch"]), request["name"]
        place = self._place(epoch)
        if place is None:
            self._refuse(client, f"the command of {epoch} does not run on this host")
            return
        record = _read(place)
        last = record.get(name, {"generation": 0})
        if name not in record and len(record) >= MAX_NAMES:
            self._refuse(client, f"a trial has {MAX_NAMES} named barriers at most")
            return
        generation = request["generation"] or last["generation"] + 1
        if generation > last["generation"] + 1:
            self._refuse(client, f"generation {generation} of {name} has not begun")
            return
        timeout = place.timeout if request["timeout"] is None else request["timeout"]
        client.key = (epoch, name, generation)
        self._send(client, {"generation": generation, "timeout": timeout})
        if generation <= last["generation"]:
            self._answer(client, epoch, last)  # it was decided while this waiter had no agent
            return
        waiting = self._waiting.get(client.key)
        if waiting is None:
            waiting = self._waiting[client.key] = _Waiting(timeout)
            self._say(*client.key)
        waiting.clients.append(client)

    def _answer(self, client: _Client, epoch: wire.Epoch, decision: t.Mapping[str, t.Any]) -> None:
        if decision["at_ns"] is None:
            self._refuse(client, decision["reason"])
            return
        here_ns, client.bound_ns = self._instant(epoch, decision["at_ns"], decision["ahead_ns"])
        self._send(client, {"at_ns": here_ns})

    def _refuse(self, client: _Client, reason: str) -> None:
        self._send(client, {"error": reason})
        self._drop(client)

    def _send(self, client: _Client, answer: t.Mapping[str, t.Any]) -> None:
        # A line or two fit into any socket's buffer: who does not take them is not worth more.
        try:
            client.connection.sendall(wire.dump(answer))
        except OSError:
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        if client.limit is not None:
            client.limit.cancel()
        self._clients.discard(client)
        waiting = self._waiting.get(client.key) if client.key is not None else None
        if waiting is not None and client in waiting.clients:
            waiting.clients.remove(client)  # the host has come all the same
        if client.connection.fileno() >= 0:
            self._reactor.unwatch(client.connection.fileno())
            client.connection.close()


def _read(place: Place) -> t.Dict[str, t.Dict[str, t.Any]]:
    """What was decided last under each name."""
    return launcher.read_record(place.spool, RECORD) or {}


def _write(place: Place, record: t.Mapping[str, t.Any]) -> None:
    """Whole or not at all. It need outlive the agent, not the host: nothing waits for the disk."""
    path = os.path.join(place.spool, RECORD)
    with open(path + ".new", "wb") as stream:
        stream.write(wire.dump(record))
    os.rename(path + ".new", path)
