# SPDX-License-Identifier: GPL-3.0-or-later
"""The wires: the simulated blockchain (a relay with total order), its clients, and the private channels.

Frames are a length (four bytes, big endian) and a JSON object. A party holds one connection to the blockchain; a dealer
opens one to each party for the private share. Rounds go as fast as the slowest party speaks: nothing sleeps, and
every wait has an end (`Timing`) and names who did not come.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import struct
import time
import typing as t

from . import protocol
from .protocol import Block, Party, Setup, Transcript

LIMIT = 16 << 20  # bytes of a frame: 257 parties' commitments are a tenth of it


class DkgError(Exception):
    """The run cannot end well; the message says who and why."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds that anyone is waited for."""

    connect: float = 30.0  # from the start to the last party's arrival: hosts start together, but not equally fast
    round: float = 30.0  # from a round's opening to the last party's word
    share: float = 1.0  # from the block with a dealer's commitments to its private share (see the threat model)


@dataclasses.dataclass(frozen=True)
class Roster:
    """Where everyone listens: rank i at ``addresses[i]``, port ``base_port + i``. The last rank is the blockchain."""

    addresses: tuple[str, ...]
    base_port: int = 10000

    @property
    def chain(self) -> int:
        return len(self.addresses) - 1

    def at(self, rank: int) -> tuple[str, int]:
        return self.addresses[rank], self.base_port + rank

    def name(self, rank: int) -> str:
        """`rank` for a message: what it is and where."""
        address, port = self.at(rank)
        return f"{'the blockchain' if rank == self.chain else f'rank {rank}'} ({address}:{port})"

    def names(self, ranks: t.Iterable[int]) -> str:
        return ", ".join(self.name(rank) for rank in sorted(ranks))


class Wire:
    """One connection, and how much went over it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.bytes = 0

    async def send(self, message: t.Mapping[str, t.Any]) -> None:
        await self.send_frame(json.dumps(message).encode())

    async def send_frame(self, body: bytes) -> None:
        self._writer.write(struct.pack(">I", len(body)) + body)
        self.bytes += 4 + len(body)
        await self._writer.drain()

    async def receive(self) -> dict[str, t.Any]:
        """The next message. Raises `EOFError` at the end and `ValueError` for what is not a message."""
        (length,) = struct.unpack(">I", await self._reader.readexactly(4))
        if length > LIMIT:
            raise ValueError(f"a frame of {length} bytes")
        try:
            message = json.loads(await self._reader.readexactly(length))
        except RecursionError:
            raise ValueError("a message nested too deep") from None
        if not isinstance(message, dict):
            raise ValueError("not a JSON object")
        self.bytes += 4 + length
        return message

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


async def connect(roster: Roster, rank: int, seconds: float) -> Wire:
    """Connect to `rank`, trying again with growing pauses until `seconds` are over."""
    end, pause = time.monotonic() + seconds, 0.02
    while True:
        left = end - time.monotonic()
        try:
            streams = await asyncio.wait_for(asyncio.open_connection(*roster.at(rank)), max(left, 0.05))
            return Wire(*streams)
        except (OSError, asyncio.TimeoutError) as exc:
            if time.monotonic() + pause >= end:
                raise DkgError(f"missing: {roster.name(rank)} cannot be reached: {exc or 'no answer'}") from exc
        await asyncio.sleep(pause)
        pause = min(pause * 1.6, 0.5)


async def listen(roster: Roster, rank: int, serve: t.Callable[[Wire], t.Awaitable[None]]) -> asyncio.Server:
    """Listen at the address of `rank`. `serve` has a connection until it returns; what breaks one ends that alone."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        with contextlib.suppress(EOFError, ValueError, OSError, asyncio.CancelledError):
            await serve(wire)
        await wire.close()

    host, port = roster.at(rank)
    try:
        return await asyncio.start_server(served, host, port, reuse_address=True)
    except OSError as exc:
        raise DkgError(f"cannot listen on {host}:{port}: {exc.strerror or exc}") from exc


