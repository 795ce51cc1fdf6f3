# SPDX-License-Identifier: GPL-3.0-or-later
"""Asked against measured."""

from __future__ import annotations

import itertools
import json
import random
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.startline.lab.plugins.module_utils import _netem as tc
from ansible_collections.startline.lab.plugins.plugin_utils import _barrier_call, _plan
from ansible_collections.startline.lab.plugins.plugin_utils import _network_check as check
from ansible_collections.startline.lab.plugins.plugin_utils._errors import StartlineError
from ansible_collections.startline.lab.plugins.plugin_utils._experiment import load_experiment
from ansible_collections.startline.lab.plugins.plugin_utils._network_check import Measured, Probe, ProbeError
from ansible_collections.startline.lab.tests.support import uml


def expanded(network: str, count: int = 4, more: str = "", **key: t.Any) -> dict[str, t.Any]:
    text = f"groups: {{party: {{count: {count}}}, chain: {{count: 2}}}}\ncommand: run\nnetwork: {network}\n{more}"
    if key:
        text += f"network_check: {json.dumps(key)}\n"
    return _plan.expand(load_experiment(text, "experiments/demo.yml"), seed=1)


def probes(network: str, count: int = 4, limit: int = check.ALL_PAIRS) -> list[Probe]:
    return next((check.probes_of(one) for one in expanded(network, count, pairs=limit)["checks"] if one["network"]), [])


def names(found: t.Iterable[Probe]) -> list[tuple[str, str]]:
    return [(probe.source, probe.target) for probe in found]


PARTIES = [f"party-{index}" for index in range(4)]

# --- which pairs ------------------------------------------------------------------------------------------------------


def test_nothing_asked_nothing_probed() -> None:
    later = "timeline: [{at: 1, network: {party: {party: {rtt: 1ms}}}}]\n"
    assert expanded("{}", more=later)["checks"] == []
    bare, nothing = expanded("{}", more=later, compensate=True)["checks"]
    assert (len(bare["probes"]), nothing["probes"]) == (6, [])
    assert check.needed(expanded("{party: {party: {rtt: 1ms}}}", enabled=False), None) == []
    assert _plan.expand(load_experiment("groups: {a: {}}\ncommand: run\n", "experiments/demo.yml"))["checks"] == []


def test_few_pairs_are_all_pinged_once() -> None:
    found = probes("{party: {party: {rtt: 1ms}}}")
    assert names(found) == list(itertools.combinations(PARTIES, 2))
    assert all(probe.pinged and not probe.rate for probe in found)


def test_a_rate_is_measured_once_from_each_host_on_each_link() -> None:
    found = probes("{party: {party: {rate: 1mbit}, chain: {rate: 2mbit}}}")
    rated = [probe for probe in found if probe.rated]
    kinds = [(probe.source, probe.rate) for probe in rated]
    assert sorted(kinds) == sorted(
        [(party, rate) for party in PARTIES for rate in (10**6, 2 * 10**6)]
        + [(f"chain-{n}", 2 * 10**6) for n in (0, 1)]
    )
    assert len(check.rounds([probe for probe in rated if probe.rate == 10**6])) == 2
    oneway = probes("{party-0: {chain-0: {rate: 1mbit, oneway: true}}}")
    assert [(probe.pair, probe.pinged, probe.rated) for probe in oneway] == [(("party-0", "chain-0"), True, True)]
    (back,) = probes("{chain-0: {party-0: {delay: 1ms, oneway: true}}}")
    assert back.pair == ("chain-0", "party-0")


SITES = """
sites: {us: {region: us-east-1}, lab: {region: us-west-2, gateway: login}}
groups: {party: {site: us, count: 2}, login: {site: lab}, worker: {site: lab, count: 2}}
rendezvous: party
command: run
network: {us: {lab: {rtt: 20ms, rate: 8mbit}}}
"""


def test_a_host_behind_a_gateway_is_measured_by_itself_and_its_gateway() -> None:
    plan = _plan.expand(load_experiment(SITES, "experiments/demo.yml"))
    _bare, shaped = plan["checks"]
    found = check.probes_of(shaped)
    assert not [probe.pair for probe in found if probe.target.startswith("worker")]
    pinged = {frozenset(probe.pair) for probe in found if probe.pinged}
    assert pinged == {frozenset((a, b)) for a in ("party-0", "party-1") for b in ("login-0", "worker-0", "worker-1")}
    assert {probe.source for probe in found if probe.rated} == {member["name"] for member in plan["members"]}
    hosts = {
        "party-0": {"address": "10.77.0.4", "public_address": "198.18.1.1"},
        "party-1": {"address": "10.77.0.5", "public_address": "198.18.1.2"},
        "login-0": {"address": "10.78.0.4", "public_address": "198.18.1.3"},
        **{
            f"worker-{n}": {
                "address": f"10.78.16.{4 + n}",
                "gateway_address": "198.18.1.3",
                "nat_address": "198.18.1.4",
            }
            for n in (0, 1)
        },
    }
    composed = check.compose_check(plan, shaped, hosts, run_id="r", attempt=1, evidence=None)
    steps = json.loads(composed["files"][check.PROGRAM])["members"]
    targets = {name: {key for step in own["steps"] for key in step["targets"]} for name, own in steps.items()}
    assert targets["party-0"] == {"198.18.1.3"}
    assert targets["worker-0"] == {"198.18.1.1", "198.18.1.2"}


