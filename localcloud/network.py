# SPDX-License-Identifier: GPL-3.0-or-later
"""The network of the local cloud: a namespace per VPC, a bridge per subnet, 1:1 NAT for public addresses.

    machine ── startline0  198.18.0.1           the API
       │
       └─ sl-<vpc> ═ uplink ─ namespace startline-<vpc> ─┬─ bridge of a subnet (.1) ─ h-<instance> ═ ens5 of the host
          198.19.255.2k   .2k+1    lo 169.254.169.254    └─ ...
                                      169.254.169.123

A private address lives in its VPC's namespace only, so two VPCs may use the same range. The machine knows public
addresses (198.18.1.0 and up) by routes to the VPC that holds them; a VPC translates them. Blackhole routes hold all of
198.18.0.0/15 and each VPC's range, so what nobody holds goes nowhere. The rules of a VPC are a pure function of it,
loaded as a whole.
"""

from __future__ import annotations

import threading
import typing as t
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from localcloud import machine
from localcloud.machine import API_LINK, LINK_PREFIX, NETNS_PREFIX, ROUTE_PROTOCOL, TABLE, CloudError, ip_batch, run

RANGE = IPv4Network("198.18.0.0/15")  # RFC 2544: for tests of networks, routed nowhere
API_ADDRESS = IPv4Address("198.18.0.1")
LINKS = IPv4Network("198.19.255.0/24")  # /31 for each VPC
PUBLIC_FIRST, PUBLIC_LAST = IPv4Address("198.18.1.1"), LINKS.network_address - 1
METADATA_ADDRESS = IPv4Address("169.254.169.254")
TIME_ADDRESS = IPv4Address("169.254.169.123")
HOST_INTERFACE = "ens5"


@dataclass(frozen=True)
class Port:
    """A host's place in its VPC. `egress`: may it reach beyond the machine's own services without a public address?"""

    instance: str
    subnet: str
    network: IPv4Network
    address: IPv4Address
    public: IPv4Address | None = None
    egress: bool = False

    @property
    def mac(self) -> str:
        """From the address: who gets an address next is where the neighbours' caches say it is."""
        return ":".join(f"{byte:02x}" for byte in b"\x02\x00" + self.address.packed)

    @property
    def netns(self) -> str:
        return f"{NETNS_PREFIX}{self.instance}"

    @property
    def interface(self) -> str:
        return f"h-{_short(self.instance)}"

    @property
    def bridge(self) -> str:
        return f"s-{_short(self.subnet)}"

    @property
    def router(self) -> IPv4Address:
        return self.network.network_address + 1


@dataclass(frozen=True)
class Vpc:
    """A VPC with hosts in it: one namespace, joined to the machine by a link."""

    id: str
    cidr: IPv4Network
    link: IPv4Network
    ports: t.Mapping[str, Port] = field(default_factory=dict)

    @property
    def netns(self) -> str:
        return f"{NETNS_PREFIX}{self.id[:12]}"

    @property
    def interface(self) -> str:
        return f"{LINK_PREFIX}{_short(self.id)}"

    @property
    def public(self) -> frozenset[IPv4Address]:
        return frozenset(port.public for port in self.ports.values() if port.public)


def _short(identity: str) -> str:
    """Enough of an id to be unique in an interface's name of 15 characters."""
    return identity.rpartition("-")[2][:11]


def vpc_rules(vpc: Vpc, resolvers: t.Collection[IPv4Address], mtu: int) -> str:
    """The nft table of a VPC's namespace.

    Security groups belong here as a second table: family bridge, hook forward, by the names of the ports (h-...), since
    traffic inside a subnet is bridged and traffic from outside arrives with addresses translated already.
    """
    pairs = sorted((port.address, port.public) for port in vpc.ports.values() if port.public)
    outward = sorted(port.address for port in vpc.ports.values() if port.egress or port.public)
    services = sorted({API_ADDRESS, *resolvers})
    return f"""\
table ip {TABLE}
delete table ip {TABLE}
table ip {TABLE} {{
  map out {{ type ipv4_addr : ipv4_addr; {_elements(f"{private} : {public}" for private, public in pairs)} }}
  map in {{ type ipv4_addr : ipv4_addr; {_elements(f"{public} : {private}" for private, public in pairs)} }}
  set outward {{ type ipv4_addr; {_elements(outward)} }}
  set services {{ type ipv4_addr; {_elements(services)} }}
  chain prerouting {{
    type nat hook prerouting priority dstnat
    dnat to ip daddr map @in
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat
    # To another host's public address: seen from the public address, as on AWS, also inside one VPC.
    oifname != "uplink" ct status dnat ip saddr {vpc.cidr} snat to ip saddr map @out
    oifname != "uplink" ct status dnat ip saddr {vpc.cidr} masquerade
    oifname "uplink" snat to ip saddr map @out
    oifname "uplink" ip saddr {vpc.cidr} masquerade
  }}
  chain forward {{
    type filter hook forward priority filter
    iifname "uplink" tcp flags syn tcp option maxseg size set {mtu - 40}
    oifname "uplink" tcp flags syn tcp option maxseg size set {mtu - 40}
    # From outside only to what is translated; out with a public address or a NAT gateway, else to the services alone.
    iifname "uplink" ct state new ct status ! dnat drop
    oifname "uplink" ct state new ip saddr != @outward ip daddr != @services drop
    iifname != "uplink" ct state new ct status dnat ip saddr != @outward drop
  }}
}}
"""


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
  }}
  chain forward {{
    type filter hook forward priority filter - 10
    iifname "{LINK_PREFIX}*" ip saddr != {RANGE} drop
    {others}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat
    ip saddr {RANGE} oifname != {ours} masquerade
  }}
}}
"""


def _elements(items: t.Iterable[object]) -> str:
    text = ", ".join(map(str, items))
    return f"elements = {{ {text} }}" if text else ""


def overlap(cidr: IPv4Network, taken: t.Mapping[str, IPv4Network]) -> str | None:
    """Who of the machine's own holds a part of this range."""
    return next((holder for holder, network in taken.items() if network.overlaps(cidr)), None)


