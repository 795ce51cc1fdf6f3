# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses and rules of the local cloud's network."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from localcloud import network
from localcloud.network import Port, Vpc

CIDR = IPv4Network("10.77.0.0/16")
SUBNET = IPv4Network("10.77.1.0/24")


def port(last: int, public: str | None = None, source: str | None = None) -> Port:
    return Port(
        instance=f"i-{last:02x}{0:015x}",
        vpc="vpc-0123456789abcdef0",
        cidr=CIDR,
        network=SUBNET,
        address=SUBNET.network_address + last,
        mac="02:00:00:00:00:01",
        service=IPv4Address("198.18.9.0") + last,
        public=IPv4Address(public) if public else None,
        source=IPv4Address(source or public) if source or public else None,
    )


def vpc(*ports: Port) -> Vpc:
    return Vpc("vpc-0123456789abcdef0", CIDR, IPv4Address("198.19.255.4"), frozenset(ports))


def test_names_fit_an_interface_and_tell_hosts_apart() -> None:
    names = {port(4).interface, port(5).interface, vpc().interface}
    assert len(names) == 3
    assert all(len(name) <= 15 for name in names)


def test_a_host_knows_its_router() -> None:
    assert port(4).router == IPv4Address("10.77.1.1")


def test_rules_translate_public_addresses_both_ways() -> None:
    rules = network.vpc_rules(vpc(port(5, "198.18.1.2"), port(4, "198.18.1.1")), [])
    assert (
        "map source { type ipv4_addr : ipv4_addr; elements = { 10.77.1.4 : 198.18.1.1, 10.77.1.5 : 198.18.1.2 }"
        in rules
    )
    assert (
        "map public { type ipv4_addr : ipv4_addr; elements = { 198.18.1.1 : 10.77.1.4, 198.18.1.2 : 10.77.1.5 }"
        in rules
    )


def test_hosts_behind_a_gateway_go_out_by_its_address_and_are_not_reached() -> None:
    hosts = (port(4, source="198.18.1.7"), port(5, source="198.18.1.7"), port(6))
    rules = network.vpc_rules(vpc(*hosts), [IPv4Address("10.1.1.1")])
    assert "map public { type ipv4_addr : ipv4_addr;  }" in rules
    assert "elements = { 10.77.1.4 : 198.18.1.7, 10.77.1.5 : 198.18.1.7 }" in rules
    assert "ip daddr { 198.18.0.1, 10.1.1.1 } snat to ip saddr map @service" in rules


def test_the_machine_reaches_hosts_by_their_public_and_service_addresses() -> None:
    outside = vpc(port(4, "198.18.1.1"), port(5, source="198.18.1.7")).outside
    assert {str(address) for address in outside} == {"198.18.1.1", "198.18.9.4", "198.18.9.5"}


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


def test_outside_addresses_go_round_and_skip_the_used() -> None:
    first = network.next_address(None, set())
    assert str(first) == "198.18.1.1"
    assert str(network.next_address(first, {IPv4Address("198.18.1.2")})) == "198.18.1.3"
    assert str(network.next_address(IPv4Address("198.18.1.254"), set())) == "198.18.2.1"
    assert network.next_address(network.LAST, {first}) == IPv4Address("198.18.1.2")
    assert network.LAST not in network.LINKS


def test_no_public_address_left_is_said() -> None:
    class Everything:
        def __contains__(self, address: object) -> bool:
            return True

    with pytest.raises(network.CloudError, match="no public address"):
        network.next_address(None, Everything())
