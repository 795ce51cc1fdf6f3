# SPDX-License-Identifier: GPL-3.0-or-later
"""The network of the local cloud: a namespace per VPC that routes between its hosts, and 1:1 NAT for public addresses.

    machine ── startline0  198.18.0.1            the API, instance metadata, time
       │
       └─ sl-<vpc> ═ uplink ─ namespace <vpc> ─┬─ h-<instance> ═ ens5 of the host, in namespace <instance>
          198.18.0.1   198.19.255.k            └─ ...

As in a VPC of AWS there is no common wire: each packet goes through the VPC's router, also inside a subnet, so that one
set of rules sees all of them. A private address lives in its VPC's namespace only, so two
VPCs may use the same range. Each host has a service address besides, unique among all hosts: from it come its requests to
the API, metadata, time and names. The machine knows public and service addresses by routes to the VPC that holds them.
Blackhole routes hold all of 198.18.0.0/15 and each VPC's range, so what nobody holds goes nowhere.
"""

from __future__ import annotations

import json
import logging
import typing as t
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from localcloud import machine
from localcloud.machine import API_LINK, LINK_PREFIX, ROUTE_PROTOCOL, TABLE, CloudError, ip_batch, run

log = logging.getLogger(__name__)

RANGE = IPv4Network("198.18.0.0/15")  # RFC 2544: for tests of networks, routed nowhere
API_ADDRESS = IPv4Address("198.18.0.1")
API_PORT, TIME_PORT = 4566, 4567  # where requests to METADATA_ADDRESS and TIME_ADDRESS come
METADATA_ADDRESS, TIME_ADDRESS = IPv4Address("169.254.169.254"), IPv4Address("169.254.169.123")
LINKS = IPv4Network("198.19.255.0/24")  # an address for each VPC's router
FIRST, LAST = IPv4Address("198.18.1.1"), LINKS.network_address - 1
HOST_INTERFACE = "ens5"


@dataclass(frozen=True)
class Rule:
    """What a security group lets through, in EC2's terms."""

    protocol: str  # "tcp", "udp", "icmp", a number, or "-1" for all
    first: int | None  # port; of icmp the type, -1 for all
    last: int | None  # port; of icmp the code, -1 for all
    peer: IPv4Network | str  # a range, or the id of a group: the private addresses of its hosts


@dataclass(frozen=True)
class Group:
    """A security group."""

    id: str
    ingress: frozenset[Rule]
    egress: frozenset[Rule]


@dataclass(frozen=True)
class Port:
    """A host's place in its VPC."""

    instance: str
    vpc: str
    cidr: IPv4Network  # of the VPC
    network: IPv4Network  # of the subnet
    address: IPv4Address
    mac: str
    groups: frozenset[Group]
    service: IPv4Address
    public: IPv4Address | None = None  # where it is reached from outside
    source: IPv4Address | None = None  # what others see it come from: its public address, or a NAT gateway's

    @property
    def interface(self) -> str:
        """The VPC's end of its wire."""
        return f"h-{_short(self.instance)}"

    @property
    def router(self) -> IPv4Address:
        return self.network.network_address + 1

    @property
    def configuration(self) -> tuple[str, ...]:
        """What `ip -batch` does in the host."""
        return (
            f"addr add {self.address}/{self.network.prefixlen} dev {HOST_INTERFACE} noprefixroute",
            "link set lo up",
            f"link set {HOST_INTERFACE} up",
            f"route add {self.router} dev {HOST_INTERFACE} src {self.address}",
            f"route add default via {self.router}",
        )


@dataclass(frozen=True)
class Vpc:
    """A VPC with hosts in it: one namespace, joined to the machine by a link."""

    id: str
    cidr: IPv4Network
    link: IPv4Address
    ports: frozenset[Port]

    @property
    def interface(self) -> str:
        return f"{LINK_PREFIX}{_short(self.id)}"

    @property
    def route(self) -> tuple[str, ...]:
        """How the machine reaches it."""
        return ("via", str(self.link), "dev", self.interface, "proto", ROUTE_PROTOCOL)

    @property
    def outside(self) -> frozenset[IPv4Address]:
        """The addresses that the machine reaches through it."""
        return frozenset(
            address for port in self.ports for address in (port.service, port.public, port.source) if address
        )


