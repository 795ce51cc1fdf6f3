# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import ipaddress
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.startline.lab.plugins.module_utils import _sshuttle, _sshuttle_tunnel
from ansible_collections.startline.lab.plugins.module_utils._sshuttle import SshuttleError

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHw5hCYXM0QzU1b1kqCq5dO6hX1Ksm8ZJ1cW0Zq8kq9a"
PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----"


def tunnel_params(**given: t.Any) -> dict[str, t.Any]:
    return {
        "name": "default",
        "gateway": "192.0.2.10",
        "port": 7422,
        "account": "startline-vpn",
        "host_keys": [f"{KEY} root@login"],
        "networks": ["10.20.0.11"],
        "exclude": [],
        "probe": None,
        "buffer": 1048576,
        **given,
    }


def gateway_params(**given: t.Any) -> dict[str, t.Any]:
    return {"port": 7422, "account": "startline-vpn", "public_keys": [f"{KEY} run"], "clients": [], **given}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"networks": []}, "networks is empty"),
        ({"networks": ["10.20.0.0/33"]}, "networks: 10.20.0.0/33"),
        ({"networks": ["10.20.0.1/24"]}, "networks: 10.20.0.1/24: 10.20.0.1/24 has host bits set"),
        ({"networks": ["fd00::1"]}, "networks: fd00::1"),
        ({"networks": ["0.0.0.0/0"]}, "networks: 0.0.0.0/0 is no network of a site"),
        ({"networks": ["127.0.0.1"]}, "networks: 127.0.0.1 is no network of a site"),
        ({"networks": ["169.254.169.254"]}, "networks: 169.254.169.254 is no network of a site"),
        ({"exclude": ["here"]}, "exclude: here"),
        ({"gateway": "-oProxyCommand=id"}, "gateway: '-oProxyCommand=id'"),
        ({"gateway": "a b"}, "gateway: 'a b'"),
        ({"port": 0}, "port: 0 is no port"),
        ({"port": 65536}, "port: 65536 is no port"),
        ({"account": "root"}, "account: 'root'"),
        ({"account": "x\nProxyCommand id"}, "account: "),
        ({"name": "../etc"}, "name: '../etc'"),
        ({"name": "a" * 33}, "name: "),
        ({"host_keys": []}, "host_keys is empty"),
        ({"host_keys": ["ssh-ed25519"]}, "host_keys: 'ssh-ed25519' is no public key"),
        ({"host_keys": [f"{KEY}\nother {KEY}"]}, "host_keys: "),
        ({"networks": ["10.20.0.0/24"]}, "probe: networks has no single address"),
        ({"probe": "10.20.0.12:22"}, "probe: 10.20.0.12 is not reached through the tunnel"),
        ({"networks": ["10.20.0.0/24"], "exclude": ["10.20.0.8/30"], "probe": "10.20.0.9"}, "probe: 10.20.0.9 is not"),
        ({"probe": "10.20.0.11:http"}, "probe: '10.20.0.11:http'"),
        ({"probe": "10.20.0.11:0"}, "probe: 0 is no port"),
        ({"probe": "hidden:22"}, "probe: 'hidden:22'"),
        ({"buffer": 0}, "buffer: 0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(given: dict[str, t.Any], message: str) -> None:
    with pytest.raises(SshuttleError) as error:
        _sshuttle.parse_tunnel(tunnel_params(**given))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"public_keys": []}, "public_keys is empty"),
        ({"public_keys": [f'{KEY}\ncommand="id" {KEY}']}, "public_keys: "),
        ({"clients": ['*",command="id']}, "clients: "),
        ({"clients": ["0.0.0.0/0"]}, "clients: 0.0.0.0/0"),
        ({"port": -1}, "port: -1"),
        ({"account": "Root"}, "account: 'Root'"),
    ],
)
def test_a_gateway_that_cannot_be_is_refused_by_name(given: dict[str, t.Any], message: str) -> None:
    with pytest.raises(SshuttleError) as error:
        _sshuttle.parse_gateway(gateway_params(**given))
    assert str(error.value).startswith(message)


addresses = st.integers(0x0A000000, 0x0A0000FF).map(lambda number: str(ipaddress.IPv4Address(number)))


@given(st.lists(addresses, min_size=1))
def test_networks_hold_the_addresses_given_and_no_other(given: list[str]) -> None:
    tunnel = _sshuttle.parse_tunnel(tunnel_params(networks=given))
    held = [str(address) for network in tunnel.networks for address in ipaddress.IPv4Network(network)]
    assert sorted(held) == sorted(set(given))
    assert tunnel.probe_address == given[0]
    # The order in which they are given changes nothing on the host.
    turned = _sshuttle.parse_tunnel(tunnel_params(networks=given[::-1], probe=f"{given[0]}:22"))
    assert turned == tunnel


