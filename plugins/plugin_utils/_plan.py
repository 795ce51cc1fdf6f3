# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan: a pure function of the experiment and a seed. Everything after it reads it, nothing re-derives it.

This util is PRIVATE to the collection.
"""

from __future__ import annotations

import collections
import dataclasses
import fractions
import functools
import hashlib
import ipaddress
import itertools
import json
import math
import re
import typing as t

from ansible_collections.startline.lab.plugins.plugin_utils import (
    _netem,
    _network_check,
    _network_profile,
    _template,
    _trial,
)
from ansible_collections.startline.lab.plugins.plugin_utils._document import Path
from ansible_collections.startline.lab.plugins.plugin_utils._errors import ExperimentError, PlanError, Problem
from ansible_collections.startline.lab.plugins.plugin_utils._hosts_config import behind_gateway, version_key

if t.TYPE_CHECKING:
    # For types only: whoever reads a plan, as every filter does, need not load pydantic.
    from ansible_collections.startline.lab.plugins.plugin_utils._experiment import Experiment, Scalar

FORMAT: t.Final = "startline-plan/1"
#: More trials or hosts than these are typing errors; either would take weeks or a fortune.
MAX_TRIALS: t.Final = 10_000
MAX_HOSTS: t.Final = 10_000
#: Addresses of a subnet that AWS keeps for itself: the first four and the last.
RESERVED_ADDRESSES: t.Final = 5
#: The subnets of a site are the start of its network, so that later kinds of subnets find room behind them.
SUBNET_PREFIX: t.Final = 20
#: Of AWS's 60 rules that let into a security group (its default quota), all but those for the controller and for the
#: site's own hosts.
MAX_PEERS: t.Final = 58

#: Seconds that a fleet may take until its first trial, and that a trial may take besides barrier and timeout (clean-up,
#: stopping what does not stop by itself, delivery of the evidence). Generous: they bound the worst case.
SETUP_ALLOWANCE: t.Final = 600
TRIAL_ALLOWANCE: t.Final = 30

Plan = dict[str, t.Any]


@dataclasses.dataclass(frozen=True)
class _Point:
    """A point of the sweep: what makes it different, all the parameters there, and the hosts of each group."""

    values: dict[str, Scalar]
    parameters: dict[str, Scalar]
    where: Path
    counts: dict[str, int]

    def __str__(self) -> str:
        return (
            ", ".join(f"{name}={_template.as_text(value)}" for name, value in self.values.items()) or "the only trial"
        )


def canonical(data: t.Any) -> bytes:
    """JSON that is the same for the same data, whatever the order of keys."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(plan: t.Mapping[str, t.Any]) -> str:
    """sha256 of a plan's canonical JSON, without the digest itself and without where the file was."""
    content = {key: value for key, value in plan.items() if key not in ("digest", "source")}
    # The order of groups, which is the order of ranks, is kept by the list of members.
    return hashlib.sha256(canonical(content)).hexdigest()


