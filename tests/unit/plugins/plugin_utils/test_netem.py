# SPDX-License-Identifier: GPL-3.0-or-later
"""From the network of an experiment to the rules of each host."""

from __future__ import annotations

import itertools
import json
import re
import typing as t

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.startline.lab.plugins.module_utils import _netem as tc
from ansible_collections.startline.lab.plugins.plugin_utils import _netem, _network_profile, _plan
from ansible_collections.startline.lab.plugins.plugin_utils._errors import ExperimentError, PlanError, Problem
from ansible_collections.startline.lab.plugins.plugin_utils._experiment import load_experiment

BASE = """
sites:
  us: {region: us-east-1}
  eu: {region: eu-central-1}
groups:
  party: {site: us, count: 3}
  chain: {site: eu, count: 2}
command: run {{ rank }}
"""


def plan(network: str, rest: str = "", **kwargs: t.Any) -> dict[str, t.Any]:
    return _plan.expand(load_experiment(f"{BASE}network: {network}\n{rest}", "experiments/demo.yml", **kwargs))


def problems(network: str, rest: str = "", **kwargs: t.Any) -> tuple[Problem, ...]:
    with pytest.raises(ExperimentError) as caught:
        plan(network, rest, **kwargs)
    return caught.value.problems


def pairs(network: str, rest: str = "", **kwargs: t.Any) -> dict[tuple[str, str], dict[str, str]]:
    """What lies between each ordered pair; a pair that is in two links fails."""
    expanded = plan(network, rest, **kwargs)
    found: dict[tuple[str, str], dict[str, str]] = {}
    for link in _netem.network_links(expanded, expanded["trials"][0]):
        for pair in itertools.product(link["from"], link["to"]):
            if pair[0] != pair[1]:
                assert pair not in found
                found[pair] = link["shape"]
    return found


# --- what lies between whom -------------------------------------------------------------------------------------------


def test_no_network_is_none() -> None:
    expanded = plan("{}")
    assert expanded["networks"] == {}
    assert expanded["trials"][0]["network"] is None
    assert pairs("{party: {chain: {rtt: 0ms}}}") == {}


def test_a_group_with_itself() -> None:
    found = pairs("{party: {party: {rtt: 80ms, jitter: 1ms, loss: 0.1%, rate: 200mbit}}}")
    shape = {"delay": "40ms", "jitter": "707.107us", "distribution": "normal", "loss": "0.1%", "rate": "200mbit"}
    assert found == dict.fromkeys(itertools.permutations(["party-0", "party-1", "party-2"], 2), shape)


def test_a_rule_holds_both_ways_unless_it_is_oneway() -> None:
    found = pairs("{us: {eu: {delay: 40ms, jitter: 1ms}}}")
    assert len(found) == 12
    assert {shape["jitter"] for shape in found.values()} == {"1ms"}
    found = pairs("{us: {eu: {delay: 40ms, oneway: true}}, eu: {us: {delay: 60ms, oneway: true}}}")
    assert found["party-0", "chain-1"] == {"delay": "40ms"}
    assert found["chain-1", "party-0"] == {"delay": "60ms"}


def test_the_narrowest_rule_gives_each_quantity() -> None:
    found = pairs(
        "{all: {all: {rtt: 10ms, loss: 1%}}, party: {chain: {rtt: 20ms}}, party-1: {chain-0: {loss: none, rate: 1mbit}}}"
    )
    assert found["party-0", "party-1"] == {"delay": "5ms", "loss": "1%"}
    assert found["chain-0", "party-0"] == {"delay": "10ms", "loss": "1%"}
    assert found["chain-0", "party-1"] == {"delay": "10ms", "rate": "1mbit"}
    assert len(found) == 20


def test_links_are_few() -> None:
    expanded = plan("{all: {all: {rtt: 10ms}}, party-1: {chain-0: {loss: 1%}}}")
    assert [len(network["links"]) for network in expanded["networks"].values()] == [5]
    assert len(plan("{all: {all: {rtt: 10ms}}}")["networks"]["network-1"]["links"]) == 1


