#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reach the private addresses of another site through its login host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sshuttle
short_description: Reach the private addresses of another site through its login host
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Runs sshuttle as a systemd service. TCP connections of this host to the given addresses come out at the login host, which
    connects to them. UDP, ICMP and names are not forwarded.
  - The service is active only after a private address has answered through the tunnel. It starts anew when sshuttle ends or the
    login host goes silent, for ever, at longer and longer intervals up to 15 s.
  - The login host's key is pinned. Nothing of the host's own SSH configuration takes part.
  - Stopped or killed, it leaves no rule in the firewall.
requirements:
  - On this host sshuttle, systemd, and nft or iptables. The role P(startline.lab.sshuttle#role) installs them.
  - On the login host sshd and python3; M(startline.lab.sshuttle_gateway) makes it ready.
options:
  state:
    description: V(absent) removes the service and its files.
    type: str
    choices: [present, absent]
    default: present
  name:
    description: The tunnel's name. A host may have several, to different addresses.
    type: str
    default: default
  gateway:
    description: Address or name of the login host. Required with O(state=present).
    type: str
  port:
    description: Port of its sshd.
    type: int
    default: 7422
  account:
    description: Account on the login host.
    type: str
    default: startline-vpn
  private_key:
    description: Text of the private key that the account knows. Make one for this purpose alone. Required with O(state=present).
    type: str
  host_keys:
    description:
      - Public keys of the login host, as in its C(/etc/ssh/ssh_host_*_key.pub). Any other key is refused. Required with
        O(state=present).
    type: list
    elements: str
    default: []
  networks:
    description:
      - IPv4 addresses and networks to reach. Required with O(state=present).
      - They must not be this host's own, and this host must have a route to them, as a default route is; packets that the
        kernel would not send never reach sshuttle.
    type: list
    elements: str
    default: []
  exclude:
    description: Addresses and networks among them that are reached as if there were no tunnel.
    type: list
    elements: str
    default: []
  probe:
    description:
      - Address and port that answer when the tunnel is ready, as V(10.77.0.5:22). The server there has to speak first, as SSH does.
      - Port 22 of the first single address in O(networks) if left out.
    type: str
  buffer:
    description:
      - Bytes that may be under way in the tunnel in each direction. Throughput is at most this in each round trip; on a slow link
        it is also how much waits in front of every other byte.
    type: int
    default: 1048576
  measure:
    description:
      - Seconds for which throughput is measured in each direction; V(0) is not at all, V(3600) the most.
      - The login host's end is a process of the account there, at its private address, which must be in O(networks).
    type: float
    default: 0
  timeout:
    description: Seconds that the tunnel may take to come up. A refused key and a wrong host key end the wait at once.
    type: int
    default: 60
attributes:
  check_mode:
    support: full
    description: Can run in check mode and return changed status without modifying the host.
  diff_mode:
    support: full
    description: Shows the files before and after, except the key and the program.
  idempotent:
    support: full
    description: A second run changes nothing; it tries the probe again.
"""

EXAMPLES = r"""
- name: Reach three private hosts of a cluster
  startline.lab.sshuttle:
    gateway: login.example.org
    host_keys: ["{{ lookup('ansible.builtin.file', 'login_host_key.pub') }}"]
    private_key: "{{ lookup('ansible.builtin.file', 'vpn_key') }}"
    networks: [10.20.0.11, 10.20.0.12, 10.20.0.13]
  become: true

- name: Reach all of a network but one host, and measure how fast
  startline.lab.sshuttle:
    name: cluster
    gateway: 192.0.2.10
    host_keys: ["{{ lookup('ansible.builtin.file', 'login_host_key.pub') }}"]
    private_key: "{{ lookup('ansible.builtin.file', 'vpn_key') }}"
    networks: [10.20.0.0/16]
    exclude: [10.20.0.99]
    probe: 10.20.0.11:22
    measure: 2
  become: true

- name: Remove the tunnel
  startline.lab.sshuttle:
    name: cluster
    state: absent
  become: true
"""

RETURN = r"""
probe:
  description: What answered through the tunnel, and how long that took, with the connection.
  returned: O(state=present) and not in check mode
  type: dict
  sample: {address: 10.20.0.11, port: 22, milliseconds: 14.2}
throughput:
  description: Mbit/s of one TCP connection through the tunnel to the login host, sent and received.
  returned: O(measure) is not V(0), and not in check mode
  type: dict
  sample: {sent: 231.2, received: 240.8}
problem:
  description: Why there is no tunnel. The kinds V(host-key), V(key), V(route), V(missing), V(probe) and others are for programs.
  returned: the tunnel did not come up
  type: dict
  sample: {kind: key, text: "192.0.2.10 port 7422 refused the key of account startline-vpn: ..."}
"""

import json
import os
import pkgutil
import sys
import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.startline.lab.plugins.module_utils import _sshuttle, _sshuttle_tunnel
from ansible_collections.startline.lab.plugins.module_utils._files import ensure, read, remove
from ansible_collections.startline.lab.plugins.module_utils._sshuttle import SshuttleError

#: Problems that no second attempt mends.
FINAL = ("host-key", "key", "missing", "route", "port", "firewall")
RUN = _sshuttle_tunnel.RUN


class Client:
    """The tunnel's end on this host."""

    def __init__(self, module, name):
        self._module = module
        self._name = name
        self.unit = f"startline-vpn-{name}.service"

    def systemctl(self, *words, check=True):
        code, output, errors = self._module.run_command(["systemctl", *words])
        if code and check:
            self._module.fail_json(msg=f"systemctl {' '.join(words)}: {(errors or output).strip()}")
        return code == 0

    def right(self):
        """Whether the service is what it is to be."""
        return self.systemctl("is-active", "--quiet", self.unit, check=False) and self.systemctl(
            "is-enabled", "--quiet", self.unit, check=False
        )

    def start(self, timeout):
        """Start the service and wait until it is active."""
        self.systemctl("enable", "--quiet", self.unit)
        ends = time.monotonic() + timeout
        while not self.systemctl("start", self.unit, check=False):
            problem = self.problem()
            if problem["kind"] in FINAL or time.monotonic() > ends:
                self._module.fail_json(
                    msg=f"No tunnel: {problem['text']}. {self.unit} goes on trying (journalctl -u {self.unit}).",
                    problem=problem,
                )
        # So that systemd counts what comes after: it had to start anew until both ends were there.
        self.systemctl("reset-failed", self.unit)

    def problem(self):
        """Why there is no tunnel, as the service says."""
        text = read(f"{RUN.format(name=self._name)}/problem")
        if text:
            return json.loads(text)
        _code, output, _errors = self._module.run_command(
            ["journalctl", "--unit", self.unit, "--lines", "5", "--output", "cat", "--no-pager"]
        )
        return {"kind": "unknown", "text": f"{self.unit} does not start: {output.strip()}"}

    def ask(self, *words):
        """What the program says to a question."""
        command = [sys.executable, "-IS", _sshuttle.PROGRAM, words[0], self._name, *words[1:]]
        code, output, errors = self._module.run_command(command)
        if code:
            self._module.fail_json(msg=errors.strip())
        return json.loads(output)


def present(module, client):
    """Have the tunnel."""
    tunnel = _sshuttle.parse_tunnel(module.params)
    seconds = _sshuttle.parse_measure(module.params["measure"])
    source = pkgutil.get_data(_sshuttle_tunnel.__name__.rpartition(".")[0], "_sshuttle_tunnel.py").decode("utf-8")
    files = _sshuttle.client_files(tunnel, module.params["private_key"], source, sys.executable)
    different = [file for file in files if file.differs()]
    changed = bool(different) or not client.right()
    result = {"changed": changed, "diff": _sshuttle.difference(different)}
    if module.check_mode:
        return result
    if changed:
        if different and os.path.exists(f"{_sshuttle.UNITS}/{tunnel.unit}"):
            client.systemctl("stop", tunnel.unit)
        for file in different:
            ensure(file.path, file.text, file.mode, 0o700 if file.path.startswith("/etc/startline/") else 0o755)
        client.systemctl("daemon-reload")
        client.start(module.params["timeout"])
    result["probe"] = client.ask("probe")
    if seconds:
        result["throughput"] = client.ask("measure", str(seconds))
    return result


def absent(module, client, name):
    """Leave nothing of the tunnel."""
    unit = f"{_sshuttle.UNITS}/{client.unit}"
    directory = f"{_sshuttle.ETC}/{name}"
    # systemd removes the last one, but not of a unit that is stopped between two starts.
    here = [path for path in (unit, directory, RUN.format(name=name)) if os.path.lexists(path)]
    result = {"changed": bool(here), "diff": {"before": "".join(f"{path}\n" for path in here), "after": ""}}
    if here and not module.check_mode:
        if unit in here:
            client.systemctl("disable", "--quiet", "--now", client.unit)
        for path in here:
            remove(path)
        client.systemctl("daemon-reload")
        client.systemctl("reset-failed", client.unit, check=False)
        if not os.path.isdir(_sshuttle.ETC) or not os.listdir(_sshuttle.ETC):
            # The last tunnel takes the program with it.
            for path in (_sshuttle.ETC, _sshuttle.LIBRARY, _sshuttle_tunnel.LOCKS):
                remove(path)
            parent = os.path.dirname(_sshuttle.ETC)
            if os.path.isdir(parent) and not os.listdir(parent):
                remove(parent)
    return result


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "name": {"type": "str", "default": "default"},
            "gateway": {"type": "str"},
            "port": {"type": "int", "default": 7422},
            "account": {"type": "str", "default": _sshuttle.ACCOUNT},
            "private_key": {"type": "str", "no_log": True},
            "host_keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "networks": {"type": "list", "elements": "str", "default": []},
            "exclude": {"type": "list", "elements": "str", "default": []},
            "probe": {"type": "str"},
            "buffer": {"type": "int", "default": 1048576},
            "measure": {"type": "float", "default": 0},
            "timeout": {"type": "int", "default": 60},
        },
        required_if=[("state", "present", ["gateway", "private_key"])],
        supports_check_mode=True,
    )
    try:
        name = _sshuttle.parse_name(module.params["name"])
        client = Client(module, name)
        result = present(module, client) if module.params["state"] == "present" else absent(module, client, name)
    except SshuttleError as exc:
        module.fail_json(msg=str(exc))
    except OSError as exc:
        module.fail_json(msg=f"{exc.filename}: {exc.strerror}: a tunnel needs root (become: true)")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
