# SPDX-License-Identifier: GPL-3.0-or-later
"""Ready-made networks: the round trips between AWS regions, well-known kinds of links, and topology files.

A profile gives the values of a rule that the rule does not give itself. This util is PRIVATE to the collection.

Sources
- ``aws``: C(_network_profile_aws.csv), which names its own.
- Mobile and home links: WebPageTest's connectivity profiles (catchpoint/WebPageTest,
  www/settings/connectivity.ini.sample). They belong to one subscriber: the first end of a rule is the subscriber, and
  each subscriber has the whole rate.
- ``wan``: us-east-1 to eu-central-1 of the matrix, with the jitter that its source states; ``lan``: a round trip
  within a region of the same source, on Gigabit Ethernet.
- ``hybrid_*``: the shaped rates between an on-premises cluster and the cloud in experiments with Ray on both, named by
  their nominal rate; ``hybrid`` is the link as it was, through sshuttle.
"""

from __future__ import annotations

import csv
import functools
import json
import math
import pathlib
import re
import typing as t

from ansible_collections.startline.lab.plugins.plugin_utils._errors import did_you_mean

#: The profile that depends on the regions of the two ends.
AWS: t.Final = "aws"

Values = t.Mapping[str, t.Any]


def _subscriber(down: str, up: str, rtt: str) -> dict[str, Values]:
    return {
        "forward": {"rtt": rtt, "rate": up, "rate_per": "pair"},
        "backward": {"rtt": rtt, "rate": down, "rate_per": "pair"},
    }


def _both(**values: str) -> dict[str, Values]:
    return {"forward": values, "backward": values}


#: Values by direction: from the first end of a rule to the second, and back.
LINKS: t.Final[dict[str, dict[str, Values]]] = {
    "lan": _both(rtt="0.2ms", rate="1gbit"),
    "wan": _both(rtt="90.6ms", jitter="1ms"),
    "fios": _subscriber("20mbit", "5mbit", "4ms"),
    "cable": _subscriber("5mbit", "1mbit", "28ms"),
    "dsl": _subscriber("1.5mbit", "384kbit", "50ms"),
    "dialup": _subscriber("49kbit", "30kbit", "120ms"),
    "3g_fast": _subscriber("1.6mbit", "768kbit", "150ms"),
    "3g": _subscriber("1.6mbit", "768kbit", "300ms"),
    "3g_slow": _subscriber("780kbit", "330kbit", "200ms"),
    "edge": _subscriber("240kbit", "200kbit", "840ms"),
    "2g": _subscriber("35kbit", "32kbit", "1300ms"),
    "hybrid": _both(rate="250mbit"),
    "hybrid_200m": _both(rate="210mbit"),
    "hybrid_150m": _both(rate="160mbit"),
    "hybrid_100m": _both(rate="106mbit"),
    "hybrid_80m": _both(rate="83mbit"),
    "hybrid_50m": _both(rate="55mbit"),
    "hybrid_30m": _both(rate="31mbit"),
    "hybrid_cluster": _both(rate="900mbit"),
    "hybrid_cloud": _both(rate="5000mbit"),
}
NAMES: t.Final = (AWS, *LINKS)


class ProfileError(ValueError):
    """A profile says nothing of what it is asked for, or a topology file is wrong. The text is for the user."""


def check_name(name: str) -> str:
    """The name of a profile.

    Raises:
        ProfileError: it is none.
    """
    if name not in (*NAMES, "none"):
        raise ProfileError(f"{name} is not a profile. {did_you_mean(name, NAMES, 'Profiles')}")
    return name


# --- AWS regions ------------------------------------------------------------------------------------------------------