class Blockchain:
    """Collects one word of each party per round and shows all of them to all, then judges the run."""

    def __init__(self, setup: Setup, roster: Roster, timing: Timing, log: t.Callable[[str], None]) -> None:
        self._setup, self._roster, self._timing, self._log = setup, roster, timing, log
        self._wires: dict[int, Wire] = {}
        self._said: asyncio.Queue[tuple[int, dict[str, t.Any]]] = asyncio.Queue()
        self.seen = Transcript(setup)

    async def run(self) -> list[str]:
        """Serve one run: what is wrong with it, nothing when all is well."""
        server = await listen(self._roster, self._roster.chain, self._serve)
        try:
            block: Block = {}
            for name in protocol.ROUNDS:
                if self.seen.needs(name):
                    block = await self._round(name)
                    await self._relay(name, {"round": name, "block": block})
                    self.seen.apply(name, block)
            wrong = protocol.check(self.seen, block)
            await self._relay("verdict", {"verdict": wrong})
            return wrong
        except (DkgError, ValueError) as exc:
            await self._relay("abort", {"abort": str(exc)})
            raise DkgError(str(exc)) from exc
        finally:
            server.close()
            for wire in list(self._wires.values()):
                await wire.close()

    async def _serve(self, wire: Wire) -> None:
        hello = await wire.receive()
        rank = hello.get("rank")
        if not isinstance(rank, int) or not 0 <= rank < self._setup.n or rank in self._wires:
            return
        if hello.get("sid") != self._setup.sid:
            return
        self._wires[rank] = wire
        self._log(f"rank {rank} is here, {len(self._wires)} of {self._setup.n}")
        try:
            while True:
                self._said.put_nowait((rank, await wire.receive()))
        finally:
            self._said.put_nowait((rank, {"failed": "closed its connection"}))

    async def _round(self, name: str) -> Block:
        first = name == protocol.ROUNDS[0]
        seconds = self._timing.connect if first else self._timing.round
        said: dict[int, t.Mapping[str, t.Any]] = {}
        gone: dict[int, str] = {}
        end = time.monotonic() + seconds
        # Who leaves in the first round is told of when all others are here: a latecomer would not find the blockchain.
        while len(said.keys() | gone.keys()) < self._setup.n and (first or not gone):
            try:
                rank, message = await asyncio.wait_for(self._said.get(), end - time.monotonic())
            except asyncio.TimeoutError:
                missing = set(range(self._setup.n)) - set(said)
                what = "did not come" if first else f"said nothing in round {name}"
                raise DkgError(f"missing: {self._roster.names(missing)} {what} within {seconds:g} s") from None
            if "failed" in message:
                gone.setdefault(rank, str(message["failed"]))
            elif message.get("round") == name and isinstance(message.get("say"), dict):
                said[rank] = message["say"]
        if gone:
            reasons = (f"{self._roster.name(rank)} in round {name}: {reason}" for rank, reason in sorted(gone.items()))
            raise DkgError(f"missing: {'; '.join(reasons)}")
        return dict(sorted(said.items()))

    async def _relay(self, name: str, message: t.Mapping[str, t.Any]) -> None:
        body = json.dumps(message).encode()
        self._log(f"broadcastBlockchainRelay {name}: {len(body)} bytes to {len(self._wires)} parties")
        with contextlib.suppress(OSError):  # who has gone is missed in the round after
            await asyncio.wait_for(
                asyncio.gather(*(wire.send_frame(body) for wire in self._wires.values()), return_exceptions=True),
                self._timing.round,
            )

    @property
    def bytes(self) -> int:
        return sum(wire.bytes for wire in self._wires.values())


