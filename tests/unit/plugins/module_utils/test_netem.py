# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules in, tc out: what is refused, what is computed, and where a packet ends up."""

from __future__ import annotations

import ipaddress
import re
import typing as t

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.startline.lab.plugins.module_utils import _netem
from ansible_collections.startline.lab.plugins.module_utils._netem import Device, NetemError, Shape

ETH0 = Device("eth0")


def compiled(*rules: dict[str, t.Any], device: Device = ETH0, exempt: t.Sequence[t.Any] = ()) -> list[str]:
    return _netem.compile_device(device, _netem.parse_rules(rules), _netem.parse_exemptions(exempt))


def leaf(**shape: t.Any) -> str:
    """The qdisc of the only class."""
    lines = [
        line for line in compiled({"to": ["10.0.0.2"], **shape}) if line.startswith("qdisc add") and "root" not in line
    ]
    assert len(lines) == 1
    return lines[0].partition("handle 1: ")[2]


def htb(**shape: t.Any) -> dict[str, int]:
    """The numbers of the only class."""
    (line,) = [line for line in compiled({"to": ["10.0.0.2"], **shape}) if line.startswith("class")]
    return {name: int(value) for name, value in re.findall(r"(rate|ceil|burst|cburst|quantum) (\d+)", line)}


# --- quantities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "nanoseconds"), [("40ms", 40_000_000), ("0.25 ms", 250_000), ("250us", 250_000), ("1.5s", 1_500_000_000)]
)
def test_times(text: str, nanoseconds: int) -> None:
    assert _netem.parse_time(text) == nanoseconds


@pytest.mark.parametrize(
    ("text", "bits"), [("200mbit", 200_000_000), ("1Gbit/s", 10**9), ("64 kbit", 64_000), ("8000bit", 8000)]
)
def test_rates(text: str, bits: int) -> None:
    assert _netem.parse_rate(text) == bits


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("delay", "40", "has no unit: write 40ms"),
        ("delay", 40, "has no unit: write 40ms"),
        ("delay", "-40ms", "is negative"),
        ("delay", "40 minutes", "is not a time"),
        ("delay", "80s", "more than a minute"),
        ("rate", "200", "has no unit: write 200mbit"),
        ("rate", "200mbps", "bps is bytes to tc and bits to people: write mbit"),
        ("rate", "0mbit", "is not between 8kbit and 400gbit"),
        ("rate", "1000gbit", "is not between 8kbit and 400gbit"),
        ("loss", "0.1", "has no unit: write 0.1%"),
        ("loss", "101%", "more than all packets"),
        ("loss", "-1%", "is negative"),
        ("distribution", "gauss", "is not one of normal, pareto, paretonormal, uniform"),
        ("loss_burst", "0", "is not a number of packets above 1"),
    ],
)
def test_a_wrong_quantity_says_what_to_write(key: str, value: t.Any, message: str) -> None:
    with pytest.raises(NetemError, match=re.escape(message)) as caught:
        compiled({"to": ["10.0.0.2"], key: value})
    assert str(caught.value).startswith(f"rules[0].{key}: ")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"jitter": "1ms"}, "jitter needs a delay"),
        ({"delay": "3ms", "jitter": "1.1ms"}, "has room for a jitter of 1ms (normal)"),
        ({"delay": "1ms", "jitter": "1ms", "distribution": "uniform"}, "has room for a jitter of 577.35us (uniform)"),
        ({"reorder": "1%"}, "reorder needs a delay"),
        ({"queue": "1ms"}, "queue needs a rate"),
        ({"loss_burst": 4}, "loss_burst needs a loss"),
        ({"loss": "100%", "loss_burst": 4}, "bursts of 4 packets cannot lose 100%"),
    ],
)
def test_what_does_not_go_together_is_refused(shape: dict[str, t.Any], message: str) -> None:
    with pytest.raises(NetemError, match=re.escape(message)):
        compiled({"to": ["10.0.0.2"], **shape})


def test_all_problems_come_at_once() -> None:
    with pytest.raises(NetemError) as caught:
        compiled({"to": ["10.0.0.2"], "delay": "1", "rate": "2"}, {"to": ["10.0.0.2", "x"], "loss": "3"}, {"to": []})
    text = str(caught.value)
    for part in (
        "rules[0].delay",
        "rules[0].rate",
        "10.0.0.2 is in rules[0] already",
        "x is not",
        "rules[1].loss",
        "rules[2].to",
    ):
        assert part in text


