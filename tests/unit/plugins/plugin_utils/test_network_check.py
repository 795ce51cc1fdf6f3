# SPDX-License-Identifier: GPL-3.0-or-later
"""Asked against measured."""

from __future__ import annotations

import itertools
import json
import random
import typing as t

import pytest

from ansible_collections.startline.lab.plugins.plugin_utils import _network_check as check
from ansible_collections.startline.lab.plugins.plugin_utils import _plan
from ansible_collections.startline.lab.plugins.plugin_utils._experiment import load_experiment
from ansible_collections.startline.lab.plugins.plugin_utils._network_check import Measured, Probe, ProbeError, Tolerance


def probes(network: str, count: int = 4, **kwargs: t.Any) -> list[Probe]:
    text = f"groups: {{party: {{count: {count}}}, chain: {{count: 2}}}}\ncommand: run\nnetwork: {network}\n"
    plan = _plan.expand(load_experiment(text, "experiments/demo.yml"))
    return check.plan_probes(plan, plan["trials"][0], seed=1, **kwargs)


def names(found: list[Probe]) -> list[tuple[str, str]]:
    return [(probe.source, probe.target) for probe in found]


# --- which pairs ------------------------------------------------------------------------------------------------------


def test_nothing_asked_nothing_probed() -> None:
    assert probes("{}") == []


def test_few_pairs_are_all_probed_once() -> None:
    parties = [f"party-{index}" for index in range(4)]
    assert names(probes("{party: {party: {rtt: 1ms}}}")) == list(itertools.combinations(parties, 2))


def test_a_rate_is_probed_in_each_direction() -> None:
    parties = [f"party-{index}" for index in range(4)]
    assert sorted(names(probes("{party: {party: {rate: 1mbit}}}"))) == sorted(itertools.permutations(parties, 2))
    assert names(probes("{party-0: {chain-0: {rate: 1mbit, oneway: true}}}")) == [("party-0", "chain-0")]
    assert names(probes("{chain-0: {party-0: {delay: 1ms, oneway: true}}}")) == [("chain-0", "party-0")]


def test_many_pairs_are_sampled_with_every_kind_of_link_and_every_member() -> None:
    network = "{party: {party: {rtt: 1ms}}, party-7: {chain-1: {rtt: 9ms}}}"
    found = probes(network, count=40, limit=25)
    assert len(found) == 25
    assert ("party-7", "chain-1") in names(found)
    assert len({name for pair in names(found) for name in pair}) == 41
    assert found == probes(network, count=40, limit=25)


def test_a_probe_meets_both_directions() -> None:
    (probe,) = probes(
        "{party-0: {chain-0: {delay: 3ms, jitter: 0.3ms, loss: 10%, oneway: true}}, "
        "chain-0: {party-0: {delay: 4ms, jitter: 0.4ms, loss: 10%, loss_burst: 4, oneway: true}}}"
    )
    assert (probe.rtt, probe.jitter, probe.loss, probe.rate) == (7, pytest.approx(0.5), pytest.approx(19), 0)
    # stay = 1 - 1/4 - 1/36; (1 + stay) / (1 - stay)
    assert probe.correlation == pytest.approx(6.2)


def test_nobody_is_probed_twice_at_once() -> None:
    found = probes("{party: {party: {rate: 1mbit}}}", count=6)
    shared = check.rounds(found)
    assert sorted(names([probe for members in shared for probe in members])) == sorted(names(found))
    for members in shared:
        busy = [name for probe in members for name in (probe.source, probe.target)]
        assert len(busy) == len(set(busy))
    assert len(shared) <= 20  # 30 probes, 5 at best in each of 10


# --- the tools --------------------------------------------------------------------------------------------------------


def test_fping() -> None:
    text = "ICMP Host Unreachable from 10.0.0.1\n10.0.0.2 : 0.08 - 25.1\n10.0.0.3 : - - -\n"
    assert check.parse_fping(text) == {"10.0.0.2": (0.08, None, 25.1), "10.0.0.3": (None, None, None)}
    with pytest.raises(ProbeError, match="fping: command not found"):
        check.parse_fping("sh: fping: command not found")


