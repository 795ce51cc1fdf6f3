# SPDX-License-Identifier: GPL-3.0-or-later
"""How far apart a command starts on N hosts of the local cloud: the start barrier beside four other ways.

    python benchmarks/start_rivals.py [--members 8 32 128] [--repeats 5] [--poll-repeats 2]

The command is the same for all, `date +%s%N`: all hosts of the local cloud read one clock, so its output is the true time of the
start and nothing is estimated. Per way and N, over the repeats: the median and the worst spread, last start less first (ms).

    floor      N processes of this machine, forked before, that sleep to an absolute instant and exec: what waking them costs here
    barrier    startline.lab.start_barrier's own submission, through the agents
    s3 poll    each host puts an object, then lists the prefix every 0.5 s until the count is N (how a shell script does it)
    ansible    ansible -f 50 -m raw, over warm connections
    pssh       ssh to all hosts side by side (asyncio, up to 128 at once), over warm connections

The rivals are measured in turns with the floor, so that they meet the same noise. The fleet is made once, at the largest N.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
import typing as t

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "collections"), str(ROOT)]

import boto3  # noqa: E402

from ansible_collections.startline.lab.plugins.module_utils._agent import launcher  # noqa: E402
from tests.support.commands import ENDPOINT, EXPERIMENTS, localcloud  # noqa: E402
from tests.support.lab import Lab, until  # noqa: E402

BUCKET = "startline-local"
NOW = "date +%s%N"
#: What a host does in the old way, with nothing but Python: signed addresses of one PUT and one LIST.
POLL = r"""
import sys, time, re, urllib.request
put, listing, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
urllib.request.urlopen(urllib.request.Request(put, data=b"", method="PUT")).read()
while len(re.findall(b"<Key>", urllib.request.urlopen(listing).read())) != count:
    time.sleep(0.5)
print(time.time_ns())
"""


def client(service: str) -> t.Any:
    return boto3.client(
        service,
        region_name="us-east-1",
        endpoint_url=ENDPOINT,
        aws_access_key_id="startline-local",
        aws_secret_access_key="local-cloud-of-this-machine",  # noqa: S106 the local cloud checks none
    )


def spread(stamps: t.Sequence[int]) -> float:
    """Last start less first, ms."""
    return (max(stamps) - min(stamps)) / 1e6


def floor(members: int) -> float:
    start_ns = time.time_ns() + 500_000_000 + members * 3_000_000
    reads = []
    for _ in range(members):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(write, 1)
            launcher._prctl(29, 1)  # PR_SET_TIMERSLACK, as the launcher does
            while (left := start_ns - time.time_ns()) > 0:
                time.sleep(left / 1e9)
            os.execv("/bin/sh", ["/bin/sh", "-c", NOW])  # noqa: S606
        os.close(write)
        reads.append((child, read))
    stamps = []
    for child, read in reads:
        stamps.append(int(os.read(read, 64)))
        os.close(read)
        os.waitpid(child, 0)
    return spread(stamps)


def barrier(lab: Lab, names: list[str]) -> float:
    # The command goes on for a while, as experiments do: on two processors, what follows an end would delay others' starts.
    result = lab.submit(
        lab.trial(f"{NOW} > /var/tmp/start; sleep 2", members=names, evidence=None, deadline=60.0)
    ).result(180)
    if result["verdict"] != "valid":
        raise SystemExit(f"the trial failed: {result['reasons']}")
    return spread([int(text) for text in asyncio.run(everywhere(lab, names, "cat /var/tmp/start"))])


async def everywhere(lab: Lab, names: list[str], command: str, stdin: dict[str, bytes] | None = None) -> list[str]:
    """The output of a command on all hosts, over their warm connections."""

    async def one(name: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *lab.ssh_command(name, command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        output, _errors = await process.communicate((stdin or {}).get(name, b""))
        return output.decode()

    return list(await asyncio.gather(*(one(name) for name in names)))


def pssh(lab: Lab, names: list[str]) -> float:
    return spread([int(text) for text in asyncio.run(everywhere(lab, names, NOW))])


def ansible(lab: Lab, names: list[str]) -> float:
    hosts = ":".join(f"{name}.{lab.run_id}" for name in names)
    done = subprocess.run(
        [
            str(pathlib.Path(sys.executable).with_name("ansible")),
            hosts,
            "-f",
            "50",
            "-m",
            "ansible.builtin.raw",
            "-a",
            NOW,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    stamps = [int(found) for found in re.findall(r"^(\d{19})\s*$", done.stdout, re.MULTILINE)]
    if len(stamps) != len(names):
        raise SystemExit(f"ansible reached {len(stamps)} of {len(names)} hosts:\n{done.stdout[-2000:]}")
    return spread(stamps)


def s3_poll(lab: Lab, names: list[str], number: int) -> float:
    s3 = client("s3")
    prefix = f"rival/{lab.run_id}/{len(names)}/{number}/"
    listing = s3.generate_presigned_url("list_objects_v2", Params={"Bucket": BUCKET, "Prefix": prefix})
    scripts = {}
    for name in names:
        put = s3.generate_presigned_url("put_object", Params={"Bucket": BUCKET, "Key": prefix + name})
        scripts[name] = f"python3 - '{put}' '{listing}' {len(names)} <<'X'\n{POLL}\nX\n".encode()
    return spread([int(text) for text in asyncio.run(everywhere(lab, names, "sh", scripts))])


def main() -> None:
    parser = argparse.ArgumentParser(description="Start skew of the barrier beside other ways.")
    parser.add_argument("--members", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--poll-repeats", type=int, default=2, help="of the slow way (default: %(default)s)")
    options = parser.parse_args()
    most = max(options.members)
    localcloud("up")
    with contextlib.ExitStack() as stack:
        stack.callback(localcloud, "down")
        began = time.monotonic()
        lab = Lab(
            EXPERIMENTS / "barrier.yml", "-e", f"set=groups.node.count={most}", "-e", "startline_fleet_deadline=900"
        )
        stack.callback(lab.close)
        lab.find(client("ec2"))
        print(f"{most} hosts ready and one trial run in {time.monotonic() - began:.0f} s; {os.cpu_count()} CPUs")
        until(lambda: lab.connected(*lab.members), 120, "all agents connected")
        asyncio.run(everywhere(lab, lab.members, "true"))  # warms the connections
        print(f"{'N':>5}  {'way':10} {'median ms':>10} {'worst ms':>10}   {'of the floor':>12}")
        for members in options.members:
            names = lab.members[:members]
            barrier(lab, names)
            found: dict[str, list[float]] = {way: [] for way in ("floor", "barrier", "pssh", "ansible", "s3 poll")}
            for repeat in range(options.repeats):
                found["floor"].append(floor(members))
                found["barrier"].append(barrier(lab, names))
                found["pssh"].append(pssh(lab, names))
                found["ansible"].append(ansible(lab, names))
                if repeat < options.poll_repeats:
                    found["s3 poll"].append(s3_poll(lab, names, repeat))
            base = statistics.median(found["floor"])
            for way, values in found.items():
                median = statistics.median(values)
                print(f"{members:5}  {way:10} {median:10.2f} {max(values):10.2f}   {median / base:11.2f}x", flush=True)


if __name__ == "__main__":
    main()
