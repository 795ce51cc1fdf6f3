# SPDX-License-Identifier: GPL-3.0-or-later
"""The network of an experiment: from rules between names to what each host does with what it sends.

A rule names two ends (a host, a group, a site, or `all`) and says what lies between them. It holds in both directions
unless it is `oneway`. Of several rules for a pair each quantity comes from the narrowest that gives it; two that are
equally narrow must agree. The result is in the plan as *links*: from which members, to which members, and what happens
on the way. Every ordered pair of members is in one link at most::

    {"from": ["party-0", "party-1"], "to": ["party-0", "party-1"], "shape": {"delay": "40ms"}, "rate_per": "host"}

Each host shapes what it sends, so a round trip is made of two halves: delay = rtt / 2 on each side. Jitter is a
standard deviation; the two directions vary independently, so that their variances add up, and a round trip's jitter j
is made of j / sqrt(2) on each side. A rate is what one host may send to all members of the link together, or to each
of them (``rate_per: pair``). Links with the same ``rate_group`` differ in something else and have their rate in common,
as one rule gave it to them. This util is PRIVATE to the collection.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import typing as t

from ansible_collections.startline.lab.plugins.module_utils import _netem
from ansible_collections.startline.lab.plugins.plugin_utils import _network_profile
from ansible_collections.startline.lab.plugins.plugin_utils._errors import PlanError
from ansible_collections.startline.lab.plugins.plugin_utils._hosts_config import version_key
from ansible_collections.startline.lab.plugins.plugin_utils._network_profile import ProfileError, Topology

#: Every host.
ALL: t.Final = "all"
#: A quantity that a wider rule gives is taken away by this.
NONE: t.Final = "none"
#: How a rate may be shared.
RATE_PER: t.Final = ("host", "pair")

Path = tuple[str | int, ...]
Values = t.Mapping[str, t.Any]
Hosts = t.Mapping[str, t.Mapping[str, t.Any]]


class Fault(t.NamedTuple):
    """What is wrong with the network. `path` is below the experiment's ``network``."""

    path: Path
    message: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class NetworkRule:
    """What the user said of two ends: keys of the experiment file and their values, without templates."""

    source: str
    target: str
    given: tuple[tuple[str, t.Any], ...]

    @property
    def path(self) -> Path:
        return (self.source, self.target)

    @property
    def values(self) -> dict[str, t.Any]:
        return dict(self.given)

    @property
    def oneway(self) -> bool:
        return bool(self.values.get("oneway"))


def changed(rule: NetworkRule | None, source: str, target: str, values: Values) -> NetworkRule:
    """`rule` with `values` instead of what it says of them; a delay and a round trip replace each other."""
    given = dict(rule.given) if rule else {}
    if "rtt" in values or "delay" in values:
        given = {key: value for key, value in given.items() if key not in ("rtt", "delay")}
    given.update(values)
    return NetworkRule(source, target, tuple(given.items()))


@dataclasses.dataclass(frozen=True)
class _Kind:
    """Members that no rule tells apart. `names` are those by which rules name them, with how narrow each is."""

    names: t.Mapping[str, int]
    members: tuple[str, ...]
    nodes: tuple[str, ...]
    region: str | None


class _Value(t.NamedTuple):
    """A quantity with the rule that gave it, and how narrow that is.

    `path` is the rule's; `line` tells apart the lines for which a rule gives several rates, as a topology does.
    """

    value: t.Any
    narrow: int
    path: Path
    line: tuple[str, ...] = ()


# --- one quantity -----------------------------------------------------------------------------------------------------


def check_value(key: str, value: t.Any) -> str:
    """A quantity of a rule as it is shown everywhere, or `none`.

    Raises:
        NetemError: it is none; with what to write.
    """
    if value == NONE:
        return NONE
    if key == "rate_per":
        if value not in RATE_PER:
            raise _netem.NetemError(f"{value} is not one of {', '.join(RATE_PER)}")
        return str(value)
    parse, show = _netem.QUANTITIES["delay" if key == "rtt" else key]
    return show(parse(value))


# --- from rules to links ----------------------------------------------------------------------------------------------


