# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands that a user types, and what is left of a run on AWS."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import typing as t

import boto3

PROJECT = pathlib.Path(__file__).resolve().parents[2]
EXPERIMENTS = PROJECT / "tests" / "e2e" / "experiments"
ENDPOINT = "http://198.18.0.1:4566"


@dataclasses.dataclass(frozen=True)
class Ended:
    """A command that has ended, and what it printed."""

    returncode: int
    output: str

    @property
    def run_id(self) -> str:
        """The run that site.yml said it leads."""
        found = re.search(r"(?:New|Going on with) run (\S+);", self.output)
        assert found, self.output
        return found[1]


def localcloud(*words: str) -> str:
    """``python -m localcloud ...``"""
    return subprocess.run(
        [sys.executable, "-m", "localcloud", *words], cwd=PROJECT, check=True, capture_output=True, text=True
    ).stdout


def start_playbook(*words: str, project: pathlib.Path = PROJECT, **environment: str) -> subprocess.Popen[str]:
    """``ansible-playbook ...`` as a user types it, in a process group of its own."""
    return subprocess.Popen(
        [str(pathlib.Path(sys.executable).with_name("ansible-playbook")), *words],
        cwd=project,
        env={**os.environ, "ANSIBLE_DEPRECATION_WARNINGS": "0", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def playbook(*words: str, project: pathlib.Path = PROJECT, **environment: str) -> Ended:
    """Run a playbook to its end."""
    process = start_playbook(*words, project=project, **environment)
    output, _errors = process.communicate(timeout=600)
    return Ended(process.returncode, output)


def playbook_killed_at(line: str, *words: str) -> Ended:
    """Run a playbook and kill it, with all its workers, as soon as it prints a line that contains `line`."""
    process = start_playbook(*words)
    assert process.stdout
    printed = []
    for text in process.stdout:
        printed.append(text)
        if line in text:
            os.killpg(process.pid, signal.SIGKILL)
            break
    printed.append(process.stdout.read())
    process.stdout.close()
    return Ended(process.wait(), "".join(printed))


def processes(*words: str) -> list[int]:
    """Ids of the processes with these arguments, on this machine and its hosts."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().split(b"\0")[:-1] == [word.encode() for word in words]:
                found.append(int(path.parent.name))
    return found


def adhoc(*words: str, **environment: str) -> Ended:
    """``ansible ...``"""
    done = subprocess.run(
        [str(pathlib.Path(sys.executable).with_name("ansible")), *words],
        cwd=PROJECT,
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        text=True,
    )
    return Ended(done.returncode, done.stdout + done.stderr)


def ec2_client(region: str = "us-east-1") -> t.Any:
    """EC2 of the local cloud in a region."""
    return boto3.client(
        "ec2",
        region_name=region,
        endpoint_url=ENDPOINT,
        aws_access_key_id="startline-local",
        aws_secret_access_key="local-cloud-of-this-machine",  # noqa: S106 the local cloud checks none
    )


def run_resources(ec2: t.Any, run_id: str) -> list[str]:
    """Ids of what is left of a run, asked with nothing but its tag."""
    tagged = [{"Name": "tag:startline:run", "Values": [run_id]}]
    found = [
        instance["InstanceId"]
        for reservation in ec2.describe_instances(Filters=tagged)["Reservations"]
        for instance in reservation["Instances"]
        if instance["State"]["Name"] != "terminated"
    ]
    for operation, key, identity in (
        ("describe_vpcs", "Vpcs", "VpcId"),
        ("describe_subnets", "Subnets", "SubnetId"),
        ("describe_security_groups", "SecurityGroups", "GroupId"),
        ("describe_internet_gateways", "InternetGateways", "InternetGatewayId"),
        ("describe_route_tables", "RouteTables", "RouteTableId"),
        ("describe_key_pairs", "KeyPairs", "KeyPairId"),
        ("describe_volumes", "Volumes", "VolumeId"),
        ("describe_addresses", "Addresses", "AllocationId"),
    ):
        found += [item[identity] for item in getattr(ec2, operation)(Filters=tagged)[key]]
    found += [
        gateway["NatGatewayId"]
        for gateway in ec2.describe_nat_gateways(Filter=tagged)["NatGateways"]
        if gateway["State"] != "deleted"
    ]
    return found
