# SPDX-License-Identifier: GPL-3.0-or-later
"""What rules cost: time per packet and time to load, by number of peers, beside one linear filter and one process per command.

    sudo python benchmarks/netem_cost.py [--peers 1 100 1000 4000] [--packets 20000] [--repeats 5]

In a network namespace of its own, on an ifb device, which drops what it is given. Every peer has a rate of its own, the
most expensive case. "linear" is what EnOSlib's netem does: a class, a queue and a u32 filter without a table for each
peer, each by its own tc process; u32 takes 2,047 of them. Variants are measured in turns, so that they meet the same
noise; "none" is the device without rules. Time per packet is the CPU time of sendto() in Python to a random peer, the
least disturbed of the repeats; what rules cost is what it is more than "none". Load times are medians.
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
CLONE_NEWNET = 0x40000000


def addresses(peers: int) -> list[str]:
    return [str(ipaddress.IPv4Address("10.64.0.4") + n) for n in range(peers)]


def hashed(peers: int) -> list[str]:
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
    parser.add_argument("--peers", type=int, nargs="+", default=[1, 100, 1000, 4000])
    parser.add_argument("--packets", type=int, default=20000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise SystemExit(f"a network namespace of its own: {os.strerror(ctypes.get_errno())}")
    # By one gateway: thousands of neighbours would cost more than any rule.
    setup = ("link add bench0 type ifb", "addr add 10.200.0.1/24 dev bench0", "link set bench0 up")
    for command in (*setup, "route add 10.64.0.0/16 via 10.200.0.2"):
        subprocess.run(["ip", *command.split()], check=True)
    print(
        f"{'peers':>6} {'none us':>9} {'hashed us':>10} {'linear us':>10} {'hashed load s':>14} {'linear load s':>14}"
    )
    base = 0.0
    for peers in args.peers:
        times: dict[str, list[float]] = {"none": [], "hashed": [], "linear": []}
        loads: dict[str, list[float]] = {"hashed": []}
        variants = {"none": [], "hashed": hashed(peers)}
        if peers <= 2047:
            variants["linear"] = linear(peers)
            loads["linear"] = [load(variants["linear"], batch=False)]
        for repeat in range(args.repeats):
            for name, lines in variants.items():
                took = load(lines)
                if name == "hashed":
                    loads[name].append(took)
                times[name].append(per_packet(peers, args.packets, repeat))
        clear()
        packet = {name: f"{min(values):.2f}" if values else "-" for name, values in times.items()}
        seconds = {name: f"{statistics.median(values):.3f}" for name, values in loads.items()}
        base = base or min(times["hashed"])
        print(
            f"{peers:>6} {packet['none']:>9} {packet['hashed']:>10} {packet['linear']:>10} {seconds['hashed']:>14} "
            f"{seconds.get('linear', '-'):>14}   hashed is {min(times['hashed']) / base:.2f}x of the first",
            flush=True,
        )
    commands = hashed(2000)
    print(
        f"2,000 peers, {len(commands):,} commands in one batch: {statistics.median(load(commands) for _ in range(5)):.3f} s"
    )
    one = _netem.parse_rules([{"to": addresses(2000), "rate": "10gbit"}])
    shared = _netem.compile_device(DEVICE, one)
    took = statistics.median(load(shared) for _ in range(5))
    print(f"2,000 peers that share a rate, {len(shared):,} commands: {took:.3f} s")


if __name__ == "__main__":
    main()
