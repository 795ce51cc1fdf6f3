#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Make a login host the gateway of tunnels."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sshuttle_gateway
short_description: Make a login host the gateway of tunnels
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Makes an account without a password and without a home. The given keys let it in, on an additional port of sshd and there
    alone. It may run commands, as sshuttle needs, and nothing else - no terminal, no forwarding, no agent. Nobody else is let in
    on that port.
  - sshd's configuration is checked as a whole before anything is changed. Then sshd is reloaded, so that sessions go on. The ports
    that it had stay.
  - While the drop-in is there, C(sshd -T) has to be told of a connection (C(-C)), because the drop-in matches ports.
  - Whoever has the key can run programs as the account on this host. So make one for this purpose alone, and limit O(clients).
requirements:
  - sshd that reads C(/etc/ssh/sshd_config.d/*.conf), under systemd, and python3
options:
  state:
    description: V(absent) removes the account, its keys and the port, and ends its tunnels.
    type: str
    choices: [present, absent]
    default: present
  public_keys:
    description: The keys, as in C(.pub) files. Required with O(state=present).
    type: list
    elements: str
    default: []
  clients:
    description: Addresses and networks, as this host sees them, from which tunnels come. Anywhere if left out.
    type: list
    elements: str
    default: []
  port:
    description: The port. Not 22, whose traffic M(startline.lab.netem) leaves alone.
    type: int
    default: 7422
  account:
    description: The account. One that is there already is refused if it is not a tunnel's.
    type: str
    default: startline-vpn
attributes:
  check_mode:
    support: full
    description: Can run in check mode and return changed status without modifying the host.
  diff_mode:
    support: full
    description: Shows the files before and after.
  idempotent:
    support: full
    description: A second run changes nothing.
"""

EXAMPLES = r"""
- name: Let two hosts make tunnels
  startline.lab.sshuttle_gateway:
    public_keys: ["{{ lookup('ansible.builtin.file', 'vpn_key.pub') }}"]
    clients: [192.0.2.20, 192.0.2.21]
  become: true
  register: gateway # gateway.host_keys is for their host_keys

- name: Let nobody make tunnels any more
  startline.lab.sshuttle_gateway:
    state: absent
  become: true
"""

RETURN = r"""
host_keys:
  description: The public keys of this host, for O(startline.lab.sshuttle#module:host_keys).
  returned: O(state=present)
  type: list
  elements: str
  sample: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ..."]
"""

import contextlib
import os
import pwd
import signal
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.startline.lab.plugins.module_utils import _sshuttle
from ansible_collections.startline.lab.plugins.module_utils._files import ensure, read, remove
from ansible_collections.startline.lab.plugins.module_utils._sshuttle import AUTHORIZED_KEYS, DROP_IN, SshuttleError

COMMENT = "Startline VPN"
MAIN = "/etc/ssh/sshd_config"
#: Seconds for sshd to take over its new ports, and for processes to end.
PATIENCE = 10


class LoginHost:
    """This host."""

    def __init__(self, module):
        self._module = module
        self._unit = None

    @property
    def sshd(self):
        """The program."""
        path = self._module.get_bin_path("sshd", opt_dirs=["/usr/sbin", "/sbin"])
        if not path:
            raise SshuttleError("there is no sshd here: install openssh-server")
        return path

    def run(self, *command):
        code, output, errors = self._module.run_command(list(command))
        if code:
            raise SshuttleError(f"{' '.join(command)}: {(errors or output).strip()}")
        return output

    def settings(self):
        """What sshd would do if it were started now, with a connection that no Match of ours is for."""
        connection = "user=root,host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22"
        return _sshuttle.parse_sshd(self.run(self.sshd, "-T", "-C", connection))

    def check(self, drop_in):
        """Have sshd read its whole configuration with this drop-in before anything is changed."""
        with tempfile.TemporaryDirectory() as scratch:
            for name, text in (("drop_in", drop_in), ("main", f"Include {scratch}/drop_in\nInclude {MAIN}\n")):
                with open(f"{scratch}/{name}", "w", encoding="utf-8") as stream:
                    stream.write(text)
            self.run(self.sshd, "-t", "-f", f"{scratch}/main")

    def runs(self):
        """Whether sshd runs as a service."""
        for unit in ("ssh.service", "sshd.service"):
            if self._module.run_command(["systemctl", "is-active", "--quiet", unit])[0] == 0:
                self._unit = unit
                return True
        return False

    def reload(self):
        """Have sshd read its configuration. Its sessions go on."""
        if not self.runs():
            raise SshuttleError(
                "no sshd runs as ssh.service or sshd.service: start it. Where ssh.socket listens in its place, the ports "
                "are the socket's: systemctl disable --now ssh.socket, systemctl enable --now ssh.service"
            )
        self.run("systemctl", "reload", self._unit)

    def reload_back(self, ports):
        """Have sshd do again what it did before we had it reloaded, if we had. What is then wrong, in front of why."""
        if not self._unit:
            return ""
        try:
            # Other than a reload, it also starts an sshd that has ended.
            self.run("systemctl", "reload-or-restart", self._unit)
        except SshuttleError as exc:
            return f"sshd does not take back its configuration of before ({exc}): do not leave this host before it does. Why: "
        if ports and not any(self.await_port(port, True) for port in ports):
            return f"sshd does not listen any more: do not leave this host before it does (journalctl -u {self._unit}). Why: "
        return ""

    def listens(self, port):
        """Whether anybody listens on the port."""
        wanted = f"{port:04X}"
        for table in ("tcp", "tcp6"):
            for line in read(f"/proc/net/{table}").splitlines()[1:]:
                words = line.split()
                if words[3] == "0A" and words[1].rpartition(":")[2] == wanted:
                    return True
        return False

    def await_port(self, port, there):
        """Wait until sshd has taken over its ports, which it does without telling anybody."""
        ends = time.monotonic() + PATIENCE
        while self.listens(port) is not there:
            if time.monotonic() > ends:
                return False
            time.sleep(0.05)
        return True

    def host_keys(self, settings):
        """The public keys that sshd shows."""
        keys = [" ".join(read(f"{path}.pub").split()[:2]) for path in settings.get("hostkey", ())]
        found = [key for key in keys if key]
        if not found:
            raise SshuttleError("sshd has no host key with a .pub file beside it: ssh-keygen -A makes them")
        return found


def account_here(account):
    """The account's entry, or None. Raises when it is somebody else's."""
    try:
        entry = pwd.getpwnam(account)
    except KeyError:
        return None
    if entry.pw_gecos.split(",")[0] != COMMENT:
        raise SshuttleError(f"account: {account} is there already and not a tunnel's: give another name")
    return entry


def end_processes(uid):
    """End what runs as the account: its tunnels."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        ends = time.monotonic() + PATIENCE / 2
        while True:
            running = []
            for name in filter(str.isdigit, os.listdir("/proc")):
                with contextlib.suppress(OSError):
                    if os.stat(f"/proc/{name}").st_uid == uid:
                        running.append(int(name))
            if not running:
                return
            if time.monotonic() > ends:
                break
            for process in running:
                with contextlib.suppress(OSError):
                    os.kill(process, number)
            time.sleep(0.05)


def present(module, host):
    """Let tunnels in."""
    gateway = _sshuttle.parse_gateway(module.params)
    settings = host.settings()
    ports = _sshuttle.other_ports(settings, read(DROP_IN))
    if gateway.port in ports:
        raise SshuttleError(f"port: sshd listens on {gateway.port} for everybody: give a port of the tunnels' own")
    files = _sshuttle.gateway_files(gateway, ports)
    different = [file for file in files if file.differs()]
    entry = account_here(gateway.account)
    reload = any(file.path == DROP_IN for file in different) or not host.listens(gateway.port)
    changed = bool(different) or entry is None or reload
    result = {
        "changed": changed,
        "diff": _sshuttle.difference(different),
        "host_keys": host.host_keys(settings),
    }
    host.check(files[-1].text)
    if module.check_mode:
        return result
    if entry is None:
        # "*" is no password's hash, but unlike "!" no lock either, which keeps keys out where PAM is off.
        words = ["--system", "--user-group", "--no-create-home", "--home-dir", "/", "--shell", "/bin/sh"]
        host.run("useradd", *words, "--password", "*", "--comment", COMMENT, gateway.account)
    before = read(DROP_IN)
    for file in different:
        ensure(file.path, file.text, file.mode)
    if reload:
        try:
            settings = host.settings()
            if str(gateway.port) not in settings.get("port", ()):
                raise SshuttleError(
                    f"{MAIN} does not read {DROP_IN}: put 'Include /etc/ssh/sshd_config.d/*.conf' at its beginning"
                )
            others = _sshuttle.addresses_without(settings, gateway.port)
            if others:
                raise SshuttleError(
                    f"port: sshd would not listen on {gateway.port}, because every ListenAddress in its configuration has a "
                    f"port of its own ({', '.join(others)}): add 'ListenAddress ADDRESS:{gateway.port}'"
                )
            host.reload()
            if not host.await_port(gateway.port, True):
                raise SshuttleError(
                    f"sshd was reloaded and does not listen on {gateway.port} after {PATIENCE} s: usually a ListenAddress in "
                    f"its configuration is for other ports, or names an address that this host has not. Or does somebody "
                    f"else have the port (ss -ltnp), or does ssh.socket listen in its place?"
                )
        except SshuttleError as exc:
            if before:
                ensure(DROP_IN, before, 0o644)
            else:
                remove(DROP_IN)
            raise SshuttleError(f"{host.reload_back(ports)}{exc}") from exc
    return result


def absent(module, host):
    """Leave nothing."""
    account = _sshuttle.parse_account(module.params["account"])
    entry = account_here(account)
    here = [path for path in (DROP_IN, AUTHORIZED_KEYS) if os.path.exists(path)]
    gone = [*here, *([f"account {account}"] if entry else [])]
    result = {"changed": bool(gone), "diff": {"before": "".join(f"{what}\n" for what in gone), "after": ""}}
    if module.check_mode or not gone:
        return result
    for path in here:
        remove(path)
    # An sshd that does not run, or is not there any more, reads what is left when it starts.
    if DROP_IN in here and host.runs():
        host.reload()
        host.await_port(module.params["port"], False)
    if entry:
        end_processes(entry.pw_uid)
        host.run("userdel", account)
    return result


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "public_keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "clients": {"type": "list", "elements": "str", "default": []},
            "port": {"type": "int", "default": 7422},
            "account": {"type": "str", "default": _sshuttle.ACCOUNT},
        },
        supports_check_mode=True,
    )
    try:
        host = LoginHost(module)
        result = present(module, host) if module.params["state"] == "present" else absent(module, host)
    except SshuttleError as exc:
        module.fail_json(msg=str(exc))
    except OSError as exc:
        module.fail_json(msg=f"{exc.filename}: {exc.strerror}: a gateway needs root (become: true)")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
