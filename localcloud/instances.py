# SPDX-License-Identifier: GPL-3.0-or-later
"""Instances of moto as hosts.

`Cloud` holds both: it starts a host for an instance, and gives the instance the state its host is in. `install` puts it
between moto's calls (run, start, stop, reboot, terminate) and moto's own state machine, which knows only their ends.
"""

from __future__ import annotations

import base64
import functools
import json
import logging
import threading
import typing as t
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network

from localcloud import hosts, imds, network, timesync
from localcloud.hosts import End, Host, Spec
from localcloud.image import Image
from localcloud.machine import CloudError
from localcloud.network import Fabric, Port, Vpc

log = logging.getLogger(__name__)

# Waiters of the AWS SDKs look every 15 s. Instances that are about to change are waited for this long instead, before a
# describe of them is answered.
SETTLE = 12.0
_STATES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
_PASSING = {"pending", "shutting-down", "stopping"}
_BY_USER = ("Client.UserInitiatedShutdown", "User initiated shutdown")
_CREDENTIALS_LAST = timedelta(hours=6)

Moto = t.Any  # an object of moto: its classes are not made to be named outside


class Cloud:
    """Moto's instances and the hosts behind them."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._changed = threading.Condition()  # guards what follows, and tells when a state has changed
        self._hosts: dict[str, Host] = {}
        self._asked: dict[str, str] = {}  # instance -> "stopped" or "terminated", while the API ends its host
        self._instances: dict[str, Moto] = {}
        self._reservations: dict[tuple[str, str], Moto] = {}  # (region, client token) -> reservation
        self._credentials: dict[tuple[str, str], tuple[datetime, str]] = {}
        self._last_public: IPv4Address | None = None
        self.fabric = Fabric(self._services)

    # --- instances: called by the patches of moto

    def refuse_vpc(self, cidr: str) -> None:
        try:
            self.fabric.check(IPv4Network(cidr, strict=False))
        except ValueError:
            return  # moto says what is wrong with it
        except CloudError as problem:
            raise _client_error("InvalidVpc.Range", str(problem)) from problem

    def launch(self, instance: Moto) -> None:
        """Start the host of an instance: pending until its init runs."""
        spec = Spec(
            instance.id, self._image.root, _vpc(instance).id, IPv4Network(_vpc(instance).cidr_block), _port(instance)
        )
        host = Host(
            spec,
            self.fabric,
            running=lambda: self._set(instance, "running"),
            ended=lambda end, why: self._ended(instance, end, why),
        )
        with self._changed:
            self._instances[instance.id] = instance
            self._hosts[instance.id] = host
            self._set(instance, "pending")
        host.start()
        log.info("%s pending: %s in %s", instance.id, spec.port.address, spec.vpc)

    def end(self, instance: Moto, state: str) -> None:
        """Stop or terminate: the host shuts down in order, then the instance gets its last state."""
        with self._changed:
            host = self._hosts.get(instance.id)
            if host is None:
                self._finish(instance, state, *_BY_USER)
                return
            under_way = instance.id in self._asked
            if state == "terminated" or not under_way:
                self._asked[instance.id] = state
                self._set(instance, "shutting-down" if state == "terminated" else "stopping")
        if not under_way:
            threading.Thread(target=host.shut_down, name=f"end {instance.id}", daemon=True).start()

    def reboot(self, instance: Moto) -> None:
        with self._changed:
            host = self._hosts.get(instance.id)
        if host is None:
            raise _client_error("IncorrectInstanceState", f"{instance.id} is {instance.state}, not running")
        host.reboot()

    def _ended(self, instance: Moto, end: End, why: str) -> None:
        behaviour = "terminated" if instance.instance_initiated_shutdown_behavior == "terminate" else "stopped"
        with self._changed:
            del self._hosts[instance.id]
            asked = self._asked.pop(instance.id, None)
        if asked is not None:
            self._finish(instance, asked, *_BY_USER)
        elif end is End.INSIDE:
            self._finish(instance, behaviour, "Client.InstanceInitiatedShutdown", "Instance initiated shutdown")
        else:
            self._finish(instance, "terminated" if end is End.FAILED else behaviour, "Server.InternalError", why)

    def _finish(self, instance: Moto, state: str, code: str, why: str) -> None:
        """Moto's own part of the end (addresses, interfaces, volumes), and the reason."""
        if state == "terminated":
            hosts.delete(instance.id)
        with self._changed:
            if instance.state == "terminated":
                return
            (_moto_terminate if state == "terminated" else _moto_stop)(instance)
            instance.state_reason.code = code
            instance.state_reason.message = f"{code}: {why}"
            if code != _BY_USER[0]:
                instance._reason = ""
            self._set(instance, state)
        log.info("%s %s: %s", instance.id, state, why)

    def _set(self, instance: Moto, state: str) -> None:
        with self._changed:
            # An instance that is being ended does not become running any more.
            if state == "running" and instance.id in self._asked:
                return
            instance._state.name, instance._state.code = state, _STATES[state]
            self._changed.notify_all()

    def settle(self, instances: t.Collection[str]) -> None:
        """Wait until none of these is between two states, at most SETTLE seconds."""

        def passing() -> bool:
            return any(i in self._instances and self._instances[i].state in _PASSING for i in instances)

        with self._changed:
            self._changed.wait_for(lambda: not passing(), SETTLE)

    def follow(self) -> None:
        """Bring the network up to what a call has changed: addresses associated, routes made."""
        with self._changed:
            live = [self._instances[identity] for identity in self._hosts]
        for instance in live:
            port = _port(instance)
            self.fabric.update(_vpc(instance).id, instance.id, port.public, port.egress)

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

    def public_address(self) -> str:
        from moto.ec2.models import ec2_backends

        backends = [backend for account in ec2_backends.values() for backend in account.values()]
        used = {IPv4Address(eni.public_ip) for backend in backends for eni in backend.enis.values() if eni.public_ip}
        used |= {IPv4Address(eip.public_ip) for backend in backends for eip in backend.addresses}
        with self._changed:
            self._last_public = network.next_public(self._last_public, used)
            return str(self._last_public)

    def status(self) -> list[dict[str, str | None]]:
        """For `python -m localcloud status`: every instance that is not terminated."""
        with self._changed:
            alive = [instance for instance in self._instances.values() if instance.state != "terminated"]
        return [
            {
                "id": instance.id,
                "state": instance.state,
                "private": instance.private_ip,
                "public": instance.public_ip,
                "vpc": _vpc(instance).id,
                "name": _tags(instance).get("Name"),
            }
            for instance in alive
        ]

    # --- services inside a VPC

    def _services(self, vpc: Vpc) -> t.Callable[[], None]:
        ends = [imds.serve(vpc, lambda address: self._who(vpc.id, address)), timesync.serve(vpc, self._image.root)]

        def stop() -> None:
            for end in ends:
                end()

        return stop

    def _who(self, vpc_id: str, address: str) -> imds.Metadata | None:
        with self._changed:
            live = [self._instances[identity] for identity in self._hosts]
        found = [instance for instance in live if instance.private_ip == address and _vpc(instance).id == vpc_id]
        return self._metadata(found[0]) if found else None

    def _metadata(self, instance: Moto) -> imds.Metadata:
        backend, options = instance.ec2_backend, instance.metadata_options
        launched = f"{instance.launch_time:%Y-%m-%dT%H:%M:%SZ}"
        identity = {
            "accountId": backend.account_id,
            "architecture": instance.architecture,
            "availabilityZone": instance.placement.zone,
            "imageId": instance.image_id,
            "instanceId": instance.id,
            "instanceType": instance.instance_type,
            "pendingTime": launched,
            "privateIp": instance.private_ip,
            "region": backend.region_name,
            "version": "2017-09-30",
        }
        documents: dict[str, imds.Document] = {
            "dynamic/instance-identity/document": json.dumps(identity, indent=2),
            "meta-data/ami-id": instance.image_id,
            "meta-data/hostname": instance.private_dns_name,
            "meta-data/instance-id": instance.id,
            "meta-data/instance-type": instance.instance_type,
            "meta-data/local-hostname": instance.private_dns_name,
            "meta-data/local-ipv4": instance.private_ip,
            "meta-data/mac": instance.nics[0].mac_address,
            "meta-data/placement/availability-zone": instance.placement.zone,
            "meta-data/placement/region": backend.region_name,
            "meta-data/security-groups": "\n".join(sorted(group.name for group in instance.security_groups)),
        }
        if instance.public_ip:
            documents["meta-data/public-ipv4"] = instance.public_ip
        key = backend.key_pairs.get(instance.key_name)
        if key:
            documents["meta-data/public-keys/0/openssh-key"] = _text(key.material_public).strip()
        association = backend.iam_instance_profile_associations.get(instance.id)
        if association:
            profile = association.iam_instance_profile
            info = {"Code": "Success", "InstanceProfileArn": profile.arn, "InstanceProfileId": profile.id}
            documents["meta-data/iam/info"] = json.dumps({**info, "LastUpdated": launched}, indent=2)
            for role in profile.roles[:1]:
                path = f"meta-data/iam/security-credentials/{role.name}"
                documents[path] = functools.partial(self._role_credentials, instance, role)
        if options.instance_metadata_tags == "enabled":
            documents.update({f"meta-data/tags/instance/{key}": value for key, value in _tags(instance).items()})
        return imds.Metadata(
            instance=instance.id,
            documents=documents,
            key_name=instance.key_name,
            user_data=base64.b64decode(str(instance.user_data)) if instance.user_data else None,
            token_required=options.http_tokens == "required",
            enabled=options.http_endpoint != "disabled",
        )

    def _role_credentials(self, instance: Moto, role: Moto) -> str:
        """Credentials of the role from moto's STS, new when less than half of their life is left."""
        from moto.sts.models import sts_backends

        now = datetime.now(UTC)
        with self._changed:
            renewed, document = self._credentials.get((instance.id, role.arn), (now, ""))
            if not document or now - renewed > _CREDENTIALS_LAST / 2:
                backend = t.cast(Moto, sts_backends)[instance.ec2_backend.account_id]["aws"]
                session = backend.assume_role(
                    region_name=instance.ec2_backend.region_name,
                    role_session_name=instance.id,
                    role_arn=role.arn,
                    policy=None,
                    duration=int(_CREDENTIALS_LAST.total_seconds()),
                    external_id=None,
                )
                document = json.dumps(
                    {
                        "Code": "Success",
                        "LastUpdated": f"{now:%Y-%m-%dT%H:%M:%SZ}",
                        "Type": "AWS-HMAC",
                        "AccessKeyId": session.access_key_id,
                        "SecretAccessKey": session.secret_access_key,
                        "Token": session.session_token,
                        "Expiration": f"{now + _CREDENTIALS_LAST:%Y-%m-%dT%H:%M:%SZ}",
                    },
                    indent=2,
                )
                self._credentials[instance.id, role.arn] = (now, document)
            return document


