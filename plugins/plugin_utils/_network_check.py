# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the network is the one that was asked for: which pairs to probe, what the tools said, and the judgement.

How a stage uses it: `plan_probes` before the trial, `rounds` to run them without disturbing each other, on each source
`ping_command` (and `rate_command`, with ``iperf3 --server`` at the target), once before rules are in force (the
baseline) and once after; `parse_fping`, `parse_ping` and `parse_iperf3` read the outputs; `judge` compares one pair, and
`report` makes of all pairs the part ``network`` of trial.json. Pure: nothing here runs anything. This util is PRIVATE to
the collection.

A ping meets both directions. Delays add up, variances of the jitter add up, and a packet survives if it survives twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import re
import statistics
import typing as t

from ansible_collections.startline.lab.plugins.module_utils import _netem as tc
from ansible_collections.startline.lab.plugins.plugin_utils import _netem
from ansible_collections.startline.lab.plugins.plugin_utils._errors import StartlineError

FORMAT: t.Final = "startline-network/1"
#: Probe every pair up to this many; sample where there are more.
ALL_PAIRS: t.Final = 45
PINGS: t.Final = 200
PING_INTERVAL_MS: t.Final = 10
RATE_SECONDS: t.Final = 3
#: Where packets are lost TCP finds what loss and round trip leave it; a flow of more than the rate finds the rate.
OFFERED: t.Final = 1.2
#: UDP payload of a full frame, and what Ethernet, IPv4 and UDP add.
UDP_PAYLOAD: t.Final = 1472
UDP_HEADERS: t.Final = 42
#: Ethernet, IPv4, TCP with time stamps.
TCP_HEADERS: t.Final = 66
#: Half of what a 99 % interval leaves out.
TAIL: t.Final = 0.005


