# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses and rules of the local cloud's network."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from localcloud import network
from localcloud.network import Port, Vpc

CIDR = IPv4Network("10.77.0.0/16")
SUBNET = IPv4Network("10.77.1.0/24")


def port(last: int, public: str | None = None, egress: bool = False) -> Port:
    return Port(
        instance=f"i-{last:02x}{0:015x}",
        subnet="subnet-0123456789abcdef0",
        network=SUBNET,
        address=SUBNET.network_address + last,
        public=IPv4Address(public) if public else None,
        egress=egress,
    )


def vpc(*ports: Port) -> Vpc:
    return Vpc("vpc-0123456789abcdef0", CIDR, IPv4Network("198.19.255.4/31"), {p.instance: p for p in ports})


def test_names_fit_an_interface_and_tell_hosts_apart() -> None:
    names = {name for p in (port(4), port(5)) for name in (p.interface, p.bridge)} | {vpc().interface}
    assert len(names) == 4
    assert all(len(name) <= 15 for name in names)


def test_a_host_knows_its_router_and_its_mac_follows_its_address() -> None:
    assert port(4).router == IPv4Address("10.77.1.1")
    assert port(4).mac == "02:00:0a:4d:01:04"


def test_rules_translate_public_addresses_both_ways() -> None:
    rules = network.vpc_rules(vpc(port(5, "198.18.1.2"), port(4, "198.18.1.1")), [], 1400)
    assert "elements = { 10.77.1.4 : 198.18.1.1, 10.77.1.5 : 198.18.1.2 }" in rules
    assert "elements = { 198.18.1.1 : 10.77.1.4, 198.18.1.2 : 10.77.1.5 }" in rules
    assert "maxseg size set 1360" in rules


def test_rules_let_out_who_has_an_address_or_a_gateway() -> None:
    hosts = (port(4, "198.18.1.1"), port(5, egress=True), port(6))
    rules = network.vpc_rules(vpc(*hosts), [IPv4Address("10.1.1.1")], 1500)
    assert "set outward { type ipv4_addr; elements = { 10.77.1.4, 10.77.1.5 } }" in rules
    assert "set services { type ipv4_addr; elements = { 10.1.1.1, 198.18.0.1 } }" in rules


def test_rules_of_a_vpc_without_hosts_have_no_elements() -> None:
    assert "map out { type ipv4_addr : ipv4_addr;  }" in network.vpc_rules(vpc(), [], 1500)


@pytest.mark.parametrize(("before", "closed"), [(True, False), (False, True)])
def test_the_machine_forwards_for_others_only_if_it_did_before(before: bool, closed: bool) -> None:
    rules = network.machine_rules(before)
    assert ('iifname != "sl-*" oifname != "sl-*" drop' in rules) is closed
    assert 'iifname != { "lo", "startline0", "sl-*" } ip daddr 198.18.0.0/15 drop' in rules


@pytest.mark.parametrize(
    ("cidr", "holder"),
    [("10.0.0.0/16", "eth0"), ("10.0.5.0/24", "eth0"), ("10.255.0.0/16", "resolver"), ("10.77.0.0/16", None)],
)
def test_overlap_names_the_holder(cidr: str, holder: str | None) -> None:
    taken = {"eth0": IPv4Network("10.0.0.0/20"), "resolver": IPv4Network("10.255.255.53")}
    assert network.overlap(IPv4Network(cidr), taken) == holder


def test_public_addresses_go_round_and_skip_the_used() -> None:
    first = network.next_public(None, set())
    assert str(first) == "198.18.1.1"
    assert str(network.next_public(first, {IPv4Address("198.18.1.2")})) == "198.18.1.3"
    assert str(network.next_public(IPv4Address("198.18.1.254"), set())) == "198.18.2.1"
    assert network.next_public(network.PUBLIC_LAST, {first}) == IPv4Address("198.18.1.2")
    assert network.PUBLIC_LAST not in network.LINKS


def test_no_public_address_left_is_said() -> None:
    class Everything:
        def __contains__(self, address: object) -> bool:
            return True

    with pytest.raises(network.CloudError, match="no public address"):
        network.next_public(None, Everything())
