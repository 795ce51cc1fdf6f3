# SPDX-License-Identifier: GPL-3.0-or-later
"""Is the reported bound true? N agents whose clocks are wrong, each in its own way, beside the machine's true time.

    python benchmarks/clock_error.py [--members 8] [--trials 40] [--seed 1]

Real agents and a real rendezvous, TLS on loopback. Each agent's time functions are replaced before it starts (its
launchers are forked, and inherit them): a wall clock that is up to two seconds off, an oscillator up to 200 ppm too fast
or too slow; in every second trial one clock is stepped by up to two seconds, and in every second trial one is slewed at
up to 8 %, both at a random moment between the submission and the command's end; so is the rendezvous' clock, which is the
machine's but for that, in every second trial and for longer. Each launcher notes the machine's clock in the same reading
that tells its agent when it has fired. What has to hold in every trial, for every member, on the rendezvous' clock as it
was when T was decided, and goes on unslewed:

    |true start - (T + reported lateness)| <= reported bound

and every step between arming and exit has to be a reason of the verdict.

The last columns show how much of the bound was needed, and that it is not true for want of trying: what the same starts
would have missed T by, had each host gone by its own wall clock.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import sys
import tempfile
import time
import typing as t

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "collections"))

from ansible_collections.startline.lab.plugins.module_utils._agent import barrier  # noqa: E402
from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent.world import World, until  # noqa: E402

#: Offset (s), drift (s/s), step (s), and slew (s/s; chronyd's own limit is 83,333 ppm) at most.
OFFSET, DRIFT, STEP, SLEW = 2.0, 200e-6, 2.0, 80e-3
#: For so long (s) the rendezvous' clock is slewed when it is.
SERVED_SLEWED = 1.0
#: A step above it (s), which is the trials' `max_clock_error`, is a reason.
LIMIT = 0.05

# Put in front of the agent: Python imports `sitecustomize` before anything else.
WRONG = r"""
import json, os, time

_FILE = os.environ.get("STARTLINE_WRONG_CLOCK")
if _FILE:
    with open(_FILE) as stream:
        _given = json.load(stream)
    _true = time.monotonic_ns
    _zero, _drift, _base = _given["zero_ns"], _given["drift"], _given["true_base_ns"]
    _last = [0]

    def _events():
        try:
            with open(_FILE + ".events") as stream:
                return json.load(stream)
        except OSError:
            return {"steps": [], "slews": []}

    def _raw(now):
        return now + int((now - _zero) * _drift)

    def _slewed(now, slews):
        return _raw(now) + sum(int((min(now, end) - begin) * rate) for begin, end, rate in slews if now > begin)

    def _now():
        # The true time, which is also remembered.
        now = _true()
        _last[0] = now + _base
        return now

    def monotonic_ns():
        return _slewed(_now(), _events()["slews"]) + _given["uptime_ns"]

    def time_ns():
        now, events = _now(), _events()
        return _slewed(now, events["slews"]) + _base + _given["offset_ns"] + sum(s for at, s in events["steps"] if now >= at)

    _gettime = time.clock_gettime_ns

    def clock_gettime_ns(clock):
        if clock == time.CLOCK_MONOTONIC_RAW:
            return _raw(_now()) + _given["uptime_ns"]
        return {time.CLOCK_REALTIME: time_ns, time.CLOCK_MONOTONIC: monotonic_ns}[clock]()

    time.monotonic_ns, time.time_ns, time.clock_gettime_ns = monotonic_ns, time_ns, clock_gettime_ns
    time.monotonic = lambda: monotonic_ns() / 1e9
    time.time = lambda: time_ns() / 1e9

    from module_utils._agent import launcher

    _really_sleep = launcher.sleep_until

    def sleep_until(start_ns):
        # The true instant at which this CLOCK_MONOTONIC reads `start_ns`: it never runs backwards, so halve.
        slews = _events()["slews"]
        low = _true()
        high = low + max(0, 2 * (start_ns - monotonic_ns())) + 1000
        while high - low > 1:
            middle = (low + high) // 2
            if _slewed(middle, slews) + _given["uptime_ns"] < start_ns:
                low = middle
            else:
                high = middle
        _really_sleep(high)

    _start = launcher._start

    def start(spool, *others):
        begun = _start(spool, *others)
        if begun is not None:
            # Its last reading is what the agent is told as the moment of the start. A spool's path ends with trial and attempt.
            with open(_FILE + "." + os.path.basename(os.path.dirname(spool)), "w") as stream:
                stream.write(str(_last[0]))
        return begun

    launcher.sleep_until, launcher._start = sleep_until, start
