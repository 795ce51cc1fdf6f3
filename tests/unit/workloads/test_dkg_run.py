# SPDX-License-Identifier: GPL-3.0-or-later
"""The DKG workload as hosts run it: processes, sockets, exit codes and log lines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import typing as t

import pytest
from anytrust.net import Blockchain, DkgError, Node, Roster, Timing
from anytrust.protocol import Corrupt, Party, Setup
from anytrust.vss import Share

Processes = dict[int, "subprocess.Popen[str]"]
MILLISECONDS = ("total computation cost:", "time to send multicast complaint", "time to receive multicast complaint")
RUN = pathlib.Path(__file__).parents[3] / "workloads" / "dkg" / "run.py"


class Ended(t.NamedTuple):
    code: int
    out: str
    err: str

    def value(self, label: str) -> str:
        """What stands on the line after `label`."""
        lines = self.out.splitlines()
        return lines[lines.index(label) + 1]


@contextlib.contextmanager
def hosts(ranks: t.Iterable[int], where: str, *args: str, timeout: float = 30) -> t.Iterator[Processes]:
    """The program on each of `ranks`; none is left at the end."""
    started = {
        rank: subprocess.Popen(
            [sys.executable, str(RUN), str(rank), where, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "DKG_TIMEOUT": str(timeout)},
        )
        for rank in ranks
    }
    try:
        yield started
    finally:
        for process in started.values():
            process.kill()
            process.communicate()


def ends(processes: Processes) -> dict[int, Ended]:
    """Wait for all of them. Their output is far smaller than a pipe."""
    return {rank: Ended(process.wait(60), *process.communicate()) for rank, process in processes.items()}


@pytest.fixture
def config(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> t.Callable[[int], str]:
    """Write a hosts.config of so many lines, with loopback addresses that no other test has."""
    net = 1 + sum(request.node.name.encode()) % 250

    def write(count: int) -> str:
        path = tmp_path / "hosts.config"
        path.write_text("".join(f"127.{net}.7.{i + 1}\n" for i in range(count)))
        return str(path)

    return write


@pytest.mark.parametrize("protocol", ["normal", "corrupted"])
@pytest.mark.parametrize("n", [1, 4, 8])
def test_run(n: int, protocol: str, config: t.Callable[[int], str]) -> None:
    with hosts(range(n + 1), config(n + 1), "3", "7", protocol) as processes:
        ended = ends(processes)
    assert {rank: end.err for rank, end in ended.items() if end.code} == {}
    assert len({end.value("group public key:") for end in ended.values()}) == 1
    setup = Setup.draw(n, 3, "7", protocol != "normal")
    chain = ended.pop(n)
    assert "broadcastBlockchainRelay" in chain.out
    for rank, end in ended.items():
        assert end.value("check:") == "ok"
        assert "broadcastBlockchainRelay" not in end.out
        assert int(end.value("total data:")) > 0
        for label in MILLISECONDS:
            assert float(end.value(label)) >= 0
        # The classes that `grep -ic` on stderr makes of the logs.
        assert ("dealer" in end.err.lower()) == (rank in setup.dealers)
        if protocol == "normal":
            assert "plaintiff" not in end.err.lower()
            assert end.value("qualified dealers:") == " ".join(map(str, setup.dealers))
    if setup.corrupt:
        assert any("plaintiff" in ended[rank].err.lower() for rank in setup.honest)


def test_size_in_place_of_a_file() -> None:
    with hosts(range(3), "2", "2", "7") as processes:
        assert [end.code for end in ends(processes).values()] == [0, 0, 0]


def test_a_party_that_never_comes_is_named_by_all(config: t.Callable[[int], str]) -> None:
    where = config(5)
    with hosts((0, 1, 3, 4), where, "2", "7", timeout=1.5) as processes:
        ended = ends(processes)
    for end in ended.values():
        assert end.code == 1
        assert re.search(r"dkg: missing: rank 2 \(127\.\d+\.7\.3:10002\) did not come within 1\.5 s$", end.err.strip())


def test_a_blockchain_that_never_comes_is_named_by_all(config: t.Callable[[int], str]) -> None:
    where = config(3)
    with hosts((0, 1), where, "2", "7", timeout=1) as processes:
        ended = ends(processes)
    for end in ended.values():
        assert end.code == 1
        assert re.search(r"dkg: missing: the blockchain \(127\.\d+\.7\.3:10002\) cannot be reached", end.err)


def test_a_killed_party_ends_the_run_at_once_and_is_named_by_all(config: t.Callable[[int], str]) -> None:
    """Rank 4 comes after the kill, so that the run cannot be over before it."""
    where = config(6)
    with hosts((0, 1, 2, 3, 5), where, "5", "7") as processes:
        chain = processes[5]
        assert chain.stdout is not None
        while "rank 2 is here" not in chain.stdout.readline():
            assert chain.poll() is None
        processes[2].kill()
        killed = time.monotonic()
        with hosts((4,), where, "5", "7") as last:
            ended = ends({**processes, **last})
    assert time.monotonic() - killed < 10
    assert ended.pop(2).code == -signal.SIGKILL
    for end in ended.values():
        assert end.code == 1
        assert re.search(r"dkg: missing: rank 2 \(127\.\d+\.7\.3:10002\) in round keys: closed its connection", end.err)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["0", "4", "2"], "3 arguments, 4 or 5 are needed"),
        (["5", "4", "2", "7"], "RANK is '5': a whole number from 0 to 4 is needed"),
        (["-1", "4", "2", "7"], "RANK is '-1'"),
        (["0", "nofile", "2", "7"], "HOSTS is 'nofile': neither a file nor a number of parties"),
        (["0", "0", "2", "7"], "HOSTS is '0': a whole number of at least 1"),
        (["0", "4", "0", "7"], "AT_SIZE is '0': a whole number of at least 1"),
    ],
)
def test_wrong_arguments(args: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, str(RUN), *args], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr


# In one process, so that parties of other kinds can take part over real sockets.


Outcomes = dict[int, "list[str] | Exception"]
Nodes = dict[int, type[Node]]


async def play(parties: dict[int, Party], net: int, timing: Timing, nodes: Nodes | None = None) -> Outcomes:
    """Run `parties` and a blockchain to their ends, with `nodes` in place of the usual ones."""
    n = parties[0].setup.n
    roster = Roster(tuple(f"127.{net}.8.{i + 1}" for i in range(n + 1)))
    jobs = {n: Blockchain(parties[0].setup, roster, timing, lambda line: None).run()}
    jobs |= {rank: (nodes or {}).get(rank, Node)(party, roster, timing).run() for rank, party in parties.items()}
    ended = await asyncio.gather(*jobs.values(), return_exceptions=True)
    return t.cast("Outcomes", dict(zip(jobs, ended, strict=True)))


class Blind(Party):
    """Takes every share without a look."""

    def accepts(self, dealer: int, share: Share) -> bool:
        return True


class Persistent(Corrupt):
    """Its wrong share is not contested by who gets it, and the rest of what it does is right."""

    def __init__(self, setup: Setup, rank: int) -> None:
        super().__init__(setup, rank)
        self.manner, self.victims = "late", setup.honest[:1]

    def _extract(self) -> dict[str, t.Any]:
        return Party._extract(self)


def test_a_byzantine_dealer_whose_wrong_share_is_taken_fails_the_run_for_everyone() -> None:
    setup = Setup.draw(5, 2, "7", corrupted=True)
    parties: dict[int, Party] = {rank: (Corrupt if rank in setup.corrupt else Party)(setup, rank) for rank in range(5)}
    (dealer,) = setup.corrupt.intersection(setup.dealers)
    victim = setup.honest[0]
    parties[dealer], parties[victim] = Persistent(setup, dealer), Blind(setup, victim)
    ended = asyncio.run(play(parties, 251, Timing(5, 5, 0.2)))
    for wrong in ended.values():
        assert isinstance(wrong, list)
        assert f"rank {victim} holds a wrong share" in wrong


def test_a_party_that_falls_silent_is_named_after_the_round() -> None:
    setup = Setup.draw(4, 2, "7", corrupted=False)

    class Silent(Node):
        async def _say(self, chain: t.Any, message: t.Mapping[str, t.Any]) -> None:
            if message["round"] != "extract":
                await super()._say(chain, message)

    parties = {rank: Party(setup, rank) for rank in range(4)}
    for end in asyncio.run(play(parties, 252, Timing(5, 0.5, 0.2), {3: Silent})).values():
        assert isinstance(end, DkgError)
        assert str(end) == "missing: rank 3 (127.252.8.4:10003) said nothing in round extract within 0.5 s"


@pytest.mark.parametrize("name", ["keys", "deal", "complain", "extract", "accuse", "check"])
def test_a_party_that_dies_in_any_round_ends_the_run_at_once(name: str) -> None:
    setup = Setup.draw(4, 4, "7", corrupted=False)

    class Dying(Node):
        async def _say(self, chain: t.Any, message: t.Mapping[str, t.Any]) -> None:
            if message["round"] == name:
                raise OSError("killed")
            await super()._say(chain, message)

    parties = {rank: Party(setup, rank) for rank in range(4)}
    started = time.monotonic()
    ended = asyncio.run(play(parties, 254, Timing(30, 30, 1), {2: Dying}))
    assert time.monotonic() - started < 5
    assert isinstance(ended.pop(2), OSError)
    for end in ended.values():
        assert str(end) == f"missing: rank 2 (127.254.8.3:10002) in round {name}: closed its connection"


def test_a_blockchain_that_falls_silent_is_named() -> None:
    roster = Roster(("127.249.8.1", "127.249.8.2"))

    async def scene() -> None:
        silence = await asyncio.start_server(lambda reader, writer: None, *roster.at(1))
        async with silence:
            await Node(Party(Setup.draw(1, 1, "7", corrupted=False), 0), roster, Timing(0.2, 0.1, 0.1)).run()

    with pytest.raises(DkgError, match=r"the blockchain \(127.249.8.2:10001\) said nothing of round keys within 0.3 s"):
        asyncio.run(scene())


def test_strangers_on_the_ports_disturb_nobody() -> None:
    setup = Setup.draw(3, 2, "7", corrupted=False)
    parties = {rank: Party(setup, rank) for rank in range(3)}

    async def scene() -> Outcomes:
        async def stranger(rank: int) -> None:
            words = (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\2[]", b'\0\0\0\x18{"rank":0,"sid":"other"}', b"\xff" * 4)
            for word in words:
                for _try in range(100):
                    with contextlib.suppress(OSError):
                        _reader, writer = await asyncio.open_connection(f"127.253.8.{rank + 1}", 10000 + rank)
                        writer.write(word)
                        break
                    await asyncio.sleep(0.01)

        strangers = [asyncio.create_task(stranger(rank)) for rank in range(4)]
        ended = await play(parties, 253, Timing(5, 5, 1))
        for task in strangers:
            task.cancel()
        return ended

    assert set(map(repr, asyncio.run(scene()).values())) == {"[]"}