def test_nothing_is_sent_through_a_link_that_loses_all() -> None:
    (probe,) = (p for p in probes("{party-0: {party-1: {rate: 1mbit, loss: 100%, oneway: true}}}") if p.pinged)
    assert not probe.rated


def test_many_pairs_are_sampled_with_every_kind_of_link_and_every_member() -> None:
    network = "{party: {party: {rtt: 1ms}}, party-7: {chain-1: {rtt: 9ms}}}"
    found = probes(network, count=40, limit=25)
    assert len(found) == 25
    assert ("party-7", "chain-1") in names(found)
    assert len({name for pair in names(found) for name in pair}) == 41
    assert found == probes(network, count=40, limit=25)


def test_the_sample_of_thousands_takes_no_longer_than_its_links() -> None:
    found = probes("{party: {party: {rtt: 1ms, rate: 1mbit}}}", count=4000)
    assert (sum(probe.pinged for probe in found), sum(probe.rated for probe in found)) == (45, 45)


def test_a_probe_meets_both_directions() -> None:
    (probe,) = probes(
        "{party-0: {chain-0: {delay: 3ms, jitter: 0.3ms, loss: 10%, oneway: true}}, "
        "chain-0: {party-0: {delay: 4ms, jitter: 0.4ms, loss: 10%, loss_burst: 4, oneway: true}}}"
    )
    assert (probe.rtt, probe.jitter, probe.loss, probe.rate) == (7, pytest.approx(0.5), pytest.approx(19), 0)
    # stay = 1 - 1/4 - 1/36; (1 + stay) / (1 - stay)
    assert probe.correlation == pytest.approx(6.2)
    assert probe.link.endswith("; back: delay 4ms +- 400us (normal), loss 10% in bursts of 4")


def test_the_baseline_has_every_pair_that_is_pinged_and_needed_checks_are_those_of_the_trials_left() -> None:
    plan = expanded(
        '{party: {party: {rtt: "{{ rtt }}"}}}',
        more="parameters: {rtt: [none, 1ms, 2ms]}\norder: sequential\n"
        "timeline: [{at: 1, network: {party-0: {chain-0: {rtt: 1ms}}}}]\n",
        compensate=True,
    )
    baseline, *others = plan["checks"]
    assert [one["check_id"] for one in plan["checks"]] == ["baseline", "network-1", "network-2", "network-3"]
    assert sorted(names(check.probes_of(baseline))) == sorted(
        [*itertools.combinations(PARTIES, 2), ("party-0", "chain-0")]
    )
    assert not any(probe.rated for probe in check.probes_of(baseline))
    assert [one["check_id"] for one in check.needed(plan, ["rtt-2ms.r1"])] == ["baseline", "network-3"]
    assert check.needed(plan, []) == []
    assert check.needed(plan, None) == [baseline, *others]


@given(st.integers(2, 12))
def test_all_pairs_of_n_members_take_n_rounds_and_nobody_is_in_two_at_once(count: int) -> None:
    members = [f"m-{index}" for index in range(count)]
    found = [Probe(*pair, rtt=0, jitter=1, loss=0, rate=0) for pair in itertools.combinations(members, 2)]
    shared = check.rounds(found)
    assert sorted(names(itertools.chain.from_iterable(shared))) == sorted(names(found))
    for together in shared:
        busy = [name for probe in together for name in probe.pair]
        assert len(busy) == len(set(busy))
    assert len(shared) <= count


# --- when, and with what ----------------------------------------------------------------------------------------------

LINKS = ["{rtt: 80ms}", "{rtt: 20ms, jitter: 2ms, loss: 1%}", "{rtt: 80ms, rate: 200mbit}", "{profile: 2g}"]


@pytest.mark.parametrize("link", LINKS)
def test_pings_neither_overtake_nor_fill_and_rates_have_their_hosts_to_themselves(link: str) -> None:
    (_bare, one) = expanded(f"{{party: {{party: {link}}}}}", count=6)["checks"]
    steps = check.steps_of(one)
    measured = [(step.kind, probe.pair) for step in steps for probe in step.probes]
    wanted = [(kind, p.pair) for p in check.probes_of(one) for kind, on in (("ping", p.pinged), ("rate", p.rate)) if on]
    assert sorted(measured) == sorted(pair for pair in wanted if pair[0] == "ping" or pair[1] in _rated(one))
    for step, other in itertools.combinations(steps, 2):
        apart = step.at + step.seconds <= other.at + 1e-9 or other.at + other.seconds <= step.at + 1e-9
        alone = "rate" in (step.kind, other.kind) or step.probes[0].jitter
        shared = {step.source, *step.targets} & {other.source, *other.targets}
        assert apart or not (alone and shared)
    for step in steps:
        if step.kind == "ping":
            assert step.interval >= 3 * max(probe.jitter for probe in step.probes)
            slowest = min(probe.slowest for probe in step.probes)
            assert not slowest or 5 * 784 * 1000 / step.interval <= 0.21 * slowest
    assert check.time_limit(one) > check.duration(steps) + 30


def _rated(one: dict[str, t.Any]) -> set[tuple[str, str]]:
    return {probe.pair for probe in check.probes_of(one) if probe.rated}