def next_public(after: IPv4Address | None, used: t.Container[IPv4Address]) -> IPv4Address:
    """The next free public address, round and round, so that one just given back rests."""
    span = int(PUBLIC_LAST) - int(PUBLIC_FIRST) + 1
    begin = int(after) + 1 - int(PUBLIC_FIRST) if after else 0
    for step in range(span):
        candidate = PUBLIC_FIRST + (begin + step) % span
        if candidate.packed[3] not in (0, 255) and candidate not in used:
            return candidate
    raise CloudError("no public address is left")


# --- the machine's own ------------------------------------------------------------------------------------------------


def machine_networks() -> dict[str, IPv4Network]:
    """Who holds what on this machine: its routes and resolvers, without ours."""
    held: dict[str, IPv4Network] = {}
    for line in run("ip", "-4", "route", "show", "table", "all").splitlines():
        words = line.split()
        kinds = ("unicast", "local", "broadcast", "blackhole", "unreachable", "prohibit", "multicast", "anycast")
        target = words[1] if words[0] in kinds else words[0]
        device = words[words.index("dev") + 1] if "dev" in words else words[0]
        ours = device == API_LINK or device.startswith(LINK_PREFIX) or f"proto {ROUTE_PROTOCOL}" in line
        if target != "default" and not ours:
            held[f"route `{line.strip()}`"] = IPv4Network(target, strict=False)
    held.update({f"resolver {address}": IPv4Network(address) for address in resolvers()})
    return held


def resolvers() -> list[IPv4Address]:
    """The servers that answer this machine's names; behind a local stub, the real ones."""
    for path in ("/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"):
        try:
            words = [line.split() for line in Path(path).read_text().splitlines()]
        except FileNotFoundError:
            continue
        named = [word[1] for word in words if word[:1] == ["nameserver"] and ":" not in word[1]]
        found = [IPv4Address(name) for name in named]
        if found := [address for address in found if not address.is_loopback]:
            return found
    return []


def uplink_mtu() -> int:
    """The MTU of the way out, at most Ethernet's."""
    for line in run("ip", "-4", "route", "show", "default").splitlines():
        words = line.split()
        if "dev" in words:
            link = run("ip", "link", "show", "dev", words[words.index("dev") + 1]).split()
            return min(1500, int(link[link.index("mtu") + 1]))
    return 1500