times = st.integers(0, 60_000_000).map(lambda microseconds: microseconds * 1000)
percents = st.integers(0, 9_999).map(lambda number: number / 100)


@given(
    st.builds(
        Shape, delay=times, loss=percents, rate=st.one_of(st.just(0), st.integers(8000, 400 * 10**9)),
        corrupt=percents, duplicate=percents, queue=st.one_of(st.none(), times),
    )
)  # fmt: skip
def test_a_shape_is_read_as_it_is_shown(shape: Shape) -> None:
    again, problems = _netem.parse_shape(shape.as_dict())
    assert not [message for key, message in problems if key != "queue"]
    assert again == shape


# --- the numbers ------------------------------------------------------------------------------------------------------


def test_a_small_share_is_shown_as_it_is_read() -> None:
    shape, problems = _netem.parse_shape({"loss": "0.00001%"})
    assert not problems
    assert shape.as_dict() == {"loss": "0.00001%"}


@pytest.mark.parametrize(
    ("shape", "classes"),
    [({"loss": "1%"}, 1), ({"loss": "1%", "loss_burst": 4}, 3), ({"loss": "1%", "loss_burst": 4, "rate": "1mbit"}, 1)],
)
def test_bursts_of_losses_are_of_each_peer(shape: dict[str, t.Any], classes: int) -> None:
    """But for those that share a queue for their rate."""
    lines = compiled({"to": ["10.0.0.2", "10.0.0.3", "10.0.1.0/24"], **shape})
    assert sum(line.startswith("class") for line in lines) == classes
    targets = {line.rpartition("flowid ")[2] for line in lines if "flowid" in line}
    assert targets == {f"57a1:{number}" for number in range(1, classes + 1)}


UPLINK = {"rate": "30mbit", "rate_group": "uplink"}


def test_rules_of_a_rate_group_have_one_rate_together() -> None:
    lines = compiled(
        {"to": ["10.0.0.2"], "delay": "5ms", **UPLINK},
        {"to": ["10.0.0.3"], "delay": "60ms", **UPLINK},
        {"to": ["10.0.0.4"], **UPLINK},
        {"to": ["10.0.0.5"], "rate": "30mbit"},
    )
    classes = [re.findall(r"parent (\S+) classid (\S+) htb rate (\d+)bit ceil (\d+)bit", line) for line in lines]
    assert [found[0] for found in classes if found] == [
        ("57a1:", "57a1:1", "30000000", "30000000"),
        ("57a1:1", "57a1:2", "10000000", "30000000"),
        ("57a1:1", "57a1:3", "10000000", "30000000"),
        ("57a1:1", "57a1:4", "10000000", "30000000"),
        ("57a1:", "57a1:5", "30000000", "30000000"),
    ]
    # The packets are those of the classes below; a leaf at the first would be nobody's.
    assert [line.split()[5] for line in lines if line.startswith("qdisc") and " parent " in line] == [
        "57a1:2", "57a1:3", "57a1:4", "57a1:5",
    ]  # fmt: skip
    assert [classify(lines, f"10.0.0.{number}") for number in range(2, 6)] == [
        "57a1:2", "57a1:3", "57a1:4", "57a1:5",
    ]  # fmt: skip


def test_one_rule_alone_has_the_rate_of_its_group_to_itself() -> None:
    """On this device: the others' addresses may be behind another."""
    assert compiled({"to": ["10.0.0.2"], **UPLINK}) == compiled({"to": ["10.0.0.2"], "rate": "30mbit"})


def test_both_directions_may_have_a_group_of_one_name() -> None:
    rules = _netem.parse_rules(
        [
            {"to": ["10.0.0.2"], "direction": direction, "rate": rate, "rate_group": "uplink"}
            for direction, rate in (("egress", "1mbit"), ("ingress", "5mbit"))
        ]
    )
    assert [str(rule) for rule in rules] == [
        "to 10.0.0.2: rate 1mbit shared as uplink",
        "from 10.0.0.2: rate 5mbit shared as uplink",
    ]


