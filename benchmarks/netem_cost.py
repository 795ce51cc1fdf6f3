# SPDX-License-Identifier: GPL-3.0-or-later
"""What rules cost: time per packet and time to load, by number of peers, beside one linear filter and one process per command.

    sudo python benchmarks/netem_cost.py [--peers 1 100 1000 2000 4000] [--packets 5000] [--repeats 9]

In a network namespace of its own, on an ifb device, which drops what it is given. "shared": all peers have one shape, as
in most experiments; "own": each has a rate of its own, the most expensive case. "linear" is what EnOSlib's netem does: a
class, a queue and a u32 filter without a table for each peer, each by its own tc process; u32 takes 2,047 of them.
Variants are measured in turns, so that they meet the same noise; "none" is the device without rules. Time per packet is
the CPU time of sendto() in Python to a random peer, the least disturbed of the repeats; what rules cost is what it is
more than "none". Load times are medians, that of "linear" is a single one.
"""

from __future__ import annotations

import argparse
import ctypes
import ipaddress
import os
import pathlib
import random
import socket
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "collections"))

from ansible_collections.startline.lab.plugins.module_utils import _netem  # noqa: E402

DEVICE = _netem.Device("bench0")
#: u32 takes no more filters without a table.
LINEAR_LIMIT = 2047
CLONE_NEWNET = 0x40000000


def addresses(peers: int) -> list[str]:
    return [str(ipaddress.IPv4Address("10.64.0.4") + n) for n in range(peers)]


def shared(peers: int) -> list[str]:
    rules = _netem.parse_rules([{"to": addresses(peers), "rate": "10gbit"}])
    return _netem.compile_device(DEVICE, rules, _netem.parse_exemptions(_netem.DEFAULT_EXEMPT))


def own(peers: int) -> list[str]:
    rules = _netem.parse_rules([{"to": [address], "rate": "10gbit"} for address in addresses(peers)])
    return _netem.compile_device(DEVICE, rules, _netem.parse_exemptions(_netem.DEFAULT_EXEMPT))


def linear(peers: int) -> list[str]:
    lines = ["qdisc add dev bench0 root handle 1: htb default 0"]
    for number, address in enumerate(addresses(peers), 1):
        lines += [
            f"class add dev bench0 parent 1: classid 1:{number:x} htb rate 10gbit burst 1250000 quantum 60000",
            f"qdisc add dev bench0 parent 1:{number:x} handle {number + 1:x}: bfifo limit 62500000",
            f"filter add dev bench0 parent 1: protocol ip u32 match ip dst {address} flowid 1:{number:x}",
        ]
    return lines


def clear() -> None:
    subprocess.run(["tc", "qdisc", "del", "dev", "bench0", "root"], stderr=subprocess.DEVNULL, check=False)


def load(lines: list[str], batch: bool = True) -> float:
    """Seconds to load."""
    clear()
    start = time.monotonic()
    if batch and lines:
        subprocess.run(["tc", "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True)
    else:
        for line in lines:
            subprocess.run(["tc", *line.split()], check=True)
    return time.monotonic() - start


def per_packet(peers: int, packets: int, seed: int) -> float:
    """Microseconds to send one."""
    choice = random.Random(seed)  # noqa: S311
    known = [(address, 9) for address in addresses(peers)]
    targets = [choice.choice(known) for _ in range(packets)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for target in known:
            sender.sendto(b"x", target)  # routes and caches
        start = time.thread_time()
        for target in targets:
            sender.sendto(b"x" * 64, target)
        return (time.thread_time() - start) / packets * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, nargs="+", default=[1, 100, 1000, 2000, 4000])
    parser.add_argument("--packets", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise SystemExit(f"a network namespace of its own: {os.strerror(ctypes.get_errno())}")
    # By one gateway: thousands of neighbours would cost more than any rule.
    setup = ("link add bench0 type ifb", "addr add 10.200.0.1/24 dev bench0", "link set bench0 up")
    for command in (*setup, "route add 10.64.0.0/16 via 10.200.0.2"):
        subprocess.run(["ip", *command.split()], check=True)
    columns = ("none", "shared", "own", "linear")
    print("microseconds a packet" + " " * 27 + "seconds to load")
    print(f"{'peers':>6}" + "".join(f"{name:>10}" for name in (*columns, *columns[1:])))
    for peers in args.peers:
        variants = {"none": [], "shared": shared(peers), "own": own(peers)}
        loads: dict[str, list[float]] = {name: [] for name in columns}
        times: dict[str, list[float]] = {name: [] for name in columns}
        if peers <= LINEAR_LIMIT:
            variants["linear"] = linear(peers)
            loads["linear"].append(load(variants["linear"], batch=False))
        for repeat in range(args.repeats):
            for name, lines in variants.items():
                took = load(lines)
                if name != "linear":
                    loads[name].append(took)
                times[name].append(per_packet(peers, args.packets, repeat))
        clear()
        cells = [f"{min(times[name]):.2f}" if times[name] else "-" for name in columns]
        cells += [f"{statistics.median(loads[name]):.3f}" if loads[name] else "-" for name in columns[1:]]
        print(f"{peers:>6}" + "".join(f"{cell:>10}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