def expand(experiment: Experiment, *, seed: int | None = None) -> Plan:
    """The plan of an experiment.

    Args:
        experiment: the checked experiment.
        seed: of the random order; the experiment's own if None.

    Raises:
        ExperimentError: a sweep that is impossible or too large, a count that is no count, a template that fails at a
            point.
    """
    spec = experiment.spec
    seed = spec.seed if seed is None else seed
    points = _points(experiment)
    counts = {name: max(point.counts[name] for point in points) + group.spares for name, group in spec.groups.items()}
    sites = {
        name: {
            "region": site and site.region,
            "cidr": cidr,
            "transport": (site and site.transport) or spec.barrier.transport,
            "gateway": f"{site.gateway}-0" if site and site.gateway else None,
        }
        for name, cidr in spec.networks.items()
        for site in [spec.sites.get(name)]
    }
    only_site = next(iter(sites))
    groups = {
        name: {
            "site": group.site or only_site,
            "count": counts[name],
            "instance_type": group.instance_type,
            "image": group.image.model_dump(exclude_none=True) if group.image else None,
            "volume_size": group.volume_size,
            "command": group.command or spec.command,
            "environment": {**spec.environment, **group.environment},
            "user": spec.user,
        }
        for name, group in spec.groups.items()
    }
    _check_room(experiment, counts, groups, sites)
    _check_rules(experiment, counts, groups, sites)
    trials = _trials(experiment, points, seed)
    members = [
        {"name": f"{group}-{index}", "group": group, "index": index, "site": groups[group]["site"]}
        for group, count in counts.items()
        for index in range(count)
    ]
    regions = {name: spec.sites[name].region if name in spec.sites else None for name in sites}
    networks = _networks(experiment, points, trials, members, regions, sites)
    network_check = spec.network_check.model_dump(exclude={"enabled", "pairs"})
    checks = (
        _network_check.plan_checks(
            {
                "members": members,
                "sites": sites,
                "networks": networks,
                "network_check": network_check,
                "trials": trials,
            },
            seed=seed,
            limit=spec.network_check.pairs,
        )
        if spec.network_check.enabled
        else []
    )
    # A trial that starts with others than were meant has got ready twice.
    alike = all(not trial["spares"] and sum(trial["least"].values()) == len(trial["members"]) for trial in trials)
    ready = spec.barrier.deadline * (1 if alike else 2)
    # What is off is measured once more.
    checking = 2 * sum(spec.barrier.deadline + _network_check.time_limit(check) + TRIAL_ALLOWANCE for check in checks)
    worst_case = SETUP_ALLOWANCE + math.ceil(len(trials) * (ready + spec.timeout + TRIAL_ALLOWANCE) + checking)
    if spec.expires_after is not None and spec.expires_after < worst_case:
        remedy = f"Give {describe_seconds(worst_case)} or more, or leave it out."
        message = f"the hosts would power off before the end: the run may take {describe_seconds(worst_case)}"
        raise ExperimentError([experiment.document.problem(("expires_after",), message, remedy)])
    plan: Plan = {
        "format": FORMAT,
        "experiment": experiment.name,
        "description": spec.description,
        "source": experiment.source,
        "seed": seed,
        "order": spec.order,
        "sites": sites,
        "groups": groups,
        "members": members,
        "addresses": spec.addresses,
        "rendezvous": f"{spec.meeting_group(list(groups))}-0",
        "runtime": {"packages": list(dict.fromkeys(spec.runtime.packages))},
        "artifacts": [
            {
                "src": artifact.path(experiment.source),
                "dest": artifact.name,
                "groups": [name for name in groups if artifact.groups is None or name in artifact.groups],
            }
            for artifact in spec.artifacts
        ],
        "barrier": spec.barrier.model_dump(exclude={"quorum", "transport"}),
        "timeout": spec.timeout,
        "worst_case": worst_case,
        "expires_after": spec.expires_after if spec.expires_after is not None else max(3600, 2 * worst_case + 3600),
        "collect": list(spec.collect),
        "networks": networks,
        "network_check": network_check,
        "checks": checks,
        "trials": trials,
    }
    plan["digest"] = digest(plan)
    problems = _rehearse(experiment, plan, points)
    if problems:
        raise ExperimentError(problems)
    return plan


# --- points -----------------------------------------------------------------------------------------------------------


