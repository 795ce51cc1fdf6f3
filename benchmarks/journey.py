# SPDX-License-Identifier: GPL-3.0-or-later
"""Seconds and tasks of each stage of a run, from nothing to the first trial and to the end.

    python benchmarks/journey.py [EXPERIMENT] [-e ...]
    python benchmarks/journey.py --warm tests/e2e/experiments/tiny.yml -e set=groups.node.count=32,repeats=5

The local cloud is stopped first, so the figures start from a cold daemon and a warm image. The floor in the same run: as many
bare hosts of the same image, booted to their SSH greeting without an API (benchmarks/bare_boot.py). With `--warm` the cloud
stays as it is and there is no floor: the figure is then the time from the last exit of a trial to T of the next.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
import typing as t

PROJECT = pathlib.Path(__file__).resolve().parents[1]
BIN = pathlib.Path(sys.executable).parent
STAGES = {
    "Open the run": "plan",
    "Wake the world": "local cloud",
    "Provision the fleet": "provision",
    "Store what the hosts need": "configure",
    "Configure the hosts": "configure",
    "See who is ready": "configure",
    "Plan the experiment": "plan",
    "Run the trials": "run",
    "Collect the evidence": "collect",
    "Draw the report": "report",
    "Destroy the fleet": "destroy",
    "Judge the run": "judge",
}


def between(before: dict[str, t.Any], after: dict[str, t.Any]) -> dict[str, float]:
    """Seconds from the last exit of a trial to T of the next, in their parts."""
    moments = {
        "": max(member["exited_at"] or 0.0 for member in before["members"].values()),
        "to the rendezvous knowing it": before["ended"],
        "to the next trial's turn": after["submitted"],
        "to the last member armed": after["armed"],
        "to T": after["start"],
    }
    return {name: moment - earlier for (_name, earlier), (name, moment) in itertools.pairwise(moments.items())}


def main() -> int:
    parser = argparse.ArgumentParser(description="Seconds of each stage of a run, and between its trials.")
    parser.add_argument("experiment", nargs="?", default="dkg")
    parser.add_argument("--warm", action="store_true", help="leave the local cloud as it is")
    options, words = parser.parse_known_args()
    if not options.warm:
        subprocess.run([sys.executable, "-m", "localcloud", "down"], cwd=PROJECT, check=True)
    began = time.monotonic()
    process = subprocess.Popen(
        [str(BIN / "ansible-playbook"), "site.yml", "-e", f"exp={options.experiment}", *words],
        cwd=PROJECT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    seconds: dict[str, float] = {}
    tasks: dict[str, int] = {}
    slow: list[tuple[float, str]] = []
    output, run_id, stage, task, task_began = [], "", "start", "", began
    stage_began = began
    for line in process.stdout:
        output.append(line)
        now = time.monotonic()
        if found := re.search(r"(?:New|Going on with) run (\S+);", line):
            run_id = found[1]
        if line.startswith(("PLAY [", "TASK [", "PLAY RECAP")) and task:
            slow.append((now - task_began, task))
            task = ""
        if found := re.match(r"PLAY \[(.+?)\]|PLAY RECAP", line):
            seconds[stage] = seconds.get(stage, 0.0) + now - stage_began
            stage, stage_began = STAGES.get(found[1] or "", found[1] or "end"), now
        elif found := re.match(r"TASK \[(.+?)\] \*", line):
            tasks[stage] = tasks.get(stage, 0) + 1
            task, task_began = found[1], now
    took = time.monotonic() - began
    if process.wait():
        sys.stdout.writelines(output[-60:])
        return process.returncode
    (run,) = (PROJECT / "results").glob(f"*/{run_id}")
    trials = sorted(
        (json.loads(path.read_text()) for path in run.glob("trials/*/*/trial.json")), key=lambda trial: trial["start"]
    )
    gaps = [between(before, after) for before, after in itertools.pairwise(trials)]
    wall_began = time.time() - (time.monotonic() - began)
    hosts = max(len(trial["members"]) for trial in trials)

    print(f"{run_id}: {hosts} hosts, {len(trials)} trials, {took:.1f} s in all")
    print(f"{'stage':<12} {'seconds':>8} {'tasks':>6}")
    for name, value in seconds.items():
        print(f"{name:<12} {value:8.1f} {tasks.get(name, 0):6}")
    print("slowest tasks:")
    for value, name in sorted(slow, reverse=True)[:8]:
        print(f"  {value:6.1f} s  {name}")
    first = trials[0]["start"] - wall_began
    print(f"zero to first trial fired: {first:.1f} s")
    if gaps:
        whole = [sum(gap.values()) for gap in gaps]
        print(
            f"last exit to next start:   {statistics.median(whole):.2f} s ({min(whole):.2f} to {max(whole):.2f}, {len(gaps)} times)"
        )
        for part in gaps[0]:
            print(f"  {statistics.median(gap[part] for gap in gaps):6.2f} s  {part}")
    sys.stdout.flush()
    if options.warm:
        return 0
    bare = subprocess.run(
        [sys.executable, str(PROJECT / "benchmarks" / "bare_boot.py"), str(hosts)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    print(f"--- floor: {hosts} bare hosts\n{bare.stdout or bare.stderr}", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
