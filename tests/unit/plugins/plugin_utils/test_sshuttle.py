# SPDX-License-Identifier: GPL-3.0-or-later
"""Which tunnels a run has."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.startline.lab.plugins.plugin_utils._errors import PlanError
from ansible_collections.startline.lab.plugins.plugin_utils._sshuttle import tunnels


def run(gateways: dict[str, str | None], **members: str) -> tuple[dict[str, t.Any], dict[str, dict[str, str]]]:
    """A plan and its hosts: ``member="site"``. Hosts are public, those of a site with a gateway are behind it."""
    plan = {
        "sites": {site: {"gateway": gateway} for site, gateway in gateways.items()},
        "members": [{"name": name.replace("_", "-"), "site": site} for name, site in members.items()],
    }
    numbers = {site: number for number, site in enumerate(gateways)}
    hosts = {}
    for number, member in enumerate(plan["members"], 4):
        site, name = member["site"], member["name"]
        private = gateways[site] not in (None, name)
        hosts[name] = {
            "site": site,
            "address": f"10.{77 + numbers[site]}.0.{number}",
            "public_address": "" if private else f"198.18.1.{number}",
            "nat_address": f"198.18.9.{numbers[site]}" if private else "",
        }
    return plan, hosts


def test_no_private_site_no_tunnel() -> None:
    assert tunnels(*run({"a": None, "b": None}, x_0="a", y_0="b")) == []


def test_a_private_site_alone_is_reached_by_nobody() -> None:
    assert tunnels(*run({"a": "x-0"}, x_0="a", x_1="a")) == []


def test_hosts_of_other_sites_reach_all_hosts_of_a_private_one() -> None:
    plan, hosts = run(
        {"hpc": "login-0", "cloud": None}, login_0="hpc", w_0="hpc", w_1="hpc", c_0="cloud", c_1="cloud", c_2="cloud"
    )
    [tunnel] = tunnels(plan, hosts)
    assert tunnel == {
        "site": "hpc",
        "gateway": "login-0",
        "gateway_address": "198.18.1.4",
        "networks": ["10.77.0.4", "10.77.0.5", "10.77.0.6"],
        "sources": ["198.18.1.7", "198.18.1.8", "198.18.1.9"],
        "probes": {"c-0": "10.77.0.5:22", "c-1": "10.77.0.6:22", "c-2": "10.77.0.5:22"},
    }


def test_two_private_sites_reach_each_other_through_their_nat() -> None:
    first, second = tunnels(*run({"a": "x-0", "b": "y-0"}, x_0="a", x_1="a", y_0="b", y_1="b"))
    assert (first["gateway"], second["gateway"]) == ("x-0", "y-0")
    assert first["sources"] == ["198.18.1.6", "198.18.9.1"]
    assert set(first["probes"]) == {"y-0", "y-1"}
    assert second["sources"] == ["198.18.1.4", "198.18.9.0"]


def test_a_login_host_without_others_is_tried_itself() -> None:
    [tunnel] = tunnels(*run({"a": "x-0", "b": None}, x_0="a", y_0="b"))
    assert tunnel["probes"] == {"y-0": "10.77.0.4:22"}


def test_a_fleet_that_lacks_a_spare_has_tunnels_for_the_others() -> None:
    plan, hosts = run({"a": "x-0", "b": None}, x_0="a", x_1="a", x_2="a", y_0="b", y_1="b")
    del hosts["x-1"], hosts["y-1"]
    [tunnel] = tunnels(plan, hosts)
    assert tunnel["networks"] == ["10.77.0.4", "10.77.0.6"]
    assert list(tunnel["probes"]) == ["y-0"]


@pytest.mark.parametrize(
    ("member", "message"), [("x-0", "x-0, which leads to site a, has no public"), ("y-0", "y-0 would reach site a")]
)
def test_an_address_that_is_missing_is_told(member: str, message: str) -> None:
    plan, hosts = run({"a": "x-0", "b": None}, x_0="a", x_1="a", y_0="b")
    hosts[member]["public_address"] = ""
    with pytest.raises(PlanError, match=message):
        tunnels(plan, hosts)