def _points(experiment: Experiment) -> list[_Point]:
    """The points of the sweep in the order of the file: the product of the axes, less the excluded, and the
    included.
    """
    spec, document, axes = experiment.spec, experiment.document, experiment.axes
    size = math.prod(len(values) for values in axes.values())
    if size > 10 * MAX_TRIALS:
        raise ExperimentError([_too_many(experiment, size * (spec.repeats + spec.warmups))])
    product: list[dict[str, Scalar]] = [
        dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    ]
    problems: list[Problem] = []
    excluded: set[int] = set()
    for index, entry in enumerate(spec.exclude):
        matching = {i for i, point in enumerate(product) if entry.items() <= point.items()}
        if matching <= excluded:
            problems.append(
                document.problem(("exclude", index), "excludes no point", "Remove it, or correct its values.")
            )
        excluded |= matching
    chosen: list[tuple[dict[str, Scalar], Path]] = [
        (point, ("parameters",)) for i, point in enumerate(product) if i not in excluded
    ]
    for index, entry in enumerate(spec.include):
        # Axes first and in their order, so that a point looks the same however it was written.
        point = {name: entry[name] for name in (*axes, *experiment.constants) if name in entry}
        if any(_same(point, known) for known, _where in chosen):
            problems.append(document.problem(("include", index), "is a point of the sweep already", "Remove it."))
        chosen.append((point, ("include", index)))
    if not chosen:
        problems.append(document.problem(("exclude",), "leaves no point, so there would be no trial", "Exclude less."))
    total = len(chosen) * (spec.repeats + spec.warmups)
    if total > MAX_TRIALS:
        problems.append(_too_many(experiment, total))
    if problems:
        raise ExperimentError(problems)
    points = []
    for values, where in chosen:
        parameters = {**experiment.constants, **values}
        counts, found = _counts(experiment, values, parameters)
        problems += found or _check_quorum(experiment, values, counts)
        points.append(_Point(values, parameters, where, counts))
    if problems:
        raise ExperimentError(problems)
    return points


def _same(one: dict[str, Scalar], other: dict[str, Scalar]) -> bool:
    return one.keys() == other.keys() and all(
        _template.as_text(one[key]) == _template.as_text(other[key]) for key in one
    )


def _too_many(experiment: Experiment, total: int) -> Problem:
    lengths = " x ".join(f"{len(values)} {name}" for name, values in experiment.axes.items()) or "1 point"
    spec = experiment.spec
    warm = f" + {spec.warmups} warm-ups" if spec.warmups else ""
    message = f"the sweep has {total:,} trials ({lengths}, x {spec.repeats} repeats{warm}); {MAX_TRIALS:,} is the limit"
    key: Path = ("parameters",) if experiment.axes else ("repeats",)
    return experiment.document.problem(key, message, "Shorten an axis, exclude points, or split the experiment.")


def _counts(
    experiment: Experiment, values: dict[str, Scalar], parameters: dict[str, Scalar]
) -> tuple[dict[str, int], list[Problem]]:
    counts: dict[str, int] = {}
    problems: list[Problem] = []
    point = _shown(values)
    for name, group in experiment.spec.groups.items():
        counts[name] = group.count if isinstance(group.count, int) else 1
        if isinstance(group.count, int):
            continue
        try:
            text = _template.render(group.count, parameters).strip()
        except _template.TemplateProblem as exc:
            message, text = f"fails at {point}: {exc}", None
        else:
            message = f"is {text!r} at {point}: not a whole number of at least 1"
        if text is not None and re.fullmatch(r"\d{1,9}", text) and int(text) >= 1:
            counts[name] = int(text)
        else:
            remedy = "Correct the parameter or the template; {{ a // b }} divides without a remainder."
            problems.append(experiment.document.problem(("groups", name, "count"), message, remedy))
    return counts, problems


def _shown(values: dict[str, Scalar]) -> str:
    return ", ".join(f"{name}={_template.as_text(value)}" for name, value in values.items()) or "the only point"


def _check_quorum(experiment: Experiment, values: dict[str, Scalar], counts: dict[str, int]) -> list[Problem]:
    """Refuse a quorum that no trial of a point could meet."""
    quorum = experiment.spec.barrier.quorum
    problems = []
    for name, count in counts.items():
        least = _least(quorum, name, count)
        if least > count:
            path: Path = ("barrier", "quorum", name) if isinstance(quorum, dict) else ("barrier", "quorum")
            message = f"{least} of {name} are more than it has at {_shown(values)}: {count}"
            problems.append(experiment.document.problem(path, message, "Give fewer, or a percentage: 75%."))
    return problems


