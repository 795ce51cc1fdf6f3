# SPDX-License-Identifier: GPL-3.0-or-later
"""How many members one rendezvous serves: N simulated agents over real TLS with a certificate each, through one trial.

    python benchmarks/barrier_scale.py [--members 128 1000 10000]

The rendezvous is the real program. The agents are one process that speaks the real protocol and starts nothing: the
figures are the rendezvous' own, on a machine that it shares with its N clients.

connect   until every agent was welcomed; `floor` is a bare loop that accepts as many, shakes hands and does nothing else
arm       from the submission until T was published: N duties, 8 N exchanges for the clocks, 2 N reports
publish   from the last report of an armed agent (written by it) until the first, and the last, agent has T
release   from T until all 3 N reports of starts, exits and deliveries are taken
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import multiprocessing
import os
import pathlib
import resource
import socket
import ssl
import sys
import tempfile
import threading
import time
import typing as t

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "collections"))

from ansible_collections.startline.lab.plugins.module_utils._agent import clock, peers, wire  # noqa: E402
from ansible_collections.startline.lab.plugins.plugin_utils import _tls  # noqa: E402
from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent.world import RUN, World  # noqa: E402

#: Handshakes that the clients have under way at a time.
AT_ONCE = 256


class Agent(asyncio.Protocol):
    """One simulated agent: is ready at once, and reports what a real one reports."""

    def __init__(self, crowd: Crowd, member: str, context: ssl.SSLContext) -> None:
        self._crowd, self._member = crowd, member
        self._lines = wire.Lines()
        self._from, self._to = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._from, self._to)
        self._secure = False
        self._pings = 0
        self.welcomed = asyncio.get_event_loop().create_future()

    def connection_made(self, transport: t.Any) -> None:
        self._transport = transport
        self._read(b"")

    def connection_lost(self, exc: BaseException | None) -> None:
        if not self.welcomed.done():
            self.welcomed.set_exception(exc or ConnectionError("closed"))
        elif not self._crowd.closing:
            self._crowd.lost += 1

    def data_received(self, data: bytes) -> None:
        # In pieces, because a memory BIO never gives back what it once had to hold.
        for begin in range(0, len(data), peers.PIECE):
            self._read(data[begin : begin + peers.PIECE])

    def _read(self, data: bytes) -> None:
        self._from.write(data)
        try:
            if not self._secure:
                self._tls.do_handshake()
                self._secure = True
                assert wire.rendezvous_uri(RUN) in wire.peer_uris(self._tls.getpeercert())
                self._say("hello", version=wire.VERSION, run=RUN, member=self._member)
            while True:
                for line in self._lines.feed(self._tls.read(65536)):
                    message = wire.check(wire.decode(line), wire.FROM_RENDEZVOUS)
                    getattr(self, "_on_" + message["type"])(message)
        except ssl.SSLWantReadError:
            self._transport.write(self._to.read())

    def _say(self, kind: str, **fields: t.Any) -> None:
        self._tls.write(wire.encode(kind, **fields))
        self._transport.write(self._to.read())

    def _report(self, epoch: wire.Epoch, state: str, **fields: t.Any) -> None:
        self._say("report", epoch=epoch, state=state, **fields)

    def _on_welcome(self, message: wire.Message) -> None:
        self.welcomed.set_result(None)

    def _on_prepare(self, message: wire.Message) -> None:
        self._epoch = message["epoch"]
        self._pings = 0
        self._report(self._epoch, "prepared")
        self._say("ping", sent_ns=time.time_ns())

    def _on_pong(self, message: wire.Message) -> None:
        self._pings += 1
        if self._pings < clock.SAMPLES:
            self._say("ping", sent_ns=time.time_ns())
            return
        self._clock = clock.Clock("rendezvous", 0, 1000, 1000).to_json()
        self._crowd.armed_at = time.monotonic()
        self._report(self._epoch, "armed", clock=self._clock, armed_ns=time.time_ns())

    def _on_start(self, message: wire.Message) -> None:
        now = time.monotonic()
        self._crowd.first_start = min(self._crowd.first_start, now)
        self._crowd.last_start = now
        start = message["start_ns"]
        pause = max(0.0, (start - time.time_ns()) / 1e9)
        asyncio.get_event_loop().call_later(pause, self._run, start)

    def _run(self, start: int) -> None:
        end = {"code": 0, "timed_out": False, "stopped": False, "at_ns": start, "duration_ns": 1, "leftovers": 0}
        fields: dict[str, t.Any] = {
            "clock": self._clock,
            "clock_after": self._clock,
            "armed_ns": start,
            "start_ns": start,
            "noticed_ns": start,
            "fired_ns": start,
        }
        self._report(self._epoch, "fired", **fields)
        fields["exit"] = {**end, "stepped_ns": 0}
        self._report(self._epoch, "exited", **fields)
        files = [{"path": name, "size": 100, "sha256": "0" * 64} for name in ("stdout", "stderr", "meta.json")]
        self._report(self._epoch, "delivered", files=files, **fields)

    def _on_settled(self, message: wire.Message) -> None:
        pass

    def _on_abort(self, message: wire.Message) -> None:
        pass

    def _on_refuse(self, message: wire.Message) -> None:
        raise SystemExit(f"{self._member} was refused: {message['reason']}")


class Crowd:
    """All agents of a benchmark, on an event loop in a process of their own."""

    def __init__(self, directory: pathlib.Path, members: list[str], port: int) -> None:
        self._directory, self._members, self._port = directory, members, port
        self.armed_at = self.last_start = 0.0
        self.first_start = float("inf")
        self.lost = 0
        self.closing = False
        self.agents: list[Agent] = []

    def _context(self, member: str) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname = False
        made.load_verify_locations(str(self._directory / "ca.crt"))
        path = str(self._directory / "certificates" / f"{member}.pem")
        made.load_cert_chain(path)
        return made

    async def connect(self) -> float:
        """Seconds until all are welcomed."""
        loop = asyncio.get_event_loop()
        gate = asyncio.Semaphore(AT_ONCE)
        # On hosts of their own, agents would do this side by side.
        self.agents = [Agent(self, member, self._context(member)) for member in self._members]

        async def one(agent: Agent) -> None:
            async with gate:
                await loop.create_connection(lambda: agent, "127.0.0.1", self._port)
                await agent.welcomed

        began = time.monotonic()
        await asyncio.gather(*(one(agent) for agent in self.agents))
        return time.monotonic() - began


def crowd_process(directory: pathlib.Path, members: list[str], port: int, pipe: t.Any) -> None:
    """Answers on the pipe: seconds to connect, then when asked the times of the trial."""

    async def main() -> None:
        crowd = Crowd(directory, members, port)
        pipe.send(await crowd.connect())
        while True:
            await asyncio.get_event_loop().run_in_executor(None, pipe.poll, None)
            if pipe.recv() == "end":
                crowd.closing = True
                return
            pipe.send((crowd.first_start - crowd.armed_at, crowd.last_start - crowd.armed_at, crowd.lost))

    asyncio.run(main())


def issue(world: World, members: list[str]) -> None:
    """A certificate for each, of the world's authority."""
    now = datetime.datetime.now(datetime.UTC)
    authority = world.tls.authority(now, now + datetime.timedelta(hours=3))
    (world.directory / "certificates").mkdir()
    for member in members:
        made = _tls.issue_member(authority, RUN, member, now, now + datetime.timedelta(hours=3))
        (world.directory / "certificates" / f"{member}.pem").write_text(made.certificate + made.key)


