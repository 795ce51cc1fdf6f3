# SPDX-License-Identifier: GPL-3.0-or-later
"""A tunnel by sshuttle: what is asked for, checked, and the files that make a host one of its two ends.

The client's end is a systemd service for each tunnel; its program is `_sshuttle_tunnel`. The login host's end is an account
that may log in on one port of sshd alone, and do nothing there that sshuttle has no need of. What decides is pure.
This util is PRIVATE to the collection.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import re
import typing as t

from ._files import read
from ._sshuttle_tunnel import Problem, parse_seconds

ETC = "/etc/startline/vpn"
LIBRARY = "/usr/lib/startline-vpn"
PROGRAM = LIBRARY + "/tunnel.py"
UNITS = "/etc/systemd/system"

ACCOUNT = "startline-vpn"
DROP_IN = "/etc/ssh/sshd_config.d/startline-vpn.conf"
#: Beside the drop-in, not in a home: the account has none, and must not change what it may do.
AUTHORIZED_KEYS = "/etc/ssh/startline-vpn.keys"

#: Seconds between questions to a silent login host, and how many it may leave unanswered.
ALIVE_INTERVAL = 5
ALIVE_COUNT = 3
CONNECT_TIMEOUT = 10

_NAME = re.compile(r"[a-z0-9]([a-z0-9_-]{0,30}[a-z0-9])?")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_ACCOUNT = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
_KEY = re.compile(r"(?P<type>(ssh|ecdsa|sk)-[A-Za-z0-9@.-]+) (?P<key>AAAA[A-Za-z0-9+/]+={0,3})( .*)?")


class SshuttleError(Exception):
    """What is asked for cannot be: the text says what, where and what to do, for the user."""


class File(t.NamedTuple):
    """A file as it is to be. `show`: a diff may show it."""

    path: str
    text: str
    mode: int
    show: bool = True

    def differs(self) -> bool:
        """Whether the host has it otherwise, or not at all."""
        return read(self.path) != self.text or (os.stat(self.path).st_mode & 0o7777) != self.mode


def difference(files: t.Iterable[File]) -> t.Dict[str, str]:
    """Ansible's diff of files that will change."""
    shown = [file for file in files if file.show]
    return {
        "before": "".join(f"# {file.path}\n{read(file.path)}" for file in shown),
        "after": "".join(f"# {file.path}\n{file.text}" for file in shown),
    }


@dataclasses.dataclass(frozen=True)
class Tunnel:
    """A tunnel as its client has it. `networks` and `exclude` are in canonical form, sorted, as few as possible."""

    name: str
    gateway: str
    port: int
    account: str
    host_keys: t.Tuple[str, ...]
    networks: t.Tuple[str, ...]
    exclude: t.Tuple[str, ...]
    probe_address: str
    probe_port: int
    buffer: int

    @property
    def unit(self) -> str:
        """The service."""
        return f"startline-vpn-{self.name}.service"

    @property
    def directory(self) -> str:
        """Where its files are."""
        return f"{ETC}/{self.name}"


@dataclasses.dataclass(frozen=True)
class Gateway:
    """A login host's end."""

    port: int
    account: str
    public_keys: t.Tuple[str, ...]
    clients: t.Tuple[str, ...]


def parse_name(name: str) -> str:
    """A tunnel's name, which is part of names of units and files."""
    if not _NAME.fullmatch(name):
        raise SshuttleError(f"name: {name!r}: give at most 32 small letters, digits, - and _, no - or _ at the ends")
    return name


def parse_tunnel(params: t.Mapping[str, t.Any]) -> Tunnel:
    """Check the parameters of the module `sshuttle`.

    Raises:
        SshuttleError: naming the parameter, what is wrong with it, and what to do.
    """
    networks = _parse_networks("networks", params["networks"])
    if not networks:
        raise SshuttleError("networks is empty: give the private addresses or networks that the tunnel is for")
    exclude = _parse_networks("exclude", params["exclude"])
    gateway = params["gateway"]
    if not _HOST.fullmatch(gateway):
        raise SshuttleError(f"gateway: {gateway!r} is no IPv4 address and no host name")
    if not params["host_keys"]:
        raise SshuttleError("host_keys is empty: give the login host's keys, from its /etc/ssh/ssh_host_*_key.pub")
    host_keys = tuple(sorted({_parse_key("host_keys", key) for key in params["host_keys"]}))
    probe_address, probe_port = _parse_probe(params["probe"], params["networks"])
    # Whoever is not taken into the tunnel would be reached, or not, without it: the probe would prove nothing.
    if not _holds(networks, probe_address) or _holds(exclude, probe_address):
        raise SshuttleError(
            f"probe: {probe_address} is not reached through the tunnel: give an address in networks, not in exclude"
        )
    if params["buffer"] < 4096:
        raise SshuttleError(f"buffer: {params['buffer']}: give 4096 bytes or more")
    return Tunnel(
        name=parse_name(params["name"]),
        gateway=gateway,
        port=_parse_port("port", params["port"]),
        account=parse_account(params["account"]),
        host_keys=host_keys,
        networks=tuple(map(str, networks)),
        exclude=tuple(map(str, exclude)),
        probe_address=probe_address,
        probe_port=probe_port,
        buffer=params["buffer"],
    )