def test_what_shares_a_rate_has_one() -> None:
    with pytest.raises(NetemError) as caught:
        compiled(
            {"to": ["10.0.0.2"], "delay": "5ms", **UPLINK},
            {"to": ["10.0.0.3"], "rate": "20mbit", "rate_group": "uplink"},
            {"to": ["10.0.0.4"], "delay": "5ms", "rate_group": "uplink"},
        )
    text = str(caught.value)
    assert "rules[1].rate: 20mbit shares its rate with rules[0], which has 30mbit" in text
    assert "rules[2].rate_group: uplink needs a rate" in text


def test_a_shared_rate_changes_in_place() -> None:
    def lines(rate: str) -> list[str]:
        group = {"rate": rate, "rate_group": "uplink"}
        return compiled({"to": ["10.0.0.2"], "delay": "5ms", **group}, {"to": ["10.0.0.3"], **group})

    moves = _netem.transition(lines("30mbit"), lines("20mbit"))
    assert moves is not None
    assert [line.split()[:2] for line in moves] == [
        ["class", "change"], ["class", "change"], ["qdisc", "change"], ["class", "change"], ["qdisc", "change"],
    ]  # fmt: skip


def test_no_rules_are_no_commands() -> None:
    assert compiled(exempt=_netem.DEFAULT_EXEMPT) == []
    assert compiled({"to": ["10.0.0.2"], "delay": "0ms", "loss": "0%"}, exempt=_netem.DEFAULT_EXEMPT) == []


def test_a_delay_alone() -> None:
    assert compiled({"to": ["10.0.0.2"], "delay": "40ms"}) == [
        "qdisc add dev eth0 root handle 57a1: htb default 0",
        "class add dev eth0 parent 57a1: classid 57a1:1 htb "
        "rate 100000000000bit ceil 100000000000bit burst 12500000 cburst 12500000 quantum 60000",
        "qdisc add dev eth0 parent 57a1:1 handle 1: netem limit 195313 delay 40000us",
        "filter add dev eth0 parent 57a1: protocol ip prio 2 handle 2: u32 divisor 256",
        "filter add dev eth0 parent 57a1: protocol ip prio 2 u32 ht 2:2: match ip dst 10.0.0.2/32 flowid 57a1:1",
        "filter add dev eth0 parent 57a1: protocol ip prio 2 u32 match u32 0 0 at 0 hashkey mask 0x000000ff at 16 link 2:",
    ]


@pytest.mark.parametrize("rate", ["8kbit", "1mbit", "10mbit", "100mbit", "1gbit", "10gbit", "100gbit"])
def test_a_burst_is_a_millisecond_and_two_frames_at_least(rate: str) -> None:
    numbers = htb(rate=rate)
    bits = _netem.parse_rate(rate)
    assert numbers["rate"] == numbers["ceil"] == bits
    assert numbers["burst"] == numbers["cburst"] == max(2 * 1514, bits // 8000)
    # Outside these HTB warns and takes its own.
    assert 1000 < numbers["quantum"] < 200_000
    assert numbers["quantum"] >= 1514


def test_jumbo_frames_fit() -> None:
    (line,) = [
        line
        for line in compiled({"to": ["10.0.0.2"], "rate": "1mbit"}, device=Device("eth0", mtu=9001))
        if line.startswith("class")
    ]
    assert "burst 18030 cburst 18030 quantum 9015" in line


@pytest.mark.parametrize(
    ("rate", "delay"), [("1mbit", "10ms"), ("100mbit", "100ms"), ("1gbit", "100ms"), ("10gbit", "1ms"), ("1gbit", "1s")]
)
def test_a_queue_holds_what_is_under_way_and_a_round_trip_more(rate: str, delay: str) -> None:
    found = re.search(r"limit (\d+)", leaf(rate=rate, delay=delay))
    assert found
    seconds = _netem.parse_time(delay) / 1e9
    wanted = _netem.parse_rate(rate) * (seconds + max(2 * seconds, 0.05)) / 8 / 1514
    assert max(wanted, 16) <= int(found[1]) <= max(wanted, 16) + 1


def test_a_queue_can_be_chosen() -> None:
    assert leaf(rate="100mbit", queue="10ms") == f"bfifo limit {83 * 1514}"
    assert leaf(rate="100mbit", delay="10ms", queue="10ms").startswith("netem limit 166 ")


def test_a_rate_alone_needs_no_netem() -> None:
    assert leaf(rate="1mbit") == f"bfifo limit {16 * 1514}"


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"jitter": "1ms"}, "40000us 1000us distribution normal rate 32gbit"),
        ({"jitter": "1ms", "distribution": "uniform"}, "40000us 1732.051us rate 32gbit"),
        ({"jitter": "1ms", "distribution": "pareto"}, "40000us 1219.959us distribution pareto rate 32gbit"),
        ({"jitter": "1ms", "reorder": "2%"}, "40000us 1000us distribution normal reorder 2%"),
        ({"loss": "0.1%"}, "40000us loss 0.1%"),
        ({"loss": "20%", "loss_burst": 4}, "40000us loss gemodel 6.25% 25%"),
        ({"corrupt": "1%", "duplicate": "2%"}, "40000us corrupt 1% duplicate 2%"),
    ],
)
def test_what_netem_is_told(shape: dict[str, t.Any], words: str) -> None:
    assert leaf(delay="40ms", **shape).endswith(f" delay {words}")


