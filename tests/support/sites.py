# SPDX-License-Identifier: GPL-3.0-or-later
"""Two sites on the local cloud, one of them private behind a login host, as somebody has them who does not use the journey."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shlex
import socket
import subprocess
import time
import typing as t
import uuid

from localcloud.daemon import RECORD

#: The images' owner on the local cloud.
OWNER = "136693071363"


def until(what: str, holds: t.Callable[[], t.Any], seconds: float = 30) -> t.Any:
    """Wait for something that no event tells us of."""
    ends = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < ends, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return value


def greets(address: str, port: int = 22) -> bool:
    """Whether an SSH server answers this machine."""
    try:
        with socket.create_connection((address, port), timeout=2) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


class Site:
    """A VPC with a public subnet (number 0), a private one (number 1), and hosts."""

    def __init__(self, ec2: t.Any, name: str, number: int) -> None:
        self._ec2, self.name, self._key = ec2, name, f"{name}-{number}"
        self._undo = contextlib.ExitStack()
        made = ec2.create_vpc(CidrBlock=f"10.{number}.0.0/16")["Vpc"]["VpcId"]
        self.vpc = made
        self._undo.callback(ec2.delete_vpc, VpcId=made)
        self._subnets = []
        for part in range(2):
            subnet = ec2.create_subnet(VpcId=made, CidrBlock=f"10.{number}.{part}.0/24")["Subnet"]["SubnetId"]
            self._undo.callback(ec2.delete_subnet, SubnetId=subnet)
            self._subnets.append(subnet)
        ec2.modify_subnet_attribute(SubnetId=self._subnets[0], MapPublicIpOnLaunch={"Value": True})
        gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
        self._undo.callback(ec2.delete_internet_gateway, InternetGatewayId=gateway)
        ec2.attach_internet_gateway(VpcId=made, InternetGatewayId=gateway)
        self._undo.callback(ec2.detach_internet_gateway, VpcId=made, InternetGatewayId=gateway)
        table = ec2.create_route_table(VpcId=made)["RouteTable"]["RouteTableId"]
        self._undo.callback(ec2.delete_route_table, RouteTableId=table)
        ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
        association = ec2.associate_route_table(RouteTableId=table, SubnetId=self._subnets[0])["AssociationId"]
        self._undo.callback(ec2.disassociate_route_table, AssociationId=association)
        self.group = ec2.create_security_group(GroupName=self._key, Description="test", VpcId=made)["GroupId"]
        self._undo.callback(ec2.delete_security_group, GroupId=self.group)
        self.admit(22, "198.18.0.1/32")
        within = [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": self.group}]}]
        ec2.authorize_security_group_ingress(GroupId=self.group, IpPermissions=within)
        pair = ec2.create_key_pair(KeyName=self._key, KeyType="ed25519")
        self._undo.callback(ec2.delete_key_pair, KeyName=self._key)
        self.login_key = str(pair["KeyMaterial"])

    def admit(self, port: int, source: str) -> None:
        """Let in TCP connections to a port from a network."""
        rule = {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "IpRanges": [{"CidrIp": source}]}
        self._ec2.authorize_security_group_ingress(GroupId=self.group, IpPermissions=[rule])

    def launch(self, private: bool = False, image: str = "*-startline") -> dict[str, str]:
        """A host: ``id``, ``address``, and ``public_address`` unless it is private."""
        named = [{"Name": "name", "Values": [image]}]
        [found] = self._ec2.describe_images(Owners=[OWNER], Filters=named)["Images"]
        [instance] = self._ec2.run_instances(
            ImageId=found["ImageId"],
            MinCount=1,
            MaxCount=1,
            InstanceType="t3.micro",
            KeyName=self._key,
            SubnetId=self._subnets[private],
            SecurityGroupIds=[self.group],
            TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": self.name}]}],
        )["Instances"]
        identity = instance["InstanceId"]
        self._undo.callback(self._terminate, identity)
        seen = until(f"{identity} runs", lambda: self._look(identity, "running"))
        host = {"id": identity, "address": seen["PrivateIpAddress"]}
        if not private:
            host["public_address"] = seen["PublicIpAddress"]
            until(f"ssh at {host['public_address']}", lambda: greets(host["public_address"]))
        return host

    def _look(self, identity: str, state: str) -> t.Any:
        """What EC2 says of an instance that is in a state."""
        [reservation] = self._ec2.describe_instances(InstanceIds=[identity])["Reservations"]
        [seen] = reservation["Instances"]
        return seen if seen["State"]["Name"] == state else None

    def _terminate(self, identity: str) -> None:
        self._ec2.terminate_instances(InstanceIds=[identity])
        until(f"{identity} is gone", lambda: self._look(identity, "terminated"))

    @contextlib.contextmanager
    def cut(self, host: t.Mapping[str, str]) -> t.Iterator[None]:
        """Take a host's link down, as a pulled cable would, and up again at the end."""
        # The namespaces of the local cloud have their names in its daemon's mounts alone.
        daemon = json.loads(RECORD.read_text())["pid"]
        port = f"h-{host['id'].rpartition('-')[2][:11]}"
        switch = ["nsenter", f"--target={daemon}", "--mount", "ip", "-n", self.vpc, "link", "set", port]
        subprocess.run([*switch, "down"], check=True)
        try:
            yield
        finally:
            subprocess.run([*switch, "up"], check=True)

    def close(self) -> None:
        """Remove everything."""
        self._undo.close()