def rate_groups(network: str, rest: str = "", **kwargs: t.Any) -> dict[str, list[tuple[list[str], str | None]]]:
    """For each sender the other ends of its links, with the rate that each shares."""
    expanded = plan(network, rest, **kwargs)
    found: dict[str, list[tuple[list[str], str | None]]] = {}
    for link in _netem.network_links(expanded, expanded["trials"][0]):
        for source in link["from"]:
            found.setdefault(source, []).append((link["to"], link.get("rate_group")))
    return found


def test_a_rate_is_one_however_many_kinds_of_links_other_quantities_make_of_it() -> None:
    parties, chain = ["party-0", "party-1", "party-2"], ["chain-0", "chain-1"]
    found = rate_groups("{all: {all: {rate: 1mbit}}, us: {eu: {rtt: 80ms}}}")
    assert found["party-0"] == [(parties, "all.all"), (chain, "all.all")]
    assert found["chain-0"] == [(chain, "all.all"), (parties, "all.all")]
    found = rate_groups("{all: {all: {rate: 1mbit, profile: aws}}}")
    assert found["party-0"] == [(parties, "all.all"), (chain, "all.all")]
    # A rule's own rate is its own, and one that a host has for one link only is not shared with anything.
    assert rate_groups("{us: {us: {rate: 1mbit}, eu: {rate: 1mbit, rtt: 9ms}}}")["party-0"] == [
        (parties, None), (chain, None),
    ]  # fmt: skip
    assert rate_groups("{all: {all: {rate: 1mbit, rate_per: pair}}, us: {eu: {rtt: 80ms}}}")["party-0"] == [
        (parties, None), (chain, None),
    ]  # fmt: skip


def test_a_host_has_the_shared_rate_in_its_rules() -> None:
    found = rules("{all: {all: {rate: 1mbit}}, us: {eu: {rtt: 80ms}}}")["party-0"]
    assert [(rule["rate"], rule.get("delay"), rule["rate_group"]) for rule in found] == [
        ("1mbit", None, "all.all"), ("1mbit", "40ms", "all.all"),
    ]  # fmt: skip
    classes = [line for line in tc.compile_device(tc.Device("eth0"), tc.parse_rules(found)) if line.startswith("class")]
    assert [line.split()[5] for line in classes] == ["57a1:", "57a1:1", "57a1:1"]


def test_values_may_be_swept() -> None:
    expanded = plan(
        "{us: {eu: {rtt: '{{ rtt }}', rate: '{{ rate }}'}}}",
        "parameters: {rtt: [0ms, 10ms], rate: [none, 5mbit]}\norder: sequential\nrepeats: 2",
    )
    assert [trial["network"] for trial in expanded["trials"][:4]] == [None, "network-1", "network-2", "network-3"]
    assert [trial["network"] for trial in expanded["trials"][:4]] == [
        trial["network"] for trial in expanded["trials"][4:]
    ]
    assert expanded["networks"]["network-3"]["links"][0]["shape"] == {"delay": "5ms", "rate": "5mbit"}
    assert json.loads(json.dumps(expanded)) == expanded


# --- profiles ---------------------------------------------------------------------------------------------------------


def test_aws_goes_by_regions() -> None:
    found = pairs("{all: {all: {profile: aws}}, us: {eu: {loss: 1%}}}")
    assert found["party-0", "chain-0"] == found["chain-0", "party-0"] == {"delay": "45.3ms", "loss": "1%"}
    assert len(found) == 12  # hosts of one region have their own network


def test_a_subscriber_has_its_own_rates() -> None:
    found = pairs("{party: {chain: {profile: 3g, rtt: 100ms}}}")
    assert found["party-0", "chain-0"] == {"delay": "50ms", "rate": "768kbit"}
    assert found["chain-0", "party-0"] == {"delay": "50ms", "rate": "1.6mbit"}
    assert plan("{party: {chain: {profile: 3g}}}")["networks"]["network-1"]["links"][0]["rate_per"] == "pair"