def links(
    rules: t.Sequence[NetworkRule],
    members: t.Sequence[t.Mapping[str, t.Any]],
    regions: t.Mapping[str, str | None],
    topologies: t.Mapping[str, Topology] | None = None,
) -> tuple[list[dict[str, t.Any]], list[Fault]]:
    """The links between the members, and what is wrong with the rules.

    Args:
        rules: in the order of the file; their names are known to be right.
        members: of the plan.
        regions: of each site; None where it has none.
        topologies: by the name that a rule's profile gives.
    """
    kinds = _kinds(rules, members, regions)
    faults: dict[Fault, None] = {}
    found: dict[tuple[str, str, str], dict[int, set[int]]] = {}
    shapes: dict[tuple[str, str, str], dict[str, str]] = {}
    for i, one in enumerate(kinds):
        for j, other in enumerate(kinds):
            if i == j and len(one.members) == 1:
                continue
            values = _between(rules, one, other, topologies or {}, faults)
            shape, wrong = _shape(values)
            faults.update(dict.fromkeys(wrong))
            if wrong or shape.neutral:
                continue
            per = str(values["rate_per"].value) if "rate_per" in values and shape.rate else "host"
            # A rate belongs to the rule that gives it; where there is none, links of one shape are one.
            given = ".".join(map(str, (*values["rate"].path, *values["rate"].line))) if shape.rate else ""
            key = (str(shape), per, given)
            found.setdefault(key, {}).setdefault(i, set()).add(j)
            shapes[key] = shape.as_dict()
    result = []
    shared = _shared_rates(found)
    for key, targets in found.items():
        _text, per, given = key
        # Sources that have the same targets are one link.
        groups: dict[frozenset[int], list[int]] = {}
        for i, js in targets.items():
            groups.setdefault(frozenset(js), []).append(i)
        for same, sources in groups.items():
            result.append(
                {
                    "from": _members(kinds, sources, members),
                    "to": _members(kinds, same, members),
                    "shape": shapes[key],
                    "rate_per": per,
                    **({"rate_group": given} if per == "host" and given in shared else {}),
                }
            )
    return result, list(faults)


def _shared_rates(found: t.Mapping[tuple[str, str, str], t.Collection[int]]) -> set[str]:
    """The rates, by what gave them, that some host has for links of several shapes."""
    sources: collections.Counter[tuple[str, int]] = collections.Counter()
    for (_text, per, given), kinds in found.items():
        if given and per == "host":
            sources.update((given, kind) for kind in kinds)
    return {given for (given, _kind), links in sources.items() if links > 1}


def _members(kinds: t.Sequence[_Kind], chosen: t.Iterable[int], members: t.Sequence[Values]) -> list[str]:
    names = {name for index in chosen for name in kinds[index].members}
    return [member["name"] for member in members if member["name"] in names]


def _kinds(
    rules: t.Sequence[NetworkRule], members: t.Sequence[Values], regions: t.Mapping[str, str | None]
) -> list[_Kind]:
    named = {name for rule in rules for name in rule.path}
    kinds: dict[tuple[str, str, str], list[str]] = collections.defaultdict(list)
    for member in members:
        own = member["name"] if member["name"] in named else ""
        kinds[member["site"], member["group"], own].append(member["name"])
    return [
        _Kind(
            names={name: narrow for narrow, name in enumerate((ALL, site, group, own)) if name in named},
            members=tuple(names),
            nodes=(_network_profile.node_key(group), _network_profile.node_key(site)),
            region=regions.get(site),
        )
        for (site, group, own), names in kinds.items()
    ]


def _between(
    rules: t.Sequence[NetworkRule],
    one: _Kind,
    other: _Kind,
    topologies: t.Mapping[str, Topology],
    faults: dict[Fault, None],
) -> dict[str, _Value]:
    """Each quantity from the narrowest rule that gives it, for what `one` sends to `other`."""
    said: dict[str, list[_Value]] = {}
    for rule in rules:
        if rule.source in one.names and rule.target in other.names:
            forward, narrow = True, one.names[rule.source] + other.names[rule.target]
        elif not rule.oneway and rule.source in other.names and rule.target in one.names:
            forward, narrow = False, one.names[rule.target] + other.names[rule.source]
        else:
            continue
        try:
            profile = _profile(rule, one, other, forward, topologies)
        except ProfileError as exc:
            faults[Fault((*rule.path, "profile"), str(exc), "docs/network.md lists the profiles.")] = None
            continue
        line: tuple[str, ...] = ()
        if rule.values.get("rate") is None and "rate" in profile:
            topology = topologies.get(rule.values["profile"])
            line = _ends(topology, one, other) if topology else ("forward" if forward else "backward",)
        for key, value in _oneway(rule, profile).items():
            said.setdefault(key, []).append(_Value(value, narrow, rule.path, line))
    chosen = {}
    for key, given in said.items():
        narrowest = max(value.narrow for value in given)
        first, *others = (value for value in given if value.narrow == narrowest)
        for value in others:
            if value.value != first.value:
                faults[_contradiction(key, first, value.value, value.path, one, other)] = None
        if first.value != NONE:
            chosen[key] = first
    return chosen