class Sites:
    """A client at one site, a login host and a private host at the other, and a key made for the tunnel between them."""

    def __init__(self, ec2: t.Any, directory: pathlib.Path, image: str = "*-startline") -> None:
        self.directory = directory
        self._undo = contextlib.ExitStack()
        name = f"vpn-{uuid.uuid4().hex[:8]}"
        try:
            self.far, self.near = (Site(ec2, name, number) for number in (81, 82))
            for site, which in ((self.far, "far"), (self.near, "near")):
                self._undo.callback(site.close)
                (directory / which).write_text(site.login_key)
                (directory / which).chmod(0o600)
            self.login, self.hidden = self.far.launch(image=image), self.far.launch(private=True, image=image)
            self.client = self.near.launch(image=image)
            for port in (22, 7422):
                self.far.admit(port, f"{self.client['public_address']}/32")
        except BaseException:
            self.close()
            raise
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]
        for key in ("vpn_key", "other_key"):
            subprocess.run([*make, str(directory / key)], check=True)

    def ssh(self, host: t.Mapping[str, str], command: str, *, check: bool = True) -> str:
        """What a command of root prints on the client or the login host."""
        key = "near" if host is self.client else "far"
        options = {
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "accept-new",
            "UserKnownHostsFile": self.directory / f"known_hosts.{host['id']}",
            "ConnectTimeout": 5,
            "LogLevel": "ERROR",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        target = f"admin@{host['public_address']}"
        done = subprocess.run(
            ["ssh", "-i", str(self.directory / key), *words, target, f"sudo sh -c {shlex.quote(command)}"],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def inventory(self) -> pathlib.Path:
        """An inventory file with the hosts ``client`` and ``login``."""
        path = self.directory / "hosts.json"
        hosts = {
            name: {
                "ansible_host": host["public_address"],
                "ansible_user": "admin",
                "ansible_ssh_private_key_file": str(self.directory / key),
                "ansible_ssh_common_args": (
                    f"-o UserKnownHostsFile={self.directory}/known_hosts.{host['id']} -o StrictHostKeyChecking=accept-new"
                ),
                "ansible_python_interpreter": "/usr/bin/python3",
            }
            for name, host, key in (("client", self.client, "near"), ("login", self.login, "far"))
        }
        path.write_text(json.dumps({"all": {"hosts": hosts}}))
        return path

    def close(self) -> None:
        """Remove everything."""
        self._undo.close()
