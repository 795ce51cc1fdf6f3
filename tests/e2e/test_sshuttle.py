# SPDX-License-Identifier: GPL-3.0-or-later
"""A private site reached through its login host, and everything that can go wrong with that. Tests are in order."""

from __future__ import annotations

import json
import os
import re
import shutil
import typing as t

import pytest

from tests.support.commands import PROJECT, Ended, adhoc, playbook
from tests.support.sites import Sites, greets, until

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("systemd-nspawn"), reason="boots hosts: needs root and systemd-nspawn"
)

UNIT = "startline-vpn-default.service"
#: What a private host says through the tunnel.
ASK = "timeout 2 sh -c 'nc {address} 22 </dev/null | head -c 4'"
LEFT = (
    "nft list tables | grep sshuttle; pgrep -a sshuttle; pgrep -af 'tunne[l][.]py'; pgrep -au startline-vpn 2>/dev/null; "
    "getent passwd startline-vpn; "
    "ls -d /etc/startline/vpn /usr/lib/startline-vpn /run/startline-vpn* /etc/systemd/system/*startline-vpn* "
    "/etc/ssh/startline-vpn* /etc/ssh/sshd_config.d/startline-vpn* 2>/dev/null; true"
)


@pytest.fixture(scope="module")
def sites(ec2: t.Any, tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Sites]:
    made = Sites(ec2, tmp_path_factory.mktemp("sites"))
    yield made
    made.close()


def configure(sites: Sites, *words: str, **variables: t.Any) -> Ended:
    """Run the playbook."""
    given = {
        "key_file": str(sites.directory / "vpn_key"),
        "result_file": str(sites.directory / "result.json"),
        "sshuttle_networks": [sites.hidden["address"], sites.login["address"]],
        **variables,
    }
    path = str(PROJECT / "tests" / "e2e" / "playbooks" / "sshuttle.yml")
    return playbook(path, "-i", str(sites.inventory()), "-e", json.dumps(given), *words)


def module(sites: Sites, host: str, called: str, /, **arguments: t.Any) -> dict[str, t.Any]:
    """Run a module on a host."""
    where = ["-i", str(sites.inventory()), "--tree", str(sites.directory / "said"), "--become"]
    said = adhoc(host, *where, "-m", f"startline.lab.{called}", "-a", json.dumps(arguments))
    told = sites.directory / "said" / host
    assert told.exists(), said.output
    return t.cast("dict[str, t.Any]", json.loads(told.read_text()))


def tunnel(sites: Sites, **arguments: t.Any) -> dict[str, t.Any]:
    """Ask for a second tunnel."""
    return module(
        sites,
        "client",
        "sshuttle",
        **{
            "name": "second",
            "gateway": sites.login["public_address"],
            "private_key": (sites.directory / "vpn_key").read_text(),
            "host_keys": [host_key(sites)],
            "networks": [sites.hidden["address"]],
            **arguments,
        },
    )


def host_key(sites: Sites) -> str:
    return sites.ssh(sites.login, "cat /etc/ssh/ssh_host_ed25519_key.pub").strip()


def state(sites: Sites, unit: str = UNIT) -> str:
    return sites.ssh(sites.client, f"systemctl is-active {unit}", check=False).strip()


def reaches(sites: Sites) -> bool:
    return sites.ssh(sites.client, ASK.format(address=sites.hidden["address"]), check=False) == "SSH-"


def changes(ended: Ended) -> dict[str, int]:
    return {host: int(count) for host, count in re.findall(r"^(\w+) +: .*?changed=(\d+)", ended.output, re.MULTILINE)}


def test_a_private_host_is_reached_and_a_second_run_changes_nothing(sites: Sites) -> None:
    assert not reaches(sites)
    first = configure(sites, sshuttle_measure=0.3)
    assert first.returncode == 0, first.output
    told = json.loads((sites.directory / "result.json").read_text())
    assert told["probe"]["address"] == sites.hidden["address"]
    assert told["throughput"]["sent"] > 1
    assert told["throughput"]["received"] > 1
    assert state(sites) == "active"
    assert reaches(sites)
    again = configure(sites)
    assert changes(again) == {"client": 0, "login": 0}, again.output
    differs = configure(sites, "--check", "--diff", sshuttle_buffer=65536)
    assert changes(differs) == {"client": 1, "login": 0}, differs.output
    assert '+  "buffer": 65536' in differs.output
    assert '-  "buffer": 1048576' in differs.output


def test_the_key_opens_a_command_on_one_port_and_nothing_else(sites: Sites) -> None:
    ssh = "ssh -F /etc/startline/vpn/default/ssh_config"
    login = sites.login["public_address"]
    assert sites.ssh(sites.client, f"{ssh} {login} id -un") == "startline-vpn\n"
    refused = sites.ssh(sites.client, f"{ssh} -p 22 -o HostKeyAlias=[{login}]:7422 {login} id 2>&1", check=False)
    assert "Permission denied (publickey)" in refused
    asked = (
        f"{ssh} -o ClearAllForwardings=no -o ExitOnForwardFailure=yes -R 127.0.0.1:7999:127.0.0.1:22 {login} true 2>&1"
    )
    assert "remote port forwarding failed" in sites.ssh(sites.client, asked, check=False)
    assert "PTY allocation request failed" in sites.ssh(sites.client, f"{ssh} -tt {login} true 2>&1", check=False)
    # Its shell is good for what the tunnel's account may: not for what root may.
    assert "denied" in sites.ssh(sites.client, f"{ssh} {login} cat /etc/shadow 2>&1", check=False)
    # Others have no business on the tunnels' port.
    key = "/var/tmp/key"  # noqa: S108
    sites.ssh(sites.client, f"umask 77; cat >{key} <<'END'\n{(sites.directory / 'far').read_text()}\nEND\n")
    options = "-o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    said = sites.ssh(sites.client, f"ssh {options} -i {key} -p 7422 admin@{login} true 2>&1; rm {key}", check=False)
    assert "Permission denied" in said


