# SPDX-License-Identifier: GPL-3.0-or-later
"""Which ports are taken, and by whom."""

from __future__ import annotations

import errno
import os
import pathlib
import socket
import typing as t

import pytest

from ansible_collections.startline.lab.plugins.module_utils._agent import ports

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LINE = (
    "   0: 0100007F:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1\n"
)
CHOSEN = (32768, 60999)


def test_only_sockets_that_take_a_port_count() -> None:
    text = HEAD + "".join(
        LINE.format(port=port, state=state, inode=inode)
        for port, state, inode in [(80, "0A", 11), (81, "01", 12), (40000, "0A", 13), (82, "06", 0)]
    )
    assert ports.parse("tcp", text, CHOSEN) == {("tcp", "0100007F", 80): 11, ("tcp", "0100007F", 40000): 13}


def test_a_udp_port_that_the_kernel_chose_is_a_clients() -> None:
    text = HEAD + "".join(
        LINE.format(port=port, state=state, inode=inode)
        for port, state, inode in [(53, "07", 11), (40000, "07", 12), (123, "01", 13), (61000, "07", 14)]
    )
    assert ports.parse("udp6", text, CHOSEN) == {("udp6", "0100007F", 53): 11, ("udp6", "0100007F", 61000): 14}


def test_what_is_new_is_named_with_its_owner_until_it_is_free() -> None:
    before = ports.taken()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        mine = {
            "protocol": "tcp",
            "port": port,
            "pid": os.getpid(),
            "command": pathlib.Path("/proc/self/comm").read_text().strip(),
        }
        found = [entry for entry in ports.new_since(before) if entry["pid"] == os.getpid()]
        assert found == [mine]
        assert ports.still_taken(found) == [mine]
        assert ports.describe(mine) == f"tcp port {port}, held by {mine['command']} (pid {os.getpid()})"
    assert ports.still_taken(found) == []
    assert ports.describe({**mine, "pid": None}) == f"tcp port {port}, held by nobody who can be seen"


def test_the_kernel_says_the_same_by_netlink_and_in_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as four,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
    ):
        mine = {listener.getsockname()[1] for listener in (four, six)}
        quick = ports.taken()

        def unknown(*_arguments: object) -> t.NoReturn:
            raise FileNotFoundError(errno.ENOENT, "no handler of this family")

        monkeypatch.setattr(ports, "_listening", unknown)
        slow = ports.taken()
        # Others may come and go meanwhile.
        found = [{key: inode for key, inode in taken.items() if key[2] in mine} for taken in (quick, slow)]
    assert found[0] == found[1]
    assert {key[0] for key in found[0]} == {"tcp", "tcp6"}