def _contradiction(key: str, before: _Value, value: t.Any, path: Path, one: _Kind, other: _Kind) -> Fault:
    def shown(given: t.Any) -> t.Any:
        return _netem.QUANTITIES[key][1](given) if key in _netem.QUANTITIES and given != NONE else given

    first = ".".join(map(str, before.path))
    # The same words for both directions, so that it is said once.
    ends = sorted((one.members[0], other.members[-1 if one is other else 0]))
    message = (
        f"{key} between {ends[0]} and {ends[1]} is {shown(value)} here and {shown(before.value)} in "
        f"{first}, and neither rule is narrower"
    )
    return Fault(
        path,
        message,
        "Remove one, name one of the ends more narrowly, or say oneway: true in both if directions differ.",
    )


def _profile(
    rule: NetworkRule, one: _Kind, other: _Kind, forward: bool, topologies: t.Mapping[str, Topology]
) -> Values:
    name = rule.values.get("profile")
    if name is None or name == NONE:
        return {}
    if name == _network_profile.AWS:
        return _network_profile.aws_link(one.region, other.region)
    if name in topologies:
        topology = topologies[name]
        ends = _ends(topology, one, other)
        link = topology.links.get(ends)
        if link is None and ALL not in (rule.source, rule.target) and (forward or not rule.oneway):
            lost = next((kind.members[0] for kind, end in zip((one, other), ends, strict=True) if not end), "")
            target = other.members[-1 if one is other else 0]
            what = f"no node for {lost}" if lost else f"no link from {one.members[0]} to {target}"
            raise ProfileError(f"{name} has {what}, which would not be shaped")
        return link or {}
    return _network_profile.LINKS[name]["forward" if forward else "backward"]


def _ends(topology: Topology, one: _Kind, other: _Kind) -> tuple[str, str]:
    """The nodes of a topology that two kinds of members are; empty for one that it does not have."""
    first, last = (next((node for node in kind.nodes if node in topology.nodes), "") for kind in (one, other))
    return first, last


def _oneway(rule: NetworkRule, profile: Values) -> dict[str, t.Any]:
    """The quantities of one direction, in the units of `Shape`, or `none`.

    What the rule says goes before the profile; a delay or a round trip replaces the other.
    """
    own = {key: value for key, value in rule.values.items() if value is not None}
    given = dict(profile)
    if "rtt" in own or "delay" in own:
        given.pop("rtt", None)
        given.pop("delay", None)
    given.update(own)
    result: dict[str, t.Any] = {}
    for key, value in given.items():
        if key in ("profile", "oneway"):
            continue
        name = "delay" if key == "rtt" else key
        if value == NONE or key == "rate_per":
            result[name] = value
        else:
            parsed = _netem.QUANTITIES[name][0](value)
            result[name] = parsed // 2 if key == "rtt" else parsed
    # Jitter is of the round trip, unless it stands beside a delay, which is one-way, or in a one-way rule.
    if result.get("jitter", NONE) != NONE and "delay" not in given and not rule.oneway:
        result["jitter"] = round(result["jitter"] / math.sqrt(2))
    return result


def _shape(values: t.Mapping[str, _Value]) -> tuple[_netem.Shape, list[Fault]]:
    shape = _netem.Shape(**{key: given.value for key, given in values.items() if key in _netem.QUANTITIES})
    faults = [
        Fault((*values[key].path, key), message, "docs/network.md says what goes together.")
        for key, message in _netem.check_shape(shape)
    ]
    if "rate_per" in values and not shape.rate:
        path = (*values["rate_per"].path, "rate_per")
        faults.append(Fault(path, "rate_per needs a rate", "Give the rate, or remove rate_per."))
    return shape, faults


