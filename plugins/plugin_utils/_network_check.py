# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the network is the one that was asked for: which pairs to probe, what the tools said, and the judgement.

The plan has a *check* for every network, and one without rules before them, the baseline (`plan_checks`). A check runs as a
trial behind the same barrier: `compose_check` gives every member its program of `schedule`, which
``startline-agent probe`` carries out. What the members printed becomes measurements (`read_outputs`), which `judge` compares
with what was asked, pair by pair; `report` makes of all pairs what trial.json has as ``network``. Pure: nothing here runs
anything. This util is PRIVATE to the collection.

A ping meets both directions. Delays add up, variances of the jitter add up, and a packet survives if it survives twice.
A rate belongs to a host and a link, so one probe from each host on each link says all of it.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import re
import statistics
import typing as t

from ansible_collections.startline.lab.plugins.module_utils import _netem as tc
from ansible_collections.startline.lab.plugins.module_utils._agent import probe as host_program
from ansible_collections.startline.lab.plugins.plugin_utils import _hosts_config, _netem
from ansible_collections.startline.lab.plugins.plugin_utils._errors import StartlineError

FORMAT: t.Final = "startline-network/1"
#: The check that is made before any rules are in force.
BASELINE: t.Final = "baseline"
#: What a member runs, and the file that tells it what.
PROGRAM: t.Final = "probes.json"
COMMAND: t.Final = f"exec /usr/bin/startline-agent probe {PROGRAM}"
#: What the hosts need for it.
PACKAGES: t.Final = ("fping", "iperf3")
#: Probe every pair up to this many; sample where there are more.
ALL_PAIRS: t.Final = 45
#: Packets to a target: as a rule; where they go in rounds, or no rules are in force; and at least, where they have to
#: follow slowly.
PINGS: t.Final = 200
FEWER_PINGS: t.Final = 100
LEAST_PINGS: t.Final = 50
#: Milliseconds between two packets to a target, as a rule and in rounds, and between any two that a host sends.
PING_INTERVAL_MS: t.Final = 10
PING_ROUND_INTERVAL_MS: t.Final = 5
PING_SPACING_MS: t.Final = 1
#: Round-trip jitters between two packets: one in a thousand then waits for the one in front of it.
PING_ORDER: t.Final = 3
#: Milliseconds that a round of pings should not exceed.
PING_ROUND_MS: t.Final = 6000
#: Milliseconds that pings may take so that a loss can be told from none: on all links without jitter, and on all with it.
PING_LOSS_MS: t.Final = 30000
#: Bits of a ping on the wire, and the share of a rate that pings may take.
PING_BITS: t.Final = 98 * 8
PING_LOAD: t.Final = 0.2
RATE_SECONDS: t.Final = 2
#: First port of the servers that rates are measured to.
RATE_PORT: t.Final = 5201
#: Where packets are lost TCP finds what loss and round trip leave it; a flow of more than the rate finds the rate.
OFFERED: t.Final = 1.5
#: Milliseconds between two bursts of that flow. Fewer take less of a host's processor; 1 ms, iperf3's own, takes half as
#: much again of a small host.
PACE_MS: t.Final = 10.0
#: How often what was off is measured again: pings, whose limits are of chance, and rates, which a host that is held up can
#: only make lower.
PINGS_AGAIN: t.Final = 1
RATES_AGAIN: t.Final = 3
#: Bytes that one TCP connection can have under way with the usual limits of its buffers.
TCP_WINDOW: t.Final = 2_000_000
#: Bytes that it begins with (RFC 6928), and how many are used at most so that together they fill the link at once. A host
#: that is held up ends the doubling of a single one too early (HyStart takes it for a queue), and it fills the link late.
TCP_BEGIN: t.Final = 10 * 1448
TCP_STREAMS: t.Final = 8
#: Full frames that a rate is measured with at least, and seconds that no rate is worth more of.
RATE_FRAMES: t.Final = 100
RATE_SECONDS_MOST: t.Final = 15
#: Seconds between two steps, in which processes start and end; and that a tool has beyond its time before it is ended.
START_SLACK: t.Final = 0.3
LIMIT_SLACK: t.Final = 8.0
#: Bytes of a frame with a ping of fping, and those of its source, which nobody checks.
PING_BYTES: t.Final = 98
SOURCE_BYTES: t.Final = 6
#: UDP payload of a full frame, and what Ethernet, IPv4 and UDP add.
UDP_PAYLOAD: t.Final = 1472
UDP_HEADERS: t.Final = 42
#: Ethernet, IPv4, TCP with time stamps.
TCP_HEADERS: t.Final = 66
#: Half of what a 99 % interval leaves out.
TAIL: t.Final = 0.005
#: Of netem's distributions (`_netem.DISTRIBUTIONS`), from iproute2's tables.
KURTOSIS: t.Final = {"normal": 3.0, "uniform": 1.8, "pareto": 11.4, "paretonormal": 7.8}
#: Reasons that a report has before it says how many more there are.
SHOWN: t.Final = 10

Plan = t.Mapping[str, t.Any]


class ProbeError(StartlineError):
    """A probe's output cannot be read. The text says what it is instead."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """A pair of members and what was asked for it, as it shows. Times in ms, loss in %, rates in bit/s (0: none).

    A corrupted packet is dropped where it arrives, so it is lost. Packets that overtake others have no delay: then `rtt` is the
    mean of those and the rest, and `wander` what it varies by; jitter cannot be told from that, and is not judged.
    """

    source: str
    target: str
    rtt: float
    jitter: float
    loss: float
    rate: int
    #: How many probes of a burst of losses count as one; 1 where each packet is lost on its own.
    correlation: float = 1.0
    #: The mean is judged, for the median is another, or has no peak to stand on.
    skewed: bool = False
    #: Of the jitter: how much the deviation of a sample varies depends on it.
    kurtosis: float = 3.0
    #: Standard deviation of the round trip because some packets overtake others.
    wander: float = 0.0
    #: The rate is measured with UDP, for what happens to packets would slow TCP down.
    datagrams: bool = False
    #: The share of what has passed the rate that arrives whole.
    arriving: float = 1.0
    #: How long a packet may wait for the rate, in both directions together.
    queue: float = 0.0
    #: How far apart bursts of datagrams may be so that the queue of the rate does not run empty.
    pace: float = 1.0
    #: The smaller rate of both directions.
    slowest: int = 0
    #: What is measured of this pair. A rate is asked for whether it is measured here or not.
    pinged: bool = True
    rated: bool = True
    #: What lies between them, in words.
    link: str = ""
    #: Packets with which its loss can be told from none; 0 if no number can do it, or there is none.
    enough: int = 0

    @property
    def pair(self) -> tuple[str, str]:
        return self.source, self.target


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far a measurement may be off: the larger of a share of what was asked and an absolute amount.

    Besides, loss and jitter have what chance explains: the 99 % interval for as many packets as were sent.
    """

    rtt: float = 0.02
    rtt_ms: float = 0.5
    jitter: float = 0.25
    jitter_ms: float = 0.3
    loss_percent: float = 0.1
    rate: float = 0.05

    @classmethod
    def of(cls, plan: Plan) -> Tolerance:
        """That of an experiment."""
        percent = plan["network_check"]["tolerance"]
        return cls(
            rtt=percent["rtt"] / 100,
            jitter=percent["jitter"] / 100,
            loss_percent=percent["loss"],
            rate=percent["rate"] / 100,
        )


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was seen of a pair: each round trip in ms, None for a lost one; the rate on the wire in bit/s, if probed.

    `ping_problem` and `rate_problem` say why something could not be measured.
    """

    round_trips: tuple[float | None, ...] = ()
    rate: float | None = None
    ping_problem: str | None = None
    rate_problem: str | None = None

    @property
    def received(self) -> list[float]:
        return [value for value in self.round_trips if value is not None]


#: By pair.
Results = t.Mapping[tuple[str, str], Measured]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One metric of one pair. `low` to `high` would have been right. `problem` is why nothing was measured, `doubt` what
    cannot be told although the number is right.
    """

    metric: str
    unit: str
    asked: float
    measured: float | None
    low: float
    high: float
    problem: str | None = None
    doubt: str | None = None

    @property
    def right(self) -> bool:
        return self.measured is not None and self.low <= self.measured <= self.high

    @property
    def said(self) -> str:
        """``as asked``."""
        return (self.doubt or "as asked") if self.right else self.problem or "off"

    @property
    def excess(self) -> float:
        """How far out of the range it is, in widths of half the range; infinite when nothing was measured."""
        if self.measured is None:
            return math.inf
        out = max(self.low - self.measured, self.measured - self.high, 0.0)
        return out / max((self.high - self.low) / 2, 1e-12)

    def __str__(self) -> str:
        asked = quantity(self.asked, self.unit)
        if self.measured is None:
            said = f"could not be measured ({self.problem or 'no packet came back'})"
        else:
            said = f"{quantity(self.measured, self.unit)} measured ({span(self.low, self.high, self.unit)} is right)"
        return f"{self.metric}: {asked} asked, {said}"