def floor_process(world_directory: str, port: int) -> None:
    """Accept, shake hands, keep, say welcome: nothing else."""
    from ansible_collections.startline.lab.plugins.module_utils._agent import config

    loaded = config.load(os.path.join(world_directory, "rendezvous", "agent.json"))
    context = peers.server_context(loaded)
    kept = []
    welcome = wire.encode("welcome", version=wire.VERSION)
    with socket.create_server(("127.0.0.1", port), backlog=4096) as listener:
        while True:
            raw, _address = listener.accept()
            connection = context.wrap_socket(raw, server_side=True)
            connection.recv(65536)
            connection.send(welcome)
            kept.append(connection)


def connect_to(world: World, members: list[str], port: int) -> tuple[t.Any, t.Any, float]:
    """A crowd that is connected: its process, its pipe, and how long that took."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=crowd_process, args=(world.directory, members, port, theirs), daemon=True)
    process.start()
    return process, ours, ours.recv()


def figures(pid: int) -> tuple[float, float, int, float]:
    """Resident memory, its peak (MiB), file descriptors, and CPU seconds of a process."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("Vm")}
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return sizes["VmRSS"], sizes["VmHWM"], len(os.listdir(f"/proc/{pid}/fd")), cpu


def floor(world: World, members: list[str]) -> float:
    """Seconds for as many bare handshakes."""
    from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent.world import free_port

    port = free_port()
    server = multiprocessing.Process(target=floor_process, args=(str(world.directory), port), daemon=True)
    server.start()
    while True:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            break
        time.sleep(0.05)
    server.terminate()
    server.join()
    server = multiprocessing.Process(target=floor_process, args=(str(world.directory), port), daemon=True)
    server.start()
    time.sleep(0.5)
    crowd, _pipe, seconds = connect_to(world, members, port)
    for process in (crowd, server):
        process.terminate()
        process.join()
    return seconds