"""


class WrongWorld(World):
    """A world of hosts whose clocks are wrong."""

    def __init__(self, directory: pathlib.Path, members: t.Sequence[str], chance: random.Random) -> None:
        super().__init__(directory, members)
        self.write("wrong/sitecustomize.py", WRONG)
        self.true_base_ns = time.time_ns() - time.monotonic_ns()
        self.wrong = {
            member: {
                "zero_ns": time.monotonic_ns(),
                "true_base_ns": self.true_base_ns,
                # Each host has been up for its own time.
                "uptime_ns": chance.randrange(10**12),
                "offset_ns": int(chance.uniform(-OFFSET, OFFSET) * 1e9),
                "drift": chance.uniform(-DRIFT, DRIFT),
            }
            for member in members
        }
        self.wrong["rendezvous"] = {**self.wrong[members[0]], "uptime_ns": 0, "offset_ns": 0, "drift": 0.0}
        self.events: dict[str, dict[str, list[t.Any]]] = {name: {"steps": [], "slews": []} for name in self.wrong}
        for member, clock in self.wrong.items():
            self.write(f"{member}/clock", json.dumps(clock))
        self.starting = ""

    @property
    def environment(self) -> dict[str, str]:
        environment = super().environment
        if self.starting in self.wrong:
            environment["PYTHONPATH"] += f":{self.directory}/wrong"
            environment["STARTLINE_WRONG_CLOCK"] = str(self.directory / self.starting / "clock")
        return environment

    def start(self, *names: str) -> None:
        for name in names:
            self.starting = name
            super().start(name)
        self.starting = ""

    def step(self, member: str, seconds_from_now: float, step: float) -> None:
        """The member's wall clock jumps."""
        self.events[member]["steps"].append((time.monotonic_ns() + int(seconds_from_now * 1e9), int(step * 1e9)))
        self._tell(member)

    def slew(self, member: str, seconds_from_now: float, seconds: float, rate: float) -> None:
        """The clocks of a member, or of the rendezvous, but for the raw one, run at another rate for a while."""
        begin_ns = time.monotonic_ns() + int(seconds_from_now * 1e9)
        self.events[member]["slews"].append((begin_ns, begin_ns + int(seconds * 1e9), rate))
        self._tell(member)

    def _tell(self, member: str) -> None:
        self.write(f"{member}/clock.events.new", json.dumps(self.events[member]))
        os.replace(self.directory / member / "clock.events.new", self.directory / member / "clock.events")

    def steps(self, member: str, begin_ns: float, end_ns: float) -> list[float]:
        """The steps (s) of the member's wall clock between two instants of the true time."""
        return [step / 1e9 for at, step in self.events[member]["steps"] if begin_ns < at + self.true_base_ns < end_ns]

    def ahead_ns(self, rendezvous_ns: float) -> float:
        """How far the rendezvous' clock is ahead of the true time, at an instant that it has told."""
        ahead = 0.0
        for begin, end, rate in sorted(self.events["rendezvous"]["slews"]):
            told = begin + self.true_base_ns + ahead
            if rendezvous_ns > told:
                ahead += min((rendezvous_ns - told) / (1 + rate), end - begin) * rate
        return ahead

    def true_start(self, member: str, trial_id: str) -> int:
        return int((self.directory / member / f"clock.{trial_id}").read_text())


class Row(t.NamedTuple):
    """One member of one trial, in microseconds."""

    error: float
    bound: float
    late: float
    wall: float
    #: Steps above the limit (s) that were made between arming and exit, whether the report has any, and whether it is a reason.
    steps: list[float]
    stepped: bool
    told: bool
    accused: bool