@pytest.mark.parametrize("victim", ["sshuttle", "everything", "ssh"])
def test_a_killed_tunnel_starts_again(sites: Sites, victim: str) -> None:
    show = f"systemctl show -P MainPID -P NRestarts {UNIT}"
    before = sites.ssh(sites.client, show).split()
    kill = {
        "sshuttle": f"systemctl kill --signal=KILL --kill-who=main {UNIT}",
        "everything": f"systemctl kill --signal=KILL {UNIT}",
        "ssh": "kill -9 $(pgrep -x ssh)",
    }
    sites.ssh(sites.client, kill[victim])

    def anew() -> bool:
        return sites.ssh(sites.client, show).split()[0] not in ("0", before[0]) and state(sites) == "active"

    until("the tunnel is there again", anew)
    assert int(sites.ssh(sites.client, show).split()[1]) > int(before[1])
    assert reaches(sites)
    assert sites.ssh(sites.client, "nft list tables").count("sshuttle-") == 1


def test_a_stopped_tunnel_leaves_nothing_in_force(sites: Sites) -> None:
    sites.ssh(sites.client, f"systemctl stop {UNIT}")
    assert "sshuttle" not in sites.ssh(
        sites.client, "nft list tables; pgrep -a sshuttle; pgrep -a ssh$; ls /run", check=False
    )
    assert not reaches(sites)
    sites.ssh(sites.client, f"systemctl start {UNIT}")
    assert reaches(sites)


def test_a_login_host_that_is_gone_is_told_and_comes_back(sites: Sites) -> None:
    with sites.far.cut(sites.login):
        until("the loss is noticed", lambda: state(sites) != "active")
        assert not reaches(sites)
        told = f"{sites.login['public_address']} port 7422 does not answer: is the login host up"
        until("the reason is told", lambda: told in sites.ssh(sites.client, f"journalctl -u {UNIT} -o cat"))
    until("the tunnel is there again", lambda: state(sites) == "active", 60)
    assert reaches(sites)


def test_a_refused_key_is_told_with_the_remedy(sites: Sites) -> None:
    said = tunnel(sites, private_key=(sites.directory / "other_key").read_text())
    login = sites.login["public_address"]
    assert said["problem"]["kind"] == "key"
    assert said["msg"].startswith(
        f"No tunnel: {login} port 7422 refused the key of account startline-vpn: run startline.lab"
    )
    assert "Permission denied (publickey)" in said["msg"]
    assert state(sites, "startline-vpn-second.service") != "active"


def test_another_host_key_is_refused(sites: Sites) -> None:
    said = tunnel(sites, host_keys=[(sites.directory / "other_key.pub").read_text()])
    assert said["problem"]["kind"] == "host-key"
    assert f"{sites.login['public_address']} port 7422 does not show a pinned host key" in said["msg"]
    assert state(sites, "startline-vpn-second.service") != "active"


def test_a_tunnel_to_a_host_that_is_not_there_is_not_active(sites: Sites) -> None:
    nobody = sites.hidden["address"].rpartition(".")[0] + ".250"
    said = tunnel(sites, networks=[nobody], timeout=1)
    assert said["problem"]["kind"] == "probe"
    assert f"{nobody} port 22 does not greet through the tunnel" in said["msg"]
    assert state(sites, "startline-vpn-second.service") != "active"


def test_a_network_of_the_client_s_own_is_refused(sites: Sites) -> None:
    own = sites.client["address"]
    said = tunnel(sites, networks=[own])
    assert said["problem"]["kind"] == "route"
    assert f"{own}/32 holds this host's own address {own} on " in said["msg"]
    assert tunnel(sites, state="absent")["changed"]
    assert not tunnel(sites, state="absent")["changed"]
    assert reaches(sites), "the first tunnel is not touched"


def test_a_rebooted_client_has_its_tunnel(sites: Sites) -> None:
    boot = "cat /proc/sys/kernel/random/boot_id; stat -c %Y /proc/1"
    before = sites.ssh(sites.client, boot)
    sites.ssh(sites.client, "systemctl reboot", check=False)
    until("the host is down", lambda: not greets(sites.client["public_address"]))
    until("the host is up", lambda: greets(sites.client["public_address"]))
    until("the tunnel is there again", lambda: state(sites) == "active")
    assert sites.ssh(sites.client, boot) != before
    assert reaches(sites)


def test_removal_leaves_nothing(sites: Sites) -> None:
    for host in (sites.client, sites.login):
        assert "startline-vpn" in sites.ssh(host, LEFT)
    assert module(sites, "login", "sshuttle_gateway", state="absent")["changed"]
    until("the tunnel waits for its next start", lambda: state(sites) == "activating")
    assert module(sites, "client", "sshuttle", state="absent")["changed"]
    for host in (sites.client, sites.login):
        assert sites.ssh(host, LEFT) == ""
    assert not module(sites, "login", "sshuttle_gateway", state="absent")["changed"]
    assert sites.ssh(sites.login, "sshd -T | grep '^port '; ss -Hltn 'sport = :7422'") == "port 22\n"