@pytest.mark.parametrize(
    ("count", "link", "limit"),
    [
        (6, "{rtt: 80ms, loss: 0.1%, rate: 200mbit}", 12),
        (9, "{rtt: 80ms, loss: 0.1%, rate: 200mbit}", 20),
        (6, "{rtt: 80ms, jitter: 1ms, rate: 200mbit}", 15),
        (9, "{rtt: 80ms, jitter: 1ms, rate: 200mbit}", 22),
    ],
)
def test_a_check_is_short(count: int, link: str, limit: float) -> None:
    bare, one = expanded(f"{{party: {{party: {link}}}}}", count=count)["checks"]
    assert check.duration(check.steps_of(bare)) < 1.5
    assert check.duration(check.steps_of(one)) < limit


@pytest.mark.parametrize(
    ("link", "tolerance", "told"),
    [
        ("{rtt: 80ms, loss: 1%}", "0.1%", True),
        ("{rtt: 80ms, loss: 1%, rate: 2mbit}", "1%", True),
        ("{rtt: 80ms, jitter: 1ms, loss: 1%}", "0.1%", True),
        ("{rtt: 80ms, loss: 1%, loss_burst: 4}", "0.1%", True),
        ("{loss: 100%}", "0.1%", True),
        ("{rtt: 80ms, loss: 0.1%}", "0.1%", False),
        ("{rtt: 80ms, loss: 1%}", "2%", False),
    ],
)
def test_a_loss_is_told_from_none_or_it_is_said_that_it_cannot_be(link: str, tolerance: str, told: bool) -> None:
    plan = expanded(f"{{party: {{party: {link}}}}}", count=6, tolerance={"loss": tolerance})
    one = plan["checks"][1]
    steps = [step for step in check.steps_of(one) if step.kind == "ping"]
    assert check.duration(steps) < check.PING_LOSS_MS / 1e3 + 10
    for step in steps:
        assert step.interval >= max(3 * max(p.jitter for p in step.probes), len(step.probes) * check.PING_SPACING_MS)

    def report(lost: float) -> dict[str, t.Any]:
        times = {
            probe.pair: Measured(((None,) * round(lost * step.count) + (80.2,) * step.count)[: step.count])
            for step in steps
            for probe in step.probes
        }
        return check.judge_check(plan, one, times, dict.fromkeys(times, BARE), attempt=1)

    found = [
        check.finding(entry) for pair in report(0)["pairs"] for entry in pair["metrics"] if entry["metric"] == "loss"
    ]
    assert {finding.right for finding in found} == {not told}
    if not told:
        assert (
            found[0].said == f"{steps[0].count} packets and a tolerance of {tolerance[:-1]} % cannot tell it from none"
        )
        assert check.summary({"network-1": report(0)}) == "15 pairs as asked; loss of 15 not told for sure"
        assert steps[0].count == check.PINGS, "what is in vain takes no time"
    asked_for = check.probes_of(one)[0].loss / 100
    good = [entry for pair in report(asked_for)["pairs"] for entry in pair["metrics"] if entry["metric"] == "loss"]
    assert all(entry["right"] for entry in good)


HOSTS = {f"party-{index}": {"address": f"10.0.0.{index + 1}"} for index in range(4)}


def test_a_check_is_a_trial_in_which_every_member_has_its_program() -> None:
    plan = expanded("{party: {party: {rtt: 80ms, rate: 8mbit}}}")
    bare, one = plan["checks"]
    arguments = {"run_id": "run-1", "attempt": 2, "evidence": None}
    composed = check.compose_check(plan, one, HOSTS, **arguments)
    _barrier_call.check(_barrier_call.submission(composed))
    assert (composed["trial_id"], composed["attempt"]) == ("check-network-1", 2)
    assert [member["command"] for member in composed["members"]] == [check.COMMAND] * 4
    assert composed["members"][0]["network"] in composed["networks"]
    assert check.compose_check(plan, bare, HOSTS, **arguments)["networks"] == {}
    program = json.loads(composed["files"]["probes.json"])
    first, second = (program["members"][name] for name in PARTIES[:2])
    ping, rate = first["steps"]
    assert (ping["kind"], list(ping["targets"].values())) == ("ping", PARTIES[1:])
    assert ping["command"][:7] == ["fping", "-q", "-C", "200", "-p", "10", "-i"]
    assert rate["targets"] == {"10.0.0.2": "party-1"}
    assert rate["command"][-6:] == ["--port", "5201", "--client", "10.0.0.2", "--parallel", "6"]
    assert [server[-1] for server in second["servers"]] == ["5201"]
    assert second["until"] > rate["at"] + rate["limit"] - 1


def test_members_without_an_address_are_passed_over() -> None:
    plan = expanded("{party: {party: {rtt: 80ms}}}")
    some = {name: HOSTS[name] for name in PARTIES[:3]}
    composed = check.compose_check(plan, plan["checks"][1], some, run_id="run-1", attempt=1, evidence=None)
    assert composed["seats"] == [{"members": PARTIES[:3], "seats": 3, "least": 2}]
    assert "party-3" not in composed["files"]["probes.json"]
    with pytest.raises(StartlineError, match="check-network-1: no two hosts of network-1 have an address"):
        check.compose_check(plan, plan["checks"][1], {}, run_id="run-1", attempt=1, evidence=None)