def _least(quorum: int | str | dict[str, int | str] | None, group: str, count: int) -> int:
    """How few of a group's hosts may start."""
    share = quorum.get(group) if isinstance(quorum, dict) else quorum
    if share is None:
        return count
    return share if isinstance(share, int) else math.ceil(fractions.Fraction(share[:-1]) * count / 100)


def _check_room(
    experiment: Experiment,
    counts: dict[str, int],
    groups: dict[str, dict[str, t.Any]],
    sites: dict[str, dict[str, t.Any]],
) -> None:
    """Refuse fleets that no network holds."""
    problems = []
    total = sum(counts.values())
    if total > MAX_HOSTS:
        largest = max(counts, key=lambda name: counts[name])
        message = f"the fleet has {total:,} hosts; {MAX_HOSTS:,} is the limit"
        problems.append(
            experiment.document.problem(("groups", largest, "count"), message, "Is there a digit too many?")
        )
    for site, values in sites.items():
        subnets = site_subnets(values)
        wanted: collections.Counter[ipaddress.IPv4Network] = collections.Counter()
        for name, group in groups.items():
            if group["site"] == site:
                wanted[subnets[-1] if behind_gateway(values, name) else subnets[0]] += counts[name]
        for subnet in subnets:
            # The NAT gateway is a host of the public subnet too.
            needed = wanted[subnet] + (len(subnets) > 1 and subnet == subnets[0])
            room = subnet.num_addresses - RESERVED_ADDRESSES
            if needed > room and total <= MAX_HOSTS:
                message = f"{needed} hosts do not fit into {subnet}, the subnet of site {site}: it has room for {room}"
                remedy = "Give the site a larger network (cidr)."
                problems.append(experiment.document.problem(("sites", site, "cidr"), message, remedy))
    if problems:
        raise ExperimentError(problems)


def _check_rules(
    experiment: Experiment,
    counts: dict[str, int],
    groups: dict[str, dict[str, t.Any]],
    sites: dict[str, dict[str, t.Any]],
) -> None:
    """Refuse sites that more public addresses are to be let into than a security group has rules."""
    public: collections.Counter[str] = collections.Counter()
    private = set()
    for name, group in groups.items():
        if behind_gateway(sites[group["site"]], name):
            private.add(group["site"])
        else:
            public[group["site"]] += counts[name]
    public.update(private)  # a NAT gateway each
    problems = []
    for site in sites:
        peers = {
            other: count for other, count in public.items() if other != site or experiment.spec.addresses == "public"
        }
        if public[site] and sum(peers.values()) > MAX_PEERS:
            largest = max(peers, key=lambda name: peers[name])
            message = (
                f"{sum(peers.values())} public addresses are to be let in, and a security group of AWS has rules for "
                f"{MAX_PEERS} of them"
            )
            remedy = (
                f"Give site {largest} a gateway, so that its hosts come from one address, or take fewer hosts there."
            )
            problems.append(experiment.document.problem(("sites", site), message, remedy))
    if problems:
        raise ExperimentError(problems)


# --- trials -----------------------------------------------------------------------------------------------------------


def _trials(experiment: Experiment, points: list[_Point], seed: int) -> list[dict[str, t.Any]]:
    """All trials in the order in which they run.

    Each repeat is a block that holds every point once, so that a drift of the environment (other tenants, caches,
    heat) meets all points alike instead of being taken for an effect of the parameter that happened to be swept last.
    """
    spec = experiment.spec
    stems = _stems([point.values for point in points])
    blocks = [(True, n) for n in range(1, spec.warmups + 1)] + [(False, n) for n in range(1, spec.repeats + 1)]
    trials = []
    for warmup, repeat in blocks:
        suffix = f"{'w' if warmup else 'r'}{repeat}"
        block = list(zip(points, stems, strict=True))
        if spec.order == "random":
            block.sort(key=lambda item: _shuffle_key(seed, suffix, item[0].values))
        for point, stem in block:
            trials.append(
                {
                    "trial_id": f"{stem}.{suffix}" if stem else suffix,
                    "point": point.values,
                    "parameters": point.parameters,
                    "repeat": repeat,
                    "warmup": warmup,
                    "members": [f"{name}-{index}" for name, count in point.counts.items() for index in range(count)],
                    # Of each group the next hosts, which may be there for larger trials.
                    "spares": [
                        f"{name}-{count + extra}"
                        for name, count in point.counts.items()
                        for extra in range(spec.groups[name].spares)
                    ],
                    "least": {name: _least(spec.barrier.quorum, name, n) for name, n in point.counts.items()},
                    "timeout": spec.timeout,
                }
            )
    return trials


