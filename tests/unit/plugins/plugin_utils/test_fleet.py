# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is which member, who is missing, and that the message names them."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import sys
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.startline.lab.plugins.plugin_utils import _fleet
from ansible_collections.startline.lab.plugins.plugin_utils._errors import FleetError
from ansible_collections.startline.lab.plugins.plugin_utils._fleet import (
    Fleet,
    Host,
    assign_indexes,
    missing_members,
    parse_instance,
)


def host(
    number: int, *, group: str = "party", index: int | None = None, state: str = "running", reason: str = ""
) -> Host:
    return Host(
        instance_id=f"i-{number:03}",
        region="us-east-1",
        group=group,
        index=index,
        site="default",
        state=state,
        reason=reason,
        address=f"10.77.0.{number}",
        public_address=f"198.18.1.{number}",
    )


def instance(number: int, *, state: str = "running", **tags: str) -> dict[str, t.Any]:
    return {
        "InstanceId": f"i-{number:03}",
        "State": {"Name": state},
        "PrivateIpAddress": f"10.77.0.{number}",
        "PublicIpAddress": f"198.18.1.{number}",
        "Tags": [{"Key": f"startline:{key}", "Value": value} for key, value in tags.items()],
    }


class FakeEc2:
    """DescribeInstances, DescribeNatGateways and CreateTags, as boto3 gives them."""

    def __init__(self, instances: list[dict[str, t.Any]], nat_gateways: t.Sequence[dict[str, t.Any]] = ()) -> None:
        self.instances = instances
        self.nat_gateways = nat_gateways
        self.tagged: dict[str, dict[str, str]] = {}

    def describe_nat_gateways(self, *, Filter: list[dict[str, t.Any]]) -> dict[str, t.Any]:
        return {"NatGateways": list(self.nat_gateways)}

    def get_paginator(self, name: str) -> FakeEc2:
        assert name == "describe_instances"
        return self

    def paginate(self, **_kwargs: t.Any) -> list[dict[str, t.Any]]:
        return [{"Reservations": [{"Instances": [one]}]} for one in self.instances]

    def create_tags(self, *, Resources: list[str], Tags: list[dict[str, str]]) -> None:
        for resource in Resources:
            self.tagged[resource] = {tag["Key"]: tag["Value"] for tag in Tags}


def test_a_fresh_fleet_is_numbered_in_the_order_of_its_addresses() -> None:
    hosts = [host(10), host(9), host(100)]
    assert assign_indexes(hosts, {"party": 3}) == {"i-009": 0, "i-010": 1, "i-100": 2}


def test_a_host_keeps_its_index_and_a_lost_one_is_replaced() -> None:
    hosts = [host(1, index=0), host(2, index=1, state="terminated"), host(3, index=2), host(4)]
    assert assign_indexes(hosts, {"party": 3}) == {"i-004": 1}


def test_a_double_index_is_settled_for_the_lower_address() -> None:
    assert assign_indexes([host(2, index=0), host(1, index=0)], {"party": 2}) == {"i-002": 1}


def test_a_host_too_many_gets_no_index() -> None:
    assert assign_indexes([host(1), host(2)], {"party": 1}) == {"i-001": 0}


@given(
    st.lists(
        st.tuples(st.integers(1, 250), st.none() | st.integers(0, 12)), unique_by=lambda pair: pair[0], max_size=12
    ),
    st.integers(0, 12),
    st.randoms(use_true_random=False),
)
def test_numbering_is_complete_unique_and_independent_of_the_order(
    drawn: list[tuple[int, int | None]], count: int, shuffler: random.Random
) -> None:
    hosts = [host(number, index=index) for number, index in drawn]
    assigned = assign_indexes(hosts, {"party": count})
    final = {h.instance_id: assigned.get(h.instance_id, h.index) for h in hosts}
    assert len({i for i in final.values() if i is not None and i < count}) == min(count, len(hosts))
    assert all(h.index is None or h.index >= count or final[h.instance_id] in range(count) for h in hosts)
    shuffled = list(hosts)
    shuffler.shuffle(shuffled)
    assert assign_indexes(shuffled, {"party": count}) == assigned


def test_missing_members_are_named_with_what_is_known() -> None:
    hosts = [host(1, index=0), host(2, index=1, state="terminated", reason="Client.UserInitiatedShutdown")]
    assert missing_members(["party-0", "party-1", "party-2"], hosts) == {
        "party-1": "i-002 is terminated: Client.UserInitiatedShutdown",
        "party-2": "was never launched",
    }


