# SPDX-License-Identifier: GPL-3.0-or-later
"""The local cloud on this machine, for real: hosts, network, metadata, storage, and that nothing is left.

Most tests share the cloud that runs (or start one) in a VPC of their own. What would disturb others runs in `world`:
namespaces of its own for network, mounts and control groups, in which a second cloud is up and down as it pleases.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import typing as t
import urllib.parse
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

boto3 = pytest.importorskip("boto3")
from botocore.exceptions import ClientError  # noqa: E402

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("systemd-nspawn"), reason="boots hosts: needs root and systemd-nspawn"
)

PROJECT = Path(__file__).resolve().parents[2]
ENDPOINT = "http://198.18.0.1:4566"
USER_DATA = "#!/bin/sh\necho run >> /var/tmp/runs\n"
NO_BOOT = "#!/bin/sh\nsystemctl mask --now ssh.service\n"


def localcloud(*arguments: str, prefix: t.Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-m", "localcloud", *arguments]
    return subprocess.run(
        command, cwd="/", env={**os.environ, "PYTHONPATH": str(PROJECT)}, capture_output=True, text=True, timeout=300
    )


def client(service: str, region: str = "us-east-1") -> t.Any:
    return boto3.client(
        service,
        region_name=region,
        endpoint_url=ENDPOINT,
        aws_access_key_id="startline-local",
        aws_secret_access_key="local-cloud-of-this-machine",  # noqa: S106 (it protects nothing)
    )


def until(what: str, holds: t.Callable[[], bool], seconds: float = 10) -> None:
    """Wait for something that no event tells us of."""
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def answers(address: str, port: int = 22) -> bool:
    try:
        with socket.create_connection((address, port), timeout=2) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def find_image(ec2: t.Any, name: str = "*-startline") -> str:
    named = [{"Name": "name", "Values": [name]}]
    [image] = ec2.describe_images(Owners=["136693071363"], Filters=named)["Images"]
    return str(image["ImageId"])


def tcp(port: int, source: str) -> list[dict[str, t.Any]]:
    """A rule of a security group."""
    return [{"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "IpRanges": [{"CidrIp": source}]}]


def make_group(ec2: t.Any, name: str, vpc: str) -> str:
    """A security group that lets in this machine's ssh and nothing else."""
    group = str(ec2.create_security_group(GroupName=name, Description="test", VpcId=vpc)["GroupId"])
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=tcp(22, "198.18.0.1/32"))
    return group