#: Mbit/s from an on-premises cluster to the cloud and back, of the topologies that come with experiments with Ray on both.
#: Their names have the nominal rate.
HYBRID = {
    "hybrid": 250, "hybrid_200m": 210, "hybrid_150m": 160, "hybrid_100m": 106, "hybrid_80m": 83, "hybrid_50m": 55,
    "hybrid_30m": 31, "hybrid_cluster": 900, "hybrid_cloud": 5000,
}  # fmt: skip
#: Down and up in bit/s, and the round trip in ms: bwIn, bwOut and latency of WebPageTest's profiles
#: (catchpoint/WebPageTest, www/settings/connectivity.ini.sample).
SUBSCRIBERS = {
    "fios": (20_000_000, 5_000_000, 4), "cable": (5_000_000, 1_000_000, 28), "dsl": (1_500_000, 384_000, 50),
    "dialup": (49_000, 30_000, 120), "3g_fast": (1_600_000, 768_000, 150), "3g": (1_600_000, 768_000, 300),
    "3g_slow": (780_000, 330_000, 200), "edge": (240_000, 200_000, 840), "2g": (35_000, 32_000, 1300),
}  # fmt: skip


def direction(name: str, way: str) -> tuple[int, float]:
    """The rate in bit/s and the round trip in ms of a profile."""
    values = _network_profile.LINKS[name][way]
    rate, rtt = values.get("rate"), values.get("rtt")
    return (tc.parse_rate(rate) if rate else 0), (tc.parse_time(rtt) / 1e6 if rtt else 0)


@pytest.mark.parametrize(("name", "rate"), HYBRID.items())
def test_a_hybrid_profile_has_the_rate_of_its_topology(name: str, rate: int) -> None:
    for way in ("forward", "backward"):
        assert direction(name, way) == (rate * 10**6, 0)
        assert set(_network_profile.LINKS[name][way]) == {"rate"}


@pytest.mark.parametrize(("name", "values"), SUBSCRIBERS.items())
def test_a_subscriber_profile_has_the_values_of_webpagetest(name: str, values: tuple[int, int, float]) -> None:
    down, up, rtt = values
    assert direction(name, "forward") == (up, rtt)
    assert direction(name, "backward") == (down, rtt)
    for way in ("forward", "backward"):
        assert set(_network_profile.LINKS[name][way]) == {"rtt", "rate", "rate_per"}
        assert _network_profile.LINKS[name][way]["rate_per"] == "pair"


def test_wan_and_lan_have_the_values_of_the_testbed_of_the_aws_matrix() -> None:
    # us-east-1 to eu-central-1, 90.6 ms, jitter of 1 ms at most; within a region 0.2 ms
    # (https://github.com/asonnino/mysticeti/issues/277).
    wan, lan = ({"rtt": "90.6ms", "jitter": "1ms"}, {"rtt": "0.2ms", "rate": "1gbit"})
    assert _network_profile.LINKS["wan"] == {"forward": wan, "backward": wan}
    assert _network_profile.LINKS["lan"] == {"forward": lan, "backward": lan}
    assert _network_profile.aws_matrix()[frozenset(("us-east-1", "eu-central-1"))] == 90.6


def test_the_values_of_every_link_profile_are_stated() -> None:
    assert set(_network_profile.LINKS) == {"wan", "lan", *SUBSCRIBERS, *HYBRID}


@pytest.mark.parametrize("name", _network_profile.LINKS)
def test_every_link_profile_can_be_used(name: str) -> None:
    assert pairs(f"{{party: {{chain: {{profile: {name}}}}}}}")["chain-0", "party-0"]


TOPOLOGY = {
    "directed": True, "multigraph": False, "graph": {}, "nodes": [{"id": "Party"}, {"id": "EU"}],
    "links": [
        {"source": "Party", "target": "EU",
         "condition": {"rtt": [30, 0], "bandwidth": [210, 0], "jitter": [1, 0], "loss": [0.5, 0]}},
        {"source": "EU", "target": "Party", "condition": {"rtt": [30, 0], "bandwidth": [100, 0], "loss": [0, 0]}},
    ],
}  # fmt: skip


def topology(**changes: t.Any) -> str:
    return json.dumps({**TOPOLOGY, **changes})


