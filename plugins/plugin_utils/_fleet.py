# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is in a run's fleet, which member is which host, and whether each of them answers.

Instances are launched a group at a time, so they come up alike; what makes one of them ``party-3`` is its index, kept
in the tag ``startline:index``. The decisions are pure functions of the plan and of what EC2 says; `Fleet` does the
asking, the tagging and the waiting.

This util is PRIVATE to the collection.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import ipaddress
import pathlib
import time
import typing as t

from ansible_collections.startline.lab.plugins.plugin_utils._aws import is_refusal
from ansible_collections.startline.lab.plugins.plugin_utils._errors import FleetError

ALIVE: t.Final = ("pending", "running")
#: States of an instance that is part of the fleet, or can be again.
PRESENT: t.Final = (*ALIVE, "stopping", "stopped")

#: What a run creates in a region, as EC2 describes it: (operation, key of the list, key of the id).
#: Volumes and interfaces go with their instance; they are asked for because a leftover one costs money.
_RESOURCES: t.Final = (
    ("describe_instances", "Reservations", "InstanceId"),
    ("describe_volumes", "Volumes", "VolumeId"),
    ("describe_network_interfaces", "NetworkInterfaces", "NetworkInterfaceId"),
    ("describe_nat_gateways", "NatGateways", "NatGatewayId"),
    ("describe_addresses", "Addresses", "AllocationId"),
    ("describe_security_groups", "SecurityGroups", "GroupId"),
    ("describe_subnets", "Subnets", "SubnetId"),
    ("describe_route_tables", "RouteTables", "RouteTableId"),
    ("describe_internet_gateways", "InternetGateways", "InternetGatewayId"),
    ("describe_vpcs", "Vpcs", "VpcId"),
    ("describe_key_pairs", "KeyPairs", "KeyPairId"),
)


#: States of a NAT gateway that neither works nor is paid for. EC2 describes it for an hour more.
_NAT_GONE: t.Final = ("deleted", "failed")
#: Connections to a gateway that are opened at the same time: its SSH server refuses some of more than ten.
_OPENED_AT_ONCE: t.Final = 8


@dataclasses.dataclass(frozen=True)
class Host:
    """An instance of the run, as EC2 describes it.

    `address` is private, `public_address` may be empty. `index` is ``None`` until the host has been given one. Of a host
    in a private site `gateway` is the member that leads to it and `gateway_address` where that is reached, and
    `nat_address` is what it is seen to come from; of others they are empty.
    """

    instance_id: str
    region: str
    group: str
    index: int | None
    site: str
    state: str
    reason: str
    address: str
    public_address: str
    gateway: str = ""
    gateway_address: str = ""
    nat_address: str = ""

    @property
    def name(self) -> str:
        """The member's name in the plan, ``<group>-<index>``."""
        return f"{self.group}-{self.index}"

    @property
    def login_address(self) -> str:
        """Where the controller logs in; of a host behind a gateway, from there."""
        return self.public_address or self.address


def parse_instance(instance: t.Mapping[str, t.Any], region: str) -> Host:
    """One entry of DescribeInstances, with our tags."""
    tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", ())}
    index = tags.get("startline:index", "")
    return Host(
        instance_id=instance["InstanceId"],
        region=region,
        group=tags.get("startline:group", ""),
        index=int(index) if index.isdigit() else None,
        site=tags.get("startline:site", ""),
        state=instance["State"]["Name"],
        reason=instance.get("StateReason", {}).get("Message", "") or instance.get("StateTransitionReason", ""),
        address=instance.get("PrivateIpAddress") or "",
        public_address=instance.get("PublicIpAddress") or "",
        gateway=tags.get("startline:gateway", ""),
    )


def with_ways(hosts: t.Sequence[Host], nat_addresses: t.Mapping[str, str]) -> list[Host]:
    """The hosts, those behind a gateway with the way in and the way out. `nat_addresses` are by site."""
    gateways = {host.name: host.public_address for host in hosts if host.state in ALIVE}
    return [
        dataclasses.replace(
            host,
            gateway_address=gateways.get(host.gateway, ""),
            nat_address=nat_addresses.get(host.site, ""),
        )
        if host.gateway
        else host
        for host in hosts
    ]