def _vpc(instance: Moto) -> Moto:
    return instance.ec2_backend.get_vpc(instance.nics[0].subnet.vpc_id)


def _tags(instance: Moto) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in instance.get_tags()}


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _port(instance: Moto) -> Port:
    """An instance's place in the network. A public address works where the default route is an internet gateway."""
    interface = instance.nics[0]
    way = _default_route(instance.ec2_backend, interface.subnet)
    return Port(
        instance=instance.id,
        subnet=interface.subnet.id,
        network=IPv4Network(interface.subnet.cidr_block),
        address=IPv4Address(interface.private_ip_address),
        public=IPv4Address(interface.public_ip) if interface.public_ip and way == "igw" else None,
        egress=way == "nat",
    )


def _default_route(backend: Moto, subnet: Moto) -> str | None:
    """`igw`, `nat` or None: the kind of gateway that the subnet's route table sends 0.0.0.0/0 to."""
    if backend.get_vpc(subnet.vpc_id).is_default:
        return "igw"  # as on AWS, where moto has no gateway
    tables = [table for table in backend.route_tables.values() if table.vpc_id == subnet.vpc_id]
    own = [table for table in tables if subnet.id in table._associations.values()]
    main = [table for table in tables if table.main_association_id is not None]
    for route in (own or main)[0].routes if (own or main) else ():
        if route.destination_cidr_block == "0.0.0.0/0":
            target = route.nat_gateway or route.gateway
            return str(target.id).partition("-")[0] if target else None
    return None