def test_jitter_and_loss_of_a_topology_act() -> None:
    found = pairs("{all: {all: {profile: hpc.json}}}", read=lambda path: {"experiments/hpc.json": topology()}[path])
    assert found["party-1", "chain-0"] == {
        "delay": "15ms", "jitter": "707.107us", "distribution": "normal", "loss": "0.5%", "rate": "210mbit"
    }  # fmt: skip
    assert found["chain-0", "party-1"] == {"delay": "15ms", "rate": "100mbit"}
    assert len(found) == 12


def test_a_link_of_an_undirected_topology_is_both_directions() -> None:
    """In networkx' newer form, whose links are edges."""
    edges = {key: value for key, value in TOPOLOGY.items() if key != "links"} | {"edges": TOPOLOGY["links"][1:]}
    text = json.dumps({**edges, "directed": False})
    found = pairs("{all: {all: {profile: hpc.json}}}", read=lambda path: text)
    assert found["chain-0", "party-1"] == found["party-1", "chain-0"] == {"delay": "15ms", "rate": "100mbit"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        (topology(directed=None), 'it does not say whether a link is one direction: add "directed": true'),
        (topology(directed=False), "link EU -> Party is there twice"),
        ("[]", "it needs lists of nodes and links"),
        (topology(nodes=[{"id": "Party"}, {"id": "EU"}, {"id": "Moon"}]), "there is no group or site for node Moon"),
        (topology(speed=3), "the topology has the unknown key speed"),
        (
            topology(links=[{"source": "Party", "target": "Mars", "condition": {}}]),
            "links[0].target: Mars is not a node",
        ),
        (topology(links=[{"source": "EU", "target": "EU", "condition": {"ping": [1, 0]}}]), "the unknown key ping"),
        (
            topology(links=[{"source": "EU", "target": "EU", "condition": {"rtt": 3}}]),
            "rtt must be [mean, standard deviation]",
        ),
        (topology(links=[{"source": "EU", "target": "EU", "condition": {"loss": [-1, 0]}}]), "loss is negative"),
        (topology(links=[{"source": "EU", "target": "EU", "condition": {"loss": [1, 2]}}]), "loss varies by 2"),
        (topology(links=[{"source": "EU", "target": "EU"}]), "link EU -> EU has no condition"),
    ],
)
def test_what_is_wrong_in_a_topology_is_named(text: str, message: str) -> None:
    (problem,) = problems("{all: {all: {profile: hpc.json}}}", read=lambda path: text)
    assert problem.path == "network.all.all.profile"
    assert message in problem.message


ONE_WAY = topology(links=[{"source": "Party", "target": "EU", "condition": {"rtt": [30, 0]}}])


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            "{party: {chain: {profile: hpc.json}}}",
            "hpc.json has no link from chain-0 to party-0, which would not be shaped",
        ),
        (
            "{party: {party: {profile: hpc.json}}}",
            "hpc.json has no link from party-0 to party-2, which would not be shaped",
        ),
    ],
)
def test_what_a_topology_does_not_say_of_a_pair_is_missed(network: str, message: str) -> None:
    (problem,) = problems(network, read=lambda path: ONE_WAY)
    assert problem.message == message


def test_a_host_that_a_topology_does_not_know_is_missed() -> None:
    text = topology(nodes=[{"id": "Party"}], links=[])
    (problem,) = problems("{party: {chain: {profile: hpc.json}}}", read=lambda path: text)
    assert "hpc.json has no node for chain-0" in problem.message


def test_of_a_topology_for_all_what_it_does_not_say_is_not_shaped() -> None:
    assert set(pairs("{all: {all: {profile: hpc.json}}}", read=lambda path: ONE_WAY)) == {
        (f"party-{number}", f"chain-{other}") for number in range(3) for other in range(2)
    }


