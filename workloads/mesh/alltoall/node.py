# SPDX-License-Identifier: GPL-3.0-or-later
"""One host: asks all others, answers all others, and goes from phase to phase with them.

What is measured of an ordered pair is measured by its first host, which opens the connections and asks. So A to B and B
to A are two measurements, and a pair in which one of them cannot open connections still has the other.

All hosts are in the same phase at any time: nobody's large transfer is in the way of another's small requests. In the
first phase everyone sends small requests to everyone. Then come rounds: in round r rank i sends large requests to rank
i + r, so that every host is asked by one and asks one; or one round in which all ask all.

Hosts tell each other how many phases they have finished, over connections that last as long as the program: at every
change, and once a second as a sign of life. A host goes on when all others are as far as it is, or are gone. It is gone
when its connections are: closed by its system when the program ends, given up when it is silent for too long. Whoever
has finished the last phase stays until all have, so nobody is cut off, and whoever waits is waiting for somebody who is
alive; since every request has a time limit, this ends.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import math
import time
import typing as t

from . import wire
from .wire import Kind, MeshError, Place, Use, Wire

#: Bytes of a small request and of its answer.
SMALL: t.Final = 64
#: Seconds between two signs of life, and how many of them may fail to come while a host is waited for.
PULSE: t.Final = 1.0
MISSED: t.Final = 4
#: Seconds of one attempt to connect. A packet that went nowhere must not keep us until the system sends the next one.
ATTEMPT: t.Final = 5.0
#: Seconds from one small request to the next while large ones are on their way: so few that they do not matter to those.
PACE: t.Final = 0.05

Exchange = t.Callable[[Place], t.Awaitable[None]]
Report = t.Callable[["Figure"], None]
Note = t.Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is asked of all hosts alike."""

    requests: int = 100  # small ones to each peer
    large: int = 4  # large ones in each direction
    size: int = 1_000_000  # bytes of a large one
    concurrency: int = 1  # large ones under way to a peer at a time, each on a connection of its own
    together: bool = False  # large ones to all peers at once
    wait: float = 30.0  # seconds that anyone is waited for: to come, to answer, to give a sign of life
    session: str = ""
    skip: frozenset[tuple[int, int]] = frozenset()  # who opens no connection to whom

    def digest(self) -> int:
        """By this, hosts that are to do something else are not met. How patient each of them is, is its own affair."""
        same = {**dataclasses.asdict(self), "skip": sorted(self.skip), "wait": None}
        return wire.digest(repr(sorted(same.items())))


class Figure(t.NamedTuple):
    """One measured value. `peer` is who was asked."""

    peer: int
    metric: str
    value: float
    unit: str


