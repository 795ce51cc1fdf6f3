# SPDX-License-Identifier: GPL-3.0-or-later
"""What EC2 is asked for."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.startline.lab.plugins.plugin_utils import _launch, _plan
from ansible_collections.startline.lab.plugins.plugin_utils._errors import PlanError
from ansible_collections.startline.lab.plugins.plugin_utils._experiment import load_experiment

RUN, EXPIRES = "demo-awx1", "2026-11-21T11:30:00Z"
IMAGE = {"owner": "136693071363", "name": "debian-*"}


@pytest.fixture(scope="module")
def plan() -> dict[str, t.Any]:
    text = (
        "command: 'true'\nsites: {us: {region: us-east-1}, spare: {}, eu: {}}\n"
        "groups:\n  party: {count: 3, site: us, volume_size: 20}\n  chain: {site: eu, image: {id: ami-01234567}}\n"
    )
    return _plan.expand(load_experiment(text, "experiments/demo.yml"))


def test_sites_with_hosts_have_a_network(plan: dict[str, t.Any]) -> None:
    assert _launch.sites(plan, "eu-central-1") == [
        {
            "name": "us",
            "region": "us-east-1",
            "cidr": "10.77.0.0/16",
            "subnet": "10.77.0.0/20",
            "private_subnet": "",
        },
        {
            "name": "eu",
            "region": "eu-central-1",
            "cidr": "10.79.0.0/16",
            "subnet": "10.79.0.0/20",
            "private_subnet": "",
        },
    ]


PRIVATE = (
    "command: 'true'\nsites: {us: {region: us-east-1}, lab: {region: us-west-2, gateway: login}}\n"
    "groups:\n  a: {site: us, count: 2}\n  login: {site: lab}\n  work: {site: lab, count: 2}\n"
)


def test_a_private_site_has_a_subnet_more_and_its_hosts_say_who_leads_to_them() -> None:
    plan = _plan.expand(load_experiment(PRIVATE, "experiments/demo.yml"))
    us, lab = _launch.sites(plan)
    assert (us["subnet"], us["private_subnet"]) == ("10.77.0.0/20", "")
    assert (lab["subnet"], lab["private_subnet"]) == ("10.78.0.0/20", "10.78.16.0/20")
    a, login, work = _launch.launches(plan, RUN, EXPIRES, default_image=IMAGE)
    assert [one["private"] for one in (a, login, work)] == [False, False, True]
    assert [one["tags"].get("startline:gateway") for one in (a, login, work)] == [None, None, "login-0"]


def test_a_private_site_of_its_gateway_alone_needs_no_private_subnet() -> None:
    text = PRIVATE.replace("  work: {site: lab, count: 2}\n", "")
    assert _launch.sites(_plan.expand(load_experiment(text, "experiments/demo.yml")))[1]["private_subnet"] == ""


def known(site: str, public: str = "", nat: str = "") -> dict[str, t.Any]:
    return {"site": site, "public_address": public, "nat_address": nat}


@pytest.mark.parametrize(
    ("addresses", "us", "lab"),
    [
        ("auto", ["198.18.1.7/32", "198.18.1.9/32"], ["198.18.1.2/32", "198.18.1.10/32"]),
        ("private", ["198.18.1.7/32", "198.18.1.9/32"], ["198.18.1.2/32", "198.18.1.10/32"]),
        (
            "public",
            ["198.18.1.2/32", "198.18.1.7/32", "198.18.1.9/32", "198.18.1.10/32"],
            ["198.18.1.2/32", "198.18.1.7/32", "198.18.1.9/32", "198.18.1.10/32"],
        ),
    ],
)
def test_a_site_lets_in_what_the_hosts_of_others_come_from(addresses: str, us: list[str], lab: list[str]) -> None:
    hosts = {
        "a-0": known("us", "198.18.1.10"),
        "a-1": known("us", "198.18.1.2"),
        "login-0": known("lab", "198.18.1.9"),
        "work-0": known("lab", nat="198.18.1.7"),
        "work-1": known("lab", nat="198.18.1.7"),
    }
    plan = _plan.expand(load_experiment(f"{PRIVATE}addresses: {addresses}\n", "experiments/demo.yml"))
    found = {site["name"]: site["addresses"] for site in _launch.peers(plan, hosts)}
    assert found == {"us": us, "lab": lab}


def test_a_site_without_a_region_is_named(plan: dict[str, t.Any]) -> None:
    with pytest.raises(PlanError, match=r"site eu names no region.*give sites\.eu\.region"):
        _launch.sites(plan)


def test_each_group_is_one_launch(plan: dict[str, t.Any]) -> None:
    party, chain = _launch.launches(plan, RUN, EXPIRES, default_region="eu-central-1", default_image=IMAGE)
    assert party == {
        "group": "party",
        "site": "us",
        "private": False,
        "region": "us-east-1",
        "count": 3,
        "instance_type": "t3a.medium",
        "volume_size": 20,
        "image": IMAGE,
        "tags": {
            "startline:experiment": "demo",
            "startline:run": RUN,
            "startline:expires": EXPIRES,
            "startline:group": "party",
            "startline:site": "us",
        },
    }
    assert (chain["region"], chain["count"], chain["image"]) == ("eu-central-1", 1, {"id": "ami-01234567"})


def test_only_what_is_missing_is_launched(plan: dict[str, t.Any]) -> None:
    missing = {"party": 2, "chain": 0}
    (party,) = _launch.launches(plan, RUN, EXPIRES, missing=missing, default_region="eu-central-1", default_image=IMAGE)
    assert (party["group"], party["count"]) == ("party", 2)


NETEM = {"owner": "136693071363", "name": "*-netem"}


@pytest.mark.parametrize(
    ("network", "with_netem"),
    [
        ("{}", []),
        ("{all: {all: {rate: 5mbit, queue: 20ms}}}", []),
        ("{all: {all: {rtt: 0ms}}}", []),
        ("{all: {all: {rtt: 40ms}}}", ["party", "chain"]),
        ("{party: {chain: {loss: 1%, oneway: true}}}", ["party"]),
        ("{chain: {party: {corrupt: 1%, oneway: true}}}", ["chain"]),
        ("{party: {party: {duplicate: 1%}}}", ["party"]),
        ("{party-1: {chain: {delay: 1ms, oneway: true}}}", ["party"]),
        ("{chain: {chain: {delay: 1ms}}}", []),  # one host, which sends nothing to itself
        ("{party: {party: {delay: '{{ delay }}'}}}\nparameters: {delay: [0ms, 1ms]}", ["party"]),
        ("{}\ntimeline: [{at: 1s, network: {party: {chain: {loss: 5%}}}}]", ["party", "chain"]),
    ],
)
def test_hosts_that_need_netem_get_an_image_with_it(network: str, with_netem: list[str]) -> None:
    text = f"command: run\ngroups: {{party: {{count: 2}}, chain: {{}}, own: {{image: {{id: ami-01234567}}}}}}\nnetwork: {network}\n"
    shaped = _plan.expand(load_experiment(text, "experiments/demo.yml"))
    found = _launch.launches(shaped, RUN, EXPIRES, default_region="us-east-1", default_image=IMAGE, netem_image=NETEM)
    assert [launch["group"] for launch in found if launch["image"] == NETEM] == with_netem
    # What a group names is its affair, and without an image that is known to have it, all are as they were.
    assert found[-1]["image"] == {"id": "ami-01234567"}
    without = _launch.launches(shaped, RUN, EXPIRES, default_region="us-east-1", default_image=IMAGE, netem_image={})
    assert [launch["image"] for launch in without[:2]] == [IMAGE, IMAGE]


def test_a_group_without_an_image_is_named(plan: dict[str, t.Any]) -> None:
    with pytest.raises(PlanError, match="group party names no image"):
        _launch.launches(plan, RUN, EXPIRES, default_region="eu-central-1")