def test_the_client_s_files() -> None:
    tunnel = _sshuttle.parse_tunnel(tunnel_params(name="hpc", networks=["10.20.0.0/16"], probe="10.20.0.11:2222"))
    files = {file.path: file for file in _sshuttle.client_files(tunnel, PRIVATE, "program", "/usr/bin/python3")}
    assert files["/etc/startline/vpn/hpc/key"].text == PRIVATE + "\n"
    assert [path for path, file in files.items() if not file.show] == [
        "/usr/lib/startline-vpn/tunnel.py",
        "/etc/startline/vpn/hpc/key",
    ]
    assert {file.mode for path, file in files.items() if path.startswith("/etc/startline/")} == {0o600}
    assert files["/etc/startline/vpn/hpc/known_hosts"].text == f"[192.0.2.10]:7422 {KEY}\n"
    settings = json.loads(files["/etc/startline/vpn/hpc/tunnel.json"].text)
    assert settings["networks"] == ["10.20.0.0/16"]
    assert (settings["probe_address"], settings["probe_port"]) == ("10.20.0.11", 2222)
    unit = files["/etc/systemd/system/startline-vpn-hpc.service"].text
    assert "ExecStart=/usr/bin/python3 -IS /usr/lib/startline-vpn/tunnel.py run hpc\n" in unit
    assert "Restart=always\n" in unit
    assert "StartLimitIntervalSec=0\n" in unit
    assert "StrictHostKeyChecking yes\n" in files["/etc/startline/vpn/hpc/ssh_config"].text


def test_a_host_key_at_ssh_s_own_port_is_known_by_the_bare_host() -> None:
    tunnel = _sshuttle.parse_tunnel(tunnel_params(port=22))
    [known] = [f.text for f in _sshuttle.client_files(tunnel, PRIVATE, "", "python3") if f.path.endswith("known_hosts")]
    assert known == f"192.0.2.10 {KEY}\n"


def test_what_is_no_private_key_is_refused() -> None:
    with pytest.raises(SshuttleError, match="private_key is no private key"):
        _sshuttle.client_files(_sshuttle.parse_tunnel(tunnel_params()), KEY, "", "python3")


def test_the_login_host_s_files() -> None:
    gateway = _sshuttle.parse_gateway(gateway_params(clients=["192.0.2.21", "192.0.2.20"]))
    keys, drop_in = _sshuttle.gateway_files(gateway, [22])
    assert keys.text == f'restrict,from="192.0.2.20/31" {KEY}\n'
    assert drop_in.text.splitlines()[2:8] == [
        "Port 22",
        "Port 7422",
        "Match User startline-vpn LocalPort 7422",
        "    AuthorizedKeysFile /etc/ssh/startline-vpn.keys",
        "Match User startline-vpn",
        "    AuthorizedKeysFile none",
    ]
    assert _sshuttle.gateway_files(_sshuttle.parse_gateway(gateway_params()), [22])[0].text == f"restrict {KEY}\n"


@given(st.sets(st.integers(1, 65535).filter(lambda port: port != 7422), min_size=1))
def test_ports_that_sshd_has_stay_and_a_second_run_finds_the_same(ports: set[int]) -> None:
    gateway = _sshuttle.parse_gateway(gateway_params())

    def says(text: str) -> dict[str, list[str]]:
        return _sshuttle.parse_sshd("\n".join(line for line in text.lower().splitlines() if line.startswith("port ")))

    first = _sshuttle.other_ports(says("\n".join(f"port {port}" for port in ports)), "")
    assert first == sorted(ports)
    drop_in = _sshuttle.gateway_files(gateway, first)[1].text
    assert set(says(drop_in)["port"]) == {str(port) for port in ports | {7422}}
    assert _sshuttle.gateway_files(gateway, _sshuttle.other_ports(says(drop_in), drop_in))[1].text == drop_in
    # Tunnels that move to another port leave the one that they had.
    assert _sshuttle.other_ports(says(drop_in), drop_in) == sorted(ports)


# -- the service's program --

SETTINGS = {
    "name": "default",
    "gateway": "192.0.2.10",
    "port": 7422,
    "account": "startline-vpn",
    "networks": ["10.20.0.0/16"],
    "exclude": ["10.20.9.0/24"],
    "buffer": 65536,
    "probe_address": "10.20.0.11",
    "probe_port": 22,
}