def _networks(
    experiment: Experiment,
    points: list[_Point],
    trials: list[dict[str, t.Any]],
    members: list[dict[str, t.Any]],
    regions: dict[str, str | None],
    sites: dict[str, dict[str, t.Any]],
) -> dict[str, dict[str, t.Any]]:
    """Each different network of the sweep: its ``links`` from the start on, and its ``timeline``, a list of
    ``{"at": seconds after T, "links"}``. Every trial gets the name of its own, or None.

    Raises:
        ExperimentError: values that are none or do not go together, at any point.
    """
    networks: dict[str, dict[str, t.Any]] = {}
    known = {member["name"] for member in members}
    names: dict[bytes, str] = {}
    by_values: dict[bytes, str | None] = {}
    problems: list[Problem] = []

    @functools.cache  # most points of a sweep have the network of another
    def resolved(rules: tuple[tuple[Path, _netem.NetworkRule], ...]) -> list[dict[str, t.Any]]:
        links, faults = _netem.links([rule for _place, rule in rules], members, regions, experiment.topologies)
        places = {rule.path: place for place, rule in rules}
        for fault in faults:
            path = (*places[fault.path[:2]], *fault.path)
            problems.append(experiment.document.problem(path, fault.message, fault.remedy))
        for fault in _netem.gateway_faults(links, members, sites):
            problems.append(experiment.document.problem(("network",), fault.message, fault.remedy))
        return links

    for point in points:
        phases, found = _network_phases(experiment, point, known)
        problems += found
        links = [resolved(()) if found else resolved(tuple(rules.values())) for rules in phases]
        moments = [moment.at for moment in experiment.spec.timeline]
        network = {
            "links": links[0],
            "timeline": [{"at": at, "links": own} for at, own in zip(moments, links[1:], strict=True)],
        }
        key = canonical(network)
        if any(links) and key not in names:
            names[key] = f"network-{len(names) + 1}"
            networks[names[key]] = network
        by_values[canonical(point.values)] = names.get(key)
    if problems:
        raise ExperimentError(list(dict.fromkeys(problems)))
    for trial in trials:
        trial["network"] = by_values[canonical(trial["point"])]
    return networks


_Rules = dict[tuple[str, str], tuple[Path, _netem.NetworkRule]]


def _network_phases(
    experiment: Experiment, point: _Point, members: t.Container[str]
) -> tuple[list[_Rules], list[Problem]]:
    """The rules of the network at a point, without templates, by their ends and with the place of each: at the start, and
    from each moment of the timeline on.
    """
    problems: list[Problem] = []
    phases: list[_Rules] = [{}, *({} for moment in experiment.spec.timeline)]
    named = {_netem.ALL, *experiment.spec.groups, *experiment.spec.sites}
    for path, one, other, link in experiment.spec.network_rules():
        for end in (one, other):
            if end not in named and end not in members:
                remedy = "Hosts are counted from 0 within their group."
                problems.append(experiment.document.problem(path, f"there is no host {end}", remedy))
        values = link.model_dump(exclude_none=True, exclude_unset=True)
        for key, value in values.items():
            if not _template.is_template(value):
                continue
            try:
                text = _template.render(value, point.parameters).strip()
                if key != "profile":
                    values[key] = _netem.check_value(key, text)
                else:
                    values[key] = text if text in experiment.topologies else _network_profile.check_name(text)
            except ValueError as exc:
                problems.append(
                    experiment.document.problem((*path, key), f"at {point}: {exc}", "docs/network.md lists the units.")
                )
        first = 0 if path[0] == "network" else 1 + t.cast("int", path[1])
        for phase in phases[first:]:
            before = phase.get((one, other))
            phase[one, other] = (path[:-2], _netem.changed(before and before[1], one, other, values))
    return phases, problems


