# SPDX-License-Identifier: GPL-3.0-or-later
"""How far apart a command starts on N hosts of the local cloud: the start barrier beside four other ways.

    python benchmarks/start_rivals.py [--members 8 32 128] [--repeats 5] [--poll-repeats 2]

The command of all is `date +%s%N`: all hosts of the local cloud read one clock, so its output is the true time of the start and
nothing is estimated. Per way and N, over the repeats: the median and the worst spread, last start less first (ms). With the floor
and the barrier it goes on for a while, as experiments do: on two processors, what follows an end would delay others' starts. The
rivals would only be slower by it.

    floor      N processes of this machine that are ready before, sleep to an absolute instant and exec: what waking them costs here
    barrier    startline.lab.start_barrier's own submission, through the agents
    s3 poll    each host puts an object, then lists the prefix every 0.5 s until the count is N (how a shell script does it)
    ansible    ansible -f 50 -m raw, over warm connections
    pssh       ssh to all hosts side by side (asyncio, up to 128 at once), over warm connections

The rivals are measured in turns with the floor, so that they meet the same noise. The fleet is made once, at the largest N.

Then, of the same fleet: what a trial costs the controller (CPU of a whole playbook with that one task, with few members and with
all of them), and what an agent costs its host while a trial runs.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import typing as t

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "collections"), str(ROOT)]

import boto3  # noqa: E402

from ansible_collections.startline.lab.plugins.module_utils._agent.workers import LINGER  # noqa: E402
from benchmarks import floor  # noqa: E402
from tests.support.commands import ENDPOINT, EXPERIMENTS, localcloud  # noqa: E402
from tests.support.lab import Lab, until  # noqa: E402

BUCKET = "startline-local"
NOW = "date +%s%N"
#: Of the floor and the barrier, with the file that the time goes to.
GOES_ON = NOW + " > {}; sleep 2"
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


def bare(members: int) -> float:
    with tempfile.TemporaryDirectory() as directory:
        floor.measure(members, GOES_ON.format("$NUMBER"), directory)
        return spread([int(file.read_text()) for file in pathlib.Path(directory).iterdir()])


def valid(lab: Lab, command: str, names: list[str]) -> dict[str, t.Any]:
    """The result of a trial, which has to be a good one."""
    result = lab.submit(lab.trial(command, members=names, evidence=None, deadline=60.0)).result(180)
    if result["verdict"] != "valid":
        raise SystemExit(f"the trial failed: {result['reasons']}")
    return result


def barrier(lab: Lab, names: list[str], whys: collections.Counter[str]) -> float:
    whys[valid(lab, GOES_ON.format("/root/start"), names)["skew"]["why"].partition(":")[0]] += 1
    return spread([int(text) for text in asyncio.run(everywhere(lab, names, "cat /root/start"))])


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


def program(name: str, *words: str) -> str:
    """What a program of Ansible prints."""
    path = str(pathlib.Path(sys.executable).with_name(name))
    done = subprocess.run([path, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def ansible(lab: Lab, names: list[str]) -> float:
    hosts = ":".join(f"{name}.{lab.run_id}" for name in names)
    output = program("ansible", hosts, "-f", "50", "-m", "ansible.builtin.raw", "-a", NOW)
    stamps = [int(found) for found in re.findall(r"^(\d{19})\s*$", output, re.MULTILINE)]
    if len(stamps) != len(names):
        raise SystemExit(f"ansible reached {len(stamps)} of {len(names)} hosts:\n{output[-2000:]}")
    return spread(stamps)


def controller(lab: Lab, names: list[str]) -> float:
    """CPU seconds of the controller for a trial of `names`: a playbook with that one task, from its start to the result.

    Not an `ansible` command, which would print all of the result: 0.2 s with 128 members.
    """
    given = lab.trial("true", members=names, evidence=None)
    trial = {name: value for name, value in given.items() if name not in ("form", "formed_from") and value is not None}
    task = {"startline.lab.start_barrier": trial}
    play = {"hosts": f"{lab.members[0]}.{lab.run_id}", "gather_facts": False, "become": True, "tasks": [task]}
    with tempfile.NamedTemporaryFile("w", dir=ROOT, prefix=".controller-", suffix=".yml") as file:  # beside group_vars
        json.dump([play], file)
        file.flush()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        program("ansible-playbook", file.name)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


#: Of all processes of the agent, supervisors among them: nanoseconds on a processor, and their largest memory (KiB).
AGENT = """python3 - <<'X'
import glob
ns = most = 0
for path in glob.glob("/proc/[0-9]*"):
    try:
        if b"startline-agent\\0run" in open(path + "/cmdline", "rb").read():
            ns += sum(int(open(task).read().split()[0]) for task in glob.glob(path + "/task/*/schedstat"))
            most = max(most, *(int(line.split()[1]) for line in open(path + "/status") if line.startswith("VmRSS")))
    except FileNotFoundError:
        pass
print(ns, most)
X"""


def agents(lab: Lab, names: list[str], seconds: float = 20.0) -> tuple[float, float, float]:
    """While a trial runs: the median and the largest share of a processor that a host's agent takes (%), and the largest memory
    of one of its processes (MiB)."""
    pending = lab.submit(lab.trial(f"sleep {2 * seconds:g}", members=names, evidence=None, timeout=300.0))
    lab.reach(pending, "running", 60)
    time.sleep(2 + LINGER)  # its start is not what is asked for, nor the child that has delivered the trial before

    def look() -> list[list[int]]:
        return [[int(word) for word in text.split()] for text in asyncio.run(everywhere(lab, names, AGENT))]

    began, before = time.monotonic(), look()
    time.sleep(seconds)
    took, after = time.monotonic() - began, look()
    pending.result(180)
    shares = [(b[0] - a[0]) / 1e9 / took * 100 for a, b in zip(before, after, strict=True)]
    return statistics.median(shares), max(shares), max(entry[1] for entry in after) / 1024


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
    was_up = json.loads(localcloud("status", "--json"))["up"]
    localcloud("up")
    with contextlib.ExitStack() as stack:
        if not was_up:
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
            whys: collections.Counter[str] = collections.Counter()
            barrier(lab, names, whys)
            whys.clear()
            found: dict[str, list[float]] = {way: [] for way in ("floor", "barrier", "pssh", "ansible", "s3 poll")}
            for repeat in range(options.repeats):
                found["floor"].append(bare(members))
                found["barrier"].append(barrier(lab, names, whys))
                found["pssh"].append(pssh(lab, names))
                found["ansible"].append(ansible(lab, names))
                if repeat < options.poll_repeats:
                    found["s3 poll"].append(s3_poll(lab, names, repeat))
            base = statistics.median(found["floor"])
            for way, values in found.items():
                median = statistics.median(values)
                print(f"{members:5}  {way:10} {median:10.2f} {max(values):10.2f}   {median / base:11.2f}x", flush=True)
            print(f"{members:5}  the last of the barrier: {', '.join(f'{why} {count}' for why, count in whys.items())}")
        for members in sorted({min(8, most), most}):
            costs = [controller(lab, lab.members[:members]) for _ in range(options.repeats)]
            print(
                f"{members:5}  controller: {statistics.median(costs):.2f} s of CPU a trial, {min(costs):.2f} to {max(costs):.2f}"
            )
        names = lab.members[: min(8, most)]
        print(
            "       agent in a trial: {:.2f} % of a processor ({:.2f} % at most), {:.1f} MiB".format(
                *agents(lab, names)
            )
        )


if __name__ == "__main__":
    main()