@dataclass
class Lab:
    """A VPC of the tests' own, with an S3 bucket and a role."""

    name: str
    directory: Path
    vpc: str
    public: str  # subnet with a way to the gateway
    private: str  # subnet without one
    group: str  # lets in this machine's ssh, and its hosts among themselves
    bucket: str
    ec2: t.Any
    s3: t.Any

    def run(self, count: int = 1, *, key: str = "ed25519", subnet: str | None = None, **options: t.Any) -> list[str]:
        image = find_image(self.ec2)
        tags = [{"Key": "Name", "Value": self.name}, {"Key": "startline:run", "Value": self.name}]
        reservation = self.ec2.run_instances(
            **{
                "ImageId": image,
                "MinCount": count,
                "MaxCount": count,
                "InstanceType": "t3a.medium",
                "KeyName": f"{self.name}-{key}",
                "SubnetId": subnet or self.public,
                "SecurityGroupIds": [self.group],
                "IamInstanceProfile": {"Name": self.name},
                "UserData": USER_DATA,
                "MetadataOptions": {"HttpTokens": "required", "InstanceMetadataTags": "enabled"},
                "TagSpecifications": [{"ResourceType": "instance", "Tags": tags}],
                **options,
            }
        )
        assert {instance["State"]["Name"] for instance in reservation["Instances"]} == {"pending"}
        return [instance["InstanceId"] for instance in reservation["Instances"]]

    def look(self, instance: str) -> dict[str, t.Any]:
        [found] = self.ec2.describe_instances(InstanceIds=[instance])["Reservations"]
        return t.cast("dict[str, t.Any]", found["Instances"][0])

    def state(self, instance: str) -> str:
        return str(self.look(instance)["State"]["Name"])

    def reachable(self, instance: str) -> str:
        """The public address of an instance, once its ssh answers."""
        address = str(self.look(instance)["PublicIpAddress"])
        until(f"ssh on {instance} at {address}", lambda: answers(address), seconds=30)
        return address

    def ssh(self, instance: str, command: str, *, key: str = "ed25519", check: bool = True) -> str:
        address = self.reachable(instance)
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectTimeout=5"]
        done = subprocess.run(
            ["ssh", "-i", str(self.directory / key), *(f"-o{o}" for o in options), f"admin@{address}", command],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout.strip()

    def terminate(self, instances: t.Sequence[str]) -> None:
        self.ec2.terminate_instances(InstanceIds=list(instances))
        assert {self.state(instance) for instance in instances} == {"terminated"}


@contextlib.contextmanager
def make_lab(name: str, directory: Path, region: str) -> t.Iterator[Lab]:
    """A VPC with a group, key pairs and nothing in it. At the end, nothing of it."""
    ec2 = client("ec2", region)
    vpc = ec2.create_vpc(CidrBlock="10.78.0.0/16")["Vpc"]["VpcId"]
    public, private = (ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.78.{n}.0/24")["Subnet"]["SubnetId"] for n in (1, 2))
    ec2.modify_subnet_attribute(SubnetId=public, MapPublicIpOnLaunch={"Value": True})
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(VpcId=vpc, InternetGatewayId=gateway)
    table = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    association = ec2.associate_route_table(RouteTableId=table, SubnetId=public)["AssociationId"]
    group = make_group(ec2, name, vpc)
    within = [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}]
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=within)
    for kind in ("ed25519", "rsa"):
        command = ["ssh-keygen", "-y", "-f", str(directory / kind)]
        key = subprocess.run(command, capture_output=True, check=True).stdout
        ec2.import_key_pair(KeyName=f"{name}-{kind}", PublicKeyMaterial=key)
    made = Lab(name, directory, vpc, public, private, group, name, ec2, client("s3"))
    yield made
    mine = ec2.describe_instances(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Reservations"]
    alive = [i["InstanceId"] for r in mine for i in r["Instances"] if i["State"]["Name"] != "terminated"]
    if alive:
        made.terminate(alive)
    ec2.disassociate_route_table(AssociationId=association)
    ec2.delete_route_table(RouteTableId=table)
    ec2.delete_security_group(GroupId=group)
    for subnet in (public, private):
        ec2.delete_subnet(SubnetId=subnet)
    ec2.detach_internet_gateway(VpcId=vpc, InternetGatewayId=gateway)
    ec2.delete_internet_gateway(InternetGatewayId=gateway)
    ec2.delete_vpc(VpcId=vpc)


@pytest.fixture(scope="session")
def lab(cloud: None, tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Lab]:
    name, ec2, iam = f"test-{uuid.uuid4().hex[:8]}", client("ec2"), client("iam")
    directory = tmp_path_factory.mktemp("lab")
    for kind in ("ed25519", "rsa"):
        made = ec2.create_key_pair(KeyName=kind, KeyType=kind)
        (directory / kind).write_text(made["KeyMaterial"])
        (directory / kind).chmod(0o600)
        ec2.delete_key_pair(KeyName=kind)
    iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName=name)
    iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    client("s3").create_bucket(Bucket=name)
    with make_lab(name, directory, "us-east-1") as lab:
        yield lab


@pytest.fixture(scope="session")
def far(lab: Lab) -> t.Iterator[Lab]:
    """Another VPC, of the same range, in another region."""
    with make_lab(lab.name, lab.directory, "eu-central-1") as far:
        yield far


@pytest.fixture(scope="session")
def hosts(lab: Lab) -> list[str]:
    return lab.run(2)


# --- hosts ------------------------------------------------------------------------------------------------------------


def test_hosts_are_reached_by_ssh_and_are_hosts_of_their_own(lab: Lab, hosts: list[str]) -> None:
    ask = "sudo cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub; hostname; cat /var/tmp/runs"
    seen = [lab.ssh(host, ask) for host in hosts]
    assert seen[0].splitlines()[0] != seen[1].splitlines()[0]
    assert seen[0].splitlines()[1] != seen[1].splitlines()[1]
    address = lab.look(hosts[0])["PrivateIpAddress"]
    assert seen[0].splitlines()[2:] == [f"ip-{address.replace('.', '-')}", "run"]


def test_a_stopped_service_stops_in_its_own_host_only(lab: Lab, hosts: list[str]) -> None:
    lab.ssh(hosts[0], "sudo systemctl stop chrony; sudo systemctl start chrony")
    lab.ssh(hosts[1], "sudo systemctl start chrony; sudo systemctl stop chrony")
    assert lab.ssh(hosts[0], "systemctl is-active chrony") == "active"


def test_an_rsa_key_pair_logs_in(lab: Lab) -> None:
    [host] = lab.run(key="rsa")
    assert lab.ssh(host, "id -un", key="rsa") == "admin"
    lab.terminate([host])


def test_reboot_inside_boots_again_and_user_data_ran_once(lab: Lab, hosts: list[str]) -> None:
    boot = "cat /proc/sys/kernel/random/boot_id"
    before = lab.ssh(hosts[1], boot)
    lab.ssh(hosts[1], "sudo systemctl reboot", check=False)
    until("a new boot", lambda: lab.ssh(hosts[1], boot, check=False) not in ("", before))
    assert lab.state(hosts[1]) == "running"
    assert lab.ssh(hosts[1], "cat /var/tmp/runs") == "run"