def test_an_instance_without_our_tags_is_no_member() -> None:
    assert parse_instance(instance(1), "us-east-1").index is None
    assert parse_instance(instance(1, group="party", index="3"), "us-east-1").name == "party-3"


def test_number_tags_only_what_has_no_index() -> None:
    ec2 = FakeEc2([instance(1, group="party", index="1"), instance(2, group="party")])
    assert Fleet({"us-east-1": ec2}, "run-1").number({"party": 2})
    assert ec2.tagged == {"i-002": {"startline:index": "0", "Name": "party-0.run-1"}}


def test_a_silent_host_is_named_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answers(address: str, timeout: float) -> bool:
        return address == "198.18.1.1"

    monkeypatch.setattr(_fleet, "ssh_answers", answers)
    ec2 = FakeEc2([instance(1, group="party", index="0"), instance(2, group="party", index="1")])
    with pytest.raises(FleetError) as caught:
        Fleet({"us-east-1": ec2}, "run-1").await_ssh(["party-0", "party-1"], 0.05)
    assert "1 of 2 hosts did not come up within 0.05 s:" in str(caught.value)
    assert "party-1: i-002 is running at 198.18.1.2, but its SSH port does not answer" in str(caught.value)
    assert "party-0:" not in str(caught.value)


def test_a_host_that_is_gone_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answers(address: str, timeout: float) -> bool:
        return True

    monkeypatch.setattr(_fleet, "ssh_answers", answers)
    ec2 = FakeEc2([instance(1, group="party", index="0"), instance(2, group="party", index="1", state="terminated")])
    with pytest.raises(FleetError, match="party-1: i-002 is terminated"):
        Fleet({"us-east-1": ec2}, "run-1").await_ssh(["party-0", "party-1"], 3600)


def test_only_an_ssh_greeting_counts() -> None:
    async def greet(line: bytes) -> bool:
        async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(line)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            return await _fleet.ssh_answers("127.0.0.1", 5.0, port=port)

    assert asyncio.run(greet(b"SSH-2.0-OpenSSH_9.2\r\n"))
    assert not asyncio.run(greet(b"HTTP/1.1 400 Bad Request\r\n"))
    assert not asyncio.run(greet(b""))


def test_a_host_behind_a_gateway_knows_the_way_in_and_the_way_out() -> None:
    login, work, other = host(1, group="login", index=0), host(2, group="work", index=0), host(3, index=0)
    work = dataclasses.replace(work, site="lab", gateway="login-0", public_address="")
    found = {one.name: one for one in _fleet.with_ways([login, work, other], {"lab": "198.18.1.77"})}
    assert (found["work-0"].gateway_address, found["work-0"].nat_address) == ("198.18.1.1", "198.18.1.77")
    assert found["work-0"].login_address == "10.77.0.2"
    assert (found["login-0"], found["party-0"]) == (login, other)


def test_a_gateway_that_is_gone_leads_nowhere() -> None:
    gone = host(1, group="login", index=0, state="terminated")
    work = dataclasses.replace(host(2, group="work", index=0), gateway="login-0")
    assert _fleet.with_ways([gone, work], {})[1].gateway_address == ""


NAT = {
    "NatGatewayId": "nat-1",
    "State": "available",
    "NatGatewayAddresses": [{"PublicIp": "198.18.1.77"}],
    "Tags": [{"Key": "startline:site", "Value": "lab"}],
}


def private_site(**work: str) -> FakeEc2:
    """A gateway and a host behind it."""
    behind = instance(2, group="work", index="0", site="lab", gateway="login-0", **work)
    del behind["PublicIpAddress"]
    return FakeEc2([instance(1, group="login", index="0", site="lab"), behind], [NAT])


LOGIN = _fleet.Login("admin", "/runs/r1/ssh_key")


def test_hosts_behind_a_gateway_are_asked_through_it_once_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def ssh_answers(address: str, timeout: float) -> bool:
        asked.append(address)
        return asked.count(address) > 1  # not at first

    async def greets(command: list[str], timeout: float) -> bool:
        asked.append(f"{command[-1]} {command[command.index('-W') + 1]}")
        return True

    monkeypatch.setattr(_fleet, "ssh_answers", ssh_answers)
    monkeypatch.setattr(_fleet, "greets", greets)
    login, work = Fleet({"us-west-2": private_site()}, "run-1").await_ssh(["login-0", "work-0"], 60, LOGIN)
    assert asked == ["198.18.1.1", "198.18.1.1", "admin@198.18.1.1 10.77.0.2:22"]
    assert (work.gateway_address, work.nat_address, work.login_address) == ("198.18.1.1", "198.18.1.77", "10.77.0.2")
    assert (login.gateway_address, login.nat_address) == ("", "")