def test_the_commands_suit_the_probe() -> None:
    probe = Probe("a", "b", rtt=80, jitter=0, loss=0, rate=10_000_000)
    assert "--udp" not in check.rate_command("10.0.0.2", probe)
    lossy = Probe("a", "b", rtt=80, jitter=1, loss=1, rate=10_000_000, datagrams=True)
    flow = ["--udp", "--bitrate", "15000000", "--pacing-timer", "1000", "--length", "1472"]
    assert check.rate_command("10.0.0.2", lossy)[-7:] == flow
    # Buffers of one connection do not hold what is under way.
    fat = Probe("a", "b", rtt=80, jitter=0, loss=0, rate=1_000_000_000, queue=160)
    assert check.rate_command("10.0.0.2", fat)[-2:] == ["--parallel", "15"]
    # The first windows of several fill the link, however soon each of them ends its slow start.
    far = Probe("a", "b", rtt=110, jitter=0, loss=0, rate=8_000_000)
    assert check.rate_command("10.0.0.2", far)[-2:] == ["--parallel", "8"]
    near = Probe("a", "b", rtt=1, jitter=0, loss=0, rate=8_000_000)
    assert "--parallel" not in check.rate_command("10.0.0.2", near)
    # Two seconds are 42 frames of a slow link, and TCP needs round trips to fill a long one.
    slow = check.rate_command("10.0.0.2", Probe("a", "b", rtt=800, jitter=0, loss=0, rate=256_000))
    assert slow[2:6] == ["--omit", "3", "--time", "5"]


# --- what the tools say -----------------------------------------------------------------------------------------------


def test_fping() -> None:
    text = "ICMP Host Unreachable from 10.0.0.1\n10.0.0.2 : 0.08 - 25.1\n10.0.0.3 : - - -\n"
    assert check.parse_fping(text) == {"10.0.0.2": (0.08, None, 25.1), "10.0.0.3": (None, None, None)}
    with pytest.raises(ProbeError, match="fping: command not found"):
        check.parse_fping("sh: fping: command not found")


#: Of a server that was told late that the test has ended.
RECEIVED = """\
Accepted connection from 127.0.0.1, port 53246
[  5] local 127.0.0.1 port 5999 connected to 127.0.0.1 port 51487
[ ID] Interval           Transfer     Bitrate         Jitter    Lost/Total Datagrams
[  5]   0.00-1.00   sec   976 KBytes  8000 Kbits/sec  0.011 ms  90/637 (14%)  (omitted)
[  5]   0.00-1.00   sec  1.14 MBytes  9590 Kbits/sec  0.015 ms  210/1024 (20%)~
[  5]   1.00-2.00   sec  1.14 MBytes  9610 Kbits/sec  0.013 ms  209/1024 (20%)~
[  5]   2.00-3.00   sec  0.20 MBytes  1710 Kbits/sec  0.013 ms  20/180 (11%)~
[  5]   3.00-3.36   sec  0.00 Bytes  0.00 Kbits/sec  0.013 ms  0/0 (0%)~
- - - - - - - - - - - - - - - - - - - - - - - - -
[ ID] Interval           Transfer     Bitrate         Jitter    Lost/Total Datagrams
[  5]   0.00-3.36   sec  2.49 MBytes  6220 Kbits/sec  0.013 ms  439/2228 (20%)  receiver
""".replace("~", "  ")
UDP = {
    "start": {"test_start": {"protocol": "UDP", "blksize": 1472, "duration": 2}},
    "end": {"sum": {"bits_per_second": 12e6}},
    "server_output_text": RECEIVED,
}


def test_iperf3() -> None:
    assert check.parse_iperf3(json.dumps(UDP)) == pytest.approx(9.6e6 * 1514 / 1472)
    with pytest.raises(ProbeError, match="did not say what it received"):
        check.parse_iperf3(json.dumps({**UDP, "server_output_text": RECEIVED[:200]}))
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


def test_a_sender_that_paused_says_nothing_of_the_link() -> None:
    intervals = [{"sum": {"bits_per_second": rate, "omitted": rate < 5e6}} for rate in (1e6, 18e6, 6e6)]
    with pytest.raises(ProbeError, match=r"sent no more than 6\.171 of 8 Mbit/s"):
        check.parse_iperf3(json.dumps({**UDP, "intervals": intervals}), 8_000_000)


def outputs(**results: list[dict[str, t.Any]]) -> dict[str, str]:
    return {
        name.replace("_", "-"): json.dumps({"format": "startline-probe/1", "results": own})
        for name, own in results.items()
    }


def result(kind: str, target: str, **changes: t.Any) -> dict[str, t.Any]:
    return {"kind": kind, "targets": {"10.0.0.9": target}, "output": "", "errors": "", "problem": None, **changes}


def test_what_the_members_printed_becomes_measurements_or_says_why_not() -> None:
    found = [Probe("a-0", name, rtt=1, jitter=0, loss=0, rate=10**6) for name in ("a-1", "a-2", "a-3")]
    found.append(Probe("a-4", "a-0", rtt=1, jitter=0, loss=0, rate=0))
    said = outputs(
        a_0=[
            result("ping", "a-1", errors="10.0.0.9 : 1.1 - 1.3\n"),
            result("rate", "a-1", output=json.dumps(UDP)),
            result("ping", "a-2", problem="fping was still running after 9 s and was ended"),
            result("rate", "a-2", output='{"error": "unable to connect to server"}'),
        ]
    )
    measured = check.read_outputs(found, said, {"a-3": "did not take part (absent)"})
    good, ended, gone, silent = (measured[probe.pair] for probe in found)
    assert good.round_trips == (1.1, None, 1.3)
    assert good.rate == pytest.approx(9.6e6 * 1514 / 1472)
    assert (good.ping_problem, good.rate_problem) == (None, None)
    assert ended.ping_problem == "fping was still running after 9 s and was ended"
    assert ended.rate_problem == "iperf3: unable to connect to server"
    assert gone.ping_problem == gone.rate_problem == "a-3 did not take part (absent)"
    assert silent.ping_problem == "a-4 printed no measurement"


