# SPDX-License-Identifier: GPL-3.0-or-later
"""hosts.config, byte for byte."""

from __future__ import annotations

import ipaddress
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.startline.lab.plugins.plugin_utils._errors import PlanError
from ansible_collections.startline.lab.plugins.plugin_utils._hosts_config import (
    fleet_hosts_config,
    hosts_config,
    ranked,
    version_key,
)

PLAN: dict[str, t.Any] = {
    "addresses": "auto",
    "members": [
        {"name": "party-0", "group": "party", "index": 0, "site": "us"},
        {"name": "party-1", "group": "party", "index": 1, "site": "us"},
        {"name": "party-2", "group": "party", "index": 2, "site": "us"},
        {"name": "chain-0", "group": "chain", "index": 0, "site": "us"},
    ],
}
HOSTS = {
    "party-0": {"address": "10.0.0.10"},
    "party-1": {"address": "10.0.0.9"},
    "party-2": {"address": "10.0.0.100"},
    "chain-0": {"address": "10.0.0.1"},
}


def test_version_sort_line_feeds_and_nothing_else() -> None:
    assert hosts_config([["10.0.0.10", "10.0.0.9"], ["10.0.0.1"]]).encode() == b"10.0.0.9\n10.0.0.10\n10.0.0.1\n"
    assert hosts_config([]) == ""


def test_groups_keep_the_order_of_the_plan_and_rank_is_line_number_less_one() -> None:
    assert fleet_hosts_config(PLAN, HOSTS) == "10.0.0.9\n10.0.0.10\n10.0.0.100\n10.0.0.1\n"
    entries = ranked(PLAN, ["chain-0", "party-0", "party-1"], HOSTS)
    assert [(e["rank"], e["name"], e["address"]) for e in entries] == [
        (0, "party-1", "10.0.0.9"),
        (1, "party-0", "10.0.0.10"),
        (2, "chain-0", "10.0.0.1"),
    ]


TWO_SITES: dict[str, t.Any] = {
    "members": [
        {"name": "a-0", "group": "a", "index": 0, "site": "us"},
        {"name": "a-1", "group": "a", "index": 1, "site": "us"},
        {"name": "login-0", "group": "login", "index": 0, "site": "eu"},
        {"name": "work-0", "group": "work", "index": 0, "site": "eu"},
    ]
}
SEEN = {
    "a-0": {"address": "10.77.0.5", "public_address": "198.18.1.1"},
    "a-1": {"address": "10.77.0.4", "public_address": "198.18.1.9"},
    "login-0": {"address": "10.78.0.4", "public_address": "198.18.1.2"},
    "work-0": {"address": "10.78.16.4", "public_address": ""},  # behind a gateway
}


@pytest.mark.parametrize(
    ("addresses", "site", "expected"),
    [
        ("auto", "us", ["10.77.0.4", "10.77.0.5", "198.18.1.2", "10.78.16.4"]),
        ("auto", "eu", ["198.18.1.9", "198.18.1.1", "10.78.0.4", "10.78.16.4"]),
        ("private", "us", ["10.77.0.4", "10.77.0.5", "10.78.0.4", "10.78.16.4"]),
        ("private", "eu", ["10.77.0.4", "10.77.0.5", "10.78.0.4", "10.78.16.4"]),
        ("public", "us", ["198.18.1.9", "198.18.1.1", "198.18.1.2", "10.78.16.4"]),
        ("public", "eu", ["198.18.1.9", "198.18.1.1", "198.18.1.2", "10.78.16.4"]),
    ],
)
def test_each_site_sees_the_addresses_that_work_from_it_in_one_order(
    addresses: str, site: str, expected: list[str]
) -> None:
    plan = {**TWO_SITES, "addresses": addresses}
    entries = ranked(plan, SEEN, SEEN, site)
    assert [entry["name"] for entry in entries] == ["a-1", "a-0", "login-0", "work-0"]
    assert [entry["address"] for entry in entries] == expected
    assert fleet_hosts_config(plan, SEEN, site).split() == expected


def test_members_without_an_address_are_named() -> None:
    with pytest.raises(PlanError, match=r"no address is known of chain-0, party-2:"):
        ranked(PLAN, list(HOSTS), {"party-0": {"address": "10.0.0.1"}, "party-1": HOSTS["party-1"], "chain-0": {}})


def test_members_that_the_plan_does_not_have_are_named() -> None:
    with pytest.raises(PlanError, match="the plan has no member ghost-0"):
        ranked(PLAN, ["ghost-0"], {"ghost-0": {"address": "10.0.0.1"}})


@given(st.lists(st.ip_addresses(v=4), unique=True))
def test_version_sort_of_ipv4_is_numeric_order(addresses: list[ipaddress.IPv4Address]) -> None:
    texts = [str(address) for address in addresses]
    assert sorted(texts, key=version_key) == [str(address) for address in sorted(addresses)]


@given(st.lists(st.lists(st.ip_addresses(v=4).map(str), max_size=5), max_size=4))
def test_every_line_is_an_address_and_ends(groups: list[list[str]]) -> None:
    text = hosts_config(groups)
    assert text.count("\n") == sum(map(len, groups))
    assert sorted(text.split()) == sorted(address for group in groups for address in group)
    assert text == "" or text.endswith("\n")


@given(st.lists(st.text(max_size=10)))
def test_any_names_can_be_sorted(names: list[str]) -> None:
    sorted(names, key=version_key)