def measure(count: int) -> dict[str, float]:
    """All figures for `count` members."""
    members = [f"party-{i}" for i in range(count)]
    with tempfile.TemporaryDirectory() as directory:
        world = World(pathlib.Path(directory), [])
        issue(world, members)
        world.members = members
        try:
            bare = floor(world, members)
            world.start("rendezvous")
            while "rendezvous started" not in world.log("rendezvous"):
                time.sleep(0.05)
            empty = figures(world.pid("rendezvous"))
            crowd, pipe, connected = connect_to(world, members, world.port)
            full = figures(world.pid("rendezvous"))
            trial = world.trial("true", deadline=300, timeout=60, delivery_deadline=300)
            waiting = world.submit(trial)
            answers: list[t.Any] = []
            reader = threading.Thread(target=lambda: answers.append(world.result(waiting, 600)))
            reader.start()
            reader.join()
            result = answers[0]
            pipe.send("times")
            first, last, lost = pipe.recv()
            after = figures(world.pid("rendezvous"))
            assert lost == 0, f"{lost} connections were lost"
            assert result["verdict"] == "valid", result["reasons"][:3]
            pipe.send("end")
            crowd.join()
            return {
                "members": count,
                "floor_s": bare,
                "connect_s": connected,
                "arm_s": result["published"] - result["submitted"],
                "publish_first_ms": first * 1e3,
                "publish_last_ms": last * 1e3,
                "lead_ms": result["lead_s"] * 1e3,
                "release_s": result["ended"] - result["start"],
                "total_s": connected + result["ended"] - result["submitted"],
                "rss_mib": full[0],
                "peak_mib": after[1],
                "kib_each": (full[0] - empty[0]) * 1024 / count,
                "descriptors": full[2],
                "cpu_s": after[3],
            }
        finally:
            world.close()


def main() -> None:
    """Measure each number of members in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[128, 1000, 10000])
    parser.add_argument("--json", action="store_true", help="print JSON, a line a measurement")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for count in options.members:
        found = measure(count)
        if options.json:
            print(json.dumps(found), flush=True)
        else:
            print("  ".join(f"{name} {value:.5g}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