def test_stop_and_start_keep_files_and_change_the_public_address(lab: Lab) -> None:
    [host] = lab.run()
    before = lab.reachable(host)
    lab.ssh(host, "echo kept > kept")
    lab.ec2.stop_instances(InstanceIds=[host])
    assert lab.state(host) == "stopped"
    assert not answers(before)
    lab.ec2.start_instances(InstanceIds=[host])
    assert lab.state(host) == "running"
    assert lab.look(host)["PublicIpAddress"] != before
    assert lab.ssh(host, "cat kept /var/tmp/runs") == "kept\nrun"
    lab.terminate([host])


@pytest.mark.parametrize(("behaviour", "state"), [("terminate", "terminated"), ("stop", "stopped")])
def test_shutdown_inside_does_what_the_instance_says(lab: Lab, behaviour: str, state: str) -> None:
    [host] = lab.run(InstanceInitiatedShutdownBehavior=behaviour)
    lab.ssh(host, "sudo shutdown -h now", check=False)
    until(state, lambda: lab.state(host) == state)
    assert lab.look(host)["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    lab.terminate([host])


def test_a_host_whose_process_is_killed_is_gone_within_a_second(lab: Lab) -> None:
    [host] = lab.run(InstanceInitiatedShutdownBehavior="terminate")
    lab.reachable(host)
    unified = Path("/sys/fs/cgroup/unified")
    group = (unified if unified.exists() else unified.parent) / "startline" / "hosts" / host
    [nspawn] = (group / "supervisor" / "cgroup.procs").read_text().split()
    os.kill(int(nspawn), signal.SIGKILL)
    until("terminated", lambda: lab.state(host) == "terminated", seconds=1)
    assert lab.look(host)["StateReason"]["Code"] == "Server.InternalError"
    assert not group.exists()


def test_a_host_may_be_made_not_to_come_up(lab: Lab) -> None:
    [host] = lab.run(UserData=NO_BOOT)
    console = Path("/var/log/startline", f"{host}.log")
    until(
        "the end of its boot", lambda: console.exists() and "Multi-User System" in console.read_text(errors="replace")
    )
    assert lab.state(host) == "running"
    assert not answers(lab.look(host)["PublicIpAddress"])
    lab.terminate([host])


def test_the_same_client_token_gives_the_same_instances(lab: Lab) -> None:
    token = uuid.uuid4().hex
    first = lab.run(ClientToken=token)
    again = lab.ec2.run_instances(ImageId="ami-ignored", MinCount=1, MaxCount=1, ClientToken=token)
    assert [instance["InstanceId"] for instance in again["Instances"]] == first
    lab.terminate(first)


def test_a_subnet_with_hosts_is_not_deleted(lab: Lab, hosts: list[str]) -> None:
    with pytest.raises(ClientError, match="DependencyViolation"):
        lab.ec2.delete_subnet(SubnetId=lab.public)


def test_packages_install_from_the_machine_s_mirror_and_the_cache(lab: Lab, hosts: list[str]) -> None:
    lab.ssh(hosts[0], "sudo apt-get install -y tree && tree --version")
    [other] = lab.run()
    said = lab.ssh(other, "sudo apt-get install -y tree")
    assert "Need to get 0 B" in said
    lab.terminate([other])


# --- hosts with a kernel of their own ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uml(lab: Lab) -> t.Iterator[str]:
    image = find_image(lab.ec2, "*-startline-uml")
    [host] = lab.run(ImageId=image, InstanceInitiatedShutdownBehavior="stop")
    yield host
    lab.terminate([host])


def test_a_host_with_its_own_kernel_is_a_host_like_the_others(lab: Lab, hosts: list[str], uml: str) -> None:
    seen = lab.look(uml)
    kernel, virtualization, name, runs = lab.ssh(
        uml, "uname -r; systemd-detect-virt; hostname; cat /var/tmp/runs"
    ).split()
    assert kernel != os.uname().release
    assert virtualization == "uml"
    assert name == f"ip-{seen['PrivateIpAddress'].replace('.', '-')}"
    assert runs == "run"
    assert (
        lab.ssh(uml, "ip -o route; cat /sys/class/net/ens5/address").split()[-1]
        == seen["NetworkInterfaces"][0]["MacAddress"]
    )
    assert json.loads(lab.ssh(uml, ASK))["with"]["meta-data/instance-id"] == uml
    assert lab.ssh(uml, role_program(lab)).endswith(f"assumed-role/{lab.name}/{uml}")
    assert_time_is_right(lab, uml)
    assert "tree" in lab.ssh(uml, "sudo apt-get install -y -q tree >/dev/null && tree --version")
    for one, other in ((uml, hosts[0]), (hosts[0], uml)):
        assert lab.ssh(one, probe(lab.look(other)["PrivateIpAddress"])) == "open"


def test_it_is_sent_much_at_once(lab: Lab, uml: str) -> None:
    size = 16 << 20
    lab.s3.put_object(Bucket=lab.bucket, Key="much", Body=bytes(size))
    program = f"""timeout 20 python3 - <<'END'
import boto3
s3 = boto3.client("s3", region_name="us-east-1", endpoint_url="{ENDPOINT}")
print(len(s3.get_object(Bucket="{lab.bucket}", Key="much")["Body"].read()))
END"""
    assert lab.ssh(uml, program) == str(size)


def test_an_ordinary_user_s_temporary_files_are_its_own_there_too(lab: Lab, uml: str) -> None:
    """Made, left and gone on with, as Ansible does in the directory that it is told to use."""
    seen = lab.ssh(
        uml,
        "set -e; cd /tmp; mkdir -m 700 mine; echo one >mine/file; mkdir mine/below; cd mine; echo two >>file; "
        "stat -c %U . below file; cat file; cd ..; rm -r mine",
    )
    assert seen.split() == ["admin", "admin", "admin", "one", "two"]


def test_its_netem_delays_also_where_the_machine_has_none(lab: Lab, hosts: list[str], uml: str) -> None:
    def rtt() -> float:
        said = lab.ssh(hosts[0], f"ping -q -c 10 -i 0.2 {lab.look(uml)['PrivateIpAddress']}")
        return float(said.splitlines()[-1].split("/")[4])  # the average, in ms

    before = rtt()
    lab.ssh(uml, "sudo tc qdisc add dev ens5 root netem delay 25ms")
    assert 24.5 < rtt() - before < 30
    lab.ssh(uml, "sudo tc qdisc del dev ens5 root")
    assert rtt() < 10


def test_it_reboots_stops_starts_and_shuts_down(lab: Lab, uml: str) -> None:
    boot = "cat /proc/sys/kernel/random/boot_id"
    boots = [lab.ssh(uml, boot)]

    def again() -> bool:
        boots.append(lab.ssh(uml, boot, check=False))
        return boots[-1] not in ("", boots[0])

    lab.ssh(uml, "sudo systemctl reboot", check=False)
    until("a new boot", again, seconds=30)
    boots = boots[-1:]
    lab.ec2.reboot_instances(InstanceIds=[uml])
    until("a new boot", again, seconds=30)
    lab.ec2.stop_instances(InstanceIds=[uml])
    assert lab.state(uml) == "stopped"
    lab.ec2.start_instances(InstanceIds=[uml])
    assert lab.ssh(uml, "cat /var/tmp/runs") == "run"
    lab.ssh(uml, "sudo shutdown -h now", check=False)
    until("stopped", lambda: lab.state(uml) == "stopped")
    assert lab.look(uml)["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    lab.ec2.start_instances(InstanceIds=[uml])
    lab.reachable(uml)


# --- metadata, time ---------------------------------------------------------------------------------------------------

ASK = """python3 - <<'END'
import http.client, json
def ask(method, path, **headers):
    connection = http.client.HTTPConnection("169.254.169.254", timeout=5)
    connection.request(method, "/latest/" + path, headers={k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()
token = ask("PUT", "api/token", X_aws_ec2_metadata_token_ttl_seconds="60")[1]
paths = ["meta-data/instance-id", "meta-data/public-ipv4", "meta-data/mac", "meta-data/tags/instance/startline:run",
         "meta-data/iam/security-credentials/", "meta-data/public-keys/", "user-data"]
print(json.dumps({"without": ask("GET", "meta-data/")[0],
                  "with": {path: ask("GET", path, X_aws_ec2_metadata_token=token)[1] for path in paths}}))
END"""


def test_metadata_needs_a_token_and_is_the_instance_s_own(lab: Lab, hosts: list[str]) -> None:
    for host in hosts:
        told, seen = json.loads(lab.ssh(host, ASK)), lab.look(host)
        assert told == {
            "without": 401,
            "with": {
                "meta-data/instance-id": host,
                "meta-data/public-ipv4": seen["PublicIpAddress"],
                "meta-data/mac": seen["NetworkInterfaces"][0]["MacAddress"],
                "meta-data/tags/instance/startline:run": lab.name,
                "meta-data/iam/security-credentials/": lab.name,
                "meta-data/public-keys/": f"0={lab.name}-ed25519",
                "user-data": USER_DATA,
            },
        }
        assert lab.ssh(host, "cat /sys/class/net/ens5/address") == seen["NetworkInterfaces"][0]["MacAddress"]


def role_program(lab: Lab) -> str:
    return f"""python3 - <<'END'
import boto3
make = lambda service: boto3.client(service, region_name="us-east-1", endpoint_url="{ENDPOINT}")
make("s3").put_object(Bucket="{lab.bucket}", Key="from-host", Body=b"by role")
print(make("sts").get_caller_identity()["Arn"])
END"""


def test_a_host_has_the_credentials_of_its_role(lab: Lab, hosts: list[str]) -> None:
    program = role_program(lab)
    for host in hosts:  # both: one launch of two
        assert lab.ssh(host, program).endswith(f"assumed-role/{lab.name}/{host}")
    assert lab.s3.get_object(Bucket=lab.bucket, Key="from-host")["Body"].read() == b"by role"


def assert_time_is_right(lab: Lab, host: str) -> None:
    """One answer is wrong by up to half its round trip, long where processors are few; a wrong clock is so in every answer."""
    ask = "sudo chronyd -x -Q -t 20 'server 169.254.169.123 iburst maxsamples 1' 2>&1"
    answers: list[str] = []
    while len(answers) < 10 and not (answers and re.search(r"System clock wrong by -?0\.00", answers[-1])):
        answers.append(lab.ssh(host, ask, check=False))
    assert len(answers) < 10, "\n".join(answers)


def test_time_is_served(lab: Lab, hosts: list[str]) -> None:
    assert_time_is_right(lab, hosts[0])


# --- network ----------------------------------------------------------------------------------------------------------


def probe(address: str, port: int = 22) -> str:
    return f"nc -z -w 2 {address} {port} && echo open || echo closed"


CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)"


def inside(instance: str) -> list[str]:
    """What starts a command in the namespace of a host that nobody can log in to."""
    daemon = json.loads(localcloud("status", "--json").stdout)["pid"]
    return ["nsenter", f"--target={daemon}", "--mount", "nsenter", f"--net=/run/netns/{instance}"]


def opens(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=1):
            return True
    except OSError:
        return False


def test_hosts_reach_each_other_by_private_and_public_address(lab: Lab, hosts: list[str]) -> None:
    other = lab.look(hosts[1])
    lab.reachable(hosts[1])
    assert lab.ssh(hosts[0], probe(other["PrivateIpAddress"])) == "open"
    # By public address they are strangers: their group knows private ones.
    assert lab.ssh(hosts[0], probe(other["PublicIpAddress"])) == "closed"
    own = tcp(22, f"{lab.look(hosts[0])['PublicIpAddress']}/32")
    lab.ec2.authorize_security_group_ingress(GroupId=lab.group, IpPermissions=own)
    assert lab.ssh(hosts[0], probe(other["PublicIpAddress"])) == "open"
    lab.ec2.revoke_security_group_ingress(GroupId=lab.group, IpPermissions=own)


def test_a_host_without_public_address_has_its_vpc_and_the_api_only(lab: Lab, hosts: list[str]) -> None:
    [hidden] = lab.run(subnet=lab.private)
    assert lab.state(hidden) == "running"
    seen = lab.look(hidden)
    assert "PublicIpAddress" not in seen
    address = seen["PrivateIpAddress"]
    until("its ssh, from inside", lambda: lab.ssh(hosts[0], probe(address)) == "open")
    reach = [*inside(hidden), sys.executable, "-c", CONNECT]
    assert subprocess.run([*reach, "198.18.0.1", "4566"], check=False).returncode == 0
    out = subprocess.run([*reach, lab.look(hosts[0])["PublicIpAddress"], "22"], capture_output=True, check=False)
    assert b"TimeoutError" in out.stderr
    lab.terminate([hidden])


def is_where_it_seems(lab: Lab, host: str) -> bool:
    """Is it this host that answers at its public address?"""
    told = lab.ssh(host, ASK, check=False)
    return bool(told) and json.loads(told)["with"]["meta-data/instance-id"] == host


def test_an_elastic_address_moves_between_hosts_and_vpcs(lab: Lab, hosts: list[str]) -> None:
    elastic = lab.ec2.allocate_address(Domain="vpc")
    own = lab.reachable(hosts[0])
    lab.ec2.associate_address(AllocationId=elastic["AllocationId"], InstanceId=hosts[0])
    until("ssh at the elastic address", lambda: answers(elastic["PublicIp"]))
    assert not answers(own)
    with make_lab(f"{lab.name}-other", lab.directory, lab.ec2.meta.region_name) as other:
        [host] = other.run(IamInstanceProfile={"Name": lab.name})
        lab.ec2.disassociate_address(PublicIp=elastic["PublicIp"])
        other.ec2.associate_address(AllocationId=elastic["AllocationId"], InstanceId=host)
        until("the host of the other VPC", lambda: is_where_it_seems(other, host))
        until("ssh", lambda: is_where_it_seems(lab, hosts[0]))
        other.ec2.disassociate_address(PublicIp=elastic["PublicIp"])
        lab.ec2.associate_address(AllocationId=elastic["AllocationId"], InstanceId=hosts[0])
        until("the first host again", lambda: is_where_it_seems(lab, hosts[0]))
    lab.ec2.disassociate_address(PublicIp=elastic["PublicIp"])
    lab.ec2.release_address(AllocationId=elastic["AllocationId"])
    until("ssh", lambda: answers(lab.look(hosts[0])["PublicIpAddress"]))
    assert "is not what it should be" not in Path("/var/log/startline/daemon.log").read_text()


SERVE = "sudo systemd-run --quiet --unit=serve nc -lk -p 7000; while ! nc -z 127.0.0.1 7000; do sleep 0.05; done"


def test_vpcs_of_two_regions_with_the_same_range_meet_at_public_addresses_as_groups_say(
    lab: Lab, hosts: list[str], far: Lab
) -> None:
    group = make_group(far.ec2, f"{far.name}-far", far.vpc)
    [host] = far.run(SecurityGroupIds=[group])
    seen, own = far.look(host), lab.look(hosts[0])["PublicIpAddress"]
    public, private = seen["PublicIpAddress"], seen["PrivateIpAddress"]
    far.ssh(host, SERVE)

    def reached() -> dict[str, bool]:
        """From a host of the other VPC, and from this machine."""
        tries = f"for port in 22 7000; do nc -z -w 1 {public} $port && echo $port; done"
        said = lab.ssh(hosts[0], f"{tries}; ping -q -c 1 -W 1 {public} >&2 && echo ping", check=False).split()
        return {
            **{f"host {what}": what in said for what in ("22", "7000", "ping")},
            "machine 22": answers(public),
            "machine 7000": opens(public, 7000),
        }

    nothing = {"host 22": False, "host 7000": False, "host ping": False, "machine 22": True, "machine 7000": False}
    assert reached() == nothing
    ping = [{"IpProtocol": "icmp", "FromPort": -1, "ToPort": -1, "IpRanges": [{"CidrIp": "198.18.0.0/15"}]}]
    rules = tcp(22, f"{own}/32") + tcp(7000, "0.0.0.0/0") + ping
    far.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=rules)
    assert reached() == dict.fromkeys(nothing, True)
    # The private address may be a neighbour's here, who does not serve.
    assert lab.ssh(hosts[0], probe(private, 7000)) == "closed"
    # Seen as on AWS: from the public address.
    lab.ssh(hosts[0], f"ssh-keyscan -t ed25519 {public} >/dev/null 2>&1")
    assert own in far.ssh(host, "sudo journalctl -u ssh --no-pager -o cat")
    far.ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=rules)
    assert reached() == nothing
    far.terminate([host])
    far.ec2.delete_security_group(GroupId=group)


