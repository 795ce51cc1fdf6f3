# SPDX-License-Identifier: GPL-3.0-or-later
"""What the local cloud costs: N hosts by RunInstances beside N bare systemd-nspawn hosts of the same image.

    python benchmarks/bare_boot.py [N] [--rounds R]

Both are timed from the first call to the last answer of sshd. The bare hosts are the floor: an overlay, a namespace
with one veth, systemd-nspawn; no API, metadata, first boot or NAT. Needs root and a local cloud that is up.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import typing as t
import uuid
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path

import boto3

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from localcloud import image, machine
from localcloud.machine import ip_batch, run

# RFC 5737: for documentation, held by nobody. A /31 for each bare host.
FIRST = IPv4Address("198.51.100.0")


def await_ssh(address: str) -> None:
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        with contextlib.suppress(OSError), socket.create_connection((address, 22), timeout=1) as connection:
            if connection.recv(4) == b"SSH-":
                return
        time.sleep(0.01)
    raise SystemExit(f"no ssh at {address} within 60 s")


@contextlib.contextmanager
def bare_hosts(count: int, root: Path) -> t.Iterator[t.Callable[[], None]]:
    """Boots all at once when called; takes them away at the end."""
    with tempfile.TemporaryDirectory(prefix="bare-", dir=machine.STATE, ignore_cleanup_errors=True) as work:
        name = f"bare-{uuid.uuid4().hex[:6]}"
        key = Path(work, "key")
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))

        def boot(index: int) -> None:
            host, here = f"{name}-{index}", Path(work, str(index))
            for part in ("upper", "work", "root"):
                (here / part).mkdir(parents=True)
            layers = f"lowerdir={root},upperdir={here / 'upper'},workdir={here / 'work'},volatile"
            run("mount", "-t", "overlay", "bare", "-o", layers, str(here / "root"))
            shutil.copy(key, here / "root/etc/ssh/ssh_host_ed25519_key")
            (here / "root/etc/systemd/system/startline-first-boot.service").unlink()
            machine_side, host_side = FIRST + 2 * index, FIRST + 2 * index + 1
            run("ip", "netns", "add", host)
            ip_batch(
                f"link add bare-{index} type veth peer name ens5 netns {host}",
                f"addr add {machine_side}/31 dev bare-{index}",
                f"link set bare-{index} up",
            )
            ip_batch(f"addr add {host_side}/31 dev ens5", "link set ens5 up", netns=host)
            command = machine.cgroup_command(
                f"{name}/{index}",
                ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", f"--directory={here / 'root'}",
                 f"--machine={host}", f"--network-namespace-path=/run/netns/{host}", "--resolv-conf=off",
                 "--timezone=off", "--link-journal=no", "--boot"],
            )  # fmt: skip
            with (here / "console").open("wb") as console:
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
            await_ssh(str(host_side))

        def boot_all() -> None:
            with ThreadPoolExecutor(count) as pool:
                list(pool.map(boot, range(count)))

        try:
            yield boot_all
        finally:
            machine.cgroup_kill(name)
            for index in range(count):
                machine.attempt("umount", "--lazy", str(Path(work, str(index), "root")))
                machine.attempt("ip", "link", "del", f"bare-{index}")
                machine.attempt("ip", "netns", "del", f"{name}-{index}")


@contextlib.contextmanager
def instances(count: int) -> t.Iterator[t.Callable[[], None]]:
    """Runs all in one call; terminates them at the end. In the default VPC: a public address each."""
    ec2 = boto3.client(
        "ec2",
        region_name="us-east-1",
        endpoint_url="http://198.18.0.1:4566",
        aws_access_key_id="startline-local",
        aws_secret_access_key="local-cloud-of-this-machine",  # noqa: S106 (it protects nothing)
    )
    [ami] = ec2.describe_images(Owners=[image.OWNER])["Images"]
    started: list[str] = []

    def run_all() -> None:
        launched = ec2.run_instances(ImageId=ami["ImageId"], MinCount=count, MaxCount=count)["Instances"]
        started.extend(instance["InstanceId"] for instance in launched)
        ec2.get_waiter("instance_running").wait(InstanceIds=started)
        seen = ec2.describe_instances(InstanceIds=started)["Reservations"][0]["Instances"]
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(await_ssh, [instance["PublicIpAddress"] for instance in seen]))

    try:
        yield run_all
    finally:
        if started:
            ec2.terminate_instances(InstanceIds=started)
            ec2.get_waiter("instance_terminated").wait(InstanceIds=started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hosts", type=int, nargs="?", default=9)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    machine.require_tools()
    root = image.ensure().root
    kinds: dict[str, t.Callable[[], contextlib.AbstractContextManager[t.Callable[[], None]]]] = {
        "bare": lambda: bare_hosts(arguments.hosts, root),
        "RunInstances": lambda: instances(arguments.hosts),
    }
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(arguments.rounds):  # in turn, so that both meet the same machine
        for kind, prepare in kinds.items():
            with prepare() as start:
                began = time.monotonic()
                start()
                taken[kind].append(time.monotonic() - began)
    print(f"{arguments.hosts} hosts to the answer of the last sshd, {os.cpu_count()} CPUs, {arguments.rounds} rounds")
    for kind, seconds in taken.items():
        middle, least, most = statistics.median(seconds), min(seconds), max(seconds)
        print(f"  {kind:<12}  median {middle:5.2f} s   min {least:5.2f}   max {most:5.2f}")
    print(f"  ratio of the medians: {statistics.median(taken['RunInstances']) / statistics.median(taken['bare']):.2f}")


if __name__ == "__main__":
    main()
