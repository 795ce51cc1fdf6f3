# SPDX-License-Identifier: GPL-3.0-or-later
"""The mesh workload as hosts run it: processes, sockets, exit codes, figures; and peers that are not what they should be."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import pathlib
import re
import signal
import subprocess
import sys
import typing as t

import pytest
from alltoall import wire
from alltoall.node import Figure, Node, Settings, quantile
from alltoall.wire import Kind, Place, Use, Wire
from hypothesis import given
from hypothesis import strategies as st

RUN = pathlib.Path(__file__).parents[3] / "workloads" / "mesh" / "run.py"
FAST = ("--requests", "5", "--large", "2", "--size", "30000")


class Host(t.NamedTuple):
    """The program of one rank, in a directory of its own."""

    process: subprocess.Popen[str]
    directory: pathlib.Path

    def end(self) -> Ended:
        out, err = self.process.communicate(timeout=60)
        with open(self.directory / "mesh.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        return Ended(
            self.process.returncode, out, err, {(int(r["peer"]), r["metric"]): float(r["value"]) for r in rows}
        )


class Ended(t.NamedTuple):
    code: int
    out: str
    err: str
    figures: dict[tuple[int, str], float]


class Mesh:
    """A hosts file with loopback addresses that no other test has, and programs started by it."""

    def __init__(self, directory: pathlib.Path, net: int, size: int) -> None:
        self.hosts = directory / "hosts.config"
        self.places = [Place(rank, f"127.{net}.9.{rank + 1}", 10000 + rank) for rank in range(size)]
        self.hosts.write_text("".join(f"{place.address}\n" for place in self.places))
        self._directory = directory
        self.started: dict[int, Host] = {}

    def start(self, *ranks: int, args: t.Sequence[str] = FAST, wait: float = 30) -> None:
        for rank in ranks:
            directory = self._directory / str(rank)
            directory.mkdir()
            words = [sys.executable, str(RUN), str(rank), str(self.hosts), "--wait", str(wait), *args]
            process = subprocess.Popen(words, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            self.started[rank] = Host(process, directory)

    def ends(self) -> dict[int, Ended]:
        return {rank: host.end() for rank, host in self.started.items()}


@pytest.fixture
def mesh(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> t.Iterator[t.Callable[[int], Mesh]]:
    made: list[Mesh] = []

    def make(size: int) -> Mesh:
        made.append(Mesh(tmp_path, 1 + sum(request.node.name.encode()) % 250, size))
        return made[-1]

    yield make
    for one in made:
        for host in one.started.values():
            host.process.kill()
            host.process.communicate()


METRICS = {
    "connect",
    "errors",
    *(f"{name}latency_{value}" for name in ("", "upload_", "download_") for value in ("min", "p50", "p99", "n")),
    "upload",
    "download",
}


@pytest.mark.parametrize(("size", "args"), [(2, ()), (4, ()), (4, ("--together", "--concurrency", "3"))])
def test_every_ordered_pair_is_measured(size: int, args: tuple[str, ...], mesh: t.Callable[[int], Mesh]) -> None:
    hosts = mesh(size)
    hosts.start(*range(size), args=[*FAST, *args])
    for rank, ended in hosts.ends().items():
        assert (ended.code, ended.err) == (0, "")
        assert set(ended.figures) == {(peer, name) for peer in range(size) if peer != rank for name in METRICS}
        for (_peer, name), value in ended.figures.items():
            assert (value == 0) if name == "errors" else (value > 0)
        for peer in {peer for peer, _name in ended.figures}:
            least, median, most = (ended.figures[peer, f"latency_{name}"] for name in ("min", "p50", "p99"))
            assert least <= median <= most
            assert ended.figures[peer, "latency_n"] == 5
            assert re.search(
                rf"^to rank {peer} \(127\.\d+\.9\.{peer + 1}:1000{peer}\): upload ", ended.out, re.MULTILINE
            )


def test_no_large_ones(mesh: t.Callable[[int], Mesh]) -> None:
    hosts = mesh(2)
    hosts.start(0, 1, args=["--requests", "1", "--size", "0"])
    for ended in hosts.ends().values():
        assert ended.code == 0
        assert not any("load" in name for _peer, name in ended.figures)


def test_who_starts_late_is_waited_for(mesh: t.Callable[[int], Mesh]) -> None:
    hosts = mesh(3)
    hosts.start(0, 1)
    until_said(hosts.started[0], "connected to rank 1")
    hosts.start(2)
    assert {rank: ended.code for rank, ended in hosts.ends().items()} == {0: 0, 1: 0, 2: 0}


def test_who_never_comes_is_named_and_the_others_are_measured(mesh: t.Callable[[int], Mesh]) -> None:
    hosts = mesh(4)
    hosts.start(0, 1, 3, wait=3)
    for rank, ended in hosts.ends().items():
        assert ended.code == 1
        named = r"mesh: rank 2 \(127\.\d+\.9\.3:10002\) cannot be reached: Connect(ion| call) .*\(tried for 3 s\)"
        assert re.fullmatch(named, ended.err.strip()), ended.err
        measured = {peer for peer, name in ended.figures if name == "download"}
        assert measured == {0, 1, 3} - {rank}
        assert ended.figures[2, "errors"] == 1


def until_said(host: Host, words: str) -> None:
    assert host.process.stdout is not None
    while words not in (line := host.process.stdout.readline()):
        assert line, f"ended without having said: {words}"


def test_who_dies_is_named_at_once_and_the_others_go_on(mesh: t.Callable[[int], Mesh]) -> None:
    """Rank 3 comes after the kill, so that the others cannot be ready before it."""
    hosts = mesh(4)
    hosts.start(0, 1, 2, wait=1000)
    for rank in (0, 1):
        until_said(hosts.started[rank], "connected to rank 2")
    victim = hosts.started.pop(2)
    victim.process.kill()
    victim.process.communicate()
    hosts.start(3, wait=2)
    ended = hosts.ends()
    for rank, end in ended.items():
        assert end.code == 1
        reason = "cannot be reached" if rank == 3 else "closed its connection in phase 0 of 7"
        assert re.match(rf"mesh: rank 2 \(127\.\d+\.9\.3:10002\) {reason}", end.err)
        assert len(end.err.splitlines()) == 1
        assert {peer for peer, name in end.figures if name == "upload"} == {0, 1, 3} - {rank}


def test_who_is_silent_is_given_up(mesh: t.Callable[[int], Mesh]) -> None:
    """As a host that has lost its network, or its power: nothing breaks its connections. Rank 2 comes afterwards."""
    hosts = mesh(3)
    hosts.start(0, 1, wait=4)
    until_said(hosts.started[0], "connected to rank 1")
    hosts.started[1].process.send_signal(signal.SIGSTOP)
    stopped = hosts.started.pop(1)
    try:
        hosts.start(2, wait=4)
        ended = hosts.ends()
        assert re.match(r"mesh: rank 1 \(\S+\) gave no sign of life for 4 s in phase 0 of 5", ended[0].err)
        assert re.match(r"mesh: rank 1 \(\S+\) cannot be reached: no answer", ended[2].err)
        for rank, end in ended.items():
            assert end.code == 1
            assert {peer for peer, name in end.figures if name == "upload"} == {0, 2} - {rank}
    finally:
        stopped.process.kill()
        stopped.process.communicate()


def test_pairs_that_are_skipped_are_not_missed(mesh: t.Callable[[int], Mesh]) -> None:
    """Ranks 2 and 3 are behind something: nobody gets in, and they do not see each other either."""
    hosts = mesh(4)
    hosts.start(*range(4), args=[*FAST, "--skip", "0-1:2-3", "--skip", "2-3:2,3"])
    ended = hosts.ends()
    assert {rank: (end.code, end.err) for rank, end in ended.items()} == dict.fromkeys(range(4), (0, ""))
    asked = {rank: {peer for peer, _name in end.figures} for rank, end in ended.items()}
    assert asked == {0: {1}, 1: {0}, 2: {0, 1}, 3: {0, 1}}


def test_programs_of_another_session_are_not_measured(mesh: t.Callable[[int], Mesh]) -> None:
    hosts = mesh(2)
    hosts.start(0, args=[*FAST, "--session", "a"], wait=1)
    hosts.start(1, args=[*FAST, "--session", "b"], wait=1)
    for end in hosts.ends().values():
        assert end.code == 1
        assert re.search(
            "a program of another session, or with other arguments, answers there|cannot be reached", end.err
        )
        assert not any(name == "connect" for _peer, name in end.figures)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["0", "nofile"], "HOSTS is 'nofile': neither a file nor a number of hosts"),
        (["0", "1"], "HOSTS names 1 hosts: a mesh has two at least"),
        (["2", "2"], "RANK is 2: a number from 0 to 1 is needed"),
        (["0", "2", "--size", "1e9"], "invalid int value: '1e9'"),
        (["0", "2", "--size", "100000000"], "--size is 100000000: a number from 0 to 6.71089e+07 is needed"),
        (["0", "2", "--wait", "0"], "--wait is 0.0"),
        (["0", "2", "--port", "65535"], "--port is 65535: a number from 1 to 65534 is needed"),
        (["0", "2", "--skip", "0-2:1"], "--skip 0-2:1: '0-2' is no rank from 0 to 1, and no range of them"),
        (["0", "2", "--skip", "0"], "--skip 0: FROM:TO is needed"),
    ],
)
def test_wrong_arguments(args: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, str(RUN), *args], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_port_that_is_taken_is_said(mesh: t.Callable[[int], Mesh]) -> None:
    hosts = mesh(2)

    async def scene() -> None:
        place = hosts.places[0]
        async with await asyncio.start_server(lambda reader, writer: None, place.address, place.port):
            hosts.start(0, wait=1)
            ended = await asyncio.to_thread(hosts.started[0].end)
            assert ended.code == 1
            assert re.fullmatch(r"mesh: rank 0 \(\S+:10000\) cannot listen: .*in use.*\n", ended.err)

    asyncio.run(scene())


# In one process, with peers that are not what they should be.


def node(places: t.Sequence[Place], rank: int, settings: Settings) -> tuple[Node, list[Figure]]:
    figures: list[Figure] = []
    return Node(places, rank, settings, figures.append, lambda line: None), figures


Answer = t.Callable[[Wire, wire.Frame], t.Awaitable[None]]


def meet(net: int, answer: Answer, settings: Settings) -> list[str]:
    """What rank 0 says of rank 1, which is what it should be but for its answers."""
    places = [Place(rank, f"127.{net}.10.{rank + 1}", 10000 + rank) for rank in range(2)]
    session = settings.digest()

    async def states(line: Wire) -> None:
        """As far as the other one, at any time."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                await line.send(Kind.STATE, (await line.receive()).number)
        await line.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Wire(reader, writer)
        with contextlib.suppress(EOFError, OSError):
            _rank, use = await wire.accept(line, 1, session)
            if use is Use.CONTROL:
                await states(line)
            else:
                while True:
                    await answer(line, await line.receive())
        await line.close()

    async def scene() -> list[str]:
        one, _figures = node(places, 0, settings)
        async with await asyncio.start_server(serve, places[1].address, places[1].port):
            running = asyncio.ensure_future(one.run())
            for _try in range(100):
                with contextlib.suppress(OSError):
                    line = await wire.connect(1, places[0], session, Use.CONTROL)
                    break
                await asyncio.sleep(0.01)
            await asyncio.gather(running, states(line))
        return one.wrong.get(1, [])

    return asyncio.run(scene())