def test_pauses_grow_to_a_limit() -> None:
    pauses = [_sshuttle_tunnel.back_off(failures) for failures in range(100)]
    assert pauses[:2] == [0, 0]
    assert pauses == sorted(pauses)
    assert max(pauses) == 15


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("startline-vpn@192.0.2.10: Permission denied (publickey).", "key", "refused the key of account startline-vpn"),
        ("Host key verification failed.", "host-key", "does not show a pinned host key"),
        ("No ED25519 host key is known for [192.0.2.10]:7422 and you have", "host-key", "give the right keys"),
        ("ssh: connect to host 192.0.2.10 port 7422: Connection refused", "refused", "nobody listens there"),
        ("ssh: connect to host 192.0.2.10 port 7422: Connection timed out", "silent", "is the login host up"),
        ("ssh: connect to host 192.0.2.10 port 7422: No route to host", "silent", "is the login host up"),
        ("Timeout, server 192.0.2.10 not responding.", "silent", "does not answer"),
        ("kex_exchange_identification: read: Connection reset by peer", "closed", "MaxStartups"),
    ],
)
def test_what_ssh_says_is_told_with_host_port_and_remedy(said: str, kind: str, words: str) -> None:
    found = _sshuttle_tunnel.explain(SETTINGS, f"Something before.\n{said}\n")
    assert found is not None
    assert found[0] == kind
    assert "192.0.2.10 port 7422" in found[1]
    assert words in found[1]
    assert said in found[1]


def test_a_changed_host_key_counts_more_than_the_refusal_that_follows() -> None:
    log = "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nx: Permission denied (publickey).\n"
    found = _sshuttle_tunnel.explain(SETTINGS, log)
    assert found is not None
    assert found[0] == "host-key"


def test_ssh_that_does_not_complain_explains_nothing() -> None:
    assert _sshuttle_tunnel.explain(SETTINGS, "") is None


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        ([("lo", "127.0.0.1/8"), ("ens5", "10.30.0.4/20")], None),
        ([("ens5", "10.20.9.4/24")], None),  # excluded as a whole
        ([("ens5", "10.20.9.4/23")], "10.20.0.0/16 holds this host's own address 10.20.9.4 on ens5"),
        ([("ens5", "10.20.3.4/32")], "10.20.0.0/16 holds this host's own address 10.20.3.4 on ens5"),
        ([("ens5", "10.21.0.4/15")], "10.20.0.0/16 holds this host's own network 10.20.0.0/15 on ens5"),
    ],
)
def test_networks_of_the_client_s_own_are_refused(own: list[tuple[str, str]], problem: str | None) -> None:
    found = _sshuttle_tunnel.overlaps(SETTINGS, own)
    assert (found is None) if problem is None else (found or "").startswith(problem)


@pytest.mark.parametrize(
    ("address", "taken"), [("10.20.0.11", True), ("10.20.9.1", False), ("10.21.0.1", False), ("192.0.2.10", False)]
)
def test_which_addresses_are_taken_into_the_tunnel(address: str, taken: bool) -> None:
    assert _sshuttle_tunnel.takes(SETTINGS, address) is taken


def test_the_words_that_start_sshuttle() -> None:
    words = _sshuttle_tunnel.arguments(SETTINGS, 12300, "nft", "192.0.2.10", "/run/x/ssh.log")
    assert words == [
        *("sshuttle", "--method", "nft", "--disable-ipv6", "--listen", "127.0.0.1:12300"),
        *("--latency-buffer-size", "65536"),
        *("--ssh-cmd", words[9], "--remote", "192.0.2.10"),
        *("--exclude", "10.20.9.0/24", "10.20.0.0/16"),
    ]