class ProbeError(StartlineError):
    """A probe's output cannot be read. The text says what it is instead."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """A pair of members and what was asked for it. Times in ms, loss in %, rate in bit/s (0: none)."""

    source: str
    target: str
    rtt: float
    jitter: float
    loss: float
    rate: int
    #: How many probes of a burst of losses count as one; 1 where each packet is lost on its own.
    correlation: float = 1.0
    #: The mean, where the distribution has another median.
    skewed: bool = False


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


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was seen of a pair: each round trip in ms, None for a lost one; the rate on the wire in bit/s, if probed."""

    round_trips: tuple[float | None, ...]
    rate: float | None = None

    @property
    def received(self) -> list[float]:
        return [value for value in self.round_trips if value is not None]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One metric of one pair. `low` to `high` would have been right."""

    metric: str
    unit: str
    asked: float
    measured: float | None
    low: float
    high: float

    @property
    def right(self) -> bool:
        return self.measured is not None and self.low <= self.measured <= self.high

    def __str__(self) -> str:
        measured = "nothing was measured" if self.measured is None else f"{self.measured:.4g} {self.unit} measured"
        return f"{self.metric}: {self.asked:.4g} {self.unit} asked, {measured} ({self.low:.4g} to {self.high:.4g} is right)"


# --- which pairs ------------------------------------------------------------------------------------------------------


def plan_probes(
    plan: t.Mapping[str, t.Any], trial: t.Mapping[str, t.Any], *, seed: int, limit: int = ALL_PAIRS
) -> list[Probe]:
    """The pairs to probe: all that are shaped, or a sample with every kind of link and, as far as it goes, every member.

    The sample is a hash of seed and names, so it is the same with every release of Python.
    """
    shapes: dict[tuple[str, str], tc.Shape] = {}
    inside = set(trial["members"])  # spares are probed when they have taken a place
    for link in _netem.network_links(plan, trial):
        shape, _problems = tc.parse_shape(link["shape"])
        for pair in itertools.product(inside.intersection(link["from"]), inside.intersection(link["to"])):
            if pair[0] != pair[1]:
                shapes[pair] = shape
    order = {name: position for position, name in enumerate(trial["members"])}

    def position(pair: tuple[str, str]) -> tuple[int, int]:
        return order[pair[0]], order[pair[1]]

    # One probe for both directions; but a rate belongs to one direction, so each end that has one is a source.
    pairs = sorted(
        (
            pair
            for pair in shapes
            if shapes[pair].rate or position(pair) < position(pair[::-1]) or pair[::-1] not in shapes
        ),
        key=position,
    )
    if len(pairs) > limit:
        pairs = sorted(_sample(pairs, shapes, seed, limit), key=position)
    nothing = tc.Shape()
    return [_probe(pair, shapes[pair], shapes.get(pair[::-1], nothing)) for pair in pairs]


def _sample(
    pairs: t.Sequence[tuple[str, str]], shapes: t.Mapping[tuple[str, str], tc.Shape], seed: int, limit: int
) -> list[tuple[str, str]]:
    shuffled = sorted(pairs, key=lambda pair: hashlib.sha256(json.dumps([seed, *pair]).encode()).digest())
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


def _probe(pair: tuple[str, str], there: tc.Shape, back: tc.Shape) -> Probe:
    return Probe(
        *pair,
        rtt=(there.delay + back.delay) / 1e6,
        jitter=math.hypot(there.jitter, back.jitter) / 1e6,
        loss=100 - (100 - there.loss) * (100 - back.loss) / 100,
        rate=there.rate,
        correlation=max(_correlation(there), _correlation(back)),
        skewed=any(shape.jitter and shape.distribution.startswith("pareto") for shape in (there, back)),
    )


def _correlation(shape: tc.Shape) -> float:
    """How much more the share of lost packets varies than if each was lost on its own (Gilbert model)."""
    if not shape.loss_burst:
        return 1.0
    leave = 1 / shape.loss_burst
    stay = 1 - leave - leave * shape.loss / (100 - shape.loss)
    return max(1.0, (1 + stay) / (1 - stay))


def rounds(probes: t.Sequence[Probe]) -> list[list[Probe]]:
    """Probes that may run at once: in a round, every member takes part in one at most."""
    result: list[tuple[set[str], list[Probe]]] = []
    for probe in probes:
        free = next((entry for entry in result if entry[0].isdisjoint((probe.source, probe.target))), None)
        if free is None:
            free = (set(), [])
            result.append(free)
        free[0].update((probe.source, probe.target))
        free[1].append(probe)
    return [members for _busy, members in result]


# --- the tools --------------------------------------------------------------------------------------------------------


def ping_command(address: str, probe: Probe, count: int = PINGS) -> list[str]:
    """fping, because ping sends no faster than 5 a second without root in some distributions."""
    patience = round(2 * probe.rtt + 10 * probe.jitter + 1000)
    # Packets keep their order: one that follows too soon waits for a late one in front of it.
    interval = max(PING_INTERVAL_MS, round(5 * probe.jitter))
    return ["fping", "-q", "-C", str(count), "-p", str(interval), "-t", str(patience), address]


def rate_command(address: str, probe: Probe, seconds: int = RATE_SECONDS) -> list[str]:
    """iperf3 as a client. The first second, in which queues fill, does not count."""
    command = ["iperf3", "--json", "--omit", "1", "--time", str(seconds), "--client", address]
    if not probe.loss:
        return command
    return [*command, "--udp", "--bitrate", f"{probe.rate * OFFERED:.0f}", "--length", str(UDP_PAYLOAD)]


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


def parse_ping(text: str) -> tuple[float | None, ...]:
    """Round trips in ms from iputils' ``ping``, in the order of sending.

    Raises:
        ProbeError: it has no summary.
    """
    sent = re.search(r"(\d+) packets transmitted", text)
    if not sent:
        raise ProbeError(f"ping did not say how many packets it sent: {text.strip()[-200:] or 'it said nothing'}")
    times: dict[int, float] = {}
    for sequence, value in re.findall(r"icmp_seq=(\d+) .*?time=([\d.]+) ms", text):
        times.setdefault(int(sequence), float(value))  # a duplicate comes later
    first = min(times, default=1) if 0 not in times else 0
    start = 0 if first == 0 else 1
    return tuple(times.get(number) for number in range(start, start + int(sent[1])))


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
        offered = end["sum"]["bits_per_second"] * on_wire
        if offered < rate:
            raise ProbeError(
                f"iperf3 sent no more than {offered / 1e6:.4g} of {rate / 1e6:.4g} Mbit/s: the host is too slow or too busy"
            )
        if "sum_received" in end:
            return float(end["sum_received"]["bits_per_second"] * on_wire)
        # Releases before 3.7 have one sum, of what was sent and lost.
        return float(offered * (1 - end["sum"]["lost_percent"] / 100))
    except (KeyError, TypeError) as exc:
        raise ProbeError(f"iperf3's answer has no {exc}") from exc


# --- the judgement ----------------------------------------------------------------------------------------------------


def compensated(asked_ms: float, baseline: Measured) -> float:
    """The round trip to add so that with what is there already it makes the one asked for.

    Raises:
        ProbeError: there is more already.
    """
    bare = _middle(baseline, False)
    if bare is None or bare > asked_ms:
        shown = "no packet came back" if bare is None else f"{bare:.3g} ms are there already"
        raise ProbeError(f"a round trip of {asked_ms:g} ms cannot be made: {shown}")
    return asked_ms - bare


def judge(
    probe: Probe,
    measured: Measured,
    baseline: Measured,
    tolerance: Tolerance | None = None,
    *,
    total: bool = False,
) -> list[Finding]:
    """Compare what was measured of a pair with what was asked.

    Args:
        probe: what was asked.
        measured: with the rules in force.
        baseline: without.
        tolerance: how far off it may be.
        total: the round trip asked for includes the baseline, which was compensated; else it was added.
    """
    allowed = tolerance or Tolerance()
    sent, received = len(measured.round_trips), measured.received
    middle, bare = _middle(measured, probe.skewed), _middle(baseline, probe.skewed) or 0.0
    added = None if middle is None else middle if total else middle - bare
    room = max(allowed.rtt * probe.rtt, allowed.rtt_ms)
    # The mean of few packets varies with their jitter.
    room += 2.58 * probe.jitter / math.sqrt(max(1, len(received)))
    findings = [Finding("rtt", "ms", probe.rtt, added, probe.rtt - room, probe.rtt + room)]
    if probe.jitter:
        spread = None
        near = _without_hiccups(received, probe.jitter)
        if len(near) > 1:
            noise = statistics.variance(baseline.received) if len(baseline.received) > 1 else 0.0
            spread = math.sqrt(max(0.0, statistics.variance(near) - noise))
        # Of a normal distribution. A heavy tail makes the deviation of a sample vary about twice as much (kurtosis 8).
        chance = 2.58 / math.sqrt(2 * max(1, len(received) - 1)) * (2 if probe.skewed else 1)
        room = max((allowed.jitter + chance) * probe.jitter, allowed.jitter_ms)
        findings.append(Finding("jitter", "ms", probe.jitter, spread, probe.jitter - room, probe.jitter + room))
    lost = 100 * (1 - len(received) / sent) if sent else None
    low, high = loss_interval(probe.loss, sent, allowed.loss_percent, probe.correlation)
    findings.append(Finding("loss", "%", probe.loss, lost, low, high))
    if probe.rate:
        low, high = probe.rate * (1 - allowed.rate), probe.rate * (1 + allowed.rate)
        findings.append(Finding("rate", "bit/s", probe.rate, measured.rate, low, high))
    return findings


def _middle(measured: Measured, skewed: bool) -> float | None:
    # The median is not moved by a hiccup of the host; but what a skewed distribution has in common with what was asked
    # is the mean.
    if not measured.received:
        return None
    return statistics.mean(measured.received) if skewed else statistics.median(measured.received)


def _without_hiccups(times: t.Sequence[float], jitter: float) -> t.Sequence[float]:
    """Without the few that a host held up: netem's tables end at four jitters. A link that varies more still shows."""
    middle = statistics.median(times) if times else 0.0
    near = [value for value in times if abs(value - middle) <= 6 * jitter + 0.5]
    return near if len(near) >= 0.95 * len(times) else times