@pytest.mark.parametrize("text", ["", "[]", "{}", "not JSON", '{"format": "startline-probe/2", "results": []}'])
def test_an_output_that_is_none_is_no_measurement(text: str) -> None:
    probe = asked(rate=1)
    measured = check.read_outputs([probe], {"a": text}, {})[probe.pair]
    assert (measured.round_trips, measured.rate, measured.ping_problem) == ((), None, "a printed no measurement")


def test_who_measured_nothing_is_named_with_the_reason() -> None:
    one = {"members": ["a-0", "a-1", "a-2", "a-3"]}
    rows = {
        "a-0": {"role": "starter", "exit_code": 0, "state": "delivered"},
        "a-1": {"role": "dropped", "exit_code": None, "state": "absent"},
        "a-2": {
            "role": "starter",
            "exit_code": 1,
            "state": "delivered",
            "reason": "startline-agent: barrier probes: ...",
        },
    }
    assert check.absent(one, {"outcome": "completed", "members": rows}) == {
        "a-1": "did not take part (absent)",
        "a-2": "could not measure: startline-agent: barrier probes: ...",
        "a-3": "has no address",
    }
    aborted = check.absent(one, {"outcome": "aborted", "members": rows, "reasons": ["a-1: no netem"]})
    assert aborted == dict.fromkeys(one["members"], "measured nothing: a-1: no netem")


# --- the judgement ----------------------------------------------------------------------------------------------------

BARE = Measured((0.2,) * 100)


def right(probe: Probe, measured: Measured, **kwargs: t.Any) -> dict[str, bool]:
    return {finding.metric: finding.right for finding in check.judge(probe, measured, BARE, **kwargs)}


def asked(**values: t.Any) -> Probe:
    return Probe("a", "b", **{"rtt": 80, "jitter": 0, "loss": 0, "rate": 0, **values})


@pytest.mark.parametrize(("rtt", "expected"), [(80.2, True), (81.7, True), (81.9, False), (78.5, False), (0.2, False)])
def test_a_round_trip_is_compared_without_what_was_there_before(rtt: float, expected: bool) -> None:
    assert right(asked(), Measured((rtt,) * 100))["rtt"] is expected


@pytest.mark.parametrize(
    ("rtt", "expected"), [(0.79, True), (0.81, True), (0.35, True), (1.25, True), (0.25, False), (1.35, False)]
)
def test_where_no_delay_is_asked_for_a_round_trip_may_be_as_much_shorter_as_longer(rtt: float, expected: bool) -> None:
    findings = check.judge(asked(rtt=0, rate=8_000_000), Measured((rtt,) * 100, 8e6), Measured((0.8,) * 100))
    assert {finding.metric: finding.right for finding in findings} == {"rtt": expected, "loss": True, "rate": True}


def test_a_round_trip_may_be_asked_for_as_a_whole() -> None:
    assert right(asked(), Measured((80.0,) * 100), total=True)["rtt"]
    assert not right(asked(), Measured((82.0,) * 100), total=True)["rtt"]
    # Where none is asked for, what is there is not held against the link.
    assert right(asked(rtt=0), Measured((0.2,) * 100), total=True)["rtt"]


def compensated(network: str, bare: float, more: str = "") -> tuple[t.Any, list[str], dict[str, t.Any]]:
    plan = expanded(network, more=more, compensate=True)
    baseline = {probe.pair: Measured((bare,) * 9) for probe in check.probes_of(plan["checks"][0])}
    delays, problems = check.compensation(plan, "network-1", baseline)
    return delays, problems, dict(check.with_delays(plan, "network-1", delays)["networks"]["network-1"])


def test_what_is_there_already_is_taken_from_the_delay() -> None:
    delays, problems, network = compensated(
        "{party: {party: {rtt: 80ms, rate: 1mbit}}, chain: {chain: {rate: 5mbit}}}",
        0.4,
        "timeline: [{at: 1, network: {party: {party: {rtt: 20ms}}}}]\n",
    )
    assert (delays, problems) == ([["39.8ms", None], ["9.8ms", None]], [])
    assert network["links"][0]["shape"] == {"delay": "39.8ms", "rate": "1mbit"}
    assert network["timeline"][0]["links"][0]["shape"]["delay"] == "9.8ms"
    assert network["links"][1]["shape"] == {"rate": "5mbit"}
    # All of it belongs to the one direction that is delayed.
    assert compensated("{party-0: {party-1: {delay: 5ms, oneway: true}}}", 0.4)[0] == [["4.6ms"]]


@pytest.mark.parametrize(
    ("link", "bare", "words"),
    [
        ("{rtt: 1ms}", 1.5, "party-0 to party-1: 500us one way cannot be made of the 750us that are there already"),
        ("{rtt: 10ms, jitter: 2ms}", 6, "no packet can arrive before it is sent"),
    ],
)
def test_more_than_was_asked_for_cannot_be_compensated(link: str, bare: float, words: str) -> None:
    network = f"{{party: {{party: {link}}}}}"
    _delays, problems, _network = compensated(network, bare)
    assert words in problems[0]
    plan = expanded(network, compensate=True)
    report = check.judge_check(plan, plan["checks"][1], {}, {}, attempt=1, problems=problems)
    assert (report["verdict"], report["reasons"]) == ("invalid", problems)


