# SPDX-License-Identifier: GPL-3.0-or-later
"""A crowd of connections that say nothing to a rendezvous that has a trial to run."""

from __future__ import annotations

import contextlib
import pathlib
import selectors
import socket
import time

from ansible_collections.startline.lab.plugins.module_utils._agent.peers import HELLO_LIMIT
from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent.world import World, until


def resident(pid: int) -> float:
    """MiB of memory that a process has."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024


def queued(port: int) -> int:
    """How many connections to a port of this machine wait to be accepted. The kernel says nothing to those that find no room,
    and they seem open to who has made them, for ever."""
    for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _number, local, _remote, state, queues = line.split()[:5]
        if state == "0A" and int(local.partition(":")[2], 16) == port:
            return int(queues.partition(":")[2], 16)
    raise LookupError(f"nobody listens on port {port}")


def check_silence(world: World, count: int) -> None:
    """`count` silent connections, half of which have begun with TLS: the agents are served meanwhile, the silent are closed."""
    world.start("rendezvous", "party-0")
    until(lambda: world.status()["connected"] == ["party-0"], what="the connection")
    pid = world.pid("rendezvous")
    before = resident(pid)
    selector = selectors.DefaultSelector()
    began = time.monotonic()
    try:
        for number in range(count):
            if number % 500 == 0:
                until(lambda: queued(world.port) < 500, what="the connections to be accepted")
            silent = socket.create_connection(("127.0.0.1", world.port), 30)
            selector.register(silent, selectors.EVENT_READ)
            if number % 2:
                silent.sendall(b"\x16\x03\x01\x40\x00\x01")  # the begin of a ClientHello of 16 KiB that never ends
        world.start("party-1")  # an agent that comes last is heard all the same
        result = world.run(world.trial("true"))
        assert (result["verdict"], result["reasons"]) == ("valid", [])
        assert time.monotonic() - began < HELLO_LIMIT + 20
        assert resident(pid) - before < 10 + count * 40 / 1024, "40 KiB each"
        left = count
        while left:
            assert time.monotonic() - began < 2 * HELLO_LIMIT + count / 200, f"{left} are still open"
            for key, _events in selector.select(1):
                ended = key.fileobj
                assert isinstance(ended, socket.socket)
                with contextlib.suppress(ConnectionError):
                    assert ended.recv(100)[:1] in (b"", b"\x15")  # the end, or an alert before it
                selector.unregister(ended)
                ended.close()
                left -= 1
    finally:
        for key in list(selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        selector.close()
    assert world.status()["connected"] == ["party-0", "party-1"]
    assert "Traceback" not in world.log("rendezvous")