def parse_measure(seconds: float) -> float:
    """How long to measure in each direction; 0 is not at all."""
    try:
        return parse_seconds(seconds) if seconds != 0 else 0.0
    except Problem as exc:
        raise SshuttleError(f"measure: {exc}, or 0 for no measurement") from exc


def parse_gateway(params: t.Mapping[str, t.Any]) -> Gateway:
    """Check the parameters of the module `sshuttle_gateway`.

    Raises:
        SshuttleError: naming the parameter, what is wrong with it, and what to do.
    """
    if not params["public_keys"]:
        raise SshuttleError("public_keys is empty: give the key made for this tunnel, from its .pub file")
    port = _parse_port("port", params["port"])
    return Gateway(
        port=port,
        account=parse_account(params["account"]),
        public_keys=tuple(sorted({_parse_key("public_keys", key) for key in params["public_keys"]})),
        clients=tuple(map(str, _parse_networks("clients", params["clients"]))),
    )


def _parse_networks(where: str, values: t.Iterable[str]) -> t.List[ipaddress.IPv4Network]:
    """Few, sorted networks that hold just the addresses that `values` hold."""
    networks = []
    for value in values:
        try:
            network = ipaddress.IPv4Network(value)
        except ValueError as exc:
            raise SshuttleError(f"{where}: {value}: {exc}: give IPv4 as in 10.77.0.5 or 10.77.0.0/20") from exc
        if network.prefixlen == 0 or network.is_loopback or network.is_link_local or network.is_multicast:
            raise SshuttleError(f"{where}: {value} is no network of a site: give its private addresses or networks")
        networks.append(network)
    return sorted(ipaddress.collapse_addresses(networks))


def _parse_probe(probe: t.Optional[str], networks: t.Sequence[str]) -> t.Tuple[str, int]:
    """The probe's address and port; if it is not given, the first single address, port 22."""
    if not probe:
        single = [
            str(network.network_address) for network in map(ipaddress.IPv4Network, networks) if network.prefixlen == 32
        ]
        if not single:
            raise SshuttleError("probe: networks has no single address to try: give one, as in 10.77.0.5:22")
        return single[0], 22
    address, _colon, port = probe.partition(":")
    try:
        return str(ipaddress.IPv4Address(address)), _parse_port("probe", int(port) if port else 22)
    except ValueError as exc:
        raise SshuttleError(f"probe: {probe!r}: {exc}: give an address and a port, as in 10.77.0.5:22") from exc


def _parse_port(where: str, port: int) -> int:
    if not 0 < port < 65536:
        raise SshuttleError(f"{where}: {port} is no port: give 1 to 65535")
    return port


def parse_account(account: str) -> str:
    """The name of an account that is nobody else's."""
    if not _ACCOUNT.fullmatch(account) or account == "root":
        raise SshuttleError(f"account: {account!r}: give the name of an account of its own, as {ACCOUNT}")
    return account


def _parse_key(where: str, key: str) -> str:
    """Type and key, without the comment: what is written into a line must be able to end nothing else."""
    found = _KEY.fullmatch(key.strip())
    if not found:
        raise SshuttleError(
            f"{where}: {key.strip()[:40]!r} is no public key: give a line as in a .pub file, ssh-ed25519 AAAA..."
        )
    return f"{found.group('type')} {found.group('key')}"


def _holds(networks: t.Iterable[ipaddress.IPv4Network], address: str) -> bool:
    return any(ipaddress.IPv4Address(address) in network for network in networks)


# -- the client -------------------------------------------------------------------------------------------------------

UNIT = """\
# Installed by startline.lab.sshuttle.
[Unit]
Description=Startline VPN {name} by {gateway}
After=network.target
StartLimitIntervalSec=0

[Service]
# Starting until a private address has answered through the tunnel.
Type=notify
ExecStart={python} -IS {program} run {name}
ExecStartPost={python} -IS {program} probe {name}
# Also after a SIGKILL: no rule of the firewall stays, and the log ends with the reason in plain words.
ExecStopPost={python} -IS {program} clean {name}
Restart=always
# The program waits longer with every failure in a row.
RestartSec=0.5
TimeoutStartSec=90
TimeoutStopSec=10
RuntimeDirectory=startline-vpn-{name}
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=restart
OOMScoreAdjust=-500
NoNewPrivileges=yes
ProtectSystem=full
ProtectHome=yes
PrivateTmp=yes
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictSUIDSGID=yes
LockPersonality=yes

[Install]
WantedBy=multi-user.target
"""

# Nothing of the host's or of root's own configuration takes part: -F reads this file alone.
SSH_CONFIG = """\
# Written by startline.lab.sshuttle.
Host *
    HostName {gateway}
    Port {port}
    User {account}
    IdentityFile {directory}/key
    IdentitiesOnly yes
    IdentityAgent none
    PreferredAuthentications publickey
    UserKnownHostsFile {directory}/known_hosts
    GlobalKnownHostsFile none
    StrictHostKeyChecking yes
    UpdateHostKeys no
    CheckHostIP no
    BatchMode yes
    ClearAllForwardings yes
    ControlPath none
    ConnectTimeout {connect_timeout}
    ServerAliveInterval {alive_interval}
    ServerAliveCountMax {alive_count}
"""