def quantity(value: float, unit: str) -> str:
    """``80 ms``, ``7.96 Mbit/s``."""
    if unit == "bit/s":
        for size, name in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")):
            if abs(value) >= size:
                return f"{value / size:.4g} {name}"
    return f"{value:.4g} {unit}"


def span(low: float, high: float, unit: str) -> str:
    """``78.4 to 81.6 ms``."""
    first, last = quantity(low, unit), quantity(high, unit)
    number, _space, own = first.partition(" ")
    return f"{number if own == last.partition(' ')[2] else first} to {last}"


# --- which pairs ------------------------------------------------------------------------------------------------------


def plan_checks(plan: Plan, *, seed: int, limit: int = ALL_PAIRS) -> list[dict[str, t.Any]]:
    """The checks of a plan: of the network as it is, and of each that its trials ask for; none where none is asked for.

    Args:
        plan: what there is of it: ``members``, ``sites``, ``networks``, ``network_check`` and ``trials``.
        seed: of the sample.
        limit: pairs to probe at most.
    """
    member_of = {member["name"]: member for member in plan["members"]}

    def direct(source: str, target: str) -> bool:
        # To a host behind another site's gateway leads a tunnel for TCP. The link is measured to the gateway, and from the host.
        site = member_of[target]["site"]
        hidden = _hosts_config.behind_gateway(plan["sites"][site], member_of[target]["group"])
        return member_of[source]["site"] == site or not hidden

    checks = []
    between: dict[frozenset[str], Probe] = {}
    for name, network in plan["networks"].items():
        inside = {member for trial in plan["trials"] if trial["network"] == name for member in trial["members"]}
        members = [member["name"] for member in plan["members"] if member["name"] in inside]
        # What changes while a trial runs is not measured; but what is there already has to be known to compensate it.
        phases = _phases(network) if plan["network_check"]["compensate"] else [network["links"]]
        start, *later = (plan_probes(links, members, seed=seed, limit=limit, direct=direct) for links in phases)
        tolerance, tail = Tolerance.of(plan), TAIL / by_chance(start)
        start = [dataclasses.replace(probe, enough=enough(probe, tolerance, tail)) for probe in start]
        if start or any(later):
            checks.append(_check(name, name, members, start))
        pinged = [probe for probes in (start, *later) for probe in probes if probe.pinged]
        between.update((frozenset(probe.pair), _bare(probe)) for probe in pinged)
    if not checks:
        return []
    inside = {member for check in checks for member in check["members"]}
    members = [member["name"] for member in plan["members"] if member["name"] in inside]
    return [_check(BASELINE, None, members, list(between.values())), *checks]


def _bare(probe: Probe) -> Probe:
    return Probe(*probe.pair, rtt=0, jitter=0, loss=0, rate=0, rated=False)


def _check(check_id: str, network: str | None, members: list[str], probes: list[Probe]) -> dict[str, t.Any]:
    return {
        "check_id": check_id,
        "network": network,
        "members": members,
        "probes": [dataclasses.asdict(probe) for probe in probes],
    }


def off(check: t.Mapping[str, t.Any], network: t.Mapping[str, t.Any], before: int = 0) -> dict[str, t.Any] | None:
    """The check of what was off by a report, to be measured once more, each rate on its own: a host may have been held up,
    by other pairs too. None where nothing was, or it was measured again often enough. What pings or the rate of a pair have
    shown to be right is not asked again.

    Args:
        check: one of the plan's.
        network: the report.
        before: how often something was measured again.
    """
    left = {kind for kind, most in (("ping", PINGS_AGAIN), ("rate", RATES_AGAIN)) if before < most}
    wrong = {
        (pair["from"], pair["to"]): {
            "rate" if entry["metric"] == "rate" else "ping" for entry in pair["metrics"] if not entry["right"]
        }
        & left
        for pair in network["pairs"]
    }
    probes = [
        {**values, "pinged": "ping" in kinds, "rated": "rate" in kinds}
        for values in check["probes"]
        if (kinds := wrong.get((values["source"], values["target"])))
    ]
    return {**check, "probes": probes, "alone": True} if probes else None


def renewed(measured: Results, again: t.Mapping[str, t.Any], later: Results) -> dict[tuple[str, str], Measured]:
    """What was measured, with what the check `again` of `off` has measured in its place."""
    result = dict(measured)
    for probe in probes_of(again):
        first, second = measured.get(probe.pair, Measured()), later[probe.pair]
        pings, rate = second if probe.pinged else first, second if probe.rated else first
        result[probe.pair] = Measured(pings.round_trips, rate.rate, pings.ping_problem, rate.rate_problem)
    return result


def needed(plan: Plan, trials: t.Collection[str] | None) -> list[dict[str, t.Any]]:
    """The checks that these trials (None: all) need, the baseline first; none where their network is as it is."""
    left = [trial for trial in plan["trials"] if trials is None or trial["trial_id"] in trials]
    networks = {trial["network"] for trial in left} - {None}
    return [check for check in plan["checks"] if networks and check["network"] in {*networks, None}]