def loss_interval(percent: float, packets: int, tolerance: float, correlation: float = 1.0) -> tuple[float, float]:
    """The shares of lost packets, in %, that 99 of 100 probes of a link with this loss would see.

    Exact binomial. Losses in bursts say less about the share: their packets count for `correlation` times fewer.
    """
    count = max(1, round(packets / correlation))
    least = _quantile(max(0.0, percent - tolerance) / 100, count, TAIL)
    most = _quantile(min(100.0, percent + tolerance) / 100, count, 1 - TAIL)
    # Half a packet on each side: with correlation the measured share lies between two of the counted ones.
    half = 0.0 if correlation == 1 else 0.5
    return 100 * max(0.0, least - half) / count, 100 * min(count, most + half) / count


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


def report(
    results: t.Sequence[tuple[Probe, t.Sequence[Finding]]], *, on_deviation: t.Literal["mark", "refuse"] = "mark"
) -> dict[str, t.Any]:
    """The part ``network`` of trial.json: every metric of every probed pair, the verdict, and why.

    A deviation makes the trial degraded, or with ``refuse`` invalid; then it is not to be started.
    """
    pairs = [
        {
            "from": probe.source,
            "to": probe.target,
            "metrics": [{**dataclasses.asdict(finding), "right": finding.right} for finding in findings],
        }
        for probe, findings in results
    ]
    wrong = [
        f"{probe.source} to {probe.target}: {finding}"
        for probe, findings in results
        for finding in findings
        if not finding.right
    ]
    verdict = "valid" if not wrong else "degraded" if on_deviation == "mark" else "invalid"
    return {"format": FORMAT, "verdict": verdict, "reasons": wrong, "pairs": pairs}