def client_files(tunnel: Tunnel, private_key: str, program: str, python: str) -> t.List[File]:
    """Every file of the client's end.

    Args:
        tunnel: the tunnel.
        private_key: text of the key.
        program: source of `_sshuttle_tunnel`.
        python: the interpreter that runs it.

    Raises:
        SshuttleError: the key is none.
    """
    if "PRIVATE KEY-----" not in private_key:
        raise SshuttleError("private_key is no private key: give the text of the file that ssh-keygen has made")
    directory = tunnel.directory
    values = {
        "name": tunnel.name,
        "gateway": tunnel.gateway,
        "port": tunnel.port,
        "account": tunnel.account,
        "directory": directory,
        "python": python,
        "program": PROGRAM,
        "connect_timeout": CONNECT_TIMEOUT,
        "alive_interval": ALIVE_INTERVAL,
        "alive_count": ALIVE_COUNT,
    }
    # ssh looks for a key under [host]:port, and under the bare host for its own port.
    pinned = tunnel.gateway if tunnel.port == 22 else f"[{tunnel.gateway}]:{tunnel.port}"
    settings = dataclasses.asdict(tunnel)
    return [
        File(PROGRAM, program, 0o644, show=False),
        # ssh refuses a key whose last line does not end.
        File(f"{directory}/key", private_key.rstrip("\n") + "\n", 0o600, show=False),
        File(f"{directory}/known_hosts", "".join(f"{pinned} {key}\n" for key in tunnel.host_keys), 0o600),
        File(f"{directory}/ssh_config", SSH_CONFIG.format(**values), 0o600),
        File(f"{directory}/tunnel.json", json.dumps(settings, indent=2, sort_keys=True) + "\n", 0o600),
        File(f"{UNITS}/{tunnel.unit}", UNIT.format(**values), 0o644),
    ]


# -- the login host ---------------------------------------------------------------------------------------------------

# sshd takes the first value it finds for a keyword. The key is good on the one port, and the port for the one account.
SSHD = """\
# Written by startline.lab.sshuttle_gateway.
# A Port takes the place of the default, so those that sshd had before are here too.
{ports}
Match User {account} LocalPort {port}
    AuthorizedKeysFile {keys}
Match User {account}
    AuthorizedKeysFile none
    AuthenticationMethods publickey
    DisableForwarding yes
    PermitTTY no
    PermitUserRC no
    ClientAliveInterval {alive_interval}
    ClientAliveCountMax {alive_count}
Match LocalPort {port}
    AllowUsers {account}
"""


def gateway_files(gateway: Gateway, ports: t.Iterable[int]) -> t.List[File]:
    """The files of the login host's end: keys, drop-in of sshd.

    Args:
        gateway: the login host's end.
        ports: those that sshd listens on without it.
    """
    # `restrict`: no forwarding, no terminal, no agent, no rc file. What is left is a command, which sshuttle needs.
    options = "restrict" + (f',from="{",".join(gateway.clients)}"' if gateway.clients else "")
    every = sorted({*ports, gateway.port})
    drop_in = SSHD.format(
        ports="\n".join(f"Port {port}" for port in every),
        account=gateway.account,
        port=gateway.port,
        keys=AUTHORIZED_KEYS,
        alive_interval=ALIVE_INTERVAL,
        alive_count=ALIVE_COUNT,
    )
    return [
        File(AUTHORIZED_KEYS, "".join(f"{options} {key}\n" for key in gateway.public_keys), 0o644),
        File(DROP_IN, drop_in, 0o644),
    ]


def parse_sshd(settings: str) -> t.Dict[str, t.List[str]]:
    """What ``sshd -T`` says: the values of each keyword, which it prints in small letters."""
    found: t.Dict[str, t.List[str]] = {}
    for line in settings.splitlines():
        keyword, _space, value = line.partition(" ")
        found.setdefault(keyword.lower(), []).append(value)
    return found


def other_ports(settings: t.Mapping[str, t.Sequence[str]], drop_in: str) -> t.List[int]:
    """The ports that sshd listens on without us.

    Args:
        settings: `parse_sshd`.
        drop_in: text of our drop-in as it is there, empty if it is not.

    The port that our drop-in adds is the one its ``Match LocalPort`` names.
    """
    ours = {int(port) for port in re.findall(r"^Match LocalPort (\d+)$", drop_in, re.MULTILINE)}
    return sorted({int(port) for port in settings.get("port", ())} - ours)


def addresses_without(settings: t.Mapping[str, t.Sequence[str]], port: int) -> t.List[str]:
    """The addresses that sshd listens on, if none has the port: a Port is nothing to a ListenAddress with a port of its own."""
    addresses = list(settings.get("listenaddress", ()))
    return [] if any(address.endswith(f":{port}") for address in addresses) else addresses