def _shuffle_key(seed: int, block: str, values: dict[str, Scalar]) -> bytes:
    # A hash, not random.shuffle: the order is the same with every release of Python, and can be recomputed from a
    # paper.
    return hashlib.sha256(canonical([seed, block, values])).digest()


_UNSAFE: t.Final = re.compile(r"[^A-Za-z0-9._-]+")
#: Longest trial id: a directory, an S3 key's part and a line in a terminal. The suffix (".r10000") has its share.
MAX_TRIAL_ID: t.Final = 80
_MAX_STEM: t.Final = MAX_TRIAL_ID - 8


def _stems(points: t.Sequence[t.Mapping[str, Scalar]]) -> list[str]:
    """A readable, unique and safe name for each point: ``protocol-normal.parties-8``; empty where nothing is swept."""
    stems = [
        _UNSAFE.sub("-", ".".join(f"{name}-{_template.as_text(value)}" for name, value in point.items()))
        for point in points
    ]
    # Some file systems do not tell case apart.
    uses = collections.Counter(stem.casefold() for stem in stems)
    # 6 digits are enough for people; 16 for a sweep of thousands of points with nothing readable to tell them apart.
    for width in (6, 16):
        named = [
            f"{stem[: _MAX_STEM - width - 1]}-{hashlib.sha256(canonical(dict(point))).hexdigest()[:width]}"
            if uses[stem.casefold()] > 1 or len(stem) > _MAX_STEM
            else stem
            for stem, point in zip(stems, points, strict=True)
        ]
        if len({stem.casefold() for stem in named}) == len(named):
            break
    return named


def _rehearse(experiment: Experiment, plan: Plan, points: list[_Point]) -> list[Problem]:
    """Render everything once per point and group with made-up addresses: a template that fails shall fail here, for
    free.
    """
    addresses = {
        member["name"]: {"address": str(ipaddress.IPv4Address("10.77.0.4") + position)}
        for position, member in enumerate(plan["members"])
    }
    seen: set[tuple[Path, str]] = set()
    problems = []
    done: set[str] = set()
    for trial in plan["trials"]:
        stem = trial["trial_id"].rpartition(".")[0]
        if stem in done:
            continue
        done.add(stem)
        for failure in _trial.rehearse(plan, trial, addresses):
            path: Path = ("groups", failure.group, *failure.path)
            if path not in experiment.document.lines:
                path = failure.path  # the group has it from the experiment
            if (path, failure.message) not in seen:
                seen.add((path, failure.message))
                where = f" (trial {trial['trial_id']}, {failure.member})"
                problems.append(
                    experiment.document.problem(
                        path, f"fails: {failure.message}{where}", "docs/experiment.md lists what templates can use."
                    )
                )
    return problems


# --- what others read from a plan -------------------------------------------------------------------------------------


def site_subnets(site: t.Mapping[str, t.Any]) -> tuple[ipaddress.IPv4Network, ...]:
    """The subnets that hold a site's hosts: those with public addresses and, in a private site, those without."""
    network = ipaddress.IPv4Network(site["cidr"])
    if site["gateway"] is None:
        return (network if network.prefixlen >= SUBNET_PREFIX else _first(network, SUBNET_PREFIX, 1)[0],)
    return _first(network, max(SUBNET_PREFIX, network.prefixlen + 1), 2)


def _first(network: ipaddress.IPv4Network, prefix: int, count: int) -> tuple[ipaddress.IPv4Network, ...]:
    return tuple(itertools.islice(network.subnets(new_prefix=prefix), count))