def test_topology_files_can_be_an_axis() -> None:
    slow = {"source": "Party", "target": "EU", "condition": {"bandwidth": [50, 0]}}
    files = {"experiments/fast.json": ONE_WAY, "experiments/slow.json": topology(links=[slow])}
    network = '{party: {chain: {profile: "{{ net }}.json", oneway: true}}}'
    rest = "parameters: {net: [fast, slow]}\n"
    expanded = plan(network, rest, read=files.__getitem__)
    shapes = [_netem.network_links(expanded, trial)[0]["shape"] for trial in expanded["trials"]]
    assert sorted(map(str, shapes)) == ["{'delay': '15ms'}", "{'rate': '50mbit'}"]

    def read(path: str) -> str:
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    (problem,) = problems(network, rest.replace("slow", "none"), read=read)
    assert problem.message == "there is no file experiments/none.json"


def test_links_of_a_topology_have_their_rates_each() -> None:
    nodes = [{"id": "US"}, {"id": "EU"}]
    lines = [
        {"source": "US", "target": target, "condition": {"bandwidth": [50, 0], "rtt": [rtt, 0]}}
        for target, rtt in (("US", 1), ("EU", 90))
    ]
    text = topology(nodes=nodes, links=lines)
    found = rate_groups("{all: {all: {profile: hpc.json}}}", read=lambda path: text)
    assert [group for _to, group in found["party-0"]] == [None, None]
    # A rate of the rule's own is one, whatever else the topology says.
    found = rate_groups("{all: {all: {profile: hpc.json, rate: 1mbit}}}", read=lambda path: text)
    assert [group for _to, group in found["party-0"]] == ["all.all", "all.all"]


def test_one_direction_of_a_topology_can_be_asked_for() -> None:
    found = pairs("{party: {chain: {profile: hpc.json, oneway: true}}}", read=lambda path: ONE_WAY)
    assert {target for _source, target in found} == {"chain-0", "chain-1"}


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "path", "message"),
    [
        ("{party: {chian: {rtt: 1ms}}}", "network.party.chian", "chian is not a group, a site or a host"),
        ("{party: {chain-2: {rtt: 1ms}}}", "network.party.chain-2", "there is no host chain-2"),
        ("{party: {chain: {rtt: 1}}}", "network.party.chain.rtt", "1 has no unit: write 40ms"),
        ("{party: {chain: {rtt: -1ms}}}", "network.party.chain.rtt", "-1ms is negative"),
        ("{party: {chain: {latency: 1ms}}}", "network.party.chain.latency", "is not a key"),
        ("{party: {chain: {rtt: 1ms, delay: 1ms}}}", "network.party.chain", "has both rtt and delay"),
        ("{party: {chain: {rtt: 1ms, oneway: true}}}", "network.party.chain.rtt", "has no round trip"),
        ("{party: {chain: {jitter: 1ms}}}", "network.party.chain.jitter", "jitter needs a delay"),
        ("{party: {chain: {delay: 1ms, jitter: 1ms}}}", "network.party.chain.jitter", "has room for a jitter of 333"),
        ("{party: {chain: {rate_per: pair}}}", "network.party.chain.rate_per", "needs a rate"),
        ("{party: {chain: {profile: lam}}}", "network.party.chain.profile", "lam is not a profile"),
        ("{party: {chain: {rtt: '{{ x }}'}}}", "network.party.chain.rtt", "names x, which is not known"),
        ("{party: {chain: {rtt: '{{ rank }}'}}}", "network.party.chain.rtt", "differs from host to host"),
        (
            "{party: {chain: {rtt: 1ms}}, us: {eu: {rtt: 2ms}}, chain: {party: {rtt: 3ms}}}",
            "network.chain.party",
            "delay between chain-0 and party-0 is 1.5ms here and 500us in party.chain, and neither rule is narrower",
        ),
    ],
)
def test_each_mistake_is_named(network: str, path: str, message: str) -> None:
    found = problems(network)
    assert {problem.path for problem in found} == {path}
    assert message in found[0].message


def test_all_mistakes_come_at_once() -> None:
    found = problems("{party: {chain: {rtt: 1, loss: 2}, chian: {rtt: 1ms}}}", "timeout: -1")
    assert [problem.path for problem in found] == [
        "network.party.chain.loss", "network.party.chain.rtt", "network.party.chian", "timeout",
    ]  # fmt: skip


def test_a_wrong_value_of_an_axis_names_the_point() -> None:
    (problem,) = problems("{party: {chain: {rate: '{{ rate }}'}}}", "parameters: {rate: [5mbit, 7]}")
    assert problem.message == "at rate=7: 7 has no unit: write 200mbit, 64kbit or 1gbit"


