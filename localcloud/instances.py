# SPDX-License-Identifier: GPL-3.0-or-later
"""Instances of moto as hosts.

`Cloud` holds both: it starts a host for an instance, and gives the instance the state its host is in. `install` puts it
between moto's calls (run, start, stop, reboot, terminate) and moto's own state machine, which knows only their ends.
"""

from __future__ import annotations

import logging
import threading
import typing as t
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from localcloud import hosts, imds, network
from localcloud.hosts import Host
from localcloud.image import Image
from localcloud.machine import CloudError
from localcloud.network import Fabric, Group, Port, Rule

log = logging.getLogger(__name__)

# Waiters of the AWS SDKs look every 15 s. Instances that are about to change are waited for this long instead, before a
# describe of them is answered.
SETTLE = 12.0
_STATES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
_PASSING = {"pending", "shutting-down", "stopping"}

Moto = t.Any  # an object of moto: its classes are not made to be named outside


@dataclass
class _Life:
    """An instance from its start to its stop or termination."""

    instance: Moto
    host: Host
    service: IPv4Address
    thread: threading.Thread
    wanted: str | None = None  # "stopped" or "terminated", once the API has asked for that end


class Cloud:
    """Moto's instances and the hosts behind them."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._changed = threading.Condition()  # guards what follows, and tells when a state has changed
        self._lives: dict[str, _Life] = {}
        self._reservations: dict[tuple[str, str], Moto] = {}  # (region, client token) -> reservation
        self._last_address: IPv4Address | None = None
        self.moto_ends: dict[str, t.Callable[[Moto], object]] = {}
        self.fabric = Fabric()

    # --- called by the patches of moto

    def refuse_vpc(self, cidr: str) -> None:
        try:
            self.fabric.check(IPv4Network(cidr, strict=False))
        except ValueError:
            return  # moto says what is wrong with it
        except CloudError as problem:
            raise _client_error("InvalidVpc.Range", str(problem)) from problem

    def launch(self, instance: Moto) -> None:
        """Give an instance a host, which `follow` starts: pending until it boots."""
        with self._changed:
            service = IPv4Address(self.outside_address())
            host = Host(_port(instance, service), self._image.root, self._image.kernel(instance.image_id), self.fabric)
            thread = threading.Thread(target=self._live, args=(instance, host), name=instance.id, daemon=True)
            self._lives[instance.id] = _Life(instance, host, service, thread)
            self._set(instance, "pending")

    def end(self, instance: Moto, state: str) -> None:
        """Stop or terminate: the host shuts down in order, then the instance gets its last state."""
        with self._changed:
            life = self._lives.get(instance.id)
            if life is None:
                self._finish(instance, state)
                return
            life.host.shut_down()
            if life.wanted != "terminated":
                life.wanted = state
                self._set(instance, "shutting-down" if state == "terminated" else "stopping")

    def reboot(self, instance: Moto) -> None:
        with self._changed:
            if instance.state != "running":
                raise _client_error("IncorrectInstanceState", f"{instance.id} is {instance.state}, not running")
            self._lives[instance.id].host.shut_down(reboot=True)

    def remember(self, region: str, token: str | None, launch: t.Callable[[], Moto]) -> Moto:
        """RunInstances with a client token that was used before gives what it gave then."""
        with self._changed:
            key = (region, token or "")
            reservation = self._reservations.get(key)
            if reservation is None:
                reservation = launch()
                if token:
                    self._reservations[key] = reservation
            return reservation

    def outside_address(self) -> str:
        """One of 198.18.0.0/15 that no interface, elastic address or host has."""
        used = {eni.public_ip for backend in _backends() for eni in backend.enis.values()}
        used |= {elastic.public_ip for backend in _backends() for elastic in backend.addresses}
        with self._changed:
            taken = {IPv4Address(address) for address in used if address}
            taken |= {life.service for life in self._lives.values()}
            self._last_address = network.next_address(self._last_address, taken)
            return str(self._last_address)

    # --- lives

    def _live(self, instance: Moto, host: Host) -> None:
        def running() -> None:
            with self._changed:
                if self._lives[instance.id].wanted is None:
                    self._set(instance, "running")

        why = host.live(running)
        with self._changed:
            life = self._lives.pop(instance.id)
            behaviour = "terminated" if instance.instance_initiated_shutdown_behavior == "terminate" else "stopped"
            if instance.state == "pending":
                behaviour = "terminated"  # never ran
            if life.wanted:
                self._finish(instance, life.wanted)
            elif why is None:
                self._finish(instance, behaviour, "Client.InstanceInitiatedShutdown", "Instance initiated shutdown")
            else:
                self._finish(instance, behaviour, "Server.InternalError", why)
        self.follow()

    def _finish(self, instance: Moto, state: str, code: str | None = None, why: str = "by the API") -> None:
        """Moto's own part of the end (addresses, interfaces, volumes), and the reason when it is not the user's call."""
        if state == "terminated":
            hosts.delete(instance.id)
        self.moto_ends[state](instance)
        if code:
            instance.state_reason.code, instance.state_reason.message = code, f"{code}: {why}"
            instance._reason = ""
        self._set(instance, state)
        log.info("%s %s: %s", instance.id, state, why)

    def _set(self, instance: Moto, state: str) -> None:
        instance._state.name, instance._state.code = state, _STATES[state]
        self._changed.notify_all()

    # --- asked by the API's gate, metadata and status

    def settle(self, instances: t.Collection[str]) -> None:
        """Wait until none of these is between two states, at most SETTLE seconds."""
        with self._changed:
            lives = [life for life in map(self._lives.get, instances) if life]
            self._changed.wait_for(lambda: all(life.instance.state not in _PASSING for life in lives), SETTLE)

    def follow(self) -> None:
        """Bring network and hosts up to what a call has changed: instances, addresses, routes."""
        with self._changed:
            lives = list(self._lives.values())
            self.fabric.follow([_port(life.instance, life.service) for life in lives])
            for life in lives:
                if life.thread.ident is None:
                    life.thread.start()

    def metadata(self, address: str) -> imds.Metadata | None:
        """Of the instance with this service address."""
        with self._changed:
            found = [life.instance for life in self._lives.values() if str(life.service) == address]
        return imds.of(found[0]) if found else None

    def status(self) -> list[dict[str, str | None]]:
        """For `python -m localcloud status`: every instance that is not terminated."""
        reservations = [each for backend in _backends() for each in backend.reservations.values()]
        return [
            {
                "id": instance.id,
                "state": instance.state,
                "private": instance.private_ip,
                "public": instance.public_ip,
                "vpc": instance.vpc_id,
                "name": next((tag["value"] for tag in instance.get_tags() if tag["key"] == "Name"), None),
            }
            for reservation in reservations
            for instance in reservation.instances
            if instance.state != "terminated"
        ]


def _backends() -> list[Moto]:
    from moto.ec2.models import ec2_backends

    return [backend for account in list(ec2_backends.values()) for backend in list(account.values())]


def _port(instance: Moto, service: IPv4Address) -> Port:
    """An instance's place in the network. A public address works where the default route is an internet gateway."""
    interface, backend = instance.nics[0], instance.ec2_backend
    vpc = backend.get_vpc(interface.subnet.vpc_id)
    # The default VPC has a gateway on AWS, and none in moto.
    gateway = "igw" if vpc.is_default else _default_gateway(backend, interface.subnet)
    public = IPv4Address(interface.public_ip) if interface.public_ip and gateway.startswith("igw") else None
    return Port(
        instance=instance.id,
        vpc=vpc.id,
        cidr=IPv4Network(vpc.cidr_block),
        network=IPv4Network(interface.subnet.cidr_block),
        address=IPv4Address(interface.private_ip_address),
        mac=interface.mac_address,
        groups=frozenset(
            Group(group.id, _rules(group.ingress_rules), _rules(group.egress_rules)) for group in interface.group_set
        ),
        service=service,
        public=public,
        source=_nat_address(backend.nat_gateways[gateway]) if gateway.startswith("nat") else public,
    )