def gateway_faults(
    links: t.Sequence[Values], members: t.Sequence[Values], sites: t.Mapping[str, Values]
) -> list[Fault]:
    """What the links between a private site and others cannot be, because all that enters the site has one address.

    The way to its hosts is a connection to the site's gateway. So others shape what they send to the gateway, and the
    gateway what comes back; a host behind it has the gateway's network towards other sites, and no other.

    Args:
        links: what `links` gives.
        members: of the plan.
        sites: of the plan: a private one has a ``gateway``, a member.
    """
    faults: dict[Fault, None] = {}
    for name, site in sites.items():
        gateway = site.get("gateway")
        if not gateway:
            continue
        doors = gateway.rpartition("-")[0]
        behind = [m["name"] for m in members if m["site"] == name and m["group"] != doors]
        others = [m["name"] for m in members if m["site"] != name]
        # Members that no link tells apart are looked at once.
        roles = {
            member: tuple((member in link["from"], member in link["to"]) for link in links)
            for member in (*behind, *others, gateway)
        }
        for inside in {roles[member]: member for member in reversed(behind)}.values():
            for outside in {roles[member]: member for member in reversed(others)}.values():
                for one, other, same in ((outside, inside, (outside, gateway)), (inside, outside, (gateway, outside))):
                    own, wanted = _between_members(links, one, other), _between_members(links, *same)
                    if own == wanted:
                        continue
                    faults[
                        Fault(
                            (),
                            f"from {one} to {other}: {own[0]}; but {inside} is reached through {gateway}, and from {same[0]} to "
                            f"{same[1]}: {wanted[0]}",
                            f"Name the site ({name}) in the rule, so that it holds for its gateway as well.",
                        )
                    ] = None
        for link in links:
            if (
                link["rate_per"] == "pair"
                and not set(behind).isdisjoint(link["to"])
                and set(others) & set(link["from"])
            ):
                faults[
                    Fault(
                        (),
                        f"a rate towards site {name} is for each pair, but its hosts have one address, that of {gateway}",
                        "Say rate_per: host; the hosts of the site then share the rate.",
                    )
                ] = None
    return list(faults)


def _between_members(links: t.Sequence[Values], source: str, target: str) -> tuple[str, int | None]:
    """What lies between two members, as a person reads it, and which link it is where that matters: it shares a rate."""
    for index, link in enumerate(links):
        if source in link["from"] and target in link["to"]:
            text = ", ".join(f"{key} {value}" for key, value in link["shape"].items())
            return text, index if "rate" in link["shape"] else None
    return "nothing", None


def netem_groups(plan: t.Mapping[str, t.Any]) -> list[str]:
    """The groups with hosts that, in some network of the plan, do with what they send what only netem can do."""
    sources: set[str] = set()
    for network in plan["networks"].values():
        for phase in (network, *network["timeline"]):
            for link in phase["links"]:
                if not set(_netem.NEEDS_NETEM).isdisjoint(link["shape"]):
                    sources.update(link["from"])
    groups = {member["group"] for member in plan["members"] if member["name"] in sources}
    return [name for name in plan["groups"] if name in groups]


# --- from links to hosts ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class HostNetworks:
    """What the hosts of a trial do with what they send.

    `networks` are those of `wire.SUBMISSION`, by a name: phases of rules, as the module `netem` takes them, and what is
    exempt. `of` says which of them is whose, and has the member's own addresses, to which the rules do not apply: the
    part ``network`` and ``addresses`` of a member of `wire.SUBMISSION`. A member that never shapes anything has none.
    """

    networks: dict[str, dict[str, t.Any]]
    of: dict[str, dict[str, t.Any]]