def test_nothing_is_compensated_that_is_not_known_or_not_wanted() -> None:
    plan = expanded("{party: {party: {rtt: 1ms}}}", compensate=True)
    _delays, problems = check.compensation(plan, "network-1", {})
    assert problems == ["party-0 to party-3: what is there already was not measured, so that it cannot be compensated"]
    wanted = expanded("{party: {party: {rtt: 1ms}}}")
    assert check.compensation(wanted, "network-1", {}) == (None, [])
    assert check.with_delays(wanted, "network-1", None) is wanted


UNIFORM = tc.parse_shape({"delay": "20ms", "jitter": "5ms", "distribution": "uniform"})[0]


def test_nothing_measured_is_not_right() -> None:
    assert right(asked(rate=10**6, jitter=1), Measured((None,) * 100)) == {
        "rtt": False, "jitter": False, "loss": False, "rate": False,
    }  # fmt: skip


@pytest.mark.parametrize(("sigma", "expected"), [(2.0, True), (0.0, False), (4.0, False)])
def test_jitter(sigma: float, expected: bool) -> None:
    noise = random.Random(1)  # noqa: S311
    measured = Measured(tuple(noise.gauss(80.2, sigma) for _number in range(200)))
    assert right(asked(jitter=2), measured)["jitter"] is expected


@pytest.mark.parametrize(("width", "expected"), [(5 * 3**0.5, True), (5.0, False)])
def test_the_width_of_a_uniform_distribution_is_not_its_deviation(width: float, expected: bool) -> None:
    """Taken for each other, it would vary by 0.58 of what was asked."""
    probe = check._probe(("a", "b"), UNIFORM, tc.Shape(), pinged=True, rated=False)
    noise = random.Random(1)  # noqa: S311
    right = 0
    for _network in range(50):
        measured = Measured(tuple(20.2 + noise.uniform(-width, width) for _number in range(100)))
        right += {f.metric: f.right for f in check.judge(probe, measured, BARE, of=3)}["jitter"]
    assert right >= 49 if expected else right <= 10


def test_the_sum_of_two_uniform_distributions_is_a_triangle() -> None:
    assert check._kurtosis(UNIFORM, tc.Shape()) == pytest.approx(1.8)
    assert check._kurtosis(UNIFORM, UNIFORM) == pytest.approx(2.4)
    assert check._kurtosis(tc.Shape()) == 3


def test_a_hiccup_of_the_host_is_no_jitter() -> None:
    noise = random.Random(1)  # noqa: S311
    times = [noise.gauss(80.2, 1) for _number in range(196)]
    assert right(asked(jitter=1), Measured((*times, 130.0, 140.0, 150.0)))["jitter"]
    assert not right(asked(jitter=1), Measured(tuple(noise.gauss(80.2, 3) for _number in range(200))))["jitter"]


def test_a_hiccup_before_the_rules_came_takes_nothing_from_the_jitter() -> None:
    noise = random.Random(1)  # noqa: S311
    measured = Measured(tuple(noise.gauss(80.2, 1) for _number in range(200)))
    for bare in ((0.2,) * 99 + (60.0,), (0.2,) * 97 + (30.0, 40.0, 50.0)):
        findings = check.judge(asked(jitter=1), measured, Measured(bare))
        assert all(finding.right for finding in findings)


@pytest.mark.parametrize(
    ("percent", "packets", "lost", "expected"),
    [
        (0, 200, 0, True), (0, 200, 1, True), (0, 200, 4, False), (1, 1000, 10, True), (1, 1000, 0, False),
        (1, 1000, 22, False), (100, 200, 200, True), (100, 200, 199, True), (100, 200, 90, False), (50, 200, 75, False),
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


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("{rtt: 80ms}", 6),
        ("{rtt: 80ms, rate: 8mbit}", 6),
        ("{rtt: 80ms, jitter: 1ms}", 18),
        ("{rtt: 80ms, jitter: 1ms, loss: 100%}", 6),
    ],
)
def test_what_chance_explains_is_shared_by_all_findings_that_it_has_a_part_in(link: str, expected: int) -> None:
    plan = expanded(f"{{party: {{party: {link}}}}}")
    found = check.probes_of(plan["checks"][1])
    assert check.by_chance(found) == expected
    times = Measured((80.2,) * 199 + (None,))
    report = check.judge_check(plan, plan["checks"][1], {probe.pair: times for probe in found}, {}, attempt=1)
    high = next(entry["high"] for entry in report["pairs"][0]["metrics"] if entry["metric"] == "loss")
    assert high == check.loss_interval(found[0].loss, 200, 0.1, tail=check.TAIL / expected)[1]


def test_of_many_right_pairs_few_are_called_wrong() -> None:
    one, many = (check.loss_interval(1, 200, 0, tail=check.TAIL / of) for of in (1, 45))
    assert many[1] > one[1]
    noise = random.Random(3)  # noqa: S311
    wrong = 0
    for _network in range(40):
        for _pair in range(45):
            measured = Measured(tuple(noise.gauss(80.2, 2) for _number in range(100)))
            wrong += not all(finding.right for finding in check.judge(asked(jitter=2), measured, BARE, of=3 * 45))
    assert wrong <= 2


NETWORK = "{party: {party: {rtt: 80ms, rate: 8mbit}}}"