def _rules(rules: t.Iterable[Moto]) -> frozenset[Rule]:
    """Rules of a security group, as far as they are of IPv4."""
    return frozenset(
        Rule(rule.ip_protocol, rule.from_port, rule.to_port, peer if peer[:3] == "sg-" else IPv4Network(peer, False))
        for rule in rules
        if (peer := rule.source_group.get("GroupId") or rule.cidr_ipv4)
    )


def _default_gateway(backend: Moto, subnet: Moto) -> str:
    """The id of what the subnet's route table sends 0.0.0.0/0 to, or nothing."""
    tables = [table for table in backend.route_tables.values() if table.vpc_id == subnet.vpc_id]
    own = [table for table in tables if subnet.id in table._associations.values()]
    main = [table for table in tables if table.main_association_id is not None]
    for route in (own or main)[0].routes if (own or main) else ():
        if route.destination_cidr_block == "0.0.0.0/0":
            return str(getattr(route.nat_gateway or route.gateway, "id", ""))
    return ""


def _nat_address(gateway: Moto) -> IPv4Address | None:
    found = [each["publicIp"] for each in gateway.address_set if each.get("publicIp") and gateway.state != "deleted"]
    return IPv4Address(found[0]) if found else None


def _client_error(code: str, message: str) -> Exception:
    from moto.ec2.exceptions import EC2ClientError

    return t.cast(Exception, EC2ClientError(code, message))


# --- moto, with hosts -------------------------------------------------------------------------------------------------