def _short(identity: str) -> str:
    """Enough of an id to be unique in an interface's name of 15 characters."""
    return identity.rpartition("-")[2][:11]


def vpc_rules(vpc: Vpc, resolvers: t.Iterable[IPv4Address]) -> str:
    """The nft table of a VPC's namespace. What leaves it untranslated is dropped by the machine's rules."""
    services = ", ".join(map(str, (API_ADDRESS, *resolvers)))
    groups = sorted({group for port in vpc.ports for group in port.groups}, key=lambda group: group.id)
    named = {rule.peer for group in groups for rule in group.ingress | group.egress if isinstance(rule.peer, str)}
    members = {
        name: sorted(port.address for port in vpc.ports if any(group.id == name for group in port.groups))
        for name in sorted(named | {group.id for group in groups})
    }
    declared = "\n".join(
        [f"  set {name} {{ type ipv4_addr; {_elements(addresses)} }}" for name, addresses in members.items()]
        + [f"  chain in-{group.id} {{ {_accepted(group.ingress, 'saddr')} }}" for group in groups]
        + [f"  chain out-{group.id} {{ {_accepted(group.egress, 'daddr')} }}" for group in groups]
    )
    return f"""\
table ip {TABLE}
delete table ip {TABLE}
table ip {TABLE} {{
  map service {_map((port.address, port.service) for port in vpc.ports)}
  map source {_map((port.address, port.source) for port in vpc.ports)}
  map public {_map((port.public, port.address) for port in vpc.ports)}
  chain prerouting {{
    type nat hook prerouting priority dstnat
    ip daddr {METADATA_ADDRESS} tcp dport 80 dnat to {API_ADDRESS}:{API_PORT}
    ip daddr {TIME_ADDRESS} udp dport 123 dnat to {API_ADDRESS}:{TIME_PORT}
    iifname "uplink" dnat to ip daddr map @public
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat
    oifname "uplink" ip daddr {{ {services} }} snat to ip saddr map @service
    oifname "uplink" snat to ip saddr map @source
  }}
{declared}
  # As on AWS: what is under way goes on, and metadata, time and names are nobody's business.
  chain egress {{
    type filter hook forward priority filter
    ct state established,related accept
    iifname "uplink" ct status dnat accept
    iifname "uplink" drop
    ct original ip daddr {{ {METADATA_ADDRESS}, {TIME_ADDRESS} }} accept
    ip daddr {{ {services} }} th dport 53 accept
    {"; ".join(f"ip saddr @{group.id} jump out-{group.id}" for group in groups)}
    drop
  }}
  chain ingress {{
    type filter hook forward priority filter + 1
    ct state established,related accept
    oifname "uplink" accept
    {"; ".join(f"ip daddr @{group.id} jump in-{group.id}" for group in groups)}
    drop
  }}
}}
"""


def _accepted(rules: t.Iterable[Rule], side: str) -> str:
    return " ".join(sorted(f"ip {side} {_peer(rule)}{_traffic(rule)} accept;" for rule in rules))


def _peer(rule: Rule) -> str:
    return f"@{rule.peer}" if isinstance(rule.peer, str) else str(rule.peer)


def _traffic(rule: Rule) -> str:
    match rule.protocol:
        case "-1":
            return ""
        case "tcp" | "udp" if rule.first != -1:
            return f" {rule.protocol} dport {rule.first}-{rule.last}"
        case "icmp" if rule.first != -1:
            return f" icmp type {rule.first}" + (f" icmp code {rule.last}" if rule.last != -1 else "")
    return f" ip protocol {rule.protocol}"


def _elements(items: t.Iterable[object]) -> str:
    text = ", ".join(map(str, items))
    return f"elements = {{ {text} }}" if text else ""


def _map(pairs: t.Iterable[tuple[IPv4Address | None, IPv4Address | None]]) -> str:
    elements = (f"{key} : {value}" for key, value in sorted(pair for pair in pairs if all(pair)))
    return f"{{ type ipv4_addr : ipv4_addr; {_elements(elements)} }}"