def plan_probes(
    links: t.Sequence[t.Mapping[str, t.Any]],
    members: t.Sequence[str],
    *,
    seed: int,
    limit: int = ALL_PAIRS,
    direct: t.Callable[[str, str], bool] = lambda source, target: True,
) -> list[Probe]:
    """The pairs to probe: all that are shaped, or a sample with every kind of link and, as far as it goes, every member.

    Of rates, one from each member on each link, to a member that makes few rounds of them. Only pairs whose packets go
    directly (`direct`) are probed.

    The sample is a hash of seed and names, so it is the same with every release of Python.
    """
    shapes: dict[tuple[str, str], tc.Shape] = {}
    by_link: list[list[tuple[str, str]]] = []
    inside = set(members)
    order = {name: position for position, name in enumerate(members)}

    def position(pair: tuple[str, str]) -> tuple[int, int]:
        return order[pair[0]], order[pair[1]]

    @functools.cache
    def drawn(name: str) -> bytes:
        return _draw(seed, name)

    for link in links:
        shape, _problems = tc.parse_shape(link["shape"])
        # Of thousands of members some are enough to choose from: pairs grow with their square.
        sources, targets = (sorted(inside.intersection(link[end]), key=drawn)[: 2 * limit] for end in ("from", "to"))
        pairs = sorted((pair for pair in itertools.product(sources, targets) if pair[0] != pair[1]), key=position)
        shapes.update(dict.fromkeys(pairs, shape))
        by_link += [[pair for pair in pairs if direct(*pair)]] if shape.rate else []
    # One ping for both directions.
    possible = {pair for pair in shapes if direct(*pair)}
    pinged = sorted(
        (pair for pair in possible if position(pair) < position(pair[::-1]) or pair[::-1] not in possible), key=position
    )
    if len(pinged) > limit:
        pinged = sorted(_sample(pinged, shapes, seed, limit), key=position)
    rated = list(itertools.chain.from_iterable(_one_from_each(pairs) for pairs in by_link))
    if len(rated) > limit:
        rated = _sample(rated, shapes, seed, limit)
    nothing = tc.Shape()
    wanted = sorted({*pinged, *rated}, key=position)
    return [
        _probe(pair, shapes[pair], shapes.get(pair[::-1], nothing), pair in pinged, pair in rated) for pair in wanted
    ]