def install(cloud: Cloud) -> None:
    """Put the cloud between moto's calls and its state machine. Once in a process."""
    from moto.ec2.models import elastic_ip_addresses, elastic_network_interfaces
    from moto.ec2.models.instances import Instance, InstanceBackend, InstanceState
    from moto.ec2.models.nat_gateways import NatGatewayBackend
    from moto.ec2.models.subnets import SubnetBackend
    from moto.ec2.models.vpcs import VPCBackend
    from moto.ec2.utils import generic_filter

    moto: Moto = t.cast(Moto, InstanceBackend.run_instances)
    moto_start, moto_vpc, moto_subnet = Instance.start, VPCBackend.create_vpc, SubnetBackend.delete_subnet
    moto_nats = NatGatewayBackend.describe_nat_gateways
    cloud.moto_ends = {"stopped": t.cast(Moto, Instance.stop), "terminated": t.cast(Moto, Instance.terminate)}

    def run_instances(backend: Moto, *args: t.Any, **options: t.Any) -> Moto:
        given = options.get("nics") or [{}]
        if not options.get("subnet_id") and not options.get("nics"):  # moto would take an address of no subnet
            subnets = backend.get_default_subnets()
            subnet = subnets.get(options.get("placement") or min(subnets, default=None))
            if subnet:
                # Moto makes this VPC in each region, used or not; so it is looked at now.
                cloud.refuse_vpc(backend.get_vpc(subnet.vpc_id).cidr_block)
                options["subnet_id"] = subnet.id

        def launch() -> Moto:
            reservation = moto(backend, *args, **options)
            for index, instance in enumerate(reservation.instances):
                if given[0].get("DeleteOnTermination") is not False:
                    instance.nics[0].delete_on_termination = True  # AWS's default; moto leaves the interface behind
                profile = {
                    each: options.get(each) for each in ("iam_instance_profile_name", "iam_instance_profile_arn")
                }
                if index > 0 and any(profile.values()):  # moto gives it to the first alone
                    backend.associate_iam_instance_profile(instance_id=instance.id, **profile)
                cloud.launch(instance)
            return reservation

        token = options.get("client_token")
        return cloud.remember(backend.region_name, None if token == "ABCDE" else token, launch)  # noqa: S105 (moto's "none")

    def start(instance: Moto) -> Moto:
        def act() -> None:
            moto_start(instance)
            cloud.launch(instance)

        return change(instance, {"stopped"}, {"running", "pending"}, act)

    def stop(instance: Moto) -> Moto:
        return change(instance, {"running", "pending"}, {"stopping", "stopped"}, lambda: cloud.end(instance, "stopped"))

    def terminate(instance: Moto) -> Moto:
        ended = {"shutting-down", "terminated"}
        return change(instance, _STATES.keys() - ended, ended, lambda: cloud.end(instance, "terminated"))

    def change(
        instance: Moto, before: t.Collection[str], after: t.Collection[str], act: t.Callable[[], object]
    ) -> Moto:
        """The state before. Acts in the states `before`, does nothing in those `after`, and refuses in others."""
        state = InstanceState(instance._state.name, instance._state.code)
        if state.name in before:
            act()
        elif state.name not in after:
            raise _client_error("IncorrectInstanceState", f"{instance.id} is {state.name}, not {min(before)}")
        return state

    def create_vpc(backend: Moto, cidr_block: str, *args: t.Any, **options: t.Any) -> Moto:
        if not options.get("is_default"):
            cloud.refuse_vpc(cidr_block)
        return t.cast(Moto, moto_vpc)(backend, cidr_block, *args, **options)

    def describe_nat_gateways(backend: Moto, filters: dict[str, t.Any] | None, ids: list[str] | None) -> Moto:
        # Moto takes no notice of tags: whoever removes what is theirs would remove everybody's.
        tags = {name: values for name, values in (filters or {}).items() if name.startswith("tag")}
        return generic_filter(tags, t.cast(Moto, moto_nats)(backend, filters, ids))

    def delete_subnet(backend: Moto, subnet_id: str) -> Moto:
        # Moto keeps the interfaces of deleted gateways.
        deleted = {each._eni.id for each in backend.nat_gateways.values() if each.state == "deleted"}
        if any(eni.subnet.id == subnet_id and eni.id not in deleted for eni in backend.enis.values()):
            raise _client_error(
                "DependencyViolation", f"The subnet '{subnet_id}' has dependencies and cannot be deleted."
            )
        return t.cast(Moto, moto_subnet)(backend, subnet_id)

    for owner, name, ours in (
        (InstanceBackend, "run_instances", run_instances),
        (Instance, "start", start),
        (Instance, "stop", stop),
        (Instance, "terminate", terminate),
        (Instance, "reboot", lambda instance: cloud.reboot(instance)),
        (VPCBackend, "create_vpc", create_vpc),
        (SubnetBackend, "delete_subnet", delete_subnet),
        (NatGatewayBackend, "describe_nat_gateways", describe_nat_gateways),
        (elastic_network_interfaces, "random_public_ip", cloud.outside_address),
        (elastic_ip_addresses, "random_ip", cloud.outside_address),
    ):
        setattr(owner, name, ours)
