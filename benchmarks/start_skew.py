# SPDX-License-Identifier: GPL-3.0-or-later
"""How far apart commands start: N agents on loopback with the real protocol, beside the machine's own floor.

    python benchmarks/start_skew.py [--members 8 32] [--repeats 10]

The floor is N processes that are ready before, an absolute sleep, exec at T, and nothing else: what N wake-ups cost on
this machine. Both are measured in turns, so that they meet the same noise. Figures are lateness after T in milliseconds
over all members and repeats; "spread" is the median over repeats of last minus first.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "collections"), str(ROOT)]

from ansible_collections.startline.lab.plugins.module_utils._agent import barrier  # noqa: E402
from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent.world import World, until  # noqa: E402
from benchmarks import floor  # noqa: E402

COMMAND = "sleep 0.2"


def barrier_once(world: World, name: str) -> list[float]:
    """Lateness (ms) of the members of one trial."""
    result = world.run(world.trial(COMMAND, name, deadline=60), "--wait", "exited")
    if result["verdict"] != "valid":
        raise SystemExit(f"the trial failed: {result['reasons']}")
    return [row["late_us"] / 1e3 for row in result["members"].values()]


def line(name: str, runs: list[list[float]]) -> dict[str, float]:
    values = sorted(value for run in runs for value in run)
    found = {
        "p50": barrier.percentile(values, 50),
        "p99": barrier.percentile(values, 99),
        "max": values[-1],
        "spread": statistics.median(max(run) - min(run) for run in runs),
    }
    print(f"  {name:10}" + "".join(f"{key} {value:8.2f}   " for key, value in found.items()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Start skew of the barrier beside the bare floor.")
    parser.add_argument("--members", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    for members in options.members:
        with tempfile.TemporaryDirectory() as directory:
            world = World(pathlib.Path(directory), [f"party-{i}" for i in range(members)])
            try:
                world.start_all()
                until(lambda world=world, n=members: len(world.status()["connected"]) == n, 60, "the connections")
                barrier_once(world, "warm")
                floors, barriers = [], []
                for repeat in range(options.repeats):
                    floors.append(floor.measure(members, COMMAND))
                    barriers.append(barrier_once(world, f"r{repeat}"))
            finally:
                world.close()
        print(f"{members} members, {options.repeats} repeats, {os.cpu_count()} CPUs; ms after T")
        bare, ours = line("floor", floors), line("barrier", barriers)
        print("  ratio     " + "".join(f"{key} {ours[key] / bare[key]:8.2f}   " for key in bare))


if __name__ == "__main__":
    main()