def machine_rules(forwarded_before: bool) -> str:
    """The nft table of the machine: nothing gets in from outside, and what goes out carries the machine's address."""
    ours = f'{{ "lo", "{API_LINK}", "{LINK_PREFIX}*" }}'
    # We turned forwarding on for our links: the machine does not become a router for anybody else.
    others = "" if forwarded_before else f'iifname != "{LINK_PREFIX}*" oifname != "{LINK_PREFIX}*" drop'
    return f"""\
table ip {TABLE}
delete table ip {TABLE}
table ip {TABLE} {{
  chain prerouting {{
    type filter hook prerouting priority raw
    iifname != {ours} ip daddr {RANGE} drop
    iifname != {ours} ip saddr {RANGE} drop
    iifname "{LINK_PREFIX}*" ip saddr != {RANGE} drop
  }}
  chain forward {{
    type filter hook forward priority filter - 10
    # The way out may carry less than the hosts' 1500 bytes.
    tcp flags syn tcp option maxseg size set rt mtu
    {others}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat
    ip saddr {RANGE} oifname != {ours} masquerade
  }}
}}
"""


def overlap(cidr: IPv4Network, taken: t.Mapping[str, IPv4Network]) -> str | None:
    """Who of the machine's own holds a part of this range."""
    return next((holder for holder, network in taken.items() if network.overlaps(cidr)), None)


def next_address(after: IPv4Address | None, used: t.Container[IPv4Address]) -> IPv4Address:
    """The next free outside address, round and round, so that one just given back rests."""
    span = int(LAST) - int(FIRST) + 1
    begin = int(after) + 1 - int(FIRST) if after else 0
    for step in range(span):
        candidate = FIRST + (begin + step) % span
        if candidate.packed[3] not in (0, 255) and candidate not in used:
            return candidate
    raise CloudError("no public address is left")


# --- the machine's own ------------------------------------------------------------------------------------------------


def machine_networks() -> dict[str, IPv4Network]:
    """Who holds what on this machine: its routes and resolvers, without ours."""
    held = {f"resolver {address}": IPv4Network(address) for address in resolvers()}
    for route in json.loads(run("ip", "-json", "-4", "route", "show", "table", "all")):
        device = route.get("dev", "")
        ours = device.startswith((API_LINK, LINK_PREFIX)) or route.get("protocol") == ROUTE_PROTOCOL
        if route["dst"] != "default" and not ours:
            held[f"route {route['dst']} dev {device}"] = IPv4Network(route["dst"], strict=False)
    return held


def resolvers() -> list[IPv4Address]:
    """The servers that answer this machine's names; behind a local stub, the real ones."""
    for path in (Path("/run/systemd/resolve/resolv.conf"), Path("/etc/resolv.conf")):
        words = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        named = [word[1] for word in words if word[:1] == ["nameserver"] and ":" not in word[1]]
        if found := [address for address in map(IPv4Address, named) if not address.is_loopback]:
            return found
    return []


