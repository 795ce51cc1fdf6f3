# SPDX-License-Identifier: GPL-3.0-or-later
"""A run over three sites that meet at public addresses, one of them private: a VPN leads to its hosts."""

from __future__ import annotations

import itertools
import json
import typing as t

import pytest

from tests.support.commands import EXPERIMENTS, PROJECT, ec2_client, playbook, run_resources

REGIONS = {"us": "us-east-1", "eu": "eu-central-1", "lab": "us-west-2"}
SITE = {"near-0": "us", "near-1": "us", "far-0": "eu", "login-0": "lab", "work-0": "lab", "work-1": "lab"}
BEHIND = ("work-0", "work-1")


class Sites:
    """What has become of the run, before and after its end."""

    def __init__(self) -> None:
        self.kept = playbook("site.yml", "-e", f"exp={EXPERIMENTS / 'sites.yml'}", "-e", "keep=true")
        self.public: dict[str, str] = {}
        self.rules: dict[str, set[str]] = {}
        self.nat = ""
        self.login = ""
        try:
            for site, region in REGIONS.items():
                self._look(site, ec2_client(region))
        finally:
            self.gone = playbook("playbooks/destroy.yml", "-e", f"run={self.kept.run_id}")

    def _look(self, site: str, ec2: t.Any) -> None:
        """Learn from AWS who has which public address, and whom the site lets in."""
        tagged = [{"Name": "tag:startline:run", "Values": [self.kept.run_id]}]
        for reservation in ec2.describe_instances(Filters=tagged)["Reservations"]:
            for instance in reservation["Instances"]:
                tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
                name = f"{tags['startline:group']}-{tags['startline:index']}"
                self.public[name] = instance.get("PublicIpAddress", "")
                self.login = instance["PrivateIpAddress"] if name == "login-0" else self.login
        for gateway in ec2.describe_nat_gateways(Filter=tagged)["NatGateways"]:
            self.nat = gateway["NatGatewayAddresses"][0]["PublicIp"]
        [group] = ec2.describe_security_groups(Filters=tagged)["SecurityGroups"]
        self.rules[site] = {
            entry["CidrIp"]
            for permission in group["IpPermissions"]
            if permission["IpProtocol"] == "-1"
            for entry in permission["IpRanges"]
        }

    def met(self, name: str) -> dict[str, t.Any]:
        """What a host says of the others."""
        path = PROJECT / "results" / "sites" / self.kept.run_id / "trials" / "r1" / "1" / name / "met.json"
        return t.cast("dict[str, t.Any]", json.loads(path.read_text()))


@pytest.fixture(scope="module")
def sites(cloud: None) -> Sites:
    return Sites()


def test_the_run_is_valid_and_every_log_is_home(sites: Sites) -> None:
    assert sites.kept.returncode == 0, sites.kept.output[-6000:]
    run: dict[str, t.Any] = json.loads((PROJECT / "results" / "sites" / sites.kept.run_id / "run.json").read_text())
    assert run["verdict"] == "valid"
    assert run["provenance"]["vpn"]["lab"]["sent"] > 1
    clients = {name for name, site in SITE.items() if site != "lab"}
    assert set(run["provenance"]["vpn"]["lab"]["restarts"]) == clients
    assert f"  vpn       lab {run['provenance']['vpn']['lab']['sent']:g} Mbit/s there" in sites.kept.output
    assert "WARNING" not in sites.kept.output


def test_of_a_private_site_the_gateway_alone_has_a_public_address(sites: Sites) -> None:
    assert sorted(sites.public) == sorted(SITE)
    assert [name for name, address in sites.public.items() if not address] == list(BEHIND)


@pytest.mark.parametrize("name", SITE)
def test_a_host_reaches_the_others_at_the_addresses_that_its_site_sees(sites: Sites, name: str) -> None:
    met = sites.met(name)
    for other, answer in met["met"].items():
        alike = SITE[other] == SITE[name]
        assert met["addresses"][other] == sites.public[other] or alike or other in BEHIND
        assert met["addresses"][other].startswith("10.") == (alike or other in BEHIND)
        said, came_from = answer
        assert said == other
        if other in BEHIND and not alike:
            assert came_from == sites.login, "the VPN's connections come from the login host"
            continue
        assert came_from == (met["addresses"][name] if alike else sites.public[name] or sites.nat)


def test_ranks_are_the_same_everywhere(sites: Sites) -> None:
    assert {tuple(sites.met(name)["addresses"]) for name in SITE} == {tuple(SITE)}


@pytest.mark.parametrize("site", REGIONS)
def test_a_site_lets_in_the_hosts_of_the_others_and_nobody_else(sites: Sites, site: str) -> None:
    others = {sites.public[name] or sites.nat for name in SITE if SITE[name] != site}
    assert sites.rules[site] == {f"{address}/32" for address in others}


def test_nothing_is_left_in_any_region(sites: Sites) -> None:
    assert sites.gone.returncode == 0, sites.gone.output[-4000:]
    left = itertools.chain.from_iterable(
        run_resources(ec2_client(region), sites.kept.run_id) for region in REGIONS.values()
    )
    assert list(left) == []