def check_format(plan: t.Any) -> None:
    """Refuse what is no plan, or one of another release.

    Raises:
        PlanError: with what to do.
    """
    found = plan.get("format") if isinstance(plan, t.Mapping) else None
    if found != FORMAT:
        raise PlanError(
            f"a plan of the format {FORMAT} is needed, not {found or type(plan).__name__}: "
            "make it again from the experiment"
        )


def check_plan(plan: t.Mapping[str, t.Any]) -> None:
    """Refuse a plan of another format, or one that was changed by hand.

    Raises:
        PlanError: with what to do.
    """
    check_format(plan)
    if plan.get("digest") != digest(plan):
        raise PlanError(
            "the plan does not match its digest, so it was changed after it was made: make it again from the experiment"
        )


def describe_seconds(seconds: float) -> str:
    """``2 h 5 min``: how people say it, two units at most."""
    seconds = math.ceil(seconds)
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    parts = []
    for size, unit in units:
        if seconds >= size:
            parts.append(f"{seconds // size} {unit}")
            seconds %= size
    return " ".join(parts[:2]) or "0 s"


def summary(plan: Plan) -> str:
    """The plan as a person checks it before money is spent."""
    trials = plan["trials"]
    counted = [trial for trial in trials if not trial["warmup"]]
    warmups = len(trials) - len(counted)
    by_point: dict[str, list[dict[str, t.Any]]] = {}
    for trial in counted:
        label = (
            ", ".join(f"{name}={_template.as_text(value)}" for name, value in trial["point"].items())
            or "no parameter is swept"
        )
        by_point.setdefault(label, []).append(trial)
    hosts = len(plan["members"])
    hours = hosts * plan["worst_case"] / 3600
    order = f"random within each repeat, seed {plan['seed']}" if plan["order"] == "random" else "as written"
    lines = [
        f"{plan['experiment']}: {plan['description']}" if plan["description"] else plan["experiment"],
        "",
        f"Hosts: {hosts}",
        *_table(
            [
                [
                    f"{group['count']}",
                    name,
                    group["instance_type"],
                    f"{group['site']} ({plan['sites'][group['site']]['region'] or 'region of the inventory'})",
                    ", ".join(_jobs(plan, name, group)),
                ]
                for name, group in plan["groups"].items()
            ]
        ),
        "",
        f"Trials: {len(counted)}" + (f" and {warmups} warm-ups" if warmups else "") + f", order: {order}",
        *_table(
            [
                [
                    f"{len(runs)} x",
                    label,
                    _who(runs[0], hosts),
                ]
                for label, runs in sorted(by_point.items(), key=lambda item: version_key(item[0]))
            ],
            limit=30,
        ),
        "",
        f"Longest time: {describe_seconds(plan['worst_case'])} ({hours:.1f} host-hours); "
        f"hosts power themselves off after {describe_seconds(plan['expires_after'])}.",
        f"Plan {plan['digest'][:12]}",
    ]
    return "\n".join(line.rstrip() for line in lines)


def _jobs(plan: Plan, name: str, group: dict[str, t.Any]) -> list[str]:
    """What a group is besides its own job."""
    site = plan["sites"][group["site"]]
    jobs = ["rendezvous"] if plan["rendezvous"] == f"{name}-0" else []
    if behind_gateway(site, name):
        jobs.append(f"behind {site['gateway']}")
    elif site["gateway"]:
        jobs.append("gateway")
    if name in _netem.netem_groups(plan):
        jobs.append("needs netem")
    return jobs


def _who(trial: dict[str, t.Any], hosts: int) -> str:
    """How many hosts take part in a trial, where that is not all."""
    members, spares, least = len(trial["members"]), len(trial["spares"]), sum(trial["least"].values())
    words = [f"{members} hosts"] if members != hosts else []
    words += [f"{spares} spare"] if spares else []
    words += [f"{least} at least"] if least < members else []
    return ", ".join(words)


def _table(rows: list[list[str]], limit: int = 100) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  "
        + "  ".join(
            cell.rjust(w) if i == 0 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows[:limit]
    ]
    return lines if len(rows) <= limit else [*lines, f"  ... and {len(rows) - limit} more"]