def test_ssh_s_end_is_the_end_of_sshuttle(tmp_path: pathlib.Path) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    ssh.chmod(0o755)
    words = _sshuttle_tunnel.arguments(SETTINGS, 12300, "nft", "192.0.2.10", "/run/x/ssh.log")
    # What sshuttle does with it.
    command = [
        *shlex.split(words[words.index("--ssh-cmd") + 1]),
        "192.0.2.10",
        "--",
        "exec python3 -c 'print(1, \"$2\")'",
    ]
    script = "import subprocess, sys; subprocess.run(sys.argv[1:]); import signal; signal.pause()"
    done = subprocess.run(
        [sys.executable, "-c", script, *command],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGUSR1
    given = ["-F", "/etc/startline/vpn/default/ssh_config", "-E", "/run/x/ssh.log"]
    assert done.stdout.splitlines() == [*given, *command[-3:]]


def test_a_login_host_among_the_networks_is_reached_without_the_tunnel() -> None:
    words = _sshuttle_tunnel.arguments({**SETTINGS, "gateway": "10.20.0.1"}, 12300, "nat", "10.20.0.1", "log")
    assert words[-3:] == ["--exclude", "10.20.0.1:7422", "10.20.0.0/16"]


@pytest.mark.parametrize("program", _sshuttle_tunnel.METHODS)
def test_what_is_removed_is_the_tunnel_s_alone(program: str) -> None:
    question, commands = _sshuttle_tunnel.removal(program, 12299)
    assert {command[0] for command in (question, *commands)} == {program}
    named = {word for command in (question, *commands) for word in command if word.startswith("sshuttle-")}
    assert named == {"sshuttle-ipv4-12299" if program == "nft" else "sshuttle-12299"}


def test_chains_are_left_before_they_are_removed() -> None:
    _question, commands = _sshuttle_tunnel.removal("iptables-legacy", 12299)
    assert [command[4:6] for command in commands] == [
        ["-D", "OUTPUT"],
        ["-D", "PREROUTING"],
        ["-F", "sshuttle-12299"],
        ["-X", "sshuttle-12299"],
    ]


@pytest.mark.parametrize(
    ("refused", "chosen"), [((), "nft"), (("nft",), "iptables"), (("nft", "iptables"), "iptables-legacy")]
)
def test_the_first_firewall_that_the_kernel_bears_is_taken(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, refused: tuple[str, ...], chosen: str
) -> None:
    service = programs(tmp_path, monkeypatch, {name: int(name in refused) for name in _sshuttle_tunnel.METHODS})
    assert service._firewall() == chosen
    found = shutil.which("iptables")
    assert found is not None
    assert os.path.realpath(found) == str(tmp_path / "bin" / (chosen if chosen != "nft" else "iptables"))


def test_a_kernel_that_redirects_nothing_is_told(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = programs(tmp_path, monkeypatch, {"nft": 1, "iptables": 1})
    with pytest.raises(_sshuttle_tunnel.Problem, match=r"does not redirect with nft or iptables \(iptables said no\)"):
        service._firewall()


def programs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, codes: dict[str, int]
) -> _sshuttle_tunnel.Service:
    """A service on a host with these programs, and what they end with."""
    for directory in ("bin", "etc/default", "run"):
        (tmp_path / directory).mkdir(parents=True)
    for name, code in codes.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n[ {code} = 0 ] || echo {name} said no\nexit {code}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "etc/default/tunnel.json").write_text(json.dumps(SETTINGS))
    return _sshuttle_tunnel.Service("default", str(tmp_path / "etc"), str(tmp_path / "run"))


FAKES = {
    "ip": 'case "$*" in *address*) echo "[]";; *) echo "10.20.0.1 via 192.0.2.1";; esac',
    "nft": 'echo "$*" >> "$CALLS"',
    # It never listens: what keeps the port is the lock alone.
    "sshuttle": 'while [ "$1" != --listen ]; do shift; done; echo "$2"; exec sleep 60',
}
STARTER = "import sys; from {module} import Service; Service(*sys.argv[1:]).run()"