def quantile(values: t.Sequence[float], share: float) -> float:
    """The smallest of `values` that is not below `share` of them."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


class Node:
    """The host of one rank."""

    def __init__(self, places: t.Sequence[Place], rank: int, settings: Settings, report: Report, note: Note) -> None:
        others = [place for place in places if place.rank != rank]
        self._places, self._rank, self._settings = places, rank, settings
        self._report, self._note = report, note
        self._session = settings.digest()
        self._targets = [place for place in others if (rank, place.rank) not in settings.skip]
        self._sources = [place for place in others if (place.rank, rank) not in settings.skip]
        #: What is wrong, by peer. The first of several reasons is the cause of the others.
        self.wrong: dict[int, list[str]] = {}
        self._finished = 0
        self._leaving = False
        self._finished_by: dict[int, int] = {}
        #: Connections for control, by peer: how many there are. Those that may yet come for the first time are pending.
        self._links: collections.Counter[int] = collections.Counter()
        self._pending = {(self._rank, place.rank) for place in self._targets}
        self._pending |= {(place.rank, self._rank) for place in self._sources}
        self._reached: set[int] = set()
        self._gone: set[int] = set()
        self._phases = self._plan()

    def _plan(self) -> list[tuple[Exchange, list[Place]]]:
        """The phases in order: what is done with whom. Of the same length on all hosts."""
        phases: list[tuple[Exchange, list[Place]]] = [(self._small, self._targets)]
        rounds: list[list[Place]] = []
        if self._settings.large and self._settings.size:
            size = len(self._places)
            to = [(self._rank + distance) % size for distance in range(1, size)]
            rounds = [[place for place in self._targets if place.rank == rank] for rank in to]
            if self._settings.together:
                rounds = [self._targets]
        for targets in rounds:
            phases += [(self._up, targets), (self._down, targets)]
        return phases

    async def run(self) -> None:
        """Take part from the first phase to the last; `wrong` then says what went wrong.

        Raises:
            OSError: this host cannot listen.
        """
        self._change = asyncio.Event()
        for size in (SMALL, self._settings.size):
            wire.body(self._rank, 0, size)  # made once, and not while somebody waits for it
        own = self._places[self._rank]
        server = await asyncio.start_server(
            self._serve, wire.listening_address(own.address), own.port, limit=wire.WINDOW, reuse_address=True
        )
        links = [asyncio.ensure_future(self._call(place)) for place in self._targets]
        links += [asyncio.ensure_future(self._expect(place)) for place in self._sources]
        try:
            await self._until(lambda: not self._pending)
            await self._next()
            for measure, targets in self._phases:
                await asyncio.gather(*(self._measured(measure, place) for place in targets))
                await self._next()
            self._leaving = True
            self._changed()
            # Each side reads until the other has nothing to say any more; a system that closes earlier may take words back.
            await self._until(lambda: not any(self._links.values()), self._settings.wait)
        finally:
            server.close()
            for link in links:
                link.cancel()
            await asyncio.gather(*links, return_exceptions=True)
        for place in self._targets:
            self._report(Figure(place.rank, "errors", len(self.wrong.get(place.rank, ())), "count"))

    # --- from phase to phase ------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    async def _until(self, condition: t.Callable[[], bool], seconds: float = math.inf) -> bool:
        """Wait until it holds, for so long at most; whether it does.

        `asyncio.wait_for` would not do: up to Python 3.11 it forgets a cancellation that meets its timeout.
        """
        late = asyncio.Event()
        timer = None
        if seconds < math.inf:
            timer = asyncio.get_running_loop().call_later(seconds, lambda: (late.set(), self._changed()))
        try:
            while not condition():
                if late.is_set():
                    return False
                await self._change.wait()
            return True
        finally:
            if timer:
                timer.cancel()

    async def _next(self) -> None:
        """A phase is finished here: tell it, and wait until it is everywhere."""
        self._finished += 1
        self._changed()
        peers = {place.rank for place in (*self._targets, *self._sources)}
        await self._until(
            lambda: all(self._finished_by.get(rank, 0) >= self._finished or not self._links[rank] for rank in peers)
        )

    def _blame(self, place: Place, reason: str) -> None:
        self.wrong.setdefault(place.rank, []).append(f"{place} {reason}")

    @contextlib.contextmanager
    def _link(self, rank: int) -> t.Iterator[None]:
        """A connection with a peer that is there, or may yet come."""
        self._links[rank] += 1
        try:
            yield
        finally:
            self._links[rank] -= 1
            self._changed()

    async def _call(self, place: Place) -> None:
        """Keep the connection for control that this host opens."""
        with self._link(place.rank):
            try:
                line = await self._reach(place, Use.CONTROL)
                self._reached.add(place.rank)
                self._note(f"connected to {place}")
            except MeshError as exc:
                if place.rank not in self._gone:
                    self._blame(place, f"cannot be reached: {exc}")
                return
            finally:
                self._came(self._rank, place.rank)
            try:
                await self._converse(place, line)
            finally:
                self._reached.discard(place.rank)

    async def _expect(self, place: Place) -> None:
        """Wait for the connection for control that a peer opens."""
        if await self._until(lambda: (place.rank, self._rank) not in self._pending, self._settings.wait):
            return
        if place not in self._targets:  # otherwise we know more of it than that
            self._blame(place, f"did not come within {self._settings.wait:g} s")
        self._came(place.rank, self._rank)

    def _came(self, source: int, target: int) -> None:
        self._pending.discard((source, target))
        self._changed()

    async def _converse(self, place: Place, line: Wire) -> None:
        """Tell and hear how many phases are finished, until the peer leaves or is gone."""
        telling = asyncio.ensure_future(self._tell(line))
        reason = "closed its connection"
        try:
            while True:
                frame = await asyncio.wait_for(line.receive(), self._settings.wait)
                if frame.kind is not Kind.STATE:
                    raise ValueError("not a state")
                self._finished_by[place.rank] = max(frame.number, self._finished_by.get(place.rank, 0))
                self._changed()
        except asyncio.TimeoutError:  # before OSError, which it belongs to since Python 3.11
            reason = f"gave no sign of life for {self._settings.wait:g} s"
        except (EOFError, OSError):
            pass
        except ValueError as exc:
            reason = f"broke the protocol: {exc}"
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            await line.close()
        finished = self._finished_by.get(place.rank, 0)
        if finished <= len(self._phases) and place.rank not in self._gone:
            self._gone.add(place.rank)
            self._came(place.rank, self._rank)  # it never will
            self._blame(place, f"{reason} in phase {finished} of {len(self._phases)}")

    async def _tell(self, line: Wire) -> None:
        while not self._leaving:
            await line.send(Kind.STATE, self._finished)
            await self._until(self._news(self._finished), min(PULSE, self._settings.wait / MISSED))
        await line.send(Kind.STATE, self._finished)
        line.end()

    def _news(self, told: int) -> t.Callable[[], bool]:
        """Whether there is more to tell than that so many phases are finished."""
        return lambda: self._leaving or self._finished != told

    # --- asking -------------------------------------------------------------------------------------------------------

    async def _reach(self, place: Place, use: Use) -> Wire:
        """Connect to a peer that may start later than we do."""
        end, pause = time.monotonic() + self._settings.wait, 0.05
        while True:
            try:
                left = max(end - time.monotonic(), pause)
                return await asyncio.wait_for(wire.connect(self._rank, place, self._session, use), min(left, ATTEMPT))
            except asyncio.TimeoutError:
                reason = "no answer"
            except EOFError:
                reason = "it closed the connection"
            except OSError as exc:
                reason = exc.strerror or str(exc)
            except MeshError as exc:
                reason = str(exc)
            if time.monotonic() + pause >= end or place.rank in self._gone:
                raise MeshError(f"{reason} (tried for {self._settings.wait:g} s)")
            await asyncio.sleep(pause)
            pause = min(pause * 1.6, 1.0)

    async def _measured(self, measure: Exchange, place: Place) -> None:
        if place.rank not in self._reached:
            return  # and it is known why
        try:
            await measure(place)
        except MeshError as exc:
            self._blame(place, str(exc))
        except (EOFError, OSError, ValueError) as exc:
            self._blame(place, f"broke a connection: {exc}")

    @contextlib.asynccontextmanager
    async def _line(self, place: Place) -> t.AsyncIterator[Wire]:
        line = await self._reach(place, Use.DATA)
        try:
            yield line
        finally:
            await line.close()

    async def _ask(self, place: Place, line: Wire, number: int, out: int, back: int) -> float:
        """Send a request of `out` bytes, and return the seconds until its answer of `back` bytes is there, and is right."""
        content, wanted = wire.body(self._rank, number, out), wire.body(place.rank, number, back)
        # Not asyncio.wait_for, which takes a share of what is measured.
        late = asyncio.Event()
        limit = asyncio.get_running_loop().call_later(self._settings.wait, lambda: (late.set(), line.abort()))
        began = time.perf_counter()
        try:
            await line.send(Kind.REQUEST, number, back, content)
            answer = await line.receive()
        except (EOFError, OSError) as exc:
            if not late.is_set():
                raise MeshError(f"closed the connection of request {number}") from exc
            raise MeshError(f"did not answer request {number} of {out} bytes within {self._settings.wait:g} s") from exc
        finally:
            limit.cancel()
        took = time.perf_counter() - began
        if answer.kind is Kind.WRONG:
            raise MeshError(f"got request {number} damaged")
        if answer.kind is not Kind.ANSWER or answer.number != number or answer.body != wanted:
            raise MeshError(f"gave a wrong answer to request {number}")
        return took

    async def _small(self, place: Place) -> None:
        began = time.perf_counter()
        async with self._line(place) as line:
            self._report(Figure(place.rank, "connect", (time.perf_counter() - began) * 1000, "ms"))
            count = self._settings.requests
            times = [await self._ask(place, line, number, SMALL, SMALL) for number in range(count)]
        self._latency(place, "latency", times)

    async def _up(self, place: Place) -> None:
        await self._large("upload", place, self._settings.size, SMALL)

    async def _down(self, place: Place) -> None:
        await self._large("download", place, SMALL, self._settings.size)

    async def _large(self, name: str, place: Place, out: int, back: int) -> None:
        """Large requests or answers, as many at a time as connections, and small requests meanwhile."""
        settings, numbers = self._settings, iter(range(1, self._settings.large + 1))
        over = asyncio.Event()

        async def work(line: Wire) -> None:
            for number in numbers:
                await self._ask(place, line, number, out, back)

        async def watch(line: Wire) -> list[float]:
            times = []
            while not over.is_set():
                times.append(await self._ask(place, line, len(times), SMALL, SMALL))
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(over.wait(), PACE)
            return times

        async with contextlib.AsyncExitStack() as stack:
            lines = [
                await stack.enter_async_context(self._line(place))
                for number in range(1 + min(settings.concurrency, settings.large))
            ]
            watching = asyncio.ensure_future(watch(lines[0]))
            began = time.perf_counter()
            workers = [asyncio.ensure_future(work(line)) for line in lines[1:]]
            try:
                await asyncio.gather(*workers)
                seconds = time.perf_counter() - began
                over.set()
                times = await watching
            finally:
                over.set()
                for task in (watching, *workers):
                    task.cancel()
                await asyncio.gather(watching, *workers, return_exceptions=True)
        self._report(Figure(place.rank, name, settings.large * settings.size * 8 / seconds / 1e6, "Mbit/s"))
        self._latency(place, f"{name}_latency", times)

    def _latency(self, place: Place, name: str, times: t.Sequence[float]) -> None:
        for suffix, value in (("min", min(times)), ("p50", quantile(times, 0.5)), ("p99", quantile(times, 0.99))):
            self._report(Figure(place.rank, f"{name}_{suffix}", value * 1000, "ms"))
        self._report(Figure(place.rank, f"{name}_n", len(times), "count"))

    # --- answering ----------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection that somebody opened here."""
        line = Wire(reader, writer)
        # What breaks a connection is seen at its other end, and if that is a peer, it is said there.
        with contextlib.suppress(EOFError, OSError, ValueError, asyncio.TimeoutError, asyncio.CancelledError):
            rank, use = await asyncio.wait_for(wire.accept(line, self._rank, self._session), self._settings.wait)
            place = next((place for place in self._sources if place.rank == rank), None)
            if place is not None and use is Use.DATA:
                await self._answer(rank, line)
            elif place is not None:
                with self._link(rank):
                    self._came(rank, self._rank)
                    await self._converse(place, line)
        await line.close()

    async def _answer(self, rank: int, line: Wire) -> None:
        while True:
            request = await line.receive()
            if request.kind is not Kind.REQUEST:
                return
            if request.body == wire.body(rank, request.number, len(request.body)):
                await line.send(Kind.ANSWER, request.number, 0, wire.body(self._rank, request.number, request.extra))
            else:
                await line.send(Kind.WRONG, request.number)