def host_networks(
    plan: t.Mapping[str, t.Any], trial: t.Mapping[str, t.Any], hosts: Hosts, *, rendezvous_port: int = 7447
) -> HostNetworks:
    """What each member of a trial, and each that may step in, is to do with what it sends.

    Hosts that do the same have one entry, so that the table grows with the kinds of hosts and not with their pairs; that is
    why a host's own addresses are among those that its rules name, and have to be left out by each.
    Members without an address are passed over: whether the trial goes on without them is not decided here.

    Args:
        plan: the plan.
        trial: one of its trials.
        hosts: by member; see `_addresses`.
        rendezvous_port: never shaped.

    Raises:
        PlanError: an address would have to be reached in two ways at once.
    """
    name = trial.get("network")
    if not name:
        return HostNetworks({}, {})
    wanted = dict.fromkeys((*trial["members"], *trial["spares"]))
    sites = {member["name"]: member["site"] for member in plan["members"] if member["name"] in wanted}
    inside = [member for member in wanted if hosts.get(member, {}).get("address")]
    phases = [{"at": 0, "links": plan["networks"][name]["links"]}, *plan["networks"][name]["timeline"]]
    private = plan["addresses"] == "private"
    networks: dict[str, dict[str, t.Any]] = {}
    of: dict[str, dict[str, t.Any]] = {}
    known: dict[str, str] = {}
    cache: dict[t.Any, str] = {}
    exempt = exemptions(rendezvous_port)
    for source in inside:
        # Hosts of one site with the same links are alike, but for the links of rules that leave out the host itself.
        kind = (sites[source], *(index for phase in phases for index in _own_links(phase["links"], source)))
        if kind not in cache:
            rules = [
                {"at": phase["at"], "rules": _rules(phase["links"], source, inside, sites, hosts, private)}
                for phase in phases
            ]
            shaped = any(phase["rules"] for phase in rules)
            text = json.dumps(rules, sort_keys=True) if shaped else ""
            if shaped and text not in known:
                known[text] = f"n{len(known) + 1}"
                networks[known[text]] = {"phases": rules, "exempt": exempt}
            cache[kind] = known.get(text, "")
        if cache[kind]:
            of[source] = {"network": cache[kind], "addresses": _addresses(hosts[source], same_site=True)}
    return HostNetworks(networks, of)


def _own_links(links: t.Sequence[Values], source: str) -> t.Iterator[tuple[int, bool]]:
    for index, link in enumerate(links):
        if source in link["from"]:
            yield index, source in link["to"]


def _rules(
    links: t.Sequence[Values],
    source: str,
    inside: t.Sequence[str],
    sites: t.Mapping[str, str],
    hosts: Hosts,
    private: bool,
) -> list[dict[str, t.Any]]:
    rules: list[dict[str, t.Any]] = []
    taken: dict[str, str] = {}
    for link in links:
        if source not in link["from"]:
            continue
        targets = [name for name in inside if name in link["to"]]
        if targets in ([], [source]):
            continue
        peers = [_addresses(hosts[name], same_site=sites[name] == sites[source], private=private) for name in targets]
        for name, own in zip(targets, peers, strict=True):
            for address in own:
                if taken.setdefault(address, str(link)) != str(link):
                    raise PlanError(
                        f"{source} reaches {name} by {address}, and others too, but their networks differ: give hosts that "
                        "have an address in common the same network, or other addresses"
                    )
        if link["rate_per"] == "host":
            peers = [sorted({address for own in peers for address in own}, key=version_key)]
        group = {key: link[key] for key in ("rate_group",) if key in link}
        rules += [{"to": to, **link["shape"], **group} for to in peers]
    return rules


def _addresses(host: t.Mapping[str, t.Any], *, same_site: bool, private: bool = False) -> list[str]:
    """The addresses that packets to a host have on the wire, in order.

    Inside a site both of its own. From another site its public one; or the gateway's, where the way to it is a tunnel
    that ends there, and that of the NAT by which it goes out. With `private`, sites know each other's private addresses.
    """
    if same_site:
        keys: tuple[str, ...] = ("address", "public_address")
    else:
        way = next((key for key in ("public_address", "gateway_address") if host.get(key)), "address")
        keys = (way, "nat_address", *(["address"] if private and not host.get("gateway_address") else []))
    return sorted({str(host[key]) for key in keys if host.get(key)}, key=version_key)


def network_links(plan: t.Mapping[str, t.Any], trial: t.Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    """The links of a trial at its start; empty where its network is left as it is."""
    name = trial.get("network")
    return list(plan["networks"][name]["links"]) if name else []


def exemptions(rendezvous_port: int) -> list[dict[str, t.Any]]:
    """What is never shaped in a trial: the argument `exempt` of the module `netem`. The rendezvous besides the
    module's own: a slow network must not hold up the barrier. S3 is not among the members, so no rule touches it.
    """
    return [*(dict(entry) for entry in _netem.DEFAULT_EXEMPT), {"protocol": "tcp", "port": rendezvous_port}]