def test_ping() -> None:
    text = """PING 10.0.0.2 (10.0.0.2) 56(84) bytes of data.
64 bytes from 10.0.0.2: icmp_seq=1 ttl=64 time=40.2 ms
64 bytes from 10.0.0.2: icmp_seq=3 ttl=64 time=39.9 ms
64 bytes from 10.0.0.2: icmp_seq=3 ttl=64 time=41.0 ms (DUP!)

--- 10.0.0.2 ping statistics ---
4 packets transmitted, 2 received, +1 duplicates, 50% packet loss, time 3004ms
"""
    assert check.parse_ping(text) == (40.2, None, 39.9, None)
    with pytest.raises(ProbeError, match="Name or service not known"):
        check.parse_ping("ping: x: Name or service not known")


UDP = {
    "start": {"test_start": {"protocol": "UDP", "blksize": 1472}},
    "end": {"sum": {"bits_per_second": 12e6, "lost_percent": 20}},
}


def test_iperf3() -> None:
    assert check.parse_iperf3(json.dumps(UDP)) == pytest.approx(9.6e6 * 1514 / 1472)
    later = {"start": UDP["start"], "end": {**UDP["end"], "sum_received": {"bits_per_second": 9.5e6}}}
    assert check.parse_iperf3(json.dumps(later)) == pytest.approx(9.5e6 * 1514 / 1472)
    tcp = {
        "start": {"test_start": {"protocol": "TCP"}, "tcp_mss_default": 1448},
        "end": {"sum_received": {"bits_per_second": 95.6e6}},
    }
    assert check.parse_iperf3(json.dumps(tcp)) == pytest.approx(100e6, rel=0.001)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it said nothing"),
        ('{"error": "unable to connect to server: Connection refused"}', "unable to connect"),
        ('{"start": {}, "end": {}}', "has no 'test_start'"),
    ],
)
def test_an_iperf3_that_failed_says_why(text: str, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        check.parse_iperf3(text)


def test_a_sender_that_was_too_slow_says_nothing_of_the_link() -> None:
    assert check.parse_iperf3(json.dumps(UDP), 10_000_000)
    with pytest.raises(ProbeError, match=r"sent no more than 12\.34 of 20 Mbit/s"):
        check.parse_iperf3(json.dumps(UDP), 20_000_000)


def test_the_commands_suit_the_probe() -> None:
    probe = Probe("a", "b", rtt=80, jitter=1, loss=0, rate=10_000_000)
    assert check.ping_command("10.0.0.2", probe) == [
        "fping", "-q", "-C", "200", "-p", "10", "-t", "1170", "10.0.0.2",
    ]  # fmt: skip
    assert "--udp" not in check.rate_command("10.0.0.2", probe)
    lossy = Probe("a", "b", rtt=80, jitter=1, loss=1, rate=10_000_000)
    assert check.rate_command("10.0.0.2", lossy)[-5:] == ["--udp", "--bitrate", "12000000", "--length", "1472"]


# --- the judgement ----------------------------------------------------------------------------------------------------

BARE = Measured((0.2,) * 100)


def right(probe: Probe, measured: Measured, **kwargs: t.Any) -> dict[str, bool]:
    return {finding.metric: finding.right for finding in check.judge(probe, measured, BARE, **kwargs)}


def asked(**values: t.Any) -> Probe:
    return Probe("a", "b", **{"rtt": 80, "jitter": 0, "loss": 0, "rate": 0, **values})


@pytest.mark.parametrize(("rtt", "expected"), [(80.2, True), (81.7, True), (81.9, False), (78.5, False), (0.2, False)])
def test_a_round_trip_is_compared_without_what_was_there_before(rtt: float, expected: bool) -> None:
    assert right(asked(), Measured((rtt,) * 100))["rtt"] is expected


def test_a_round_trip_may_be_asked_for_as_a_whole() -> None:
    assert check.compensated(80, BARE) == pytest.approx(79.8)
    assert right(asked(), Measured((80.0,) * 100), total=True)["rtt"]
    with pytest.raises(ProbeError, match=r"0\.2 ms are there already"):
        check.compensated(0.1, BARE)


def test_nothing_measured_is_not_right() -> None:
    assert right(asked(rate=10**6, jitter=1), Measured((None,) * 100)) == {
        "rtt": False, "jitter": False, "loss": False, "rate": False,
    }  # fmt: skip


@pytest.mark.parametrize(("sigma", "expected"), [(2.0, True), (0.0, False), (4.0, False)])
def test_jitter(sigma: float, expected: bool) -> None:
    noise = random.Random(1)  # noqa: S311
    measured = Measured(tuple(noise.gauss(80.2, sigma) for _number in range(200)))
    assert right(asked(jitter=2), measured)["jitter"] is expected


def test_a_hiccup_of_the_host_is_no_jitter() -> None:
    noise = random.Random(1)  # noqa: S311
    times = [noise.gauss(80.2, 1) for _number in range(196)]
    assert right(asked(jitter=1), Measured((*times, 130.0, 140.0, 150.0)))["jitter"]
    assert not right(asked(jitter=1), Measured(tuple(noise.gauss(80.2, 3) for _number in range(200))))["jitter"]


@pytest.mark.parametrize(
    ("percent", "packets", "lost", "expected"),
    [
        (0, 200, 0, True), (0, 200, 1, True), (0, 200, 4, False), (1, 1000, 10, True), (1, 1000, 0, False),
        (1, 1000, 22, False), (100, 200, 200, True), (100, 200, 199, True), (50, 200, 75, False),
    ],
)  # fmt: skip
def test_loss_has_what_chance_explains(percent: float, packets: int, lost: int, expected: bool) -> None:
    measured = Measured((None,) * lost + (80.2,) * (packets - lost))
    assert right(asked(loss=percent), measured)["loss"] is expected


@pytest.mark.parametrize(("percent", "burst"), [(1, 0), (5, 0), (5, 4), (20, 8)])
def test_few_good_links_are_called_wrong(percent: float, burst: float) -> None:
    draw = random.Random(7)  # noqa: S311
    (probe,) = probes(
        f"{{party-0: {{chain-0: {{loss: {percent}%, {f'loss_burst: {burst}, ' if burst else ''}oneway: true}}}}}}"
    )
    low, high = check.loss_interval(probe.loss, 1000, 0, probe.correlation)
    wrong = 0
    for _number in range(400):
        losing, lost = False, 0
        leave = 1 / burst if burst else 1 - percent / 100
        enter = leave * percent / (100 - percent)
        for _number in range(1000):
            losing = draw.random() >= leave if losing else draw.random() < enter
            lost += losing
        wrong += not low <= lost / 10 <= high
    assert wrong <= 0.03 * 400


@pytest.mark.parametrize(
    ("rate", "expected"), [(10e6, True), (9.6e6, True), (9.4e6, False), (1e9, False), (None, False)]
)
def test_rate(rate: float | None, expected: bool) -> None:
    assert right(asked(rate=10_000_000), Measured((80.2,) * 100, rate))["rate"] is expected


def test_the_report_names_pair_metric_and_numbers() -> None:
    probe = asked()
    result = [(probe, check.judge(probe, Measured((40.2,) * 100), BARE, Tolerance()))]
    reported = check.report(result)
    assert reported["verdict"] == "degraded"
    assert reported["reasons"] == ["a to b: rtt: 80 ms asked, 40 ms measured (78.4 to 81.6 is right)"]
    assert check.report(result, on_deviation="refuse")["verdict"] == "invalid"
    assert json.loads(json.dumps(reported)) == reported
    good = [(probe, check.judge(probe, Measured((80.2,) * 100), BARE))]
    assert check.report(good)["verdict"] == "valid"