def test_a_pair_of_regions_that_nobody_measured_is_named() -> None:
    text = BASE.replace("eu-central-1", "sa-east-1") + "network: {all: {all: {profile: aws}}}\n"
    with pytest.raises(
        ExperimentError, match="no round trip between us-east-1 and sa-east-1; known from us-east-1: ap-"
    ):
        _plan.expand(load_experiment(text, "experiments/demo.yml"))


# --- what each host does ----------------------------------------------------------------------------------------------

HOSTS = {
    name: {"address": f"10.{77 + site}.0.{4 + index}", "public_address": f"198.18.{1 + site}.{index + 1}"}
    for site, (group, count) in enumerate([("party", 3), ("chain", 2)])
    for index in range(count)
    for name in [f"{group}-{index}"]
}


def phases(network: str, rest: str = "", hosts: _netem.Hosts = HOSTS) -> dict[str, list[dict[str, t.Any]]]:
    """The phases of each host that shapes anything."""
    expanded = plan(network, rest)
    found = _netem.host_networks(expanded, expanded["trials"][0], hosts)
    return {member: found.networks[own["network"]]["phases"] for member, own in found.of.items()}


def rules(network: str, rest: str = "", hosts: _netem.Hosts = HOSTS) -> dict[str, list[dict[str, t.Any]]]:
    return {member: own[0]["rules"] for member, own in phases(network, rest, hosts).items()}


def test_a_host_shapes_what_it_sends_to_the_others_by_the_addresses_that_they_have_for_it() -> None:
    found = rules("{party: {chain: {rtt: 80ms}}}")
    assert found["party-2"] == [{"to": ["198.18.2.1", "198.18.2.2"], "delay": "40ms"}]
    assert found["chain-1"][0]["to"] == ["198.18.1.1", "198.18.1.2", "198.18.1.3"]
    inside = rules("{party: {party: {rtt: 80ms}}}")
    assert inside["party-0"][0]["to"] == [
        *("10.77.0.4", "10.77.0.5", "10.77.0.6"),
        *("198.18.1.1", "198.18.1.2", "198.18.1.3"),
    ]
    assert set(inside) == {"party-0", "party-1", "party-2"}


def test_hosts_without_a_public_address_are_reached_by_their_gateway_and_seen_as_their_nat() -> None:
    behind = {"address": "10.78.0.5", "gateway_address": "198.18.2.1", "nat_address": "198.18.9.9"}
    found = rules("{party: {chain: {rtt: 80ms}}}", hosts={**HOSTS, "chain-1": behind})
    assert found["party-0"][0]["to"] == ["198.18.2.1", "198.18.9.9"]
    flat = {name: {"address": host["address"]} for name, host in HOSTS.items()}
    assert rules("{party: {chain: {rtt: 80ms}}}", hosts=flat)["party-0"][0]["to"] == ["10.78.0.4", "10.78.0.5"]


def test_sites_that_know_private_addresses_are_shaped_by_them_too() -> None:
    found = rules("{party: {chain: {rtt: 80ms}}}", "addresses: private")
    assert found["party-0"][0]["to"] == ["10.78.0.4", "10.78.0.5", "198.18.2.1", "198.18.2.2"]


GATEWAY = """
sites:
  us: {region: us-east-1}
  lab: {region: eu-central-1, gateway: login}
groups:
  party: {site: us, count: 2}
  login: {site: lab, count: 1}
  node: {site: lab, count: 2}
command: run
"""