@pytest.fixture
def start(tmp_path: pathlib.Path) -> t.Iterator[t.Callable[[str], subprocess.Popen[str]]]:
    """Start the service of a tunnel; its first line is where sshuttle is to listen."""
    started = []
    (tmp_path / "bin").mkdir()
    for name, text in FAKES.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def start_one(name: str) -> subprocess.Popen[str]:
        for directory in (f"etc/{name}", f"run-{name}"):
            (tmp_path / directory).mkdir(parents=True, exist_ok=True)
        (tmp_path / f"etc/{name}/tunnel.json").write_text(json.dumps({**SETTINGS, "name": name}))
        module = pathlib.Path(_sshuttle_tunnel.__file__)
        words = [str(tmp_path / "etc"), str(tmp_path / "run-{name}"), str(tmp_path / "locks")]
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", STARTER.format(module=module.stem), name, *words],
                env={
                    "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
                    "PYTHONPATH": str(module.parent),
                    "CALLS": f"{tmp_path}/calls",
                },
                stdout=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def listens(process: subprocess.Popen[str]) -> str:
    """Where the sshuttle that the process became is to listen."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_tunnels_that_start_at_once_take_different_ports(
    start: t.Callable[[str], subprocess.Popen[str]], tmp_path: pathlib.Path
) -> None:
    tunnels = [start(f"t{number}") for number in range(6)]
    taken = [listens(tunnel) for tunnel in tunnels]
    assert len(set(taken)) == 6
    assert all(taken)
    # A port is free again when its sshuttle has ended, however it did.
    tunnels[2].kill()
    tunnels[2].wait()
    assert listens(start("t2")) == taken[2]


def test_rules_that_a_killed_tunnel_left_are_removed_by_who_has_its_port(
    start: t.Callable[[str], subprocess.Popen[str]], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start("a")
    port = listens(first).partition(":")[2]
    first.kill()
    first.wait()
    (tmp_path / "calls").unlink()
    assert listens(start("b")) == f"127.0.0.1:{port}"
    calls = (tmp_path / "calls").read_text()
    assert f"delete table inet sshuttle-ipv4-{port}\n" in calls
    # What the first would remove when its turn comes is the second's by now.
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    places = (str(tmp_path / "etc"), str(tmp_path / "run-{name}"), str(tmp_path / "locks"))
    _sshuttle_tunnel.Service("a", *places).clean()
    assert (tmp_path / "calls").read_text() == calls
    assert not (tmp_path / "run-a/firewall").exists()


@pytest.mark.parametrize("given", [-1.0, float("nan"), float("inf"), 3601.0])
def test_a_time_to_measure_for_that_cannot_be_is_refused(given: float) -> None:
    with pytest.raises(SshuttleError, match=r"^measure: .* is no time to measure for: give seconds, above 0"):
        _sshuttle.parse_measure(given)


def test_a_time_to_measure_for() -> None:
    assert [_sshuttle.parse_measure(given) for given in (0.0, 0.3, 3600.0)] == [0.0, 0.3, 3600.0]


@pytest.fixture
def measured(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> t.Callable[..., int]:
    """Measure, with a login host that is this one, and its ssh a script that gets the command as $4."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "etc/default").mkdir(parents=True)
    settings = {**SETTINGS, "networks": ["127.0.0.0/8"], "probe_address": "127.0.0.1"}
    (tmp_path / "etc/default/tunnel.json").write_text(json.dumps(settings))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    service = _sshuttle_tunnel.Service

    def here(name: str) -> _sshuttle_tunnel.Service:
        return service(name, str(tmp_path / "etc"), str(tmp_path / "run"), str(tmp_path / "locks"))

    monkeypatch.setattr(_sshuttle_tunnel, "Service", here)

    def measure(ssh: str, seconds: str = "0.1") -> int:
        (tmp_path / "bin/ssh").write_text(f"#!/bin/sh\n{ssh}\n")
        (tmp_path / "bin/ssh").chmod(0o755)
        return _sshuttle_tunnel.main(["measure", "default", seconds])

    return measure


def test_the_throughput_in_both_directions(measured: t.Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert measured('eval "$4"') == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sent"] > 0
    assert found["received"] > 0


#: A far end that says where it listens, and then does something else than it should.
FAR = """exec python3 -c '
import json, socket, struct, sys, time
server = socket.socket()
server.bind(("127.0.0.1", 0))
server.listen(1)
print(json.dumps(server.getsockname()), flush=True)
{then}
'"""
RESET = """
link, _ = server.accept()
link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
link.close()
time.sleep(30)
"""


@pytest.mark.parametrize(
    ("ssh", "seconds", "message"),
    [
        ("exit 0", "-1", "-1 is no time to measure for"),
        ("exit 0", "nan", "nan is no time to measure for"),
        ("exit 0", "soon", "soon is no time to measure for"),
        ("echo x: Permission denied >&2; exit 255", "0.1", "ended too early (it said: x: Permission denied)"),
        ("echo hello", "0.1", "Expecting value"),
        ("echo 5", "0.1", "not measured"),
        (FAR.format(then="server.close()"), "5", "the throughput was not measured: "),
        (FAR.format(then="server.accept(); sys.exit(1)"), "5", "the throughput was not measured: "),
        (FAR.format(then=RESET), "5", "the throughput was not measured: "),
        (FAR.format(then="link = server.accept(); time.sleep(30)"), "5", "the throughput was not measured: timed out"),
        (FAR.format(then="link, _ = server.accept(); link.recv(9); print([9, 1])"), "0.01", "not measured"),
    ],
    ids=["negative", "nan", "text", "refused", "noise", "number", "not-there", "gone", "reset", "silent", "half"],
)
def test_a_measurement_that_fails_is_told_in_one_line(
    measured: t.Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ssh: str,
    seconds: str, message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(_sshuttle_tunnel, "SILENCE", 1)
    # The service's directory is not there, as when it is stopped: nothing is to be written into it.
    assert measured(ssh, seconds) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1