def run_trial(world: WrongWorld, chance: random.Random, trial_id: str) -> tuple[list[Row], float, float]:
    """The rows of one trial; the true skew, and the most that the report allows for it (us)."""
    stepping = chance.choice(world.members) if chance.random() < 0.5 else None
    if stepping is not None:
        world.step(stepping, chance.uniform(0.0, 0.9), chance.choice((-1, 1)) * chance.uniform(0.1, STEP))
    if chance.random() < 0.5:
        world.slew(chance.choice(world.members), chance.uniform(0.0, 0.9), 0.3, chance.uniform(-SLEW, SLEW))
    serving = chance.random() < 0.5
    if serving:
        world.slew("rendezvous", chance.uniform(0.0, 0.2), SERVED_SLEWED, chance.choice((-1, 1)) * SLEW)
    result = world.run(world.trial("sleep 0.3", trial_id, deadline=60, max_clock_error=LIMIT))
    if serving:
        time.sleep(SERVED_SLEWED)  # its slews do not overlap
    if result["outcome"] != "completed":
        raise SystemExit(f"{trial_id} failed: {result['reasons']}")
    ahead = world.ahead_ns(result["published"] * 1e9)
    rows, trues, low, high = [], [], [], []
    for name, row in result["members"].items():
        late_ns = int(row["late_us"] * 1e3)
        true = world.true_start(name, trial_id) + ahead - result["start_ns"]
        trues.append(true)
        low.append(late_ns - row["bound_us"] * 1e3)
        high.append(late_ns + row["bound_us"] * 1e3)
        told = any(reason.startswith(f"{name}:") and "stepped" in reason for reason in result["reasons"])
        accused = any(reason.startswith(f"{name}:") and "drifted" in reason for reason in result["reasons"])
        stepped = max(abs(row["clock_step_s"]), abs(row["clock"]["stepped_s"])) > LIMIT
        # Both are known to the bound.
        slack = row["bound_us"] * 1e3
        steps = world.steps(name, row["armed_at"] * 1e9 - ahead + slack, row["exited_at"] * 1e9 - ahead - slack)
        rows.append(
            Row(
                (true - late_ns) / 1e3,
                row["bound_us"],
                row["late_us"],
                row["clock"]["offset_s"] * 1e6,
                [step for step in steps if abs(step) > LIMIT],
                stepped,
                told,
                accused,
            )
        )
    return rows, (max(trues) - min(trues)) / 1e3, (max(high) - min(low)) / 1e3


def measure(members: int, trials: int, seed: int, directory: pathlib.Path) -> list[tuple[list[Row], float, float]]:
    """Every trial's rows, true skew and allowed skew."""
    chance = random.Random(seed)  # noqa: S311
    world = WrongWorld(directory, [f"party-{index}" for index in range(members)], chance)
    try:
        world.start_all()
        until(lambda: len(world.status()["connected"]) == members, 60, "the connections")
        return [run_trial(world, chance, f"r{number}") for number in range(trials)]
    finally:
        world.close()


def violations(found: list[tuple[list[Row], float, float]]) -> list[str]:
    """What the report says and is not true."""
    wrong = []
    for number, (rows, skew, allowed) in enumerate(found):
        if skew > allowed:
            wrong.append(f"r{number}: true skew {skew:.0f} us, the report allows {allowed:.0f}")
        for rank, row in enumerate(rows):
            if abs(row.error) > row.bound:
                wrong.append(f"r{number} party-{rank}: {row.error:.0f} us from the report, bound {row.bound:.0f}")
            if row.accused:
                wrong.append(f"r{number} party-{rank}: drift is a reason, and there was none that is not explained")
            if row.steps and not row.told:
                step = ", ".join(f"{step:+.3f} s" for step in row.steps)
                wrong.append(f"r{number} party-{rank}: a step of {step} between arming and exit is no reason")
            if row.stepped != row.told:
                wrong.append(f"r{number} party-{rank}: a step is {'not ' if row.stepped else ''}a reason")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description="Starts by wrong clocks, beside the true time.")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = measure(options.members, options.trials, options.seed, pathlib.Path(directory))
    rows = [row for trial, _skew, _allowed in found for row in trial]
    print(
        f"{options.members} members, {options.trials} trials, seed {options.seed}: offsets to {OFFSET:g} s, "
        f"drifts to {DRIFT * 1e6:g} ppm, slews to {SLEW:.0%}, steps to {STEP:g} s; microseconds\n"
        f"  {sum(len(row.steps) for row in rows)} steps between arming and exit, {sum(row.told for row in rows)} reasons"
    )
    table = {
        "|true start - reported|": [abs(row.error) for row in rows],
        "reported bound": [row.bound for row in rows],
        "share of the bound, %": [100 * abs(row.error) / row.bound for row in rows],
        "lateness after T": [row.late for row in rows],
        "true skew": [skew for _rows, skew, _allowed in found],
        "skew that is allowed": [allowed for _rows, _skew, allowed in found],
        "by the wall clock": [abs(row.wall) for row in rows],
    }
    print(f"  {'':24}{'p50':>12}{'p99':>12}{'max':>12}")
    for name, values in table.items():
        ordered = sorted(values)
        figures = (barrier.percentile(ordered, 50), barrier.percentile(ordered, 99), ordered[-1])
        print(f"  {name:24}" + "".join(f"{figure:12.1f}" for figure in figures))
    wrong = violations(found)
    print("\n".join(wrong) or f"  no violation in {len(rows)} starts")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
