# SPDX-License-Identifier: GPL-3.0-or-later
"""What a trial costs the controller, by the number of hosts: everything it does itself, in CPU milliseconds.

    python benchmarks/controller_cost.py [--members 8 32 128 1000]

Rendering the commands, checking and packing the submission, reading the result and judging it. The floor: what packing and
reading the same amount of JSON takes. Beside them, what Ansible costs for any task on one host: an `ansible` command that
pings this machine. What a whole command with a trial costs, connection and Ansible's own work on its arguments with it, is
measured by start_rivals.py.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import time
import typing as t

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "collections"))

from ansible_collections.startline.lab.plugins.module_utils._agent import barrier, clock, wire  # noqa: E402
from ansible_collections.startline.lab.plugins.plugin_utils import _barrier_call, _experiment, _plan, _trial  # noqa: E402

EXPERIMENT = "command: ./run {{ rank }} hosts.config {{ size }} {{ sid }}\ngroups: {node: {count: %d}}\n"
REPEATS = 9


def ended(submission: dict[str, t.Any]) -> dict[str, t.Any]:
    """The result of a trial in which everything went well."""
    now = barrier.Now(1000.0, 1_800_000_000 * 10**9)
    machine = barrier.Barrier(submission, now)
    known = clock.Clock("ntp", 0, 1000, 200_000).to_json()
    end = {"code": 0, "signal": None, "timed_out": False, "stopped": False, "at_ns": now.wall_ns, "duration_ns": 10**9}
    end.update(leftovers=0, stepped_ns=0, detail=None)
    files = [{"path": name, "size": 1000, "sha256": "0" * 64} for name in ("meta.json", "stdout", "stderr")]
    for state in ("connected", "armed", "delivered"):
        for entry in submission["members"]:
            if state == "connected":
                machine.step(barrier.Connected(entry["name"]), now)
                continue
            fired = None if machine.start_ns is None else machine.start_ns + 80_000
            report = dict.fromkeys(("failed", "armed_ns", "start_ns", "noticed_ns", "fired_ns", "exit", "files"))
            report.update(state=state, clock=known, clock_after=known)
            if state == "delivered":
                report.update(start_ns=machine.start_ns, fired_ns=fired, exit=end, files=files)
            machine.step(barrier.Reported(entry["name"], wire.Epoch(*machine.epoch), report), now)
    return machine.result()


def cpu(work: t.Callable[[], t.Any]) -> float:
    """CPU milliseconds of this process, the median of some."""
    found = []
    for _ in range(REPEATS):
        before = time.process_time()
        work()
        found.append((time.process_time() - before) * 1e3)
    return statistics.median(found)


def child(words: list[str]) -> float:
    """CPU milliseconds of a command."""
    found = []
    for _ in range(REPEATS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(words, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU of the controller per trial.")
    parser.add_argument("--members", type=int, nargs="+", default=[8, 32, 128, 1000])
    options = parser.parse_args()
    ansible = str(pathlib.Path(sys.executable).with_name("ansible"))
    words = [ansible, "localhost", "-i", "/dev/null", "-m", "ansible.builtin.ping"]
    print(f"an ansible command that pings this machine: {child(words):.0f} ms of CPU")
    titles = ("render ms", "check, pack ms", "read, judge ms", "total ms", "JSON alone ms", "KiB out, in")
    print(f"{'N':>6}" + "".join(f"{title:>16}" for title in titles))
    for members in options.members:
        plan = _plan.expand(_experiment.load_experiment(EXPERIMENT % members, "experiments/cost.yml"))
        trial = plan["trials"][0]
        hosts = {
            member["name"]: {"address": f"10.77.{number // 250}.{number % 250 + 4}"}
            for number, member in enumerate(plan["members"])
        }
        formation = _trial.Formation.planned(plan, trial)

        def render(
            plan: t.Any = plan, trial: t.Any = trial, hosts: t.Any = hosts, formation: t.Any = formation
        ) -> t.Any:
            return _trial.compose_trial(plan, trial, hosts, run_id="cost-1", bucket="b", formation=formation)

        composed = render()

        def pack(composed: t.Any = composed) -> str:
            submission = _barrier_call.submission(composed)
            _barrier_call.check(submission)
            return json.dumps(submission)

        out = pack()
        answer = json.dumps(ended(_barrier_call.submission(composed)))

        def judge(answer: str = answer) -> t.Any:
            return _barrier_call.judged(_barrier_call.parse(0, answer, "").result or {})

        if judge()["verdict"] != "valid":
            raise SystemExit(judge()["msg"])
        parts = [cpu(render), cpu(pack), cpu(judge)]
        floor = cpu(lambda out=out, answer=answer: (json.dumps(json.loads(out)), json.loads(answer)))
        sizes = f"{len(out) / 1024:.0f}, {len(answer) / 1024:.0f}"
        print(f"{members:6}" + "".join(f"{value:16.2f}" for value in (*parts, sum(parts), floor)) + f"{sizes:>16}")


if __name__ == "__main__":
    main()