@pytest.mark.parametrize(
    ("network", "messages"),
    [
        ("{us: {lab: {rtt: 80ms, rate: 10mbit}}}", []),
        ("{party: {node: {rtt: 80ms}, login: {rtt: 80ms}}}", []),
        ("{node: {node: {rtt: 2ms}, login: {rtt: 1ms}}}", []),
        (
            "{party: {node: {rtt: 80ms}}}",
            [
                "from party-0 to node-0: delay 40ms; but node-0 is reached through login-0, and from party-0 to login-0: nothing",
                "from node-0 to party-0: delay 40ms; but node-0 is reached through login-0, and from login-0 to party-0: nothing",
            ],
        ),
        (
            "{us: {lab: {rtt: 80ms}, node-1: {loss: 1%, oneway: true}}}",
            [
                "from party-0 to node-1: delay 40ms, loss 1%; but node-1 is reached through login-0, and from party-0 to "
                "login-0: delay 40ms"
            ],
        ),
        (
            "{party: {node: {rate: 10mbit}, login: {rate: 10mbit}}}",
            [
                "from party-0 to node-0: rate 10mbit; but node-0 is reached through login-0, and from party-0 to login-0: rate "
                "10mbit",
                "from node-0 to party-0: rate 10mbit; but node-0 is reached through login-0, and from login-0 to party-0: rate "
                "10mbit",
            ],
        ),
        (
            "{us: {lab: {rate: 10mbit, rate_per: pair}}}",
            ["a rate towards site lab is for each pair, but its hosts have one address, that of login-0"],
        ),
    ],
)
def test_hosts_behind_a_gateway_have_its_network(network: str, messages: list[str]) -> None:
    def load() -> dict[str, t.Any]:
        return _plan.expand(load_experiment(f"{GATEWAY}network: {network}\n", "experiments/demo.yml"))

    if not messages:
        load()
        return
    with pytest.raises(ExperimentError) as caught:
        load()
    assert sorted(problem.message for problem in caught.value.problems) == sorted(messages)
    assert {problem.path for problem in caught.value.problems} == {"network"}


def test_one_gateway_is_one_network() -> None:
    behind = {"address": "10.78.0.5", "gateway_address": "198.18.2.1"}
    with pytest.raises(PlanError, match=r"party-0 reaches chain-1 by 198\.18\.2\.1, and others too"):
        rules("{party: {chain: {rtt: 80ms}, chain-1: {rtt: 1ms}}}", hosts={**HOSTS, "chain-1": behind})


def test_what_a_narrower_rule_decides_is_no_contradiction_wherever_it_stands() -> None:
    orders = itertools.permutations(["us: {eu: {rtt: 80ms}}", "eu: {us: {rtt: 60ms}}", "party: {chain: {rtt: 40ms}}"])
    for order in orders:
        found = pairs("{" + ", ".join(order) + "}")
        assert set(map(str, found.values())) == {"{'delay': '20ms'}"}


def test_hosts_that_do_the_same_share_it_and_leave_themselves_out() -> None:
    expanded = plan("{party: {party: {rtt: 80ms}, chain: {rtt: 1ms}}}")
    found = _netem.host_networks(expanded, expanded["trials"][0], HOSTS)
    assert sorted(found.networks) == ["n1", "n2"]
    assert found.of["party-1"] == {"network": "n1", "addresses": ["10.77.0.5", "198.18.1.2"]}
    assert {"protocol": "tcp", "port": 7447} in found.networks["n1"]["exempt"]


def test_a_rate_is_for_all_or_for_each() -> None:
    assert len(rules("{party: {party: {rate: 1mbit}}}")["party-0"]) == 1
    found = rules("{party: {party: {rate: 1mbit, rate_per: pair}}}")["party-0"]
    assert [rule["to"] for rule in found][1:] == [["10.77.0.5", "198.18.1.2"], ["10.77.0.6", "198.18.1.3"]]


def test_only_members_of_the_trial_count() -> None:
    found = rules(
        "{party: {party: {rtt: 1ms}}}",
        "parameters: {n: [2, 3]}\norder: sequential\nexclude: [{n: 3}]\nenvironment: {N: '{{ n }}'}",
    )
    assert "chain-0" not in found


def test_a_member_without_an_address_is_passed_over() -> None:
    found = rules("{party: {party: {rtt: 1ms}}}", hosts={k: v for k, v in HOSTS.items() if k != "party-1"})
    assert found["party-0"][0]["to"] == ["10.77.0.4", "10.77.0.6", "198.18.1.1", "198.18.1.3"]
    assert "party-1" not in found


# --- the timeline -----------------------------------------------------------------------------------------------------