def assign_indexes(hosts: t.Sequence[Host], counts: t.Mapping[str, int]) -> dict[str, int]:
    """Indexes for the hosts that have none: ``{instance id: index}``.

    A host keeps the index it has, so a fleet that is completed after a loss keeps its names; the free indexes of a
    group (below `counts`) go to its other hosts by private address, lowest first, so that a fresh fleet is numbered in
    the order of hosts.config. Two hosts with the same index can come from a launch that was cut off: the one with the
    higher address is numbered again. Hosts that find no free index get none.
    """
    assigned: dict[str, int] = {}
    for group, count in counts.items():
        members = sorted((h for h in hosts if h.group == group and h.state in ALIVE), key=_by_address)
        taken: dict[int, Host] = {}
        for host in members:
            if host.index is not None and host.index < count:
                taken.setdefault(host.index, host)
        free = iter([i for i in range(count) if i not in taken])
        settled = {host.instance_id for host in taken.values()}
        for host in members:
            if host.instance_id not in settled and (index := next(free, None)) is not None:
                assigned[host.instance_id] = index
    return assigned


def _by_address(host: Host) -> tuple[int, int, str]:
    # A pending instance may have no address yet; it comes last, in the order of its id.
    if not host.address:
        return (1, 0, host.instance_id)
    return (0, int(ipaddress.ip_address(host.address)), host.instance_id)


def missing_members(expected: t.Iterable[str], hosts: t.Iterable[Host]) -> dict[str, str]:
    """The expected members that no living host stands for: ``{name: what is known of it}``."""
    last: dict[str, Host] = {}
    for host in hosts:
        if host.index is not None and (host.name not in last or host.state in ALIVE):
            last[host.name] = host
    missing: dict[str, str] = {}
    for name in expected:
        known = last.get(name)
        if known is None:
            missing[name] = "was never launched"
        elif known.state not in ALIVE:
            missing[name] = f"{known.instance_id} is {known.state}" + (f": {known.reason}" if known.reason else "")
    return missing


def find_runs(
    clients: t.Mapping[str, t.Any], *, run_id: str | None = None, experiment: str | None = None
) -> dict[str, list[str]]:
    """Where there is something of which runs: ``{run_id: [region]}``.

    By what a run makes first and removes last in a region, its key and its network: two calls a region. A region that
    an account is not let into has nothing of it.

    Args:
        clients: EC2 clients by region.
        run_id: this run alone.
        experiment: the runs of this experiment alone.

    Raises:
        botocore's ClientError: no region lets us look.
    """
    filters = [{"Name": "tag-key", "Values": ["startline:run"]}]
    for tag, value in (("run", run_id), ("experiment", experiment)):
        filters += [{"Name": f"tag:startline:{tag}", "Values": [value]}] if value else []

    def look(region: str) -> set[str] | Exception:
        client = clients[region]
        try:
            keys = client.describe_key_pairs(Filters=filters)["KeyPairs"]
            pages = list(client.get_paginator("describe_vpcs").paginate(Filters=filters))
        except Exception as exc:
            if is_refusal(exc):
                return exc
            raise
        tagged = [*keys, *(vpc for page in pages for vpc in page["Vpcs"])]
        return {tag["Value"] for item in tagged for tag in item["Tags"] if tag["Key"] == "startline:run"}

    found: dict[str, list[str]] = {}
    refusals = []
    with concurrent.futures.ThreadPoolExecutor(max_workers=16) as threads:
        for region, answer in zip(clients, threads.map(look, clients), strict=True):
            if isinstance(answer, Exception):
                refusals.append(answer)
                continue
            for run in sorted(answer):
                found.setdefault(run, []).append(region)
    if refusals and len(refusals) == len(clients):
        raise refusals[0]
    return found