def test_a_group_lets_in_the_hosts_of_another_by_private_address_and_out_what_it_says(lab: Lab) -> None:
    asking, serving = (make_group(lab.ec2, f"{lab.name}-{kind}", lab.vpc) for kind in ("asking", "serving"))
    [asker] = lab.run(SecurityGroupIds=[asking])
    [server] = lab.run(SecurityGroupIds=[serving])
    lab.ssh(server, SERVE)
    seen = lab.look(server)

    def reached() -> list[str]:
        return [lab.ssh(asker, probe(seen[f"{kind}IpAddress"], 7000)) for kind in ("Private", "Public")]

    assert reached() == ["closed", "closed"]
    pair = [{"IpProtocol": "tcp", "FromPort": 6999, "ToPort": 7001, "UserIdGroupPairs": [{"GroupId": asking}]}]
    lab.ec2.authorize_security_group_ingress(GroupId=serving, IpPermissions=pair)
    assert reached() == ["open", "closed"]  # a group stands for private addresses
    everything = [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
    lab.ec2.revoke_security_group_egress(GroupId=asking, IpPermissions=everything)
    assert reached() == ["closed", "closed"]
    assert json.loads(lab.ssh(asker, ASK))["with"]["meta-data/instance-id"] == asker  # no group stands before that
    lab.terminate([asker, server])
    lab.ec2.delete_security_group(GroupId=serving)
    lab.ec2.delete_security_group(GroupId=asking)


def test_a_private_host_goes_out_by_a_nat_gateway_and_is_not_reached(lab: Lab, far: Lab) -> None:
    ec2 = lab.ec2
    [outside] = far.run()
    elastic = ec2.allocate_address(Domain="vpc")
    gateway = ec2.create_nat_gateway(SubnetId=lab.public, AllocationId=elastic["AllocationId"])["NatGateway"]
    ec2.create_tags(Resources=[gateway["NatGatewayId"]], Tags=[{"Key": "whose", "Value": "ours"}])
    for whose, count in (("ours", 1), ("theirs", 0)):
        found = ec2.describe_nat_gateways(Filter=[{"Name": "tag:whose", "Values": [whose]}])["NatGateways"]
        assert len(found) == count
    table = ec2.create_route_table(VpcId=lab.vpc)["RouteTable"]["RouteTableId"]
    association = ec2.associate_route_table(RouteTableId=table, SubnetId=lab.private)["AssociationId"]
    [hidden] = lab.run(subnet=lab.private)
    assert lab.state(hidden) == "running"
    from_gateway = tcp(22, f"{elastic['PublicIp']}/32")
    far.ec2.authorize_security_group_ingress(GroupId=far.group, IpPermissions=from_gateway)
    reach = [*inside(hidden), sys.executable, "-c", CONNECT, far.reachable(outside), "22"]
    assert b"TimeoutError" in subprocess.run(reach, capture_output=True, check=False).stderr
    ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", NatGatewayId=gateway["NatGatewayId"])
    assert subprocess.run(reach, check=False).returncode == 0
    assert not answers(elastic["PublicIp"])
    far.ec2.revoke_security_group_ingress(GroupId=far.group, IpPermissions=from_gateway)
    far.terminate([outside])
    lab.terminate([hidden])
    ec2.disassociate_route_table(AssociationId=association)
    ec2.delete_route_table(RouteTableId=table)
    ec2.delete_nat_gateway(NatGatewayId=gateway["NatGatewayId"])
    ec2.release_address(AllocationId=elastic["AllocationId"])


def test_a_vpc_that_would_hide_the_machine_s_network_is_refused(cloud: None) -> None:
    routes = json.loads(subprocess.run(["ip", "-j", "-4", "route"], capture_output=True, check=True).stdout)
    taken = next((r["dst"] for r in routes if r["dst"] != "default" and r.get("dev", "sl-")[:3] not in ("sl-",)), None)
    if taken is None:
        pytest.skip("this machine has no route but the default")
    around = ".".join([*taken.split(".")[:2], "0", "0"]) + "/16"
    with pytest.raises(ClientError, match=r"InvalidVpc\.Range.*overlaps"):
        client("ec2").create_vpc(CidrBlock=around)


# --- storage ----------------------------------------------------------------------------------------------------------


def put(url: str, body: bytes, **headers: str) -> int:
    target = urllib.parse.urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(target.netloc, timeout=10)) as connection:
        connection.request("PUT", f"{target.path}?{target.query}", body=body, headers=headers)
        return connection.getresponse().status