@pytest.mark.parametrize(
    ("shapes", "segments"),
    [
        ([], 0), ([{"delay": "1ms"}], 0), ([{"rate": "1gbit"}], 0), ([{"rate": "100mbit"}], 8), ([{"rate": "1mbit"}], 1),
        ([{"rate": "1gbit"}, {"rate": "50mbit"}], 4), ([{"rate": "1gbit", "loss": "1%"}], 1),
    ],
)  # fmt: skip
def test_packets_are_cut_up_where_their_size_would_show(shapes: list[dict[str, str]], segments: int) -> None:
    rules = _netem.parse_rules([{"to": [f"10.0.0.{index}"], **shape} for index, shape in enumerate(shapes)])
    assert _netem.largest_packet(ETH0, rules) == segments


def test_a_rate_beyond_the_device_is_refused() -> None:
    with pytest.raises(NetemError, match="the rate 10gbit is more than the 1gbit of eth0"):
        compiled({"to": ["10.0.0.2"], "rate": "10gbit"}, device=Device("eth0", speed=10**9))


# --- which class a packet gets ----------------------------------------------------------------------------------------


def classify(lines: t.Sequence[str], packet: str, protocol: int = 6, dport: int = 0, sport: int = 0) -> str:
    """What u32 does with a packet, by the commands alone: the flow it gets, or `none`."""
    address = int(ipaddress.IPv4Address(packet))
    filters = [line for line in lines if line.startswith("filter")]

    def matches(line: str) -> bool:
        for field, value, mask in re.findall(r"match ip (protocol|dport|sport) (\d+) (0x[0-9a-f]+)", line):
            actual = {"protocol": protocol, "dport": dport, "sport": sport}[field]
            if actual & int(mask, 16) != int(value):
                return False
        network = re.search(r"match ip dst (\S+)", line)
        return network is None or ipaddress.IPv4Address(packet) in ipaddress.IPv4Network(network[1])

    def flow(line: str) -> str:
        return line.rpartition(" flowid ")[2]

    for prio in (1, 2, 3):
        for line in [
            line for line in filters if f" prio {prio} " in line and " ht " not in line and "divisor" not in line
        ]:
            link = re.search(r"hashkey mask (0x[0-9a-f]{8}) at 16 link 2:", line)
            if link:
                mask = int(link[1], 16)
                bucket = (address & mask) >> ((mask & -mask).bit_length() - 1) & 0xFF
                for entry in filters:
                    if f" ht 2:{bucket:x}: " in entry and matches(entry):
                        return flow(entry)
            elif matches(line):
                return flow(line)
    return "none"


addresses = st.integers(0, 2**16 - 1).map(lambda n: str(ipaddress.IPv4Address("10.77.0.0") + n))
shapes = st.sampled_from([{"delay": "10ms"}, {"delay": "20ms"}, {"rate": "1mbit"}, {"delay": "10ms", "loss": "1%"}])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(addresses, shapes, min_size=1, max_size=40), st.lists(addresses, max_size=20))
def test_every_peer_gets_its_shape_and_nobody_else_any(peers: dict[str, dict[str, str]], others: list[str]) -> None:
    lines = compiled(*({"to": [address], **shape} for address, shape in peers.items()))
    assert lines == compiled(*({"to": [address], **shape} for address, shape in peers.items()))
    leaves = {}
    for line in lines:
        found = re.match(r"qdisc add dev eth0 parent (57a1:[0-9a-f]+) handle \S+ (.*)", line)
        if found:
            leaves[found[1]] = found[2]
    for address, shape in peers.items():
        assert leaves[classify(lines, address)] == leaf(**shape)
    for address in set(others) - set(peers):
        assert classify(lines, address) == "none"
    # Equal delays share a class; a rate is never shared by accident.
    rates = sum("rate" in shape for shape in peers.values())
    assert len(leaves) == rates + len({tuple(shape.items()) for shape in peers.values() if "rate" not in shape})