def _one_from_each(pairs: t.Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """For each source one of its targets, so that as many as can be are disjoint from each other, round by round."""
    targets: dict[str, list[str]] = {}
    for source, target in pairs:
        targets.setdefault(source, []).append(target)
    chosen = []
    while targets:
        busy: set[str] = set()
        for source in list(targets):
            free = next((name for name in targets[source] if name not in busy), None)
            if source not in busy and free is not None:
                chosen.append((source, free))
                busy.update((source, free))
                del targets[source]
    return chosen


def _draw(seed: int, *names: str) -> bytes:
    return hashlib.sha256(json.dumps([seed, *names]).encode()).digest()


def _sample(
    pairs: t.Sequence[tuple[str, str]], shapes: t.Mapping[tuple[str, str], tc.Shape], seed: int, limit: int
) -> list[tuple[str, str]]:
    shuffled = sorted(pairs, key=lambda pair: _draw(seed, *pair))
    chosen: dict[tuple[str, str], None] = {}
    kinds: set[t.Any] = set()
    members: set[str] = set()
    for pair in shuffled:
        kind = (shapes[pair], shapes.get(pair[::-1]))
        if kind not in kinds:
            kinds.add(kind)
            members.update(pair)
            chosen[pair] = None
    # First pairs of two new members, then of one, then any.
    for new in (2, 1, 0):
        for pair in shuffled:
            if len(chosen) < limit and len(members.union(pair)) - len(members) >= new:
                members.update(pair)
                chosen[pair] = None
    return list(chosen)


def _kurtosis(*shapes: tc.Shape) -> float:
    """Of the sum of their jitters, which are independent: excesses add like fourth powers of the deviations."""
    varying = [shape for shape in shapes if shape.jitter]
    if not varying:
        return 3.0
    excess = sum(shape.jitter**4 * (KURTOSIS[shape.distribution] - 3) for shape in varying)
    return 3 + excess / sum(shape.jitter**2 for shape in varying) ** 2


def _probe(pair: tuple[str, str], there: tc.Shape, back: tc.Shape, pinged: bool, rated: bool) -> Probe:
    overtaken = bool(there.reorder or back.reorder)
    varying = math.hypot(there.jitter, back.jitter) / 1e6
    return Probe(
        *pair,
        rtt=sum(_mean_delay(shape) for shape in (there, back)),
        jitter=0.0 if overtaken else varying,
        loss=100 - (100 - _lost(there)) * (100 - _lost(back)) / 100,
        rate=there.rate,
        correlation=max(_correlation(there), _correlation(back)),
        skewed=overtaken or any(shape.jitter and shape.distribution != "normal" for shape in (there, back)),
        kurtosis=_kurtosis(there, back),
        wander=math.hypot(varying, *(_wander(shape) for shape in (there, back))) if overtaken else 0.0,
        datagrams=bool(there.loss or there.corrupt or there.duplicate or overtaken or back.loss or back.corrupt),
        arriving=1 - there.corrupt / 100,
        queue=sum(_queue(shape) for shape in (there, back)),
        pace=min(PACE_MS, max(1.0, _queue(there) / 2)),
        slowest=min((shape.rate for shape in (there, back) if shape.rate), default=0),
        pinged=pinged,
        rated=rated and there.loss < 100 and back.loss < 100,
        link=str(there) if there == back else f"{there}; back: {back}",
    )


def _mean_delay(shape: tc.Shape) -> float:
    """Milliseconds."""
    return shape.delay * (1 - shape.reorder / 100) / 1e6


def _wander(shape: tc.Shape) -> float:
    """Standard deviation (ms) of a delay that a share of the packets has not."""
    share = shape.reorder / 100
    return shape.delay * math.sqrt(share * (1 - share)) / 1e6


def _lost(shape: tc.Shape) -> float:
    """The share (%) of pings that do not arrive whole. netem turns over any bit of the frame, and nobody checks the source in
    its Ethernet header; a packet that it duplicates is lost only when both are (sch_netem.c, netem_enqueue).
    """
    corrupt = shape.corrupt / 100 * (1 - SOURCE_BYTES / PING_BYTES)
    lost = shape.loss / 100
    return 100 * (lost + (1 - lost) * corrupt) * (1 - shape.duplicate / 100)


def _queue(shape: tc.Shape) -> float:
    """Milliseconds that a packet may wait for the rate."""
    if not shape.rate:
        return 0.0
    return (max(2 * shape.delay, tc.LEAST_QUEUE_S * 1e9) if shape.queue is None else shape.queue) / 1e6


def _correlation(shape: tc.Shape) -> float:
    """How much more the share of lost packets varies than if each was lost on its own (Gilbert model)."""
    if not shape.loss_burst:
        return 1.0
    leave = 1 / shape.loss_burst
    stay = 1 - leave - leave * shape.loss / (100 - shape.loss)
    return max(1.0, (1 + stay) / (1 - stay))


def rounds(probes: t.Sequence[Probe]) -> list[list[Probe]]:
    """Probes that may run at once: in a round, every member takes part in one at most."""
    names = list(dict.fromkeys(name for probe in probes for name in probe.pair))
    number = {name: position for position, name in enumerate(names)}

    def diagonal(probe: Probe) -> int:
        # All pairs of n members whose numbers have one sum modulo n are disjoint, so n rounds are enough for all.
        return sum(number[name] for name in probe.pair) % len(names)

    result: list[tuple[set[str], list[Probe]]] = []
    for probe in sorted(probes, key=diagonal):
        free = next((entry for entry in result if entry[0].isdisjoint((probe.source, probe.target))), None)
        if free is None:
            free = (set(), [])
            result.append(free)
        free[0].update((probe.source, probe.target))
        free[1].append(probe)
    return [members for _busy, members in result]


# --- when -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Step:
    """A tool that a member runs, `at` seconds after all are ready, `seconds` long: pings to targets, or a rate to one."""

    kind: t.Literal["ping", "rate"]
    source: str
    probes: tuple[Probe, ...]
    at: float
    seconds: float
    count: int = 0
    interval: int = 0

    @property
    def targets(self) -> list[str]:
        return [probe.target for probe in self.probes]


def schedule(probes: t.Sequence[Probe], count: int = PINGS, alone: bool = False) -> list[Step]:
    """What runs when. Pings on links without jitter go all at once; with it in rounds, for a packet that follows another
    too soon waits for it, whoever sent it; rates in rounds too, for they would share what they measure, or (`alone`) one by
    one.

    Where packets are lost, as many go as tell it from none, closer to each other if need be; where there is no time for
    that, as many as elsewhere.
    """
    steps: list[Step] = []
    at = 0.0
    pinged = [probe for probe in probes if probe.pinged]
    still = [probe for probe in pinged if not probe.jitter]
    in_turn = rounds([probe for probe in pinged if probe.jitter])
    for together in [still] * bool(still) + in_turn:
        interval = _interval(together)
        most = count if together is still else min(count, FEWER_PINGS)
        packets = min(most, max(LEAST_PINGS, PING_ROUND_MS // interval))
        time, least = PING_LOSS_MS // (1 if together is still else len(in_turn)), _interval(together, hurried=True)
        wanted = max((probe.enough for probe in together if probe.enough * least <= time), default=0)
        if wanted > packets:
            packets, interval = wanted, max(least, min(interval, time // wanted))
        seconds = (packets * interval + max(probe.rtt + 4 * probe.jitter for probe in together)) / 1e3 + START_SLACK
        by_source: dict[str, list[Probe]] = {}
        for probe in together:
            by_source.setdefault(probe.source, []).append(probe)
        steps += [Step("ping", source, tuple(own), at, seconds, packets, interval) for source, own in by_source.items()]
        at += seconds
    rated = [probe for probe in probes if probe.rated and probe.rate]
    for together in [[probe] for probe in rated] if alone else rounds(rated):
        seconds = max(map(_rate_slot, together))
        steps += [Step("rate", probe.source, (probe,), at, seconds) for probe in together]
        at += seconds
    return steps


def duration(steps: t.Sequence[Step]) -> float:
    """Seconds from the first step to the end of the last."""
    return max((step.at + step.seconds for step in steps), default=0.0)


def time_limit(check: t.Mapping[str, t.Any]) -> float:
    """Seconds after which a check's commands are ended: it should never come to that."""
    steps = steps_of(check)
    return math.ceil(duration(steps) + LIMIT_SLACK + max((_patience(step) for step in steps), default=0.0) + 30)


def probes_of(check: t.Mapping[str, t.Any]) -> list[Probe]:
    """The probes of one of the plan's checks."""
    return [Probe(**values) for values in check["probes"]]


def steps_of(check: t.Mapping[str, t.Any]) -> list[Step]:
    """Its schedule."""
    count = FEWER_PINGS if check["network"] is None else PINGS
    return schedule(probes_of(check), count, check.get("alone", False))


def _interval(probes: t.Sequence[Probe], hurried: bool = False) -> int:
    """Milliseconds between two packets of a pair, when all these are pinged at once; `hurried`: at least."""
    busy = collections.Counter(name for probe in probes for name in probe.pair)
    most = max(busy.values())
    # Packets keep their order: one that follows too soon waits for a late one in front of it.
    order = max(PING_ORDER * probe.jitter for probe in probes)
    # Pings must not fill the queue of a slow link.
    slowest = min((probe.slowest for probe in probes if probe.slowest), default=0)
    load = most * PING_BITS * 1000 / (PING_LOAD * slowest) if slowest else 0
    # Alone on its link a packet may follow sooner, so that rounds are short.
    usual = 0 if hurried else PING_ROUND_INTERVAL_MS if order else PING_INTERVAL_MS
    least = max(usual, 0 if order else most * PING_SPACING_MS, PING_SPACING_MS)
    return math.ceil(max(least, order, load))


def _rate_slot(probe: Probe) -> float:
    """Seconds that iperf3 needs: the test, and its control connection's round trips before and after."""
    trips = 9 * probe.rtt + 3 * probe.queue
    return START_SLACK + trips / 1e3 + sum(_rate_seconds(probe))


def _rate_seconds(probe: Probe) -> tuple[int, int]:
    """How long iperf3 sends without counting, and counting.

    TCP doubles what it has under way each round trip until the link is full, from ten segments.
    """
    doublings = math.log2(max(2.0, probe.rate * probe.rtt / 1e3 / (10 * 12_000)))
    fill = math.ceil((2 + doublings) * probe.rtt / 1e3)
    counted = max(RATE_SECONDS, math.ceil(RATE_FRAMES * 12_112 / probe.rate))
    return min(max(1, fill), RATE_SECONDS_MOST), min(counted, RATE_SECONDS_MOST)


def _patience(step: Step) -> float:
    return max(2 * probe.rtt + 10 * probe.jitter + probe.queue for probe in step.probes) / 1e3 + 1


# --- as a trial -------------------------------------------------------------------------------------------------------


def trial_id(check: t.Mapping[str, t.Any]) -> str:
    """The name of a check as a trial. Those of a plan end in their repeat, so none is named like it."""
    return f"check-{check['check_id']}"


def compose_check(
    plan: Plan, check: t.Mapping[str, t.Any], hosts: _netem.Hosts, *, run_id: str, attempt: int, evidence: t.Any
) -> dict[str, t.Any]:
    """The arguments of start_barrier for a check: as many as can take part measure what they can.

    Args:
        plan: the plan.
        check: one of its checks.
        hosts: by member; ``address`` is where the others reach it. Members without one are passed over.
        run_id: the run.
        attempt: of this check.
        evidence: where the measurements are delivered, as start_barrier takes it.

    Raises:
        StartlineError: there are not two members to measure between.
    """
    names = [name for name in check["members"] if hosts.get(name, {}).get("address")]
    if len(names) < 2:
        raise StartlineError(f"{trial_id(check)}: no two hosts of {check['network'] or 'the fleet'} have an address")
    deadline, here = plan["barrier"]["deadline"], set(names)
    steps = [
        dataclasses.replace(step, probes=there)
        for step in steps_of(check)
        if step.source in here
        for there in [tuple(probe for probe in step.probes if probe.target in here)]
        if there
    ]
    sites = {member["name"]: member["site"] for member in plan["members"]}
    views = {
        site: {entry["name"]: entry["address"] for entry in _hosts_config.ranked(plan, names, hosts, site)}
        for site in {sites[name] for name in names}
    }
    addresses = {name: views[sites[name]] for name in names}
    # The network as it is at the start, and none for the baseline.
    start = {name: {**network, "timeline": []} for name, network in plan["networks"].items()}
    trial = {"members": names, "spares": [], "network": check["network"]}
    shaped = _netem.host_networks({**plan, "networks": start}, trial, hosts)
    return {
        "run_id": run_id,
        "trial_id": trial_id(check),
        "attempt": attempt,
        "members": [
            {"name": name, "rank": rank, "command": COMMAND, "environment": {}, **shaped.of.get(name, {})}
            for rank, name in enumerate(names)
        ],
        "networks": shaped.networks,
        "files": {PROGRAM: json.dumps(program(steps, addresses, names, deadline), separators=(",", ":"))},
        "links": {},
        "deadline": deadline,
        "timeout": time_limit(check) + deadline,
        "seats": [{"members": names, "seats": len(names), "least": 2}],
        "grace": plan["barrier"]["grace"],
        "on_early_exit": "continue",
        # Nothing here depends on one clock for all: the members meet.
        "max_clock_error": 3600.0,
        "on_clock_error": "mark",
        "collect": [],
        "evidence": evidence,
    }


def absent(check: t.Mapping[str, t.Any], result: t.Mapping[str, t.Any]) -> dict[str, str]:
    """Of the members of a check that measured nothing, why; from its trial.json."""
    rows = result.get("members") or {}
    if result.get("outcome") != "completed":
        return dict.fromkeys(
            check["members"], f"measured nothing: {'; '.join(result.get('reasons') or ['nobody knows why'])}"
        )
    found = {}
    for name in check["members"]:
        row = rows.get(name)
        if row is None:
            found[name] = "has no address"
        elif row.get("role") != "starter":
            found[name] = f"did not take part ({row.get('state')})"
        elif row.get("exit_code") != 0:
            found[name] = f"could not measure: {row.get('reason') or row.get('state')}"
    return found


# --- the tools --------------------------------------------------------------------------------------------------------


def program(
    steps: t.Sequence[Step],
    addresses: t.Mapping[str, t.Mapping[str, str]],
    members: t.Sequence[str],
    ready: float,
) -> dict[str, t.Any]:
    """What ``startline-agent probe`` reads.

    Args:
        steps: of `schedule`.
        addresses: for each member, where it reaches the others, by name.
        members: all who take part.
        ready: seconds that they have to get ready.
    """
    own: dict[str, dict[str, t.Any]] = {name: {"servers": [], "until": 0, "steps": []} for name in members}
    for step in steps:
        targets = {addresses[step.source][name]: name for name in step.targets}
        limit = math.ceil(step.seconds + _patience(step) + LIMIT_SLACK)
        if step.kind == "ping":
            command = ping_command(list(targets), step)
        else:
            (target,) = step.targets
            port = RATE_PORT + len(own[target]["servers"])
            own[target]["servers"].append(rate_server(port))
            command = rate_command(next(iter(targets)), step.probes[0], port)
            own[target]["until"] = max(own[target]["until"], math.ceil(step.at + limit))
        own[step.source]["steps"].append(
            {"kind": step.kind, "targets": targets, "at": round(step.at, 3), "limit": limit, "command": command}
        )
    return {"format": host_program.FORMAT, "ready": ready, "members": own}


def ping_command(addresses: t.Sequence[str], step: Step) -> list[str]:
    """fping, because ping sends no faster than 5 a second without root in some distributions."""
    command = ["fping", "-q", "-C", str(step.count), "-p", str(step.interval), "-i", str(PING_SPACING_MS)]
    return [*command, "-t", str(round(_patience(step) * 1000)), *addresses]


def rate_server(port: int) -> list[str]:
    """iperf3 as the server of one client. The client asks it for what it prints, which has to be exact to a kbit/s."""
    return ["iperf3", "--server", "--one-off", "--forceflush", "--format", "k", "--port", str(port)]


def rate_command(address: str, probe: Probe, port: int = RATE_PORT) -> list[str]:
    """iperf3 as a client. The first seconds, in which queues fill, do not count."""
    omit, seconds = _rate_seconds(probe)
    command = [
        "iperf3",
        "--json",
        "--omit",
        str(omit),
        "--time",
        str(seconds),
        "--port",
        str(port),
        "--client",
        address,
    ]
    if probe.datagrams:
        return [
            *command,
            "--get-server-output",
            "--udp",
            "--bitrate",
            f"{probe.rate * OFFERED:.0f}",
            "--pacing-timer",
            f"{probe.pace * 1000:.0f}",
            "--length",
            str(UDP_PAYLOAD),
        ]
    filling = min(TCP_STREAMS, math.ceil(probe.rate / 8 * probe.rtt / 1e3 / TCP_BEGIN))
    streams = min(16, max(filling, math.ceil(probe.rate / 8 * (probe.rtt + probe.queue) / 1e3 / TCP_WINDOW)))
    return [*command, "--parallel", str(streams)] if streams > 1 else command


def parse_fping(text: str) -> dict[str, tuple[float | None, ...]]:
    """Round trips in ms by address, from ``fping -q -C``: ``10.0.0.2 : 0.08 - 0.09``.

    Raises:
        ProbeError: it says something else.
    """
    found: dict[str, tuple[float | None, ...]] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(\S+)\s*:((?:\s+(?:-|\d+(?:\.\d+)?))+)\s*", line)
        if match:
            found[match[1]] = tuple(None if word == "-" else float(word) for word in match[2].split())
    if not found:
        raise ProbeError(f"fping did not say how long its packets took: {text.strip() or 'it said nothing'}")
    return found


def parse_iperf3(text: str, rate: int = 0) -> float:
    """The rate on the wire in bit/s, headers counted, from ``iperf3 --json``.

    Of UDP, what the receiver got; of TCP, what it got with the headers of full segments.

    Args:
        text: what iperf3 printed.
        rate: what was asked for; UDP that offered less says nothing of it.

    Raises:
        ProbeError: it failed, says something else, or could not send as much as it should.
    """
    try:
        data = json.loads(text)
    except ValueError as exc:
        raise ProbeError(f"iperf3 did not answer in JSON: {text.strip()[:200] or 'it said nothing'}") from exc
    if "error" in data:
        raise ProbeError(f"iperf3: {data['error']}")
    try:
        start, end = data["start"], data["end"]
        if start["test_start"]["protocol"] != "UDP":
            segment = start["tcp_mss_default"]
            return float(end["sum_received"]["bits_per_second"] * (segment + TCP_HEADERS) / segment)
        payload = start["test_start"]["blksize"]
        on_wire = (payload + UDP_HEADERS) / payload
        sent = [entry["sum"] for entry in data.get("intervals", ()) if not entry["sum"].get("omitted")]
        # In every second: what was not sent in one cannot be carried in the next.
        offered = min(entry["bits_per_second"] for entry in [*sent, end["sum"]]) * on_wire
        if offered < rate:
            raise ProbeError(
                f"iperf3 sent no more than {offered / 1e6:.4g} of {rate / 1e6:.4g} Mbit/s: the host is too slow or too busy"
            )
        carried = _received_udp(data.get("server_output_text", ""), start["test_start"]["duration"])
        if carried is None:
            raise ProbeError("iperf3's server did not say what it received")
        return float(carried * on_wire)
    except (KeyError, TypeError) as exc:
        raise ProbeError(f"iperf3's answer has no {exc}") from exc


def _received_udp(text: str, seconds: float) -> float | None:
    """The payload in bit/s that an iperf3 server has received, by its lines of whole seconds; None where it has none.

    Not by its sum: that is over the time until it is told that the test has ended, and where packets are lost, so is what
    tells it. ``[  5]   0.00-1.00   sec   916 KBytes  7501 Kbits/sec  0.015 ms  0/637 (0%)``, followed by ``(omitted)``
    before the test and ``receiver`` in the sum.
    """
    rows = re.findall(r"^\[ *\d+\] +([\d.]+)-([\d.]+) +sec .*? ([\d.]+) Kbits/sec .*%\) *$", text, re.MULTILINE)
    whole = [
        (float(end) - float(start), float(rate) * 1e3)
        for start, end, rate in rows
        if float(end) - float(start) > 0.9 and float(end) <= seconds + 0.1
    ]
    return sum(took * rate for took, rate in whole) / sum(took for took, _rate in whole) if whole else None


def read_outputs(
    probes: t.Sequence[Probe], outputs: t.Mapping[str, str | None], absent: t.Mapping[str, str]
) -> dict[tuple[str, str], Measured]:
    """What was measured of each probe, by its pair.

    Args:
        probes: of the check.
        outputs: what ``startline-agent probe`` printed, by member; None or left out where there is nothing.
        absent: of members that have nothing to say, why.
    """
    pings: dict[tuple[str, str], tuple[float | None, ...] | str] = {}
    rates: dict[tuple[str, str], float | str] = {}
    asked = {probe.pair: probe.rate for probe in probes}
    for source in dict.fromkeys(probe.source for probe in probes):
        for result in _results(outputs.get(source)):
            pairs = {address: (source, name) for address, name in result["targets"].items()}
            if result["kind"] == "ping":
                pings.update((pairs[address], said) for address, said in _read_pings(result).items())
            else:
                rates.update((pair, _read_rate(result, asked.get(pair, 0))) for pair in pairs.values())
    measured = {}
    for probe in probes:
        missing = next((f"{name} {absent[name]}" for name in probe.pair if name in absent), None)
        missing = missing or f"{probe.source} printed no measurement"
        trips, rate = pings.get(probe.pair, missing), rates.get(probe.pair, missing)
        measured[probe.pair] = Measured(
            () if isinstance(trips, str) else trips,
            None if isinstance(rate, str) else rate,
            trips if isinstance(trips, str) else None,
            rate if isinstance(rate, str) else None,
        )
    return measured


def _read_pings(result: t.Mapping[str, t.Any]) -> dict[str, tuple[float | None, ...] | str]:
    """Round trips by address, or why there are none."""
    try:
        found = parse_fping(_said(result, "errors"))
    except ProbeError as exc:
        return dict.fromkeys(result["targets"], str(exc))
    return {address: found.get(address, "fping said nothing of it") for address in result["targets"]}


def _read_rate(result: t.Mapping[str, t.Any], asked: int) -> float | str:
    """The rate, or why there is none."""
    try:
        return parse_iperf3(_said(result, "output"), asked)
    except ProbeError as exc:
        return str(exc)


def _results(output: str | None) -> list[dict[str, t.Any]]:
    """The results in what a member has printed: one JSON object."""
    try:
        data = json.loads(output or "")
        return list(data["results"]) if data["format"] == host_program.RESULT_FORMAT else []
    except (ValueError, KeyError, TypeError):
        return []


def _said(result: t.Mapping[str, t.Any], stream: str) -> str:
    """What a tool has printed.

    Raises:
        ProbeError: it could not be run to its end.
    """
    if result["problem"] is not None:
        raise ProbeError(result["problem"])
    return str(result[stream])


# --- the baseline -----------------------------------------------------------------------------------------------------


#: By phase of a network (its start, then its timeline) and by link the delay in force; None where there is none.
Delays = t.Sequence[t.Sequence[str | None]]


def compensation(plan: Plan, network: str, baseline: Results) -> tuple[Delays | None, list[str]]:
    """The delays with which, and what is there already, the links make the delays that are asked for.

    What a link has already is the median over its pairs that were measured. Half of a round trip belongs to each
    direction, all of it to the one that is delayed if only one is.

    Returns:
        The delays, or None where the experiment does not want it; and why it cannot be, by the pairs' names.
    """
    if not plan["network_check"]["compensate"]:
        return None, []
    problems: dict[str, None] = {}
    return [_compensated(links, baseline, problems) for links in _phases(plan["networks"][network])], list(problems)


def _phases(network: t.Mapping[str, t.Any]) -> list[list[dict[str, t.Any]]]:
    return [network["links"], *(moment["links"] for moment in network["timeline"])]


def _compensated(
    links: t.Sequence[t.Mapping[str, t.Any]], baseline: Results, problems: dict[str, None]
) -> list[str | None]:
    shapes = [tc.parse_shape(link["shape"])[0] for link in links]
    there: dict[int, dict[tuple[str, str], float]] = collections.defaultdict(dict)
    for pair, measured in baseline.items():
        bare = _middle(measured, False)
        found = [_link_of(links, *way) for way in (pair, pair[::-1])]
        delayed = [index for index in found if index is not None and shapes[index].delay]
        for index in delayed if bare is not None else ():
            there[index][pair] = (bare or 0.0) * 1e6 / len(delayed)
    delays: list[str | None] = []
    for index, shape in enumerate(shapes):
        if not shape.delay:
            delays.append(None)
            continue
        if not there[index]:
            ends = f"{links[index]['from'][0]} to {links[index]['to'][-1]}"
            problems[f"{ends}: what is there already was not measured, so that it cannot be compensated"] = None
            delays.append(tc.format_time(shape.delay))
            continue
        already = statistics.median(there[index].values())
        rest = shape.delay - round(already)
        wrong = tc.check_shape(dataclasses.replace(shape, delay=rest)) if rest > 0 else []
        if rest <= 0 or wrong:
            worst, _most = max(there[index].items(), key=lambda item: item[1])
            problem = (
                f"{worst[0]} to {worst[1]}: {tc.format_time(shape.delay)} one way cannot be made of the "
                f"{tc.format_time(round(already))} that are there already"
            )
            problems[problem + "".join(f": {message}" for _key, message in wrong)] = None
        delays.append(tc.format_time(max(rest, 0)))
    return delays


def _link_of(links: t.Sequence[t.Mapping[str, t.Any]], source: str, target: str) -> int | None:
    return next((i for i, link in enumerate(links) if source in link["from"] and target in link["to"]), None)


def with_delays(plan: Plan, network: str | None, delays: Delays | None) -> Plan:
    """The plan whose network has the delays of `compensation`; as it is where there are none."""
    if not delays or network is None:
        return plan
    known = plan["networks"][network]
    links, *later = (
        [
            {**link, "shape": {**link["shape"], "delay": delay}} if delay else link
            for link, delay in zip(phase, own, strict=True)
        ]
        for phase, own in zip(_phases(known), delays, strict=True)
    )
    timeline = [{**moment, "links": own} for moment, own in zip(known["timeline"], later, strict=True)]
    return {**plan, "networks": {**plan["networks"], network: {"links": links, "timeline": timeline}}}


# --- the judgement ----------------------------------------------------------------------------------------------------


def judge(
    probe: Probe,
    measured: Measured,
    baseline: Measured,
    tolerance: Tolerance | None = None,
    *,
    total: bool = False,
    of: int = 1,
) -> list[Finding]:
    """Compare what was measured of a pair with what was asked.

    Args:
        probe: what was asked.
        measured: with the rules in force.
        baseline: without.
        tolerance: how far off it may be.
        total: the round trip asked for includes the baseline, which was compensated; else it was added.
        of: how many findings of the network chance has a part in (`by_chance`): of a hundred networks that are right, one may be
            called wrong, not one of a hundred findings.
    """
    allowed = tolerance or Tolerance()
    findings = _judge_pings(probe, measured, baseline, allowed, total, TAIL / of) if probe.pinged else []
    if probe.rate and probe.rated:
        arriving = probe.rate * probe.arriving
        low, high = arriving * (1 - allowed.rate), arriving * (1 + allowed.rate)
        findings.append(Finding("rate", "bit/s", arriving, measured.rate, low, high, measured.rate_problem))
    return findings


def by_chance(probes: t.Iterable[Probe]) -> int:
    """How many findings of these probes chance has a part in: the loss of each that is pinged; where it varies its round trip,
    and with jitter its jitter, too.
    """
    return max(
        1,
        sum(1 + (probe.loss < 100) * (2 if probe.jitter else bool(probe.wander)) for probe in probes if probe.pinged),
    )


def _judge_pings(
    probe: Probe, measured: Measured, baseline: Measured, allowed: Tolerance, total: bool, tail: float
) -> list[Finding]:
    findings = []
    deviations = statistics.NormalDist().inv_cdf(1 - tail)
    sent, received, problem = len(measured.round_trips), measured.received, measured.ping_problem
    if probe.loss < 100:
        middle, bare = _middle(measured, probe.skewed), _middle(baseline, probe.skewed)
        if total and probe.rtt:
            added = middle
        elif bare is None:
            added, problem = None, problem or f"without rules: {baseline.ping_problem or 'no packet came back'}"
        else:
            added = None if middle is None else middle - bare
        room = max(allowed.rtt * probe.rtt, allowed.rtt_ms)
        # The mean of few packets varies with their jitter, and the median of a normal distribution more.
        varying = math.hypot(probe.jitter, probe.wander) * (1 if probe.skewed else math.sqrt(math.pi / 2))
        room += deviations * varying / math.sqrt(max(1, len(received)))
        # A difference of two measurements: without a delay it is below nothing as often as above.
        findings.append(Finding("rtt", "ms", probe.rtt, added, probe.rtt - room, probe.rtt + room, problem))
    if probe.jitter and probe.loss < 100:
        spread = None
        near = _without_hiccups(received, probe.jitter)
        if len(near) > 1:
            # One hiccup before the rules came, squared, would be more than all that they add.
            bare_near = _without_hiccups(baseline.received, probe.jitter)
            noise = statistics.variance(bare_near) if len(bare_near) > 1 else 0.0
            spread = math.sqrt(max(0.0, statistics.variance(near) - noise))
        # The variance of a sample varies by (kurtosis - 1) / n of its square, to first order; its root by half of that's root.
        chance = deviations * math.sqrt((probe.kurtosis - 1) / (4 * max(1, len(received) - 1)))
        room = max((allowed.jitter + chance) * probe.jitter, allowed.jitter_ms)
        low, high = max(0.0, probe.jitter - room), probe.jitter + room
        findings.append(Finding("jitter", "ms", probe.jitter, spread, low, high, measured.ping_problem))
    lost = 100 * (1 - len(received) / sent) if sent else None
    low, high = loss_interval(probe.loss, sent, allowed.loss_percent, probe.correlation, tail)
    doubt = f"{sent} packets and a tolerance of {allowed.loss_percent:g} % cannot tell it from none"
    findings.append(
        Finding(
            "loss", "%", probe.loss, lost, low, high, measured.ping_problem, doubt if probe.loss and not low else None
        )
    )
    return findings


def _middle(measured: Measured, skewed: bool) -> float | None:
    # The median is not moved by a hiccup of the host; but what another distribution than the normal has in common with
    # what was asked is the mean.
    if not measured.received:
        return None
    return statistics.mean(measured.received) if skewed else statistics.median(measured.received)


def _without_hiccups(times: t.Sequence[float], jitter: float) -> t.Sequence[float]:
    """Without the few that a host held up: netem's tables end at four jitters. A link that varies more still shows."""
    middle = statistics.median(times) if times else 0.0
    near = [value for value in times if abs(value - middle) <= 6 * jitter + 0.5]
    return near if len(near) >= 0.95 * len(times) else times


def loss_interval(
    percent: float, packets: int, tolerance: float, correlation: float = 1.0, tail: float = TAIL
) -> tuple[float, float]:
    """The shares of lost packets, in %, that 99 of 100 probes of a link with this loss would see (all but 2 x `tail`).

    Exact binomial. Losses in bursts say less about the share: their packets count for `correlation` times fewer.
    """
    count = max(1, round(packets / correlation))
    least = _quantile(max(0.0, percent - tolerance) / 100, count, tail)
    most = _quantile(min(100.0, percent + tolerance) / 100, count, 1 - tail)
    # Half a packet on each side: with correlation the measured share lies between two of the counted ones.
    half = 0.0 if correlation == 1 else 0.5
    return 100 * max(0.0, least - half) / count, 100 * min(count, most + half) / count


def enough(probe: Probe, tolerance: Tolerance, tail: float = TAIL) -> int:
    """Packets of which none lost would be wrong: that all arrive is less likely than `tail` with the least loss that is right.
    0 where the tolerance is no less than the loss, or there is none.
    """
    share = (probe.loss - tolerance.loss_percent) / 100
    if share <= 0 or share >= 1:
        return int(share > 0)
    return math.ceil((math.floor(math.log(tail) / math.log1p(-share)) + 1) * probe.correlation)


def _quantile(share: float, count: int, level: float) -> int:
    """The smallest k with P(X <= k) >= level, X binomial."""
    if share in (0.0, 1.0):
        return round(share * count)
    total = 0.0
    for k in range(count + 1):
        # By logarithms: 0.01 ** 1000 is no float.
        total += math.exp(
            math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
            + k * math.log(share) + (count - k) * math.log1p(-share)
        )  # fmt: skip
        if total >= level:
            return k
    return count


def judge_check(
    plan: Plan,
    check: t.Mapping[str, t.Any],
    measured: Results,
    baseline: Results,
    *,
    attempt: int,
    delays: Delays | None = None,
    problems: t.Sequence[str] = (),
    again: int = 0,
) -> dict[str, t.Any]:
    """The report of a check.

    Args:
        plan: the plan.
        check: one of its checks.
        measured: what `read_outputs` has found.
        baseline: the same of the check without rules.
        attempt: of the check.
        delays: of the links, if the baseline was compensated.
        problems: why it cannot be; then nothing was measured.
        again: how many measurements of a pair were repeated.
    """
    nothing = Measured(ping_problem="it was not measured")
    probes = probes_of(check)
    results = [
        (
            probe,
            judge(
                probe,
                measured.get(probe.pair, Measured(ping_problem="not measured", rate_problem="not measured")),
                baseline.get(probe.pair) or baseline.get(probe.pair[::-1]) or nothing,
                Tolerance.of(plan),
                total=bool(delays),
                of=by_chance(probes),
            ),
        )
        for probe in probes
    ]
    return report(
        check,
        [] if problems else results,
        on_deviation=plan["network_check"]["on_deviation"],
        problems=problems,
        delays=delays,
        attempt=attempt,
        again=again,
    )


def report(
    check: t.Mapping[str, t.Any],
    results: t.Sequence[tuple[Probe, t.Sequence[Finding]]],
    *,
    on_deviation: str = "mark",
    problems: t.Sequence[str] = (),
    delays: Delays | None = None,
    attempt: int = 1,
    again: int = 0,
) -> dict[str, t.Any]:
    """What becomes ``network`` in trial.json: every metric of every probed pair, the verdict, and why.

    A deviation makes a trial degraded, or with ``refuse`` invalid; then it is not to be started.

    Args:
        check: of the plan.
        results: of each probe.
        on_deviation: mark or refuse.
        problems: why the network cannot be made at all.
        delays: of the links, where they are not those of the plan.
        attempt: of the check.
        again: how many measurements of a pair were repeated.
    """
    pairs = [
        {
            "from": probe.source,
            "to": probe.target,
            "link": probe.link,
            "metrics": [{**dataclasses.asdict(finding), "right": finding.right} for finding in findings],
        }
        for probe, findings in results
    ]
    found = {
        "format": FORMAT,
        "network": check["network"],
        "check": {"trial_id": trial_id(check), "attempt": attempt, "again": again},
        "on_deviation": on_deviation,
        "problems": list(problems),
        "delays": [list(phase) for phase in delays] if delays else None,
        "pairs": pairs,
    }
    return {**found, **verdict(found)}


def verdict(network: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Verdict and reasons of a report, from its findings alone.

    Raises:
        ProbeError: it is no such report.
    """
    try:
        problems = [str(problem) for problem in network["problems"]]
        wrong = deviations(network)
        refuse = network["on_deviation"] == "refuse"
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise ProbeError(f"what was measured of the network cannot be read: {exc!r}") from exc
    more = [f"{len(wrong) - SHOWN} more pairs of the network are off"] if len(wrong) > SHOWN else []
    word = "invalid" if problems or (wrong and refuse) else "degraded" if wrong else "valid"
    return {"verdict": word, "reasons": [*problems, *wrong[:SHOWN], *more]}


def finding(entry: t.Mapping[str, t.Any]) -> Finding:
    """One of a report's metrics."""
    return Finding(**{key: value for key, value in entry.items() if key != "right"})


def deviations(network: t.Mapping[str, t.Any]) -> list[str]:
    """One sentence a pair that is not what was asked for, the worst first."""
    found: list[tuple[float, int, str]] = []
    for pair in network["pairs"]:
        wrong = [one for one in map(finding, pair["metrics"]) if not one.right]
        if wrong:
            by_problem: dict[str, list[str]] = {}
            said = []
            for one in wrong:
                if one.measured is None and one.problem:
                    by_problem.setdefault(one.problem, []).append(one.metric)
                else:
                    said.append(str(one))
            said += [f"{', '.join(names)} could not be measured ({why})" for why, names in by_problem.items()]
            excess = max(one.excess for one in wrong)
            found.append((-excess, len(found), f"{pair['from']} to {pair['to']}: {'; '.join(said)}"))
    return [text for _excess, _number, text in sorted(found)]


def doubts(findings: t.Iterable[Finding]) -> str:
    """What could not be told of these: ``; loss of 3 not told for sure``, empty where there is nothing of the kind."""
    found = collections.Counter(finding.metric for finding in findings if finding.right and finding.doubt)
    return "".join(f"; {metric} of {number} not told for sure" for metric, number in found.items())


def summary(reports: t.Mapping[str, t.Mapping[str, t.Any]]) -> str:
    """One line on what was measured of all networks."""
    pairs = sum(len({frozenset((pair["from"], pair["to"])) for pair in report["pairs"]}) for report in reports.values())
    wrong = [
        (frozenset((pair["from"], pair["to"])), name)
        for name, report in reports.items()
        for pair in report["pairs"]
        if not all(entry["right"] for entry in pair["metrics"])
    ]
    reasons = [reason for report in reports.values() for reason in report["reasons"]]
    if not reasons:
        own = (finding(entry) for report in reports.values() for pair in report["pairs"] for entry in pair["metrics"])
        return f"{pairs} pair{'' if pairs == 1 else 's'} as asked{doubts(own)}"
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    noun = "pair" if pairs == 1 else "pairs"
    return f"{len(set(wrong))} of {pairs} {noun} off: {reasons[0]}{more}" if wrong else f"{reasons[0]}{more}"


def for_trial(
    plan: Plan, trial: t.Mapping[str, t.Any], reports: t.Mapping[str, t.Mapping[str, t.Any]]
) -> dict[str, t.Any] | None:
    """What a trial's own trial.json has of the reports on the networks; None where nothing is to be measured.

    The pairs of its members, or all if none of them was in the sample. What should have been measured and was not is a
    report that says so.
    """
    check = next((c for c in plan.get("checks", ()) if c["network"] and c["network"] == trial["network"]), None)
    if check is None:
        return None
    network, members = reports.get(check["network"]), trial["members"]
    if network is None:
        return judge_check(plan, check, {}, {}, attempt=1)
    pairs = [pair for pair in network["pairs"] if pair["from"] in members and pair["to"] in members]
    found = {**network, "pairs": pairs or network["pairs"]}
    return {**found, **verdict(found)}
