# SPDX-License-Identifier: GPL-3.0-or-later
"""What a tunnel by sshuttle costs: throughput and latency, beside the bare path and beside `ssh -L`, in the same run.

    sudo python benchmarks/sshuttle_cost.py [--repeats 5] [--seconds 3] [--buffers 1048576 32768]

Two hosts of the local cloud in different VPCs; both ends of every path are the same two hosts and the same server, so what
differs is the way between them: the public address, `ssh -L`, and a tunnel of the role `sshuttle` for each size of its
buffer (32768 is sshuttle's own default). They are measured in turns, so that they meet the same noise. Throughput is
counted by the receiver, of one TCP connection; `trip` is a byte there and back on an open connection, `connect` is a new
connection and the first byte over it. The figures are medians of the repeats, of all round trips together.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shlex
import signal
import statistics
import sys
import tempfile
import typing as t

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "collections"), str(ROOT)]

import boto3  # noqa: E402

from tests.support.commands import ENDPOINT, adhoc, localcloud  # noqa: E402
from tests.support.sites import Sites, until  # noqa: E402

PORT = 7423
SERVER = f"""
import socket, threading, time

def serve(link):
    with link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        what = link.recv(1)
        if what == b"e":
            link.sendall(what)
            while (data := link.recv(1)):
                link.sendall(data)
        elif what == b"s":
            count, first = 0, None
            while (data := link.recv(1 << 18)) != b".":
                first = first or time.monotonic()
                count += len(data)
                if data.endswith(b"."):
                    break
            link.sendall(f"{{count * 8 / (time.monotonic() - first) / 1e6}}".encode())
        elif what == b"r":
            ends, block = time.monotonic() + float(link.recv(16)), bytes(1 << 16)
            while time.monotonic() < ends:
                link.sendall(block)

server = socket.create_server(("", {PORT}))
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""
CLIENT = """
import json, socket, sys, time
address, port, seconds, trips = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])

def connect(what):
    link = socket.create_connection((address, port), timeout=60)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.sendall(what)
    return link

connects, rounds = [], []
for _ in range(20):
    start = time.monotonic()
    with connect(b"e") as link:
        assert link.recv(1)
        connects.append(time.monotonic() - start)
with connect(b"e") as link:
    assert link.recv(1)
    for _ in range(trips):
        start = time.monotonic()
        link.sendall(b"x")
        assert link.recv(1)
        rounds.append(time.monotonic() - start)
block = bytes(1 << 16)
with connect(b"s") as link:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        link.sendall(block)
    link.sendall(b".")
    sent = float(link.recv(64))
with connect(b"r") as link:
    link.sendall(str(seconds).encode())
    count, first = 0, None
    while (data := link.recv(1 << 18)):
        first = first or time.monotonic()
        count += len(data)
        last = time.monotonic()
print(json.dumps({"sent": [sent], "received": [count * 8 / (last - first) / 1e6], "trip": rounds, "connect": connects}))
"""


def run_module(sites: Sites, host: str, name: str, **arguments: t.Any) -> None:
    said = adhoc(
        host, "-i", str(sites.inventory()), "-m", f"startline.lab.{name}", "-a", json.dumps(arguments), "--become"
    )  # fmt: skip
    assert said.returncode == 0, said.output


def install(sites: Sites) -> None:
    """The package, and a server on the login host."""
    sites.far.admit(PORT, f"{sites.client['public_address']}/32")
    sites.ssh(sites.client, "(apt-get -q update && apt-get -q install -y sshuttle) >/dev/null 2>&1")
    run_module(sites, "login", "sshuttle_gateway", public_keys=[(sites.directory / "vpn_key.pub").read_text()])
    sites.ssh(sites.login, f"systemd-run --quiet --collect --unit=bench python3 -c {shlex.quote(SERVER)}")
    until("the server listens", lambda: sites.ssh(sites.login, f"ss -Hltn 'sport = :{PORT}'"))


def forward(sites: Sites) -> None:
    """`ssh -L` from the client, with a key and an account that may."""
    key, known = "/root/forward", "/root/forward_known"
    sites.ssh(sites.client, f"umask 77; cat >{key} <<'END'\n{(sites.directory / 'far').read_text()}\nEND\n")
    address, target = sites.login["public_address"], f"{sites.login['address']}:{PORT}"
    options = f"-o BatchMode=yes -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile={known} -i {key}"
    command = f"ssh -N {options} -L 127.0.0.1:{PORT}:{target} admin@{address}"
    sites.ssh(sites.client, f"systemd-run --quiet --collect --unit=forward {command}")
    until("ssh -L listens", lambda: sites.ssh(sites.client, f"ss -Hltn 'sport = :{PORT}'"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--trips", type=int, default=300)
    parser.add_argument("--buffers", type=int, nargs="+", default=[1048576, 32768])
    args = parser.parse_args()
    # Stopped, it removes its hosts as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    localcloud("up")
    ec2 = boto3.client(
        "ec2",
        region_name="us-east-1",
        endpoint_url=ENDPOINT,
        aws_access_key_id="startline-local",
        aws_secret_access_key="local-cloud-of-this-machine",  # noqa: S106 the local cloud checks none
    )
    with tempfile.TemporaryDirectory(prefix="startline-bench-") as scratch:
        sites = Sites(ec2, pathlib.Path(scratch))
        try:
            measure(sites, args)
        finally:
            sites.close()


def measure(sites: Sites, args: argparse.Namespace) -> None:
    install(sites)
    forward(sites)
    key = sites.ssh(sites.login, "cat /etc/ssh/ssh_host_ed25519_key.pub")
    public, private = sites.login["public_address"], sites.login["address"]
    ways: dict[str, tuple[str, int]] = {"bare": (public, 0), "ssh -L": ("127.0.0.1", 0)}
    ways |= {f"sshuttle, buffer {size >> 10} KiB": (private, size) for size in args.buffers}
    found: dict[str, dict[str, list[float]]] = {way: {} for way in ways}
    for _ in range(args.repeats):
        for way, (address, size) in ways.items():
            if size:
                run_module(
                    sites, "client", "sshuttle", gateway=public, host_keys=[key], networks=[private], buffer=size,
                    private_key=(sites.directory / "vpn_key").read_text(),
                )  # fmt: skip
            command = f"python3 -c {shlex.quote(CLIENT)} {address} {PORT} {args.seconds:g} {args.trips}"
            for name, values in json.loads(sites.ssh(sites.client, command)).items():
                found[way].setdefault(name, []).extend(values)
    print(
        f"| path | sent Mbit/s | received Mbit/s | of bare | trip p50 ms | trip p99 ms | connect p50 ms |\n{'|---' * 7}|"
    )
    bare = found["bare"]
    for way, values in found.items():
        sent, received = (statistics.median(values[name]) for name in ("sent", "received"))
        ratios = [statistics.median(values[name]) / statistics.median(bare[name]) for name in ("sent", "received")]
        trip, late = statistics.median(values["trip"]), statistics.quantiles(values["trip"], n=100)[98]
        cells = [f"{sent:.1f}", f"{received:.1f}", " / ".join(f"{ratio:.1%}" for ratio in ratios)]
        cells += [f"{value * 1e3:.2f}" for value in (trip, late, statistics.median(values["connect"]))]
        print(f"| {way} | {' | '.join(cells)} |")
    print(
        f"\nn = {args.repeats} repeats of {args.seconds:g} s in each direction, {args.repeats * args.trips} round trips"
    )


if __name__ == "__main__":
    main()