def test_a_silent_host_behind_a_gateway_is_named_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*_args: t.Any, **_kwargs: t.Any) -> bool:
        return False

    monkeypatch.setattr(_fleet, "ssh_answers", silent)
    with pytest.raises(FleetError, match=r"work-0: i-002 is running at 10\.77\.0\.2 behind login-0, but its SSH"):
        Fleet({"us-west-2": private_site()}, "run-1").await_ssh(["login-0", "work-0"], 0.05, LOGIN)


def test_the_way_through_a_gateway_has_the_run_s_key_and_a_pinned_host_key() -> None:
    gateway = dataclasses.replace(host(1, group="login", index=0), instance_id="i-0abc")
    command = LOGIN.through(gateway, "10.77.0.2")
    assert command[-3:] == ["-W", "10.77.0.2:22", "admin@198.18.1.1"]
    assert {"IdentityFile=/runs/r1/ssh_key", "UserKnownHostsFile=/runs/r1/known_hosts.i-0abc"} <= set(command)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("print('SSH-2.0-OpenSSH_9.2', flush=True); input()", True),
        ("print('HTTP/1.1 400')", False),
        ("pass", False),
        ("import sys; sys.exit('refused')", False),
        ("import time; time.sleep(600)", False),
    ],
)
def test_only_an_ssh_greeting_of_a_command_counts(program: str, expected: bool) -> None:
    patience = 0.5 if "sleep" in program else 30
    assert asyncio.run(_fleet.greets([sys.executable, "-c", program], patience)) is expected


class Refusal(Exception):
    """As botocore's ClientError."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}}


class Region:
    """DescribeKeyPairs and DescribeVpcs, in pages, of runs by their experiments."""

    def __init__(self, keys: t.Mapping[str, str], vpcs: t.Mapping[str, str], error: Exception | None = None) -> None:
        self.keys, self.vpcs, self.error = keys, vpcs, error

    def describe_key_pairs(self, *, Filters: list[dict[str, t.Any]]) -> dict[str, t.Any]:
        if self.error:
            raise self.error
        return {"KeyPairs": self._matching(self.keys, Filters)}

    def get_paginator(self, name: str) -> Region:
        assert name == "describe_vpcs"
        return self

    def paginate(self, *, Filters: list[dict[str, t.Any]]) -> list[dict[str, t.Any]]:
        return [{"Vpcs": [vpc]} for vpc in self._matching(self.vpcs, Filters)]

    @staticmethod
    def _matching(runs: t.Mapping[str, str], filters: list[dict[str, t.Any]]) -> list[dict[str, t.Any]]:
        wanted = {entry["Name"]: entry["Values"] for entry in filters}
        assert wanted.pop("tag-key") == ["startline:run"]
        tags = [{"startline:run": run, "startline:experiment": experiment} for run, experiment in runs.items()]
        return [
            {"Tags": [{"Key": key, "Value": value} for key, value in own.items()]}
            for own in tags
            if all(own[name.removeprefix("tag:")] in values for name, values in wanted.items())
        ]


DKG, TINY = {"dkg-1": "dkg"}, {"tiny-1": "tiny"}
CLOSED = Refusal("UnauthorizedOperation")


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, {"dkg-1": ["us-east-1", "eu-central-1"], "tiny-1": ["us-east-1"]}),
        ({"run_id": "dkg-1"}, {"dkg-1": ["us-east-1", "eu-central-1"]}),
        ({"run_id": "dkg-2"}, {}),
        ({"experiment": "tiny"}, {"tiny-1": ["us-east-1"]}),
        ({"experiment": "wan"}, {}),
    ],
)
def test_runs_are_found_in_every_region_that_lets_us_look(
    wanted: dict[str, str], expected: dict[str, list[str]]
) -> None:
    regions = {
        "us-east-1": Region(DKG, {**DKG, **TINY}),
        "eu-central-1": Region(DKG, {}),  # made half
        "us-west-2": Region({}, {}),
        "sa-east-1": Region({}, {}, CLOSED),
    }
    assert _fleet.find_runs(regions, **wanted) == expected


@pytest.mark.parametrize("error", [CLOSED, Refusal("RequestLimitExceeded"), OSError("no route")])
def test_not_to_see_is_not_to_find_nothing(error: Exception) -> None:
    with pytest.raises(type(error)):
        _fleet.find_runs({"us-east-1": Region(DKG, DKG, error)})