def _client_error(code: str, message: str) -> Exception:
    from moto.ec2.exceptions import EC2ClientError

    return t.cast(Exception, EC2ClientError(code, message))


# --- moto, with hosts -------------------------------------------------------------------------------------------------


def _moto_stop(instance: Moto) -> None:
    raise NotImplementedError  # until `install`


_moto_terminate = _moto_stop


def install(cloud: Cloud) -> None:
    """Put the cloud between moto's calls and its state machine. Once in a process."""
    from moto.ec2.models import elastic_ip_addresses, elastic_network_interfaces
    from moto.ec2.models.instances import Instance, InstanceBackend, InstanceState
    from moto.ec2.models.subnets import SubnetBackend
    from moto.ec2.models.vpcs import VPCBackend

    global _moto_stop, _moto_terminate
    run, create_vpc, delete_subnet = InstanceBackend.run_instances, VPCBackend.create_vpc, SubnetBackend.delete_subnet
    start = Instance.start
    _moto_stop, _moto_terminate = t.cast(Moto, Instance.stop), t.cast(Moto, Instance.terminate)

    def state_of(instance: Moto) -> Moto:
        return InstanceState(instance._state.name, instance._state.code)

    def run_instances(backend: Moto, *args: t.Any, **options: t.Any) -> Moto:
        if not options.get("subnet_id") and not options.get("nics"):  # moto would take an address of no subnet
            subnets = backend.get_default_subnets()
            zone = options.get("placement") or min(subnets, default=None)
            options["subnet_id"] = subnets[zone].id if zone in subnets else None

        def launch() -> Moto:
            reservation = t.cast(Moto, run)(backend, *args, **options)
            for index, instance in enumerate(reservation.instances):
                interface = instance.nics[0]
                interface.mac_address = _port(instance).mac
                if not options.get("nics") or options["nics"][0].get("DeleteOnTermination") is not False:
                    interface.delete_on_termination = True  # AWS's default; moto leaves the interface behind
                profile = {
                    f"iam_instance_profile_{k}": options.get(f"iam_instance_profile_{k}") for k in ("name", "arn")
                }
                if index > 0 and any(profile.values()):  # moto gives it to the first alone
                    backend.associate_iam_instance_profile(instance_id=instance.id, **profile)
                cloud.launch(instance)
            return reservation

        token = options.get("client_token")
        return cloud.remember(backend.region_name, None if token == "ABCDE" else token, launch)  # noqa: S105 (moto's "none")

    def start_instance(instance: Moto) -> Moto:
        before = state_of(instance)
        if before.name == "stopped":
            start(instance)
            cloud.launch(instance)
        elif before.name not in ("running", "pending"):
            raise _client_error("IncorrectInstanceState", f"{instance.id} is {before.name}, not stopped")
        return before

    def stop_instance(instance: Moto) -> Moto:
        before = state_of(instance)
        if before.name in ("running", "pending"):
            cloud.end(instance, "stopped")
        elif before.name not in ("stopping", "stopped"):
            raise _client_error("IncorrectInstanceState", f"{instance.id} is {before.name}, not running")
        return before

    def terminate_instance(instance: Moto) -> Moto:
        before = state_of(instance)
        if before.name not in ("shutting-down", "terminated"):
            cloud.end(instance, "terminated")
        return before

    def checked_create_vpc(backend: Moto, cidr_block: str, *args: t.Any, **options: t.Any) -> Moto:
        if not options.get("is_default"):  # moto makes one in each region, used or not: checked at its first host
            cloud.refuse_vpc(cidr_block)
        return t.cast(Moto, create_vpc)(backend, cidr_block, *args, **options)

    def checked_delete_subnet(backend: Moto, subnet_id: str) -> Moto:
        if any(eni.subnet.id == subnet_id for eni in backend.enis.values()):
            raise _client_error(
                "DependencyViolation", f"The subnet '{subnet_id}' has dependencies and cannot be deleted."
            )
        return t.cast(Moto, delete_subnet)(backend, subnet_id)

    for owner, name, ours in (
        (InstanceBackend, "run_instances", run_instances),
        (Instance, "start", start_instance),
        (Instance, "stop", stop_instance),
        (Instance, "terminate", terminate_instance),
        (Instance, "reboot", lambda instance: cloud.reboot(instance)),
        (VPCBackend, "create_vpc", checked_create_vpc),
        (SubnetBackend, "delete_subnet", checked_delete_subnet),
        (elastic_network_interfaces, "random_public_ip", cloud.public_address),
        (elastic_ip_addresses, "random_ip", cloud.public_address),
    ):
        setattr(owner, name, ours)