def test_a_presigned_put_stores_what_was_promised_and_nothing_else(lab: Lab) -> None:
    body, other = b"evidence", b"evidenc3"
    checksum = base64.b64encode(hashlib.sha256(body).digest()).decode()
    promise = {"Bucket": lab.bucket, "Key": "presigned", "ChecksumSHA256": checksum, "ContentLength": len(body)}
    url = lab.s3.generate_presigned_url("put_object", Params=promise)
    assert put(url, other, **{"x-amz-checksum-sha256": checksum}) == 400
    assert "Contents" not in lab.s3.list_objects_v2(Bucket=lab.bucket, Prefix="presigned")
    assert put(url, body, **{"x-amz-checksum-sha256": checksum}) == 200
    assert lab.s3.head_object(Bucket=lab.bucket, Key="presigned", ChecksumMode="ENABLED")["ChecksumSHA256"] == checksum


def test_a_checksum_that_does_not_match_is_a_bad_digest(lab: Lab) -> None:
    checksum = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    with pytest.raises(ClientError, match="BadDigest"):
        lab.s3.put_object(Bucket=lab.bucket, Key="bad", Body=b"evidence", ChecksumSHA256=checksum)


def test_of_many_conditional_writes_one_wins(lab: Lab) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def claim(number: int) -> int:
        try:
            answer = lab.s3.put_object(Bucket=lab.bucket, Key="claim", Body=str(number).encode(), IfNoneMatch="*")
        except ClientError as refused:
            answer = refused.response
        return int(answer["ResponseMetadata"]["HTTPStatusCode"])

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(claim, range(16))) == [200] + [412] * 15
    old = lab.s3.head_object(Bucket=lab.bucket, Key="claim")["ETag"]
    lab.s3.put_object(Bucket=lab.bucket, Key="claim", Body=b"next", IfMatch=old)
    with pytest.raises(ClientError, match="PreconditionFailed"):
        lab.s3.put_object(Bucket=lab.bucket, Key="claim", Body=b"late", IfMatch=old)