@dataclasses.dataclass(frozen=True)
class Login:
    """How the controller logs in: as whom, and with which key. Beside the key are the host keys that were seen."""

    user: str
    key_file: str

    def through(self, gateway: Host, address: str) -> list[str]:
        """The command that connects its input and output with the SSH port of a host behind a gateway.

        One connection to the gateway serves all of them, Ansible's too: group_vars/startline.yml says the same.
        """
        options = {
            "IdentityFile": self.key_file,
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": pathlib.Path(self.key_file).with_name(f"known_hosts.{gateway.instance_id}"),
            "StrictHostKeyChecking": "accept-new",
            "BatchMode": "yes",
            "ConnectTimeout": 10,
            "ServerAliveInterval": 5,
            "ServerAliveCountMax": 3,
            "ControlMaster": "auto",
            "ControlPersist": "60s",
            "ControlPath": f"~/.ansible/cp/{gateway.instance_id}",
            "LogLevel": "ERROR",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", *words, "-W", f"{address}:22", f"{self.user}@{gateway.public_address}"]


class Fleet:
    """The instances of one run, over all its regions."""

    def __init__(self, clients: t.Mapping[str, t.Any], run_id: str) -> None:
        """`clients` are boto3 EC2 clients by region."""
        self._clients = clients
        self._run_id = run_id

    def describe(self) -> list[Host]:
        """Every instance that carries the run's tag, whatever its state, in a stable order."""
        hosts: list[Host] = []
        nat_addresses: dict[str, str] = {}
        for region, client in self._clients.items():
            pages = client.get_paginator("describe_instances").paginate(
                Filters=[{"Name": "tag:startline:run", "Values": [self._run_id]}]
            )
            hosts.extend(
                parse_instance(instance, region)
                for page in pages
                for reservation in page["Reservations"]
                for instance in reservation["Instances"]
            )
        for region in {host.region for host in hosts if host.gateway}:
            nat_addresses.update(self._nat_addresses(self._clients[region]))
        return with_ways(sorted(hosts, key=lambda host: (host.region, *_by_address(host))), nat_addresses)

    def _nat_addresses(self, client: t.Any) -> dict[str, str]:
        """The public addresses of the run's NAT gateways in a region, by site."""
        found = client.describe_nat_gateways(
            Filter=[
                {"Name": "tag:startline:run", "Values": [self._run_id]},
                {"Name": "state", "Values": ["pending", "available"]},
            ]
        )
        return {
            tag["Value"]: address["PublicIp"]
            for gateway in found["NatGateways"]
            for tag in gateway["Tags"]
            if tag["Key"] == "startline:site"
            for address in gateway["NatGatewayAddresses"]
            if address.get("PublicIp")
        }

    def count(self) -> collections.Counter[str]:
        """How many hosts of each group there are that live, or are stopped and can live again."""
        return collections.Counter(host.group for host in self.describe() if host.state in PRESENT)

    def number(self, counts: t.Mapping[str, int]) -> bool:
        """Give every host its index and name. True when a tag was written."""
        hosts = {host.instance_id: host for host in self.describe()}
        assigned = assign_indexes(list(hosts.values()), counts)
        for instance_id, index in assigned.items():
            host = hosts[instance_id]
            self._clients[host.region].create_tags(
                Resources=[instance_id],
                Tags=[
                    {"Key": "startline:index", "Value": str(index)},
                    {"Key": "Name", "Value": f"{host.group}-{index}.{self._run_id}"},
                ],
            )
        return bool(assigned)

    def await_ssh(self, expected: t.Sequence[str], deadline: float, login: Login | None = None) -> list[Host]:
        """Wait until every expected member is running and its SSH server answers.

        `deadline` is in seconds from now. Hosts behind a gateway are asked through it, which needs a `login`. Raises
        `FleetError`, naming each member that is not there and what is known of it: at the deadline, or as soon as a
        host is known to be gone.
        """
        return asyncio.run(self._await_ssh(expected, time.monotonic() + deadline, deadline, login))

    async def _await_ssh(
        self, expected: t.Sequence[str], until: float, deadline: float, login: Login | None
    ) -> list[Host]:
        answered: set[str] = set()
        opening = asyncio.Semaphore(_OPENED_AT_ONCE)

        async def answers(host: Host, gateway: Host | None, patience: float) -> bool:
            if not host.gateway:
                return await ssh_answers(host.login_address, patience)
            if gateway is None or login is None or gateway.name not in answered:
                return False
            async with opening:
                return await greets(login.through(gateway, host.address), patience)

        pause = 0.1
        while True:
            hosts = await asyncio.to_thread(self.describe)
            # EC2 may take seconds to describe what it has launched, so "never launched" is only final at the deadline.
            gone = {n: why for n, why in missing_members(expected, hosts).items() if " is " in why}
            wanted = set(expected)
            here = {h.name: h for h in hosts if h.index is not None and h.state in ALIVE and h.name in wanted}
            waiting = [h for name, h in here.items() if name not in answered and h.state == "running"]
            patience = min(5.0, max(0.1, until - time.monotonic()))
            results = await asyncio.gather(*(answers(h, here.get(h.gateway), patience) for h in waiting))
            answered |= {host.name for host, ok in zip(waiting, results, strict=True) if ok}
            if answered >= wanted:
                return [here[name] for name in expected]
            if gone or time.monotonic() >= until:
                raise FleetError(_explain(expected, hosts, answered, deadline))
            await asyncio.sleep(min(pause, max(0.0, until - time.monotonic())))
            pause = min(pause * 1.5, 2.0)

    def leftovers(self) -> list[str]:
        """Ids of what still exists with the run's tag, in all its regions; empty when it has left nothing.

        Looks at the account, not at what this program remembers to have made.
        """
        filters = [{"Name": "tag:startline:run", "Values": [self._run_id]}]
        found: list[str] = []
        for region, client in self._clients.items():
            for operation, listed, identity in _RESOURCES:
                if listed == "NatGateways":
                    items = [
                        i for i in client.describe_nat_gateways(Filter=filters)[listed] if i["State"] not in _NAT_GONE
                    ]
                else:
                    items = getattr(client, operation)(Filters=filters)[listed]
                if listed == "Reservations":
                    items = [i for entry in items for i in entry["Instances"] if i["State"]["Name"] != "terminated"]
                found.extend(f"{item[identity]} ({region})" for item in items)
        return sorted(found)


def _explain(expected: t.Sequence[str], hosts: t.Sequence[Host], answered: t.Collection[str], deadline: float) -> str:
    problems = missing_members(expected, hosts)
    for host in hosts:
        if host.index is not None and host.name in expected and host.name not in problems and host.name not in answered:
            place = (host.login_address or "no address") + (f" behind {host.gateway}" if host.gateway else "")
            problems[host.name] = f"{host.instance_id} is {host.state} at {place}, but its SSH port does not answer"
    lines = [f"  {name}: {problems[name]}" for name in expected if name in problems]
    return "\n".join(
        [
            f"{len(lines)} of {len(expected)} hosts did not come up within {deadline:g} s:",
            *lines,
            "Look at the instance's console (on the local cloud: python -m localcloud status names the logs).",
        ]
    )


async def ssh_answers(address: str, timeout: float, port: int = 22) -> bool:
    """Whether a server at `address` greets like SSH (RFC 4253, section 4.2) within `timeout` seconds."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(address, port)
            try:
                return await reader.readexactly(4) == b"SSH-"
            finally:
                writer.close()
    except asyncio.IncompleteReadError:
        return False
    except (OSError, TimeoutError):
        return False


async def greets(command: t.Sequence[str], timeout: float) -> bool:
    """Whether what a command prints begins like the greeting of an SSH server, within `timeout` seconds."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    output = t.cast("asyncio.StreamReader", process.stdout)
    try:
        async with asyncio.timeout(timeout):
            return await output.readexactly(4) == b"SSH-"
    except (asyncio.IncompleteReadError, TimeoutError):
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def group_counts(members: t.Iterable[t.Mapping[str, t.Any]]) -> dict[str, int]:
    """Hosts per group of a plan's `members`."""
    return dict(collections.Counter(member["group"] for member in members))
