# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens to a login host's sshd, which whoever set it up may depend on."""

from __future__ import annotations

import pathlib
import re
import types
import typing as t

import pytest

from ansible_collections.startline.lab.plugins.module_utils import _sshuttle
from ansible_collections.startline.lab.plugins.modules import sshuttle_gateway
from ansible_collections.startline.lab.plugins.modules.sshuttle_gateway import SshuttleError

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHw5hCYXM0QzU1b1kqCq5dO6hX1Ksm8ZJ1cW0Zq8kq9a"


class Sshd:
    """A host with an sshd in place of AnsibleModule. `deaf`: ports that it does not come to listen on."""

    check_mode = False

    def __init__(self, scratch: pathlib.Path) -> None:
        self.drop_in = scratch / "drop_in"
        self.keys = scratch / "keys"
        (scratch / "host_key.pub").write_text(f"{KEY} root@login\n")
        self.host_key = scratch / "host_key"
        self.params: dict[str, t.Any] = {
            "public_keys": [KEY], "clients": [], "port": 7422, "account": "startline-vpn-test",
        }  # fmt: skip
        self.listen_addresses: list[str] = []
        self.installed = True
        self.unit = "ssh.service"
        self.deaf: set[int] = set()
        self.dies = False
        self.listening = {22}
        self.commands: list[str] = []

    def get_bin_path(self, name: str, opt_dirs: list[str]) -> str | None:
        return f"/usr/sbin/{name}" if self.installed else None

    def configured(self) -> list[int]:
        text = self.drop_in.read_text() if self.drop_in.exists() else "Port 22\n"
        return [int(port) for port in re.findall(r"^Port (\d+)$", text, re.MULTILINE)]

    def run_command(self, words: list[str]) -> tuple[int, str, str]:
        if words[:3] == ["systemctl", "is-active", "--quiet"]:
            return (0 if words[3] == self.unit else 3), "", ""
        if words[1] == "-T":
            ports = self.configured()
            lines = [f"port {port}" for port in ports]
            lines += [f"listenaddress {a}" for a in self.listen_addresses or [f"0.0.0.0:{port}" for port in ports]]
            return 0, "\n".join([*lines, f"hostkey {self.host_key}"]), ""
        if words[1] == "-t":
            return 0, "", ""
        self.commands.append(" ".join(words[:3]))
        if words[:2] in (["systemctl", "reload"], ["systemctl", "reload-or-restart"]):
            wanted = set(self.configured())
            if self.dies:
                self.listening = set()
                return 1, "", "Job for ssh.service failed."
            self.listening = wanted - self.deaf
        return 0, "", ""


@pytest.fixture
def sshd(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Sshd:
    host = Sshd(tmp_path)
    for module in (_sshuttle, sshuttle_gateway):
        monkeypatch.setattr(module, "DROP_IN", str(host.drop_in))
        monkeypatch.setattr(module, "AUTHORIZED_KEYS", str(host.keys))
    monkeypatch.setattr(sshuttle_gateway, "PATIENCE", 0.1)
    monkeypatch.setattr(sshuttle_gateway.LoginHost, "listens", lambda _self, port: port in host.listening)
    return host


def present(sshd: Sshd) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", sshuttle_gateway.present(sshd, sshuttle_gateway.LoginHost(sshd)))


def absent(sshd: Sshd) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", sshuttle_gateway.absent(sshd, sshuttle_gateway.LoginHost(sshd)))


def test_sshd_is_reloaded_and_listens_on_both_ports(sshd: Sshd) -> None:
    result = present(sshd)
    assert result["changed"]
    assert result["host_keys"] == [KEY]
    assert sshd.listening == {22, 7422}
    assert sshd.commands == ["useradd --system --user-group", "systemctl reload ssh.service"]


def test_an_sshd_that_does_not_listen_is_reloaded_without_the_drop_in(sshd: Sshd) -> None:
    sshd.deaf = {7422}
    with pytest.raises(SshuttleError, match=r"^sshd was reloaded and does not listen on 7422.*usually a ListenAddress"):
        present(sshd)
    assert not sshd.drop_in.exists()
    assert sshd.commands[1:] == ["systemctl reload ssh.service", "systemctl reload-or-restart ssh.service"]
    assert sshd.listening == {22}


def test_a_drop_in_of_before_comes_back_and_is_in_force(sshd: Sshd) -> None:
    present(sshd)
    before = sshd.drop_in.read_text()
    sshd.params["port"] = 7500
    sshd.deaf = {7500}
    with pytest.raises(SshuttleError, match="does not listen on 7500"):
        present(sshd)
    assert sshd.drop_in.read_text() == before
    assert sshd.listening == {22, 7422}


def test_an_sshd_that_fails_to_come_back_is_told_first(sshd: Sshd) -> None:
    sshd.dies = True
    with pytest.raises(SshuttleError) as error:
        present(sshd)
    assert str(error.value).startswith(
        "sshd does not take back its configuration of before (systemctl reload-or-restart"
    )
    assert "Why: systemctl reload ssh.service: Job for ssh.service failed." in str(error.value)
    assert not sshd.drop_in.exists()


def test_an_sshd_that_came_back_deaf_is_told_first(sshd: Sshd) -> None:
    sshd.deaf = {22, 7422}
    with pytest.raises(
        SshuttleError, match=r"^sshd does not listen any more: .*\(journalctl -u ssh.service\)\. Why: sshd"
    ):
        present(sshd)


def test_addresses_with_ports_of_their_own_are_told_before_anything_is_reloaded(sshd: Sshd) -> None:
    sshd.listen_addresses = ["192.0.2.10:22", "[2001:db8::10]:22"]
    with pytest.raises(
        SshuttleError, match=r"ListenAddress .*\(192.0.2.10:22, \[2001:db8::10\]:22\): add 'ListenAddress"
    ):
        present(sshd)
    assert not sshd.drop_in.exists()
    assert not [command for command in sshd.commands if command.startswith("systemctl")]
    sshd.listen_addresses.append("192.0.2.10:7422")
    assert present(sshd)["changed"]


def test_no_sshd_no_gateway(sshd: Sshd) -> None:
    sshd.installed = False
    with pytest.raises(SshuttleError, match="there is no sshd here: install openssh-server"):
        present(sshd)


@pytest.mark.parametrize("installed", [True, False])
def test_what_is_left_is_removed_where_no_sshd_runs(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    present(sshd)
    sshd.installed, sshd.unit, sshd.commands = installed, "", []
    entry = types.SimpleNamespace(pw_gecos="Startline VPN", pw_uid=987654)
    monkeypatch.setattr(sshuttle_gateway.pwd, "getpwnam", lambda _name: entry)
    assert absent(sshd)["changed"]
    assert not sshd.drop_in.exists()
    assert not sshd.keys.exists()
    assert sshd.commands == ["userdel startline-vpn-test"]


def test_absent_has_sshd_leave_the_port(sshd: Sshd) -> None:
    present(sshd)
    assert absent(sshd)["changed"]
    assert sshd.listening == {22}
    assert not absent(sshd)["changed"]