class Node:
    """Runs one party: its rounds against the blockchain, its private channels, and its figures."""

    def __init__(self, party: Party, roster: Roster, timing: Timing) -> None:
        self.party, self._roster, self._timing = party, roster, timing
        self._mail: dict[int, list[bytes]] = {}  # claimed dealer -> private messages, not yet believed
        self._arrived = asyncio.Event()
        self._wires: list[Wire] = []
        self.accused: list[int] = []
        self.compute_ms = self.send_ms = self.receive_ms = 0.0

    async def run(self) -> list[str]:
        """Take part in one run: what the blockchain says is wrong with it, nothing when all is well."""
        server = await listen(self._roster, self.party.rank, self._serve)
        chain = None
        try:
            chain = await self._dial(self._roster.chain)
            try:
                return await self._rounds(chain)
            except (DkgError, ValueError, KeyError) as exc:
                with contextlib.suppress(OSError):
                    await chain.send({"failed": str(exc)})
                raise exc if isinstance(exc, DkgError) else DkgError(f"the protocol broke: {exc!r}") from exc
        finally:
            server.close()
            for wire in self._wires:
                await wire.close()

    async def _rounds(self, chain: Wire) -> list[str]:
        party = self.party
        for name in protocol.ROUNDS:
            if not party.seen.needs(name):
                continue
            if name == "complain":
                await self._read_mail()
            said = self._computed(party.say, name)
            heard = asyncio.ensure_future(self._hear(chain, name))  # from now on: an abort may come at any time
            try:
                if name == "deal" and party.deals:
                    await self._deliver(self._computed(party.sealed), heard)
                sending = time.perf_counter()
                await self._say(chain, {"round": name, "say": said})
                sent = time.perf_counter()
                message = await heard
            finally:
                heard.cancel()
            if name == "complain":
                self.accused = [dealer for dealer in said["against"] if dealer in party.seen.commitments]
                self.send_ms = (sent - sending) * 1000
                self.receive_ms = (time.perf_counter() - sent) * 1000
            block = {int(rank): word for rank, word in message["block"].items()}
            self._computed(party.hear, name, block)
        return [str(item) for item in (await self._hear(chain, "verdict"))["verdict"]]

    async def _say(self, chain: Wire, message: t.Mapping[str, t.Any]) -> None:
        with contextlib.suppress(OSError):  # if the connection is gone, what was said last is still to be read
            await chain.send(message)

    async def _hear(self, chain: Wire, name: str) -> dict[str, t.Any]:
        """The blockchain's word on round `name`; it gives up by itself before this wait does."""
        blockchain, seconds = self._roster.name(self._roster.chain), self._timing.connect + self._timing.round
        try:
            message = await asyncio.wait_for(chain.receive(), seconds)
        except asyncio.TimeoutError:  # before OSError, which it belongs to since Python 3.11
            raise DkgError(f"missing: {blockchain} said nothing of round {name} within {seconds:g} s") from None
        except (EOFError, OSError) as exc:
            raise DkgError(f"missing: {blockchain} closed the connection in round {name}") from exc
        if "abort" in message:
            raise DkgError(str(message["abort"]))
        if message.get("round", "verdict") != name:
            raise DkgError(f"the blockchain is in round {message.get('round')}, this party in {name}")
        return message

    async def _dial(self, rank: int) -> Wire:
        wire = await connect(self._roster, rank, self._timing.connect)
        self._wires.append(wire)
        await wire.send({"rank": self.party.rank, "sid": self.party.setup.sid})
        return wire

    async def _deliver(self, messages: t.Mapping[int, bytes], heard: asyncio.Future[t.Any]) -> None:
        """Bring every private share on its way before the commitments go to the blockchain, unless that aborts."""

        async def deliver(rank: int, message: bytes) -> None:
            wire = await self._dial(rank)
            await wire.send({"share": message.hex()})

        delivery = asyncio.gather(*(deliver(rank, message) for rank, message in messages.items()))
        await asyncio.wait((delivery, heard), return_when=asyncio.FIRST_COMPLETED)
        if not delivery.done():
            delivery.cancel()
            await heard  # raises: nothing but an abort comes before the commitments are there
        await delivery

    async def _serve(self, wire: Wire) -> None:
        """A private channel: anybody may claim to be a dealer here; the message proves it, or is not taken."""
        self._wires.append(wire)
        hello = await wire.receive()
        rank = hello.get("rank")
        if hello.get("sid") != self.party.setup.sid:
            return
        message = protocol.read_bytes((await wire.receive()).get("share"))
        if rank in self.party.setup.dealers and message is not None and len(self._mail.get(rank, ())) < 4:
            self._mail.setdefault(rank, []).append(message)
            self._arrived.set()
        await wire.receive()  # until the other end closes

    async def _read_mail(self) -> None:
        """Take in the private shares of all who dealt, as long as a right one may still be on its way."""
        party = self.party
        end = time.monotonic() + self._timing.share
        while True:
            self._arrived.clear()
            for dealer in party.seen.commitments:
                for message in self._mail.pop(dealer, ()):
                    if dealer not in party.shares:
                        self._computed(party.open, dealer, message)
            if all(dealer in party.shares or dealer in party.refused for dealer in party.seen.commitments):
                return
            try:
                await asyncio.wait_for(self._arrived.wait(), end - time.monotonic())
            except asyncio.TimeoutError:
                return

    def _computed(self, function: t.Callable[..., t.Any], *args: t.Any) -> t.Any:
        """The result of `function`, its processor time counted."""
        start = time.process_time()
        result = function(*args)
        self.compute_ms += (time.process_time() - start) * 1000
        return result

    @property
    def bytes(self) -> int:
        return sum(wire.bytes for wire in self._wires)