def test_the_longest_prefix_wins() -> None:
    lines = compiled(
        {"to": ["10.0.0.0/8"], "delay": "1ms"},
        {"to": ["10.1.0.0/16"], "delay": "2ms"},
        {"to": ["10.1.1.1"], "delay": "3ms"},
    )
    found = [classify(lines, packet) for packet in ("10.2.0.1", "10.1.0.1", "10.1.1.1", "11.0.0.1")]
    assert found == ["57a1:1", "57a1:2", "57a1:3", "none"]


@pytest.mark.parametrize(
    ("protocol", "dport", "sport", "flow"),
    [
        (6, 22, 50000, "57a1:0"), (6, 50000, 22, "57a1:0"), (17, 53, 5000, "57a1:0"), (6, 53, 5000, "57a1:0"),
        (17, 123, 123, "57a1:0"), (6, 123, 123, "57a1:1"), (6, 80, 5000, "57a1:1"), (17, 22, 22, "57a1:1"),
    ],
)  # fmt: skip
def test_the_way_in_names_and_time_are_never_shaped(protocol: int, dport: int, sport: int, flow: str) -> None:
    lines = compiled({"to": ["10.0.0.2"], "delay": "1s"}, exempt=_netem.DEFAULT_EXEMPT)
    assert classify(lines, "10.0.0.2", protocol, dport, sport) == flow


def test_exemptions_that_no_rule_could_touch_cost_nothing() -> None:
    exempt = [{"address": "169.254.169.254"}, {"address": "10.0.0.2", "protocol": "tcp", "port": 7001}]
    lines = compiled({"to": ["10.0.0.2"], "delay": "1ms"}, exempt=exempt)
    assert not any("169.254" in line for line in lines)
    assert classify(lines, "10.0.0.2", 6, 7001) == "57a1:0"
    assert classify(lines, "10.0.0.2", 6, 7002) == "57a1:1"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"address": "x"}, "exempt[0].address: x is not"),
        ({"port": 22}, "a port goes with its protocol"),
        ({"protocol": "icmp", "port": 1}, "icmp is not tcp or udp"),
        ({}, "names neither an address nor a port"),
    ],
)
def test_wrong_exemptions(value: dict[str, t.Any], message: str) -> None:
    with pytest.raises(NetemError, match=re.escape(message)):
        compiled(exempt=[value])


def test_class_ids_are_hexadecimal_and_buckets_stay_small() -> None:
    rules = [{"to": [f"10.{site}.0.{host}"], "rate": "1mbit"} for site in range(100, 140) for host in range(4, 12)]
    lines = compiled(*rules)
    assert sum(line.startswith("class") for line in lines) == 320
    assert any(" classid 57a1:140 " in line for line in lines)
    buckets = re.findall(r"ht 2:([0-9a-f]+):", "\n".join(lines))
    # By the second octet 8 a bucket; by the last one, which is the habit, it would be 40.
    assert max(map(buckets.count, buckets)) == 8
    assert classify(lines, "10.139.0.11") == "57a1:140"


def test_more_classes_than_a_device_has_are_refused() -> None:
    rules = [
        {"to": [str(ipaddress.IPv4Address("10.0.0.0") + n)], "rate": "1mbit"} for n in range(_netem.MAX_CLASSES + 1)
    ]
    with pytest.raises(NetemError, match="22,433 different links on eth0"):
        compiled(*rules)


def test_rules_in_words() -> None:
    (rule,) = _netem.parse_rules(
        [
            {
                "to": ["10.0.0.9", "10.0.0.3", "10.0.0.2", "10.1.0.0/16"],
                "delay": "40ms",
                "jitter": "0.5ms",
                "loss": "1%",
                "rate": "5mbit",
            }
        ]
    )
    assert str(rule) == "to 10.0.0.2-10.0.0.3, 10.0.0.9, 10.1.0.0/16: delay 40ms +- 500us (normal), loss 1%, rate 5mbit"