# --- the command, and that nothing is left ----------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Namespaces of their own: what is up in there does not know of the cloud outside, nor that of it."""

    enter: list[str]

    def cloud(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return localcloud(*arguments, prefix=self.enter)

    def sh(self, script: str) -> str:
        done = subprocess.run(
            [*self.enter, "sh", "-c", script], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def shape(self) -> str:
        """All that a cloud changes, as text."""
        return self.sh(
            "ip netns; ip -o link | cut -d' ' -f2; ip route show table all | sort; nft list tables;"
            "cut -d' ' -f5 /proc/self/mountinfo | sort; find /sys/fs/cgroup -name 'startline*';"
            "cat /proc/sys/net/ipv4/ip_forward /proc/sys/fs/inotify/max_user_instances"
        )


WORLD = """
mount --make-rprivate /
for at in /sys/fs/cgroup/unified /sys/fs/cgroup/systemd /sys/fs/cgroup; do
  if [ -d $at/$1 ]; then mount --bind $at/$1 $at; fi
done
mkdir -p /run/startline /run/netns /var/log/startline
mount --bind $2 /mnt
for at in /run/startline /run/netns /var/log/startline /var/lib/startline; do mount -t tmpfs tmpfs $at; done
# Its image alone: no other can be removed from in here.
mkdir -p $2
mount --move /mnt $2
ip link set lo up
echo ready
exec cat
"""


@pytest.fixture
def world() -> t.Iterator[World]:
    image = Path(localcloud("image").stdout.strip()).parent
    name = f"test-{uuid.uuid4().hex[:8]}"
    roots = [Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/systemd")]
    groups = [root / name for root in roots if (root / "cgroup.procs").exists()]
    for group in groups:
        group.mkdir()
    into = "".join(f"echo $$ >{group}/cgroup.procs; " for group in groups)
    holder = subprocess.Popen(
        ["sh", "-c", f'{into} exec unshare --cgroup --mount --net sh -ec "$@"', "sh", WORLD, "sh", name, str(image)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    enter = f'{into} exec nsenter --target={holder.pid} --cgroup --mount --net "$@"'
    world = World(["sh", "-c", enter, "sh"])
    yield world
    world.cloud("down")
    holder.stdin.close()
    holder.wait(10)
    for group in groups:
        for directory, _, _ in os.walk(group, topdown=False):
            os.rmdir(directory)


RUN_HOST = """
import boto3
keys = {"aws_access_key_id": "startline-local", "aws_secret_access_key": "local-cloud-of-this-machine"}
ec2 = boto3.client("ec2", region_name="us-east-1", endpoint_url="http://198.18.0.1:4566", **keys)
[image] = ec2.describe_images(Filters=[{"Name": "name", "Values": ["*-startline"]}])["Images"]
[host] = ec2.run_instances(ImageId=image["ImageId"], MinCount=1, MaxCount=1)["Instances"]
seen = ec2.describe_instances(InstanceIds=[host["InstanceId"]])["Reservations"][0]["Instances"][0]
print(seen["State"]["Name"])
"""


def test_up_twice_changes_nothing_and_down_leaves_nothing(world: World) -> None:
    before = world.shape()
    first = world.cloud("up")
    assert first.returncode == 0, first.stderr
    status = json.loads(world.cloud("status", "--json").stdout)
    again = world.cloud("up")
    assert again.returncode == 0
    assert json.loads(world.cloud("status", "--json").stdout) == status
    assert world.cloud("down").returncode == 0
    assert world.shape() == before
    assert world.cloud("status").stdout == "local cloud is down\n"


def test_down_leaves_nothing_of_a_killed_daemon(world: World) -> None:
    before = world.shape()
    assert world.cloud("up").returncode == 0
    running = subprocess.run(
        [*world.enter, sys.executable, "-c", RUN_HOST], capture_output=True, text=True, check=False
    )
    assert running.stdout == "running\n", running.stderr
    os.kill(json.loads(world.cloud("status", "--json").stdout)["pid"], signal.SIGKILL)
    status = json.loads(world.cloud("status", "--json").stdout)
    assert not status["up"]
    kinds = {line.split()[0] for line in status["leftovers"]}
    assert kinds == {"cgroup", "interface", "route", "nft", "limits"}
    assert world.cloud("down").returncode == 0
    assert world.shape() == before


def test_down_ends_a_daemon_whose_up_was_killed_before_it_was_ready(world: World) -> None:
    before = world.shape()
    command = [*world.enter, sys.executable, "-m", "localcloud", "up"]
    with subprocess.Popen(command, cwd="/", env={**os.environ, "PYTHONPATH": str(PROJECT)}) as starting:
        until("a daemon", lambda: world.cloud("status", "--json").stdout.find("limits in") > 0)
        starting.kill()
    assert world.cloud("down").returncode == 0
    assert world.shape() == before


def test_up_clears_what_a_killed_daemon_left(world: World) -> None:
    assert world.cloud("up").returncode == 0
    os.kill(json.loads(world.cloud("status", "--json").stdout)["pid"], signal.SIGKILL)
    again = world.cloud("up")
    assert again.returncode == 0, again.stderr
    assert "clearing" in again.stdout


def test_a_taken_range_is_reported_and_left_alone(world: World) -> None:
    world.sh("ip link add other type bridge && ip addr add 198.18.0.1/24 dev other && ip link set other up")
    before = world.shape()
    refused = world.cloud("up")
    assert refused.returncode == 1
    assert "198.18.0.0/15 is held by" in refused.stderr
    assert "dev other" in refused.stderr
    assert world.shape() == before


def test_a_taken_port_is_reported_with_its_holder(world: World) -> None:
    program = "import socket; s = socket.create_server(('', 4566)); print('ready', flush=True); s.accept()"
    with subprocess.Popen([*world.enter, sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        before = world.shape()
        refused = world.cloud("up")
        holder.kill()
    assert refused.returncode == 1
    assert "port 4566 is held by" in refused.stderr
    assert "python" in refused.stderr
    assert world.shape() == before