def reported(rtt: float = 80.2, rate: float | None = 8e6, **key: t.Any) -> dict[str, t.Any]:
    """A report in which one pair has another round trip than the others, and one direction another rate."""
    plan = expanded(NETWORK, **key)
    measured = {
        probe.pair: Measured((rtt if probe.pair == ("party-0", "party-1") else 80.2,) * 100, 8e6)
        for probe in check.probes_of(plan["checks"][1])
    }
    measured["party-3", "party-2"] = Measured((), rate, "no", None if rate else "iperf3: it was busy")
    baseline = {probe.pair[::-1]: BARE for probe in check.probes_of(plan["checks"][0])}
    return check.judge_check(plan, plan["checks"][1], measured, baseline, attempt=3)


def test_a_report_names_pair_metric_and_numbers() -> None:
    good = reported()
    assert (good["verdict"], good["reasons"]) == ("valid", [])
    assert (good["format"], good["network"]) == ("startline-network/1", "network-1")
    assert good["check"] == {"trial_id": "check-network-1", "attempt": 3, "again": 0}
    assert json.loads(json.dumps(good)) == good
    off = reported(rtt=40.2, rate=None)
    assert off["verdict"] == "degraded"
    assert off["reasons"] == [
        "party-3 to party-2: rate could not be measured (iperf3: it was busy)",
        "party-0 to party-1: rtt: 80 ms asked, 40 ms measured (78.4 to 81.6 ms is right)",
    ]
    assert reported(rtt=40.2, on_deviation="refuse")["verdict"] == "invalid"
    assert reported(rtt=81.9, tolerance={"rtt": "5%"})["verdict"] == "valid"
    assert check.summary({"network-1": good}) == "6 pairs as asked"
    assert check.summary({"network-1": off}).startswith("2 of 6 pairs off: party-3 to party-2: rate could not be")


def test_a_verdict_follows_from_the_findings_alone() -> None:
    off = reported(rtt=40.2)
    assert check.verdict({**off, "verdict": "valid", "reasons": []}) == {
        "verdict": off["verdict"], "reasons": off["reasons"],
    }  # fmt: skip
    for broken in ({}, {**off, "pairs": [{}]}, {**off, "pairs": None}, {**off, "pairs": [{"metrics": [{"x": 1}]}]}):
        with pytest.raises(ProbeError, match="cannot be read"):
            check.verdict(broken)


def test_a_trial_has_the_pairs_of_its_members() -> None:
    plan = expanded(NETWORK)
    trial = {"network": "network-1", "members": PARTIES[:2]}
    own = check.for_trial(plan, {**trial, "members": PARTIES[2:]}, {"network-1": reported(rtt=40.2)})
    assert own is not None
    assert (own["verdict"], {pair["from"] for pair in own["pairs"]}) == ("valid", {"party-2", "party-3"})
    whole = check.for_trial(plan, {**trial, "members": ["party-0", "chain-0"]}, {"network-1": reported()})
    assert whole == reported(), "what was measured between others says something of the network"
    assert check.for_trial(plan, {**trial, "network": None}, {}) is None
    never = check.for_trial(plan, trial, {})
    assert never is not None
    assert never["verdict"] == "degraded"
    assert "could not be measured (not measured)" in never["reasons"][0]


def test_what_is_off_is_measured_once_more() -> None:
    plan = expanded(NETWORK)
    assert check.off(plan["checks"][1], reported()) is None
    again = check.off(plan["checks"][1], reported(rtt=40.2, rate=None))
    assert again is not None
    first, second = check.probes_of(again)
    assert names([first, second]) == [("party-0", "party-1"), ("party-3", "party-2")]
    assert (first.pinged, first.rated, second.pinged, second.rated) == (True, False, False, True)
    later = {first.pair: Measured((40.0,), None, None, "no"), second.pair: Measured((), 5e6, "no", None)}
    before = {first.pair: Measured((80.0,), 2e6), second.pair: Measured((40.1,), 3e6), ("a", "b"): Measured((1.0,))}
    assert check.renewed(before, again, later) == {
        first.pair: Measured((40.0,), 2e6),
        second.pair: Measured((40.1,), 5e6),
        ("a", "b"): Measured((1.0,)),
    }


def test_rates_are_measured_again_one_by_one_and_three_times_at_most() -> None:
    plan = expanded("{party: {party: {delay: 1ms, rate: 10mbit}}}", count=4)
    network = check.judge_check(plan, plan["checks"][1], {}, {}, attempt=1)
    found = [check.off(plan["checks"][1], network, before) for before in range(4)]
    assert found[3] is None
    assert found[0] is not None
    assert any(probe["pinged"] for probe in found[0]["probes"])
    for again in found[1:3]:
        assert again is not None
        steps = check.steps_of(again)
        assert {step.kind for step in steps} == {"rate"}, "pings have limits of chance: they are asked again once"
        assert len({step.at for step in steps}) == len(steps) == 4
    together = [step for step in check.steps_of(plan["checks"][1]) if step.kind == "rate"]
    assert len({step.at for step in together}) < len(together)


@pytest.mark.parametrize(
    ("link", "pace"), [({}, 10), ({"queue": "6ms"}, 3), ({"queue": "1ms"}, 1), ({"delay": "90ms"}, 10)]
)
def test_the_queue_of_a_rate_does_not_run_empty_between_two_bursts(link: dict[str, str], pace: float) -> None:
    [rule] = tc.parse_rules([{"to": ["10.0.0.2"], "rate": "8mbit", "loss": "1%", **link}])
    [back] = tc.parse_rules([{"to": ["10.0.0.1"], "rate": "1mbit", "queue": "2s"}])
    probe = check._probe(("a", "b"), rule.shape, back.shape, True, True)
    command = check.rate_command("10.0.0.2", probe)
    assert command[command.index("--pacing-timer") + 1] == f"{pace * 1000:g}"