async def right(line: Wire, request: wire.Frame) -> None:
    await line.send(Kind.ANSWER, request.number, 0, wire.body(1, request.number, request.extra))


async def of_another(line: Wire, request: wire.Frame) -> None:
    await line.send(Kind.ANSWER, request.number, 0, wire.body(2, request.number, request.extra))


async def of_another_request(line: Wire, request: wire.Frame) -> None:
    await line.send(Kind.ANSWER, request.number, 0, wire.body(1, request.number + 1, request.extra))


async def one_bit(line: Wire, request: wire.Frame) -> None:
    body = bytearray(wire.body(1, request.number, request.extra))
    body[-1] ^= 1
    await line.send(Kind.ANSWER, request.number, 0, bytes(body))


async def cut_off(line: Wire, request: wire.Frame) -> None:
    await line.send(Kind.ANSWER, request.number, 0, wire.body(1, request.number, request.extra)[:-1])


async def complains(line: Wire, request: wire.Frame) -> None:
    await line.send(Kind.WRONG, request.number)


async def silent(line: Wire, request: wire.Frame) -> None:
    pass


async def leaves(line: Wire, request: wire.Frame) -> None:
    raise EOFError


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (right, None),
        (of_another, "gave a wrong answer to request 0"),
        (of_another_request, "gave a wrong answer to request 0"),
        (one_bit, "gave a wrong answer to request 0"),
        (cut_off, "gave a wrong answer to request 0"),
        (complains, "got request 0 damaged"),
        (silent, "did not answer request 0 of 64 bytes within 1 s"),
        (leaves, "closed the connection of request 0"),
    ],
)
def test_a_wrong_answer_is_seen(answer: Answer, message: str | None) -> None:
    net = 1 + sum(answer.__name__.encode()) % 250
    wrong = meet(net, answer, Settings(requests=2, size=0, wait=1))
    assert wrong == ([] if message is None else [f"rank 1 (127.{net}.10.2:10001) {message}"])