@functools.cache
def aws_matrix() -> dict[frozenset[str], float]:
    """Round trips between two AWS regions in ms."""
    text = pathlib.Path(__file__).with_name("_network_profile_aws.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {frozenset((row["region_a"], row["region_b"])): float(row["rtt_ms"]) for row in rows}


def aws_link(one: str | None, other: str | None) -> Values:
    """The round trip between two regions. Hosts of one region have a network of their own already: nothing to add.

    Raises:
        ProfileError: a site without a region, or a pair of which nothing is known.
    """
    if one is None or other is None:
        raise ProfileError("the profile aws goes by regions, and a site has none: give each site a region")
    if one == other:
        return {}
    matrix = aws_matrix()
    rtt = matrix.get(frozenset((one, other)))
    if rtt is None:
        known = sorted({region for pair in matrix if one in pair for region in pair} - {one})
        reachable = f"known from {one}: {', '.join(known)}" if known else f"nothing is known of {one}"
        raise ProfileError(f"the profile aws has no round trip between {one} and {other}; {reachable}")
    return {"rtt": f"{rtt:g}ms"}


# --- topology files ---------------------------------------------------------------------------------------------------


class Topology(t.NamedTuple):
    """Links between kinds of nodes, in one direction each. `nodes` maps names as `node_key` has them to the file's."""

    nodes: dict[str, str]
    links: dict[tuple[str, str], Values]


def node_key(name: str) -> str:
    """What is compared of a name: ``HPCLogin`` in a topology is the group ``hpc_login``."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


_METRICS: t.Final = {"rtt": "ms", "jitter": "ms", "bandwidth": "mbit", "loss": "%"}


def parse_topology(text: str) -> Topology:
    """A topology in networkx' node-link form, with a condition of ``[mean, standard deviation]`` on each link.

    ``{"nodes": [{"id": "Cloud"}, ...], "links": [{"source": "Cloud", "target": "HPC", "condition": {"rtt": [0.3, 0],
    "bandwidth": [210, 0], "jitter": [0.01, 0], "loss": [0, 0]}}]}``: rtt and jitter in ms, bandwidth in Mbit/s, loss
    in %. A link is one direction: it delays by half of the round trip, and jitter is shared between the directions as
    everywhere. A bandwidth of 0 is none.

    Raises:
        ProfileError: with everything that is wrong, each by its name.
    """
    try:
        data = json.loads(text)
    except ValueError as exc:
        raise ProfileError(f"is not JSON: {exc}") from exc
    problems: list[str] = []
    # networkx calls the list `links` up to 3.3 and `edges` since.
    edges = "edges" if isinstance(data, dict) and "links" not in data else "links"
    if not isinstance(data, dict) or not isinstance(data.get("nodes"), list) or not isinstance(data.get(edges), list):
        raise ProfileError("is not a topology: it needs lists of nodes and links")
    problems += _unknown("the topology", data, ("directed", "multigraph", "graph", "nodes", edges))
    directed = data.get("directed")
    if not isinstance(directed, bool):
        # To guess would be to leave one direction without its network, or to give it another's.
        problems.append('it does not say whether a link is one direction: add "directed": true, or false for both')
    nodes: dict[str, str] = {}
    for index, node in enumerate(data["nodes"]):
        name = node.get("id") if isinstance(node, dict) else None
        if not isinstance(name, str) or not node_key(name):
            problems.append(f"nodes[{index}] has no id")
            continue
        problems += _unknown(f"node {name}", node, ("id",))
        if node_key(name) in nodes:
            problems.append(f"node {name} is there twice")
        nodes[node_key(name)] = name
    links: dict[tuple[str, str], Values] = {}
    for index, link in enumerate(data[edges]):
        if not isinstance(link, dict):
            problems.append(f"{edges}[{index}] is not a link")
            continue
        ends = []
        for end in ("source", "target"):
            name = str(link.get(end))
            if node_key(name) not in nodes:
                problems.append(
                    f"{edges}[{index}].{end}: {name} is not a node. {did_you_mean(name, nodes.values(), 'Nodes')}"
                )
            ends.append(node_key(name))
        what = f"link {link.get('source')} -> {link.get('target')}"
        problems += _unknown(what, link, ("source", "target", "key", "condition"))
        if (ends[0], ends[1]) in links:
            problems.append(f"{what} is there twice")
        values, found = _condition(what, link.get("condition"))
        problems += found
        links[ends[0], ends[1]] = values
        if directed is False:
            links[ends[1], ends[0]] = values
    if problems:
        raise ProfileError("; ".join(problems))
    return Topology(nodes, links)


def _unknown(what: str, data: t.Mapping[str, t.Any], known: t.Sequence[str]) -> list[str]:
    return [
        f"{what} has the unknown key {key}. {did_you_mean(key, known, 'Known')}" for key in data if key not in known
    ]


def _condition(what: str, condition: t.Any) -> tuple[Values, list[str]]:
    if not isinstance(condition, dict):
        return {}, [f"{what} has no condition"]
    problems = _unknown(what, condition, tuple(_METRICS))
    means: dict[str, float] = {}
    for key in _METRICS:
        value = condition.get(key, [0, 0])
        if (
            not isinstance(value, list)
            or len(value) != 2
            or not all(isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x) for x in value)
        ):
            problems.append(f"{what}: {key} must be [mean, standard deviation]")
        elif value[0] < 0:
            problems.append(f"{what}: {key} is negative: {value[0]}")
        elif value[1]:
            hint = "give it as jitter" if key == "rtt" else "a link has one"
            problems.append(f"{what}: {key} varies by {value[1]}, which is not emulated: {hint}")
        else:
            means[key] = value[0]
    values = {key: f"{means[key]:.12g}{unit}" for key, unit in _METRICS.items() if means.get(key)}
    if "bandwidth" in values:
        values["rate"] = values.pop("bandwidth")
    return values, problems