class Fabric:
    """The network as it stands. One thread at a time calls `follow`; hosts are attached and detached by their own."""

    def __init__(self) -> None:
        self._vpcs: dict[str, Vpc] = {}
        self._resolvers = resolvers()

    def up(self) -> None:
        """What stands before the first VPC: the API's address, the blackhole, the rules. All or CloudError."""
        if holder := overlap(RANGE, machine_networks()):
            raise CloudError(
                f"{RANGE} is held by this machine's {holder}",
                "The local cloud gives addresses of that range to its hosts: free it, or use another machine.",
            )
        run("nft", "-f", "-", stdin=machine_rules(machine.forwarding_before()))
        ip_batch(
            f"route add blackhole {RANGE} proto {ROUTE_PROTOCOL}",
            f"link add {API_LINK} type bridge",
            f"addr add {API_ADDRESS}/32 dev {API_LINK}",
            f"link set {API_LINK} up",
        )

    def check(self, cidr: IPv4Network) -> None:
        """CloudError when a VPC of this range would hide something of the machine."""
        if holder := overlap(cidr, machine_networks() | {f"the local cloud's own {RANGE}": RANGE}):
            raise CloudError(f"{cidr} overlaps {holder} of this machine", "Give the VPC another range.")

    def follow(self, ports: t.Iterable[Port]) -> None:
        """Make the VPCs of these hosts, and no others, with their rules and the machine's routes to them."""
        wanted: dict[str, set[Port]] = {}
        for port in ports:
            wanted.setdefault(port.vpc, set()).add(port)
        for gone in self._vpcs.keys() - wanted.keys():
            self._remove(self._vpcs.pop(gone))
        for identity, vpc in self._vpcs.items():  # an address that moves is let go by one VPC before another takes it
            for address in vpc.outside - replace(vpc, ports=frozenset(wanted[identity])).outside:
                machine.attempt("ip", "route", "del", str(address), *vpc.route)
        for identity, members in wanted.items():
            old = self._vpcs.get(identity)
            try:
                vpc = Vpc(identity, next(iter(members)).cidr, old.link if old else self._link(), frozenset(members))
                if old is None:
                    self._build(vpc)
                if vpc != old:
                    self._apply(vpc, old.outside if old else frozenset())
            except CloudError:
                log.exception("%s is not what it should be: its new hosts will not find it", identity)
            else:
                self._vpcs[identity] = vpc

    def attach(self, port: Port) -> None:
        """Give a host its namespace, with a wire from there to its VPC, which is there already."""
        run("ip", "netns", "add", port.instance)
        ip_batch(
            f"link add {port.interface} type veth peer name {HOST_INTERFACE} address {port.mac} netns {port.instance}",
            f"addr add {port.router} peer {port.address} dev {port.interface}",
            f"link set {port.interface} up",
            netns=port.vpc,
        )

    def detach(self, port: Port) -> None:
        # The namespace lets go of the veth a little later; its name must be free for the next at once.
        machine.attempt("ip", "-n", port.vpc, "link", "del", port.interface)
        machine.attempt("ip", "netns", "del", port.instance)

    def _link(self) -> IPv4Address:
        used = {vpc.link for vpc in self._vpcs.values()}
        for link in LINKS.hosts():
            if link not in used:
                return link
        raise CloudError(f"{len(used)} VPCs have hosts, and there are no more links", "Terminate the hosts of one.")

    def _build(self, vpc: Vpc) -> None:
        self._remove(vpc)  # what an attempt that failed left
        run("ip", "netns", "add", vpc.id)
        # It forwards, and only what comes from where its sender is.
        settings = ("net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=1")
        run("nsenter", f"--net=/run/netns/{vpc.id}", "sysctl", "--quiet", *settings)
        ip_batch(
            f"link add {vpc.interface} type veth peer name uplink netns {vpc.id}",
            f"addr add {API_ADDRESS} peer {vpc.link} dev {vpc.interface}",
            f"link set {vpc.interface} up",
            f"route replace blackhole {vpc.cidr} proto {ROUTE_PROTOCOL}",
        )
        ip_batch(
            "link set lo up",
            f"addr add {vpc.link} peer {API_ADDRESS} dev uplink",
            "link set uplink up",
            f"route add default via {API_ADDRESS}",
            f"route add blackhole {vpc.cidr}",
            netns=vpc.id,
        )

    def _apply(self, vpc: Vpc, before: frozenset[IPv4Address]) -> None:
        rules = vpc_rules(vpc, self._resolvers)
        run("nsenter", f"--net=/run/netns/{vpc.id}", "nft", "-f", "-", stdin=rules)
        if fresh := vpc.outside - before:
            ip_batch(*(f"route replace {address} {' '.join(vpc.route)}" for address in fresh))

    def _remove(self, vpc: Vpc) -> None:
        machine.attempt("ip", "link", "del", vpc.interface)
        machine.attempt("ip", "netns", "del", vpc.id)
        if all(other.cidr != vpc.cidr for other in self._vpcs.values()):
            machine.attempt("ip", "route", "del", "blackhole", str(vpc.cidr), "proto", ROUTE_PROTOCOL)