def test_a_damaged_request_is_told_and_strangers_disturb_nobody() -> None:
    places = [Place(rank, f"127.252.10.{rank + 1}", 10000 + rank) for rank in range(2)]
    settings = Settings(requests=2, size=0, wait=5)

    async def scene() -> None:
        one, other = node(places, 0, settings), node(places, 1, settings)
        first = asyncio.ensure_future(one[0].run())
        for word in (b"GET / HTTP/1.1\r\n\r\n", b"\1", b"\xff" * 13, b"\2" + bytes(12)):
            await until_open(places[0], word)
        line = await wire.connect(1, places[0], settings.digest(), Use.DATA)
        await line.send(Kind.REQUEST, 7, 10, wire.body(1, 8, 10))
        assert (await line.receive())[:2] == (Kind.WRONG, 7)
        await line.send(Kind.REQUEST, 7, 10, wire.body(1, 7, 10))
        assert await line.receive() == (Kind.ANSWER, 7, 0, wire.body(0, 7, 10))
        await line.close()
        await asyncio.gather(first, other[0].run())
        assert (one[0].wrong, other[0].wrong) == ({}, {})

    asyncio.run(scene())


async def until_open(place: Place, word: bytes) -> None:
    for _try in range(200):
        with contextlib.suppress(OSError):
            _reader, writer = await asyncio.open_connection(place.address, place.port)
            writer.write(word)
            writer.close()
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{place} does not listen")


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 200))
def test_a_body_tells_who_wrote_it_and_for_what(rank: int, number: int, size: int) -> None:
    body = wire.body(rank, number, size)
    assert len(body) == size
    if size >= 12:
        assert body != wire.body(rank ^ 1, number, size)
        assert body != wire.body(rank, number ^ 1, size)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_a_value_that_so_many_do_not_exceed(values: list[float], share: float) -> None:
    value = quantile(values, share)
    assert value in values
    assert sum(x <= value for x in values) >= share * len(values) - 1e-9