def test_a_report_of_many_deviations_has_few_reasons() -> None:
    plan = expanded("{party: {party: {rtt: 80ms}}}", count=9)
    report = check.judge_check(plan, plan["checks"][1], {}, {}, attempt=1)
    assert len(report["reasons"]) == 11
    assert report["reasons"][-1] == "26 more pairs of the network are off"


# --- corrupted, doubled, overtaking: on a real kernel -----------------------------------------------------------------

#: What a shape does to pings of one direction of a round trip. `HALVES` are the shapes; without rules, then with each.
PROGRAM = r"""
import json, subprocess
from ansible_collections.startline.lab.plugins.module_utils._netem import parse_rules
from ansible_collections.startline.lab.plugins.module_utils._netem_host import Host

def run(command, text):
    p = subprocess.run(command, input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return p.returncode, p.stdout, p.stderr

def ping():
    done = subprocess.run("fping -C 700 -p 8 -t 900 -q 10.9.0.2", shell=True, stderr=subprocess.PIPE, text=True)
    return done.stderr

found = [ping()]
for shape in HALVES:
    Host(run).ensure(parse_rules([{"to": ["10.9.0.2"], **shape}]))
    found.append(ping())
print(json.dumps(found))
"""
HALVES: list[dict[str, str]] = [
    {"delay": "20ms"},
    {"delay": "20ms", "corrupt": "4%"},
    {"delay": "20ms", "reorder": "25%"},
    {"delay": "20ms", "duplicate": "20%"},
    {"delay": "20ms", "duplicate": "50%", "loss": "10%"},
]


@pytest.fixture(scope="module")
def seen() -> list[Measured]:
    """What fping saw without rules, and with each of `HALVES`."""
    outputs = json.loads(uml.run(f"HALVES = {HALVES!r}\n{PROGRAM}"))
    return [Measured(check.parse_fping(text)["10.9.0.2"]) for text in outputs]


@pytest.mark.skipif(bool(uml.missing()), reason=uml.missing())
@pytest.mark.parametrize("number", range(1, len(HALVES) + 1))
def test_what_was_asked_is_right_on_a_real_kernel_and_the_delay_alone_is_not(number: int, seen: list[Measured]) -> None:
    """That packets come twice shows only in what else is asked for: fping takes the first answer."""
    shape = tc.parse_shape(HALVES[number - 1])[0]
    wanted = check._probe(("a", "b"), shape, tc.Shape(), pinged=True, rated=True)

    def judged(measured: Measured) -> dict[str, bool]:
        # So little is left to chance that a test never meets it.
        return {finding.metric: finding.right for finding in check.judge(wanted, measured, seen[0], of=1000)}

    assert judged(seen[number]) == {"rtt": True, "loss": True}
    assert not judged(seen[0])["rtt"], "without rules"
    alone = judged(seen[1])
    assert alone == {"rtt": not shape.reorder, "loss": not (shape.corrupt or shape.loss)}


def test_what_is_not_delayed_corrupted_or_doubled_is_in_what_is_expected() -> None:
    shape = tc.parse_shape({"delay": "20ms", "jitter": "1ms", "reorder": "25%", "rate": "10mbit", "corrupt": "2%"})[0]
    probe = check._probe(("a", "b"), shape, shape, pinged=True, rated=True)
    assert (probe.rtt, probe.jitter, probe.skewed) == (30, 0, True)
    assert probe.wander == pytest.approx((2 * (20**2 * 0.25 * 0.75 + 1)) ** 0.5)
    assert probe.loss == pytest.approx(100 - (100 - 2 * 92 / 98) ** 2 / 100)
    assert "--udp" in check.rate_command("10.0.0.2", probe)
    (rate,) = [f for f in check.judge(probe, Measured(rate=9.8e6), Measured()) if f.metric == "rate"]
    assert (rate.asked, rate.right) == (9.8e6, True)
    doubled = check._probe(("a", "b"), tc.parse_shape({"loss": "10%", "duplicate": "50%"})[0], tc.Shape(), True, True)
    assert (doubled.loss, doubled.datagrams) == (pytest.approx(5), True)


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_much_jitter_makes_no_right_link_wrong(distribution: str) -> None:
    """The round trip of 200 pings, in 400 networks: one of a hundred may be called wrong."""
    shape = tc.parse_shape({"delay": "40ms", "jitter": "8ms", "distribution": distribution})[0]
    probe = check._probe(("a", "b"), shape, tc.Shape(), pinged=True, rated=False)
    chance = random.Random(7)  # noqa: S311
    width = 8 * 3**0.5

    def trip() -> float:
        return 40 + (chance.gauss(0, 8) if distribution == "normal" else chance.uniform(-width, width))

    bare = Measured((0.0,) * 200)
    wrong = 0
    for _network in range(400):
        seen = Measured(tuple(trip() for _ping in range(200)))
        findings = {f.metric: f for f in check.judge(probe, seen, bare, check.Tolerance(rtt=0, rtt_ms=0))}
        wrong += not findings["rtt"].right
    assert wrong <= 10
