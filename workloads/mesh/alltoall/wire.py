# SPDX-License-Identifier: GPL-3.0-or-later
"""The wire: frames, and bodies whose every byte both ends know.

A frame is a head (kind, two numbers, the length of its body) and a body. The first frame in each direction is a HELLO
that says who speaks; a connection counts only when it is answered, because a proxy on the way (a VPN of TCP) accepts
connections whether or not there is anybody behind it.

A body is made of who wrote it, which request it belongs to, and filler. So a body that was damaged, cut off, mixed up
with another's or answered by somebody else is not what it should be, and is seen. This is compared byte by byte, which
finds what a checksum finds and more.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import random
import struct
import typing as t
import zlib

#: Bytes of the largest body.
LARGEST = 64 << 20
#: Bytes that a reader takes in advance: with asyncio's own 64 KiB a fast link waits for the program.
WINDOW = 1 << 20
_HEAD = struct.Struct(">BIII")
_STAMP = struct.Struct(">III")


class MeshError(Exception):
    """A peer is not there, or not what it should be; the message says which and why."""


class Kind(enum.IntEnum):
    """What a frame is, with the meaning of its two numbers."""

    HELLO = 1  # rank, digest of the session; the body says what the connection is for
    STATE = 2  # number of phases that the sender has finished, 0
    REQUEST = 3  # number, bytes of the answer's body
    ANSWER = 4  # number, 0
    WRONG = 5  # number, 0: the request's body was not what it should be


class Use(enum.Enum):
    """What a connection is for."""

    CONTROL = b"control"
    DATA = b"data"


class Frame(t.NamedTuple):
    kind: Kind
    number: int
    extra: int
    body: bytes


@functools.lru_cache(maxsize=8)
def _filler(size: int) -> bytes:
    # The same on all hosts, and no compressor on the way makes it smaller. Nothing secret is drawn here.
    return random.Random(size).getrandbits(8 * size).to_bytes(size, "big") if size else b""  # noqa: S311


def body(rank: int, number: int, size: int) -> bytes:
    """What `rank` writes of `size` bytes in request or answer `number`."""
    return _STAMP.pack(rank, number, size)[:size] + _filler(size)[_STAMP.size :]


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, kind: Kind, number: int = 0, extra: int = 0, content: bytes = b"") -> None:
        self._writer.write(_HEAD.pack(kind, number, extra, len(content)) + content)
        await self._writer.drain()

    async def receive(self) -> Frame:
        """The next frame. Raises `EOFError` at the end, `OSError` when it broke, `ValueError` for what is no frame."""
        kind, number, extra, length = _HEAD.unpack(await self._reader.readexactly(_HEAD.size))
        if length > LARGEST or (kind == Kind.REQUEST and extra > LARGEST):
            raise ValueError(f"a frame of {length} bytes, or one that asks for {extra}")
        return Frame(Kind(kind), number, extra, await self._reader.readexactly(length))

    def end(self) -> None:
        """Say that nothing follows. What the other end says is still heard."""
        with contextlib.suppress(OSError):
            self._writer.write_eof()

    def abort(self) -> None:
        """Give the connection up: whoever waits at it has an `OSError` or `EOFError` at once."""
        self._writer.transport.abort()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class Place(t.NamedTuple):
    """Where a rank is to be found."""

    rank: int
    address: str
    port: int

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.address}:{self.port})"


def digest(session: str) -> int:
    """The number by which the programs of one trial know each other."""
    return zlib.crc32(session.encode())


async def connect(me: int, place: Place, session: int, use: Use) -> Wire:
    """One attempt to reach the program at `place`.

    Raises:
        OSError, EOFError: nobody is there, or nobody yet.
        MeshError: somebody else is there.
    """
    reader, writer = await asyncio.open_connection(place.address, place.port, limit=WINDOW)
    wire = Wire(reader, writer)
    try:
        await wire.send(Kind.HELLO, me, session, use.value)
        try:
            answer = await wire.receive()
        except ValueError as exc:
            raise MeshError(f"something else answers there: {exc}") from None
        if answer.kind is not Kind.HELLO or answer.extra != session:
            raise MeshError("a program of another session, or with other arguments, answers there")
        if answer.number != place.rank:
            raise MeshError(f"rank {answer.number} answers there: is its address in the hosts file right?")
    except BaseException:
        await wire.close()
        raise
    return wire


async def accept(wire: Wire, me: int, session: int) -> tuple[int, Use]:
    """Who has connected, and for what. Raises `ValueError` for strangers."""
    hello = await wire.receive()
    if hello.kind is not Kind.HELLO:
        raise ValueError("no hello")
    # Told before it is judged: one that has come to the wrong place learns it from this.
    await wire.send(Kind.HELLO, me, session)
    if hello.extra != session:
        raise ValueError("another session")
    return hello.number, Use(hello.body)


def listening_address(own: str) -> str:
    """Where to listen: everywhere, because neither NAT nor VPN deliver to the address by which others know this host;
    but a program that all others meet on this machine is not seen from outside."""
    return own if own.startswith("127.") else "0.0.0.0"  # noqa: S104