class Fabric:
    """The network as it stands. Hosts are attached and detached; a VPC lasts from its first host to its last.

    `services` is called with a VPC whose namespace is up and returns what ends them before it goes down.
    """

    def __init__(self, services: t.Callable[[Vpc], t.Callable[[], None]]) -> None:
        self._services = services
        self._lock = threading.RLock()
        self._vpcs: dict[str, Vpc] = {}
        self._stop: dict[str, t.Callable[[], None]] = {}
        self._mtu = uplink_mtu()
        self._resolvers = resolvers()

    def up(self) -> None:
        """What stands before the first VPC: the API's address, the blackhole, the rules. All or CloudError."""
        holder = overlap(RANGE, machine_networks())
        if holder:
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
        holder = overlap(cidr, machine_networks() | {f"the local cloud's own {RANGE}": RANGE})
        if holder:
            raise CloudError(f"{cidr} overlaps {holder} of this machine", "Give the VPC another range.")

    def attach(self, vpc_id: str, cidr: IPv4Network, port: Port) -> None:
        """Give a host its namespace with its interface, address and routes, in a VPC that is made when it must be."""
        with self._lock:
            vpc = self._vpcs.get(vpc_id) or self._make_vpc(vpc_id, cidr)
            if all(other.subnet != port.subnet for other in vpc.ports.values()):
                self._make_bridge(vpc, port)
            self._apply(replace(vpc, ports={**vpc.ports, port.instance: port}))
        run("ip", "netns", "add", port.netns)
        ip_batch(
            f"link add {port.interface} type veth peer name {HOST_INTERFACE} address {port.mac} netns {port.netns}",
            f"link set {port.interface} master {port.bridge} up",
            netns=vpc.netns,
        )
        ip_batch(
            f"addr add {port.address}/{port.network.prefixlen} dev {HOST_INTERFACE}",
            "link set lo up",
            f"link set {HOST_INTERFACE} up",
            f"route add default via {port.router}",
            netns=port.netns,
        )

    def detach(self, vpc_id: str, instance: str) -> None:
        """Take a host's namespace away, and its VPC's with the last one."""
        machine.remove_netns(f"{NETNS_PREFIX}{instance}")
        with self._lock:
            vpc = self._vpcs.get(vpc_id)
            if vpc is None or instance not in vpc.ports:
                return
            port = vpc.ports[instance]
            # The namespace lets go of the veth a little later; a name must be free for the next at once.
            machine.attempt("ip", "-n", vpc.netns, "link", "del", port.interface)
            rest = {name: other for name, other in vpc.ports.items() if name != instance}
            self._apply(replace(vpc, ports=rest))
            if all(other.subnet != port.subnet for other in rest.values()):
                machine.attempt("ip", "-n", vpc.netns, "link", "del", port.bridge)
            if not rest:
                self._remove_vpc(vpc)

    def update(self, vpc_id: str, instance: str, public: IPv4Address | None, egress: bool) -> None:
        """A host's public address or its way out has changed."""
        with self._lock:
            vpc = self._vpcs.get(vpc_id)
            if vpc is None or instance not in vpc.ports:
                return
            port = replace(vpc.ports[instance], public=public, egress=egress)
            if port != vpc.ports[instance]:
                self._apply(replace(vpc, ports={**vpc.ports, instance: port}))

    def _make_vpc(self, vpc_id: str, cidr: IPv4Network) -> Vpc:
        self.check(cidr)
        used = {vpc.link for vpc in self._vpcs.values()}
        link = next((net for net in LINKS.subnets(new_prefix=31) if net not in used), None)
        if link is None:
            raise CloudError(f"{len(used)} VPCs have hosts, and there are no more links", "Terminate the hosts of one.")
        vpc = self._vpcs[vpc_id] = Vpc(vpc_id, cidr, link)
        try:
            self._build_vpc(vpc)
            self._stop[vpc_id] = self._services(vpc)
        except BaseException:
            self._remove_vpc(vpc)
            raise
        return vpc

    def _build_vpc(self, vpc: Vpc) -> None:
        link, cidr = vpc.link, vpc.cidr
        run("ip", "netns", "add", vpc.netns)
        ip_batch(
            f"link add {vpc.interface} mtu {self._mtu} type veth peer name uplink mtu {self._mtu} netns {vpc.netns}",
            f"addr add {link[0]}/31 dev {vpc.interface}",
            f"link set {vpc.interface} up",
        )
        ip_batch(f"route replace blackhole {cidr} proto {ROUTE_PROTOCOL}")
        ip_batch(
            "link set lo up",
            f"addr add {METADATA_ADDRESS}/32 dev lo",
            f"addr add {TIME_ADDRESS}/32 dev lo",
            f"addr add {link[1]}/31 dev uplink",
            "link set uplink up",
            f"route add default via {link[0]}",
            f"route add blackhole {cidr}",
            netns=vpc.netns,
        )
        machine.in_netns(vpc.netns, lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))

    def _make_bridge(self, vpc: Vpc, port: Port) -> None:
        ip_batch(
            f"link add {port.bridge} type bridge forward_delay 0",
            f"addr add {port.router}/{port.network.prefixlen} dev {port.bridge}",
            f"link set {port.bridge} up",
            netns=vpc.netns,
        )

    def _apply(self, vpc: Vpc) -> None:
        """Make the VPC's rules and the machine's routes to it what they should be."""
        gone = self._vpcs[vpc.id].public - vpc.public
        new = vpc.public - self._vpcs[vpc.id].public
        run("ip", "netns", "exec", vpc.netns, "nft", "-f", "-", stdin=vpc_rules(vpc, self._resolvers, self._mtu))
        route = f"via {vpc.link[1]} dev {vpc.interface} proto {ROUTE_PROTOCOL}"
        changes = [f"route del {address}/32 {route}" for address in gone]
        changes += [f"route replace {address}/32 {route}" for address in new]
        if changes:
            ip_batch(*changes)
        self._vpcs[vpc.id] = vpc

    def _remove_vpc(self, vpc: Vpc) -> None:
        stop = self._stop.pop(vpc.id, None)
        if stop is not None:
            stop()
        del self._vpcs[vpc.id]
        machine.attempt("ip", "link", "del", vpc.interface)
        machine.remove_netns(vpc.netns)
        if all(other.cidr != vpc.cidr for other in self._vpcs.values()):
            machine.attempt("ip", "route", "del", "blackhole", str(vpc.cidr), "proto", ROUTE_PROTOCOL)
