# SPDX-License-Identifier: GPL-3.0-or-later
"""Which ports are taken on this host, and by whom.

PRIVATE to the collection. Of our own network namespace: TCP sockets that listen, and UDP sockets that are bound and connected
to nobody. A UDP port that the kernel chose (ip_local_port_range) does not count: a client's socket looks the same, comes
and goes, and is in nobody's way.

UDP is in /proc/net. So is TCP, but to read it the kernel goes through its table of all connections, which has its size from the
machine's memory: milliseconds on small ones. Netlink (sock_diag(7)) can ask for those alone that listen.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import typing as t

#: Protocol as the kernel names it, local address, port.
Key = t.Tuple[str, str, int]

_TCP, _UDP = ("tcp", "tcp6"), ("udp", "udp6")
_LISTEN, _UNCONNECTED = "0A", "07"

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_REQUEST = struct.Struct("=BBBxI48x")  # family, protocol, extensions, states; of any socket
_MESSAGE = struct.Struct("=4x2s2x4I16x4x8x16xI")  # local port in network order; address as /proc/net prints it; inode


def parse(table: str, text: str, chosen: t.Tuple[int, int]) -> t.Dict[Key, int]:
    """The taken ports of one table of /proc/net, each with its socket's inode. `chosen`: the kernel's own range."""
    found: t.Dict[Key, int] = {}
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10:
            continue
        address, _colon, port_text = fields[1].rpartition(":")
        port = int(port_text, 16)
        if table.startswith("tcp"):
            taken = fields[3] == _LISTEN
        else:
            taken = fields[3] == _UNCONNECTED and not chosen[0] <= port <= chosen[1]
        if taken and port:
            found[table, address, port] = int(fields[9])
    return found


def taken() -> t.Dict[Key, int]:
    """All taken ports, each with its socket's inode."""
    low, high = (_read("/proc/sys/net/ipv4/ip_local_port_range") or "32768 60999").split()
    found: t.Dict[Key, int] = {}
    tables: t.Tuple[str, ...] = _UDP
    try:
        for table, family in zip(_TCP, (socket.AF_INET, socket.AF_INET6)):
            found.update(_listening(table, family))
    except OSError:  # a kernel without it
        tables = _TCP + _UDP
    for table in tables:
        found.update(parse(table, _read(f"/proc/self/net/{table}"), (int(low), int(high))))
    return found


def _listening(table: str, family: int) -> t.Iterator[t.Tuple[Key, int]]:
    """The TCP sockets of an address family that listen."""
    states = 1 << int(_LISTEN, 16)
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, states)
    head = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(5)
        kernel.send(head + body)
        while True:
            answer = kernel.recv(65536)
            while answer:
                length, kind, _flags, _number, _port = _HEADER.unpack_from(answer)
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    number = struct.unpack_from("=i", answer, _HEADER.size)[0]
                    raise OSError(-number, os.strerror(-number))
                port, *words, inode = _MESSAGE.unpack_from(answer, _HEADER.size)
                address = "".join(f"{word:08X}" for word in words[: 1 if family == socket.AF_INET else 4])
                yield (table, address, int.from_bytes(port, "big")), inode
                answer = answer[length + 3 & ~3 :]


def new_since(before: t.Container[Key]) -> t.List[t.Dict[str, t.Any]]:
    """What is taken now and was not then, one entry a protocol and port: protocol, port, pid, command."""
    return _entries({key: inode for key, inode in taken().items() if key not in before})


def still_taken(entries: t.Iterable[t.Mapping[str, t.Any]]) -> t.List[t.Dict[str, t.Any]]:
    """Of these entries those that are taken now, with who has them now."""
    asked = {(entry["protocol"], entry["port"]) for entry in entries}
    if not asked:
        return []
    return _entries({key: inode for key, inode in taken().items() if (key[0][:3], key[2]) in asked})


def describe(entry: t.Mapping[str, t.Any]) -> str:
    """``tcp port 8080, held by python3 (pid 123)``."""
    if entry["pid"] is None:
        return "{protocol} port {port}, held by nobody who can be seen".format(**entry)
    return "{protocol} port {port}, held by {command} (pid {pid})".format(**entry)


def name_of(pid: int) -> t.Optional[str]:
    """The short name of a process: its arguments may hold a secret. None when it has gone."""
    return _read(f"/proc/{pid}/comm").strip() or None


def _entries(sockets: t.Mapping[Key, int]) -> t.List[t.Dict[str, t.Any]]:
    owner_of = _owners(set(sockets.values())) if sockets else {}
    found: t.Dict[t.Tuple[str, int], t.Dict[str, t.Any]] = {}
    for (table, _address, port), inode in sorted(sockets.items()):
        pid = owner_of.get(inode)
        command = None if pid is None else name_of(pid)
        found.setdefault((table[:3], port), {"protocol": table[:3], "port": port, "pid": pid, "command": command})
    return list(found.values())


def _owners(inodes: t.Container[int]) -> t.Dict[int, int]:
    """The process that holds each socket; of several, one."""
    found: t.Dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):  # it has ended
            for descriptor in os.listdir(f"/proc/{entry}/fd"):
                with contextlib.suppress(OSError, ValueError):
                    target = os.readlink(f"/proc/{entry}/fd/{descriptor}")
                    if target.startswith("socket:[") and int(target[8:-1]) in inodes:
                        found[int(target[8:-1])] = int(entry)
    return found


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""