def test_a_moment_changes_what_it_gives_and_leaves_the_rest() -> None:
    rest = """
timeline:
  - {at: 10s, network: {party: {party: {loss: 5%}}}}
  - {at: 20, network: {party: {party: {delay: 1ms, loss: none}, chain: {rate: 1mbit}}}}
"""
    found = phases("{party: {party: {rtt: 80ms}}}", rest)
    assert [phase["at"] for phase in found["party-0"]] == [0, 10, 20]
    shapes = [
        [{key: value for key, value in rule.items() if key != "to"} for rule in phase["rules"]]
        for phase in found["party-0"]
    ]
    assert shapes == [
        [{"delay": "40ms"}],
        [{"delay": "40ms", "loss": "5%"}],
        [{"delay": "1ms"}, {"rate": "1mbit"}],
    ]
    assert [len(phase["rules"]) for phase in found["chain-0"]] == [0, 0, 1]


def test_a_timeline_alone_is_a_network() -> None:
    found = phases("{}", "timeline: [{at: 1s, network: {party: {party: {rtt: 80ms}}}}]")
    assert [bool(phase["rules"]) for phase in found["party-0"]] == [False, True]


@pytest.mark.parametrize(
    ("timeline", "path", "message"),
    [
        ("[{at: 0s, network: {party: {party: {rtt: 1ms}}}}]", "timeline[0].at", "must be longer than 0"),
        ("[{at: 200s, network: {party: {party: {rtt: 1ms}}}}]", "timeline[0].at", r"time \(120 s\) is over"),
        (
            "[{at: 2s, network: {party: {party: {rtt: 1ms}}}}, {at: 1s, network: {party: {party: {rtt: 2ms}}}}]",
            "timeline[1].at",
            "is not later than the moment before it",
        ),
        ("[{at: 1s, network: {}}]", "timeline[0].network", "(?i)empty|at least"),
        ("[{at: 1s}]", "timeline[0].network", "is missing"),
        ("[{at: 1s, network: {pary: {party: {rtt: 1ms}}}}]", "timeline[0].network.pary", "is not a group"),
        ("[{at: 1s, network: {party: {party: {rtt: 10}}}}]", "timeline[0].network.party.party.rtt", "has no unit"),
        (
            "[{at: 1s, network: {party: {chain: {rtt: 2ms}}, us: {eu: {rate: 1mbit}}, chain: {party: {rtt: 1ms}}}}]",
            "timeline[0].network",
            "neither rule is narrower",
        ),
    ],
)
def test_mistakes_in_a_timeline_are_named_with_their_place(timeline: str, path: str, message: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        plan("{}", f"timeline: {timeline}")
    found = [problem for problem in caught.value.problems if re.search(message, problem.message)]
    assert found, caught.value
    assert found[0].path.startswith(path)
    assert found[0].line


ENDS = st.sampled_from(["all", "us", "eu", "party", "chain", "party-0", "chain-1"])
VALUES = st.fixed_dictionaries(
    {}, optional={"delay": st.sampled_from(["1ms", "2ms"]), "loss": st.just("1%"), "rate": st.just("1mbit")}
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(ENDS, st.dictionaries(ENDS, VALUES, max_size=3), max_size=4))
def test_any_network_becomes_rules_that_compile_or_a_list_of_problems(network: dict[str, t.Any]) -> None:
    try:
        expanded = plan(json.dumps(network))
    except ExperimentError as exc:
        wrong = [problem for problem in exc.problems if "neither rule is narrower" not in problem.message]
        if wrong:
            raise
        return
    found = _netem.host_networks(expanded, expanded["trials"][0], HOSTS)
    for own in found.of.values():
        wanted = found.networks[own["network"]]["phases"][0]["rules"]
        lines = tc.compile_device(tc.Device("eth0"), tc.parse_rules(wanted))
        assert bool(lines) == bool(wanted)
        # What a host may send in all is what the rules give that hold for it, however many kinds of links there are.
        given = sum("rate" in values for targets in network.values() for values in targets.values())
        assert len([line for line in lines if "parent 57a1: " in line and "rate 1000000bit" in line]) <= given
