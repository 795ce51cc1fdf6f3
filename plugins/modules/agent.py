#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Installs the agent on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: agent
short_description: Install the agent that starts trials, and the rendezvous, on a host
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Installs C(startline-agent) with its configuration and certificates, and runs it as a systemd service. One task is the whole
    set-up of a host.
  - On the coordinator host, O(rendezvous=true) runs the meeting point that all agents of the run connect to as well.
  - The certificates are made on the controller, by an authority of the run's own, and reused as long as they are good. They
    live in O(tls_directory); an agent and a rendezvous of different runs refuse each other.
  - Services are restarted only when something of theirs has changed. A command that an earlier agent has started goes on.
notes:
  - Needs root on the host, systemd, and Python 3.7 or newer there; the agent itself uses nothing but the standard library. The
    rendezvous needs boto3 on its host if trials have evidence to upload.
  - The agent runs with the Python interpreter that Ansible uses on the host.
requirements:
  - cryptography >= 42, on the controller
attributes:
  check_mode:
    description: Says what would change, and changes nothing on the host.
    support: full
  diff_mode:
    description: Shows the configuration and the units. Keys and certificates are never shown.
    support: full
  idempotent:
    description: A second run changes nothing.
    support: full
options:
  state:
    description: V(present) installs and starts; V(absent) stops and removes all of it, spooled evidence included.
    type: str
    choices: [present, absent]
    default: present
  run_id:
    description: The run that this host belongs to. Required for O(state=present).
    type: str
  member:
    description: This host's name in the run, V(<group>-<index>). Required for O(state=present).
    type: str
  rendezvous_address:
    description: Address of the coordinator host, as this host reaches it. Required for O(state=present).
    type: str
  rendezvous_port:
    description: TCP port of the rendezvous.
    type: int
    default: 7447
  rendezvous:
    description: Whether this host is the coordinator, and runs the rendezvous beside its agent.
    type: bool
    default: false
  tls_directory:
    description:
      - Directory on the controller with the run's authority and certificates. Made if it is missing, readable by its owner
        only.
      - Required for O(state=present) unless O(ca), O(certificate) and O(key) are given.
    type: path
  expires:
    description:
      - When certificates that are made now stop being good, as ISO 8601 in UTC. The run's expiry is a good choice.
      - Without it they are good for 30 days.
    type: str
  ca:
    description: Certificate of the run's authority (PEM). Usually made by the controller from O(tls_directory).
    type: str
  certificate:
    description: Certificate of the member (PEM). Usually made by the controller from O(tls_directory).
    type: str
  key:
    description: Key of O(certificate) (PEM). Usually made by the controller from O(tls_directory).
    type: str
  rendezvous_certificate:
    description: Certificate of the rendezvous (PEM). Usually made by the controller from O(tls_directory).
    type: str
  rendezvous_key:
    description: Key of O(rendezvous_certificate) (PEM). Usually made by the controller from O(tls_directory).
    type: str
  transport:
    description:
      - How this host reaches the rendezvous.
      - V(s3) is for hosts without a route to it. They leave letters in S3, by signed requests, and hold no credentials.
        A trial starts a few seconds later with them, and their clocks should be disciplined on their own.
    type: str
    choices: [tcp, s3]
    default: tcp
  mailbox_bucket:
    description:
      - Bucket with the mailboxes of members whose O(transport) is V(s3). Required for them, and for the rendezvous if
        there are such members.
    type: str
  mailbox_prefix:
    description: Prefix of the run in O(mailbox_bucket). Required with it.
    type: str
  mailbox:
    description: The member's mailbox (JSON). Usually made by the controller.
    type: str
  mailboxes:
    description: All mailboxes of the run, for the rendezvous (JSON). Usually made by the controller.
    type: str
  imds:
    description:
      - Base address of the instance metadata service, from which the evidence records the instance's identity.
      - An empty string where there is none.
    type: str
    default: http://169.254.169.254
extends_documentation_fragment:
  - startline.lab.aws
"""

EXAMPLES = r"""
- name: Set up the agent on every host of the run
  startline.lab.agent:
    run_id: "{{ run_id }}"
    member: "{{ inventory_hostname }}"
    rendezvous_address: "{{ hostvars['party-0']['private_address'] }}"
    rendezvous: "{{ inventory_hostname == 'party-0' }}"
    tls_directory: "{{ startline_private_dir }}/runs/{{ run_id }}/tls"
  become: true

- name: Set it up on a host that cannot reach the coordinator
  startline.lab.agent:
    run_id: "{{ run_id }}"
    member: "{{ inventory_hostname }}"
    rendezvous_address: "{{ hostvars['party-0']['private_address'] }}"
    tls_directory: "{{ startline_private_dir }}/runs/{{ run_id }}/tls"
    transport: s3
    mailbox_bucket: my-evidence
    mailbox_prefix: "dkg/{{ run_id }}"
    region: us-east-1
  become: true

- name: Remove it from hosts that are to be kept
  startline.lab.agent:
    state: absent
  become: true
"""

RETURN = r"""
changed_parts:
  description: What was changed, as short names.
  returned: always
  type: list
  elements: str
  sample: [program, configuration, certificates, startline-agent.service]
"""

import os
import pkgutil
import py_compile
import shutil
import sys
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.startline.lab.plugins.module_utils._files import write

if t.TYPE_CHECKING:
    # AnsiballZ ships what it sees imported. None of this has to be loaded here: only its source is wanted.
    from ansible_collections.startline.lab.plugins.module_utils import _files, _netem, _netem_host  # noqa: F401
    from ansible_collections.startline.lab.plugins.module_utils._agent import (  # noqa: F401
        agent,
        barrier,
        carrier,
        cli,
        client,
        clock,
        config,
        delivery,
        evidence,
        launcher,
        link,
        log,
        mailbox,
        member,
        named,
        network,
        peers,
        ports,
        presigned,
        probe,
        reactor,
        rendezvous,
        waiters,
        wire,
        workers,
    )

PACKAGE = "ansible_collections.startline.lab.plugins.module_utils"
#: What the agent is made of, and beside it what it shares with modules.
SUBJECTS = (
    "agent",
    "barrier",
    "carrier",
    "cli",
    "client",
    "clock",
    "config",
    "delivery",
    "evidence",
    "launcher",
    "link",
    "log",
    "mailbox",
    "member",
    "named",
    "network",
    "ports",
    "presigned",
    "probe",
    "peers",
    "reactor",
    "rendezvous",
    "waiters",
    "wire",
    "workers",
)
SOURCES = (*(f"_agent/{name}.py" for name in ("__init__", *SUBJECTS)), "_files.py", "_netem.py", "_netem_host.py")

LIBRARY = "/usr/lib/startline"
PROGRAM = "/usr/bin/startline-agent"
ETC = "/etc/startline"
STATE = "/var/lib/startline"
RUN = "/run/startline"
UNITS = "/etc/systemd/system"
AGENT = "startline-agent.service"
RENDEZVOUS = "startline-rendezvous.service"

# The agent finds its package beside itself, and starts faster and smaller without site-packages.
WRAPPER = """\
#!{python} -IS
import sys

sys.path.insert(0, "{library}")
from startline_agent._agent.cli import main

raise SystemExit(main())
"""

AGENT_UNIT = """\
# Installed by startline.lab.agent.
[Unit]
Description=Startline agent
After=network.target
StartLimitIntervalSec=0

[Service]
ExecStart={program} run
Restart=always
RestartSec=0.5
# Commands of trials outlive their agent, and a trial's cgroup below ours ends its tree at once.
KillMode=process
Delegate=yes
# Commands are whatever the experiment asks for: nothing of the host may be hidden from them, nor limited.
LimitNOFILE=1048576
LimitNPROC=infinity
TasksMax=infinity
OOMScoreAdjust=-500

[Install]
WantedBy=multi-user.target
"""

RENDEZVOUS_UNIT = """\
# Installed by startline.lab.agent.
[Unit]
Description=Startline rendezvous
After=network.target
StartLimitIntervalSec=0

[Service]
ExecStart={program} rendezvous
Restart=always
RestartSec=0.5
RuntimeDirectory=startline
RuntimeDirectoryPreserve=yes
LimitNOFILE=1048576
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths={state}
ProtectHome=yes
PrivateTmp=yes
CapabilityBoundingSet=
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictSUIDSGID=yes
LockPersonality=yes

[Install]
WantedBy=multi-user.target
"""


class File(t.NamedTuple):
    """A file as it is to be. `part` is what it belongs to, `show` whether a diff may show it."""

    path: str
    text: str
    mode: int
    part: str
    show: bool = False


def wanted_files(params: t.Mapping[str, t.Any], sources: t.Mapping[str, str], python: str) -> list[File]:
    """Every file of the installation. Pure."""
    tls = ETC + "/tls"
    config = {
        "run_id": params["run_id"],
        "member": params["member"],
        "rendezvous_address": params["rendezvous_address"],
        "rendezvous_port": params["rendezvous_port"],
        "ca": tls + "/ca.crt",
        "certificate": tls + "/member.crt",
        "key": tls + "/member.key",
        "imds": params["imds"] or None,
    }
    package = f"{LIBRARY}/startline_agent"
    files = [File(f"{package}/__init__.py", "", 0o644, "program")]
    files += [File(f"{package}/{name}", text, 0o644, "program") for name, text in sorted(sources.items())]
    files += [
        File(PROGRAM, WRAPPER.format(python=python, library=LIBRARY), 0o755, "program"),
        File(f"{tls}/ca.crt", params["ca"], 0o644, "certificates"),
        File(f"{tls}/member.crt", params["certificate"], 0o644, "certificates"),
        File(f"{tls}/member.key", params["key"], 0o600, "certificates"),
        File(f"{UNITS}/{AGENT}", AGENT_UNIT.format(program=PROGRAM), 0o644, AGENT, True),
    ]
    if params["mailbox"]:
        config["mailbox"] = tls + "/mailbox.json"
        files.append(File(config["mailbox"], params["mailbox"], 0o600, "certificates"))
    if params["rendezvous"] and params["mailboxes"]:
        config["mailboxes"] = tls + "/mailboxes.json"
        files.append(File(config["mailboxes"], params["mailboxes"], 0o600, "certificates"))
    if params["rendezvous"]:
        config["rendezvous_certificate"] = tls + "/rendezvous.crt"
        config["rendezvous_key"] = tls + "/rendezvous.key"
        files += [
            File(f"{tls}/rendezvous.crt", params["rendezvous_certificate"], 0o644, "certificates"),
            File(f"{tls}/rendezvous.key", params["rendezvous_key"], 0o600, "certificates"),
            File(
                f"{UNITS}/{RENDEZVOUS}", RENDEZVOUS_UNIT.format(program=PROGRAM, state=STATE), 0o644, RENDEZVOUS, True
            ),
        ]
    lines = ",\n".join(f'  "{name}": {_json(value)}' for name, value in sorted(config.items()))
    files.append(File(f"{ETC}/agent.json", "{\n" + lines + "\n}\n", 0o600, "configuration", True))
    return files


def _json(value: t.Any) -> str:
    import json

    return json.dumps(value)


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def _differs(file: File) -> bool:
    return _read(file.path) != file.text or (os.stat(file.path).st_mode & 0o7777) != file.mode


def _write(file: File) -> None:
    """Put a file in its place as a whole."""
    directory = os.path.dirname(file.path)
    os.makedirs(directory, 0o700 if directory.startswith(ETC) else 0o755, exist_ok=True)
    write(file.path, file.text, file.mode)


class Host:
    """The host as this module sees and changes it."""

    def __init__(self, module: AnsibleModule) -> None:
        self._module = module
        self.changed: list[str] = []
        self.before: list[str] = []
        self.after: list[str] = []

    def _systemctl(self, *arguments: str, check: bool = True) -> str:
        code, output, errors = self._module.run_command(["systemctl", *arguments])
        if code and check:
            self._module.fail_json(msg=f"systemctl {' '.join(arguments)} failed: {(errors or output).strip()}")
        return str(output).strip()

    def _is(self, unit: str, question: str) -> bool:
        expected = {"is-enabled": "enabled", "is-active": "active"}[question]
        return self._systemctl(question, unit, check=False) == expected

    def note(self, part: str) -> None:
        if part not in self.changed:
            self.changed.append(part)

    def install(self, params: t.Mapping[str, t.Any], sources: t.Mapping[str, str], python: str) -> None:
        """Make the host as it is to be; in check mode, find out what that would change."""
        files = wanted_files(params, sources, python)
        units = [AGENT, RENDEZVOUS] if params["rendezvous"] else [AGENT]
        wanted = {file.path for file in files}
        different = [file for file in files if _differs(file)]
        unwanted = [path for path in self._present() if path not in wanted]
        for file in different:
            self.note(file.part)
            if file.show:
                self.before.append(f"# {file.path}\n{_read(file.path) or ''}")
                self.after.append(f"# {file.path}\n{file.text}")
        if unwanted:
            self.note("program" if any(path.startswith(LIBRARY) for path in unwanted) else "configuration")
        stopped = [unit for unit in units if not (self._is(unit, "is-enabled") and self._is(unit, "is-active"))]
        surplus = RENDEZVOUS not in units and os.path.exists(f"{UNITS}/{RENDEZVOUS}")
        for unit in stopped:
            self.note(unit)
        if self._module.check_mode:
            return
        if surplus:
            self._systemctl("disable", "--now", RENDEZVOUS)
        for path in unwanted:
            os.unlink(path)
        for file in different:
            _write(file)
            if file.path.endswith(".py"):
                py_compile.compile(file.path, doraise=True)
        os.makedirs(STATE, 0o755, exist_ok=True)
        if surplus or any(file.path.startswith(UNITS) for file in different):
            self._systemctl("daemon-reload")
        # The rendezvous' part of the certificates and the configuration is read by it alone, but the agent's costs
        # nothing.
        renewed = bool({"program", "configuration", "certificates"} & set(self.changed))
        for unit in reversed(units):  # the rendezvous first: agents find it at their first try
            if renewed or unit in self.changed:
                if not self._is(unit, "is-enabled"):
                    self._systemctl("enable", unit)
                self._systemctl("restart", unit)

    def _present(self) -> list[str]:
        """Files of an earlier installation that would not be overwritten by this one."""
        found = [f"{UNITS}/{RENDEZVOUS}"]
        found += [
            f"{ETC}/tls/{name}" for name in ("rendezvous.crt", "rendezvous.key", "mailbox.json", "mailboxes.json")
        ]
        for directory, _directories, names in os.walk(f"{LIBRARY}/startline_agent"):
            found += [f"{directory}/{name}" for name in names if name.endswith(".py")]
        return [path for path in found if os.path.exists(path)]

    def remove(self) -> None:
        """Leave nothing of it."""
        units = [unit for unit in (AGENT, RENDEZVOUS) if os.path.exists(f"{UNITS}/{unit}")]
        # Only what is ours: other directories of Startline may stand beside it.
        owned = (LIBRARY, f"{ETC}/tls", f"{STATE}/trials", f"{STATE}/rendezvous")
        trees = [path for path in owned if os.path.exists(path)]
        sockets = (f"{RUN}/agent.sock", f"{RUN}/agent.sock.new", f"{RUN}/rendezvous.sock")
        single = (PROGRAM, f"{ETC}/agent.json", f"{STATE}/mailbox.json", f"{RUN}/host.json", *sockets)
        files = [f"{UNITS}/{unit}" for unit in units] + [path for path in single if os.path.exists(path)]
        for part in (*units, *trees, *files):
            self.note(part)
        if self._module.check_mode:
            return
        for unit in units:
            # With everything in its control group: a trial that runs is ended.
            self._systemctl("disable", "--now", unit)
            self._systemctl("kill", "--signal=SIGKILL", unit, check=False)
        for path in files:
            if os.path.lexists(path):
                os.unlink(path)
        for path in trees:
            shutil.rmtree(path)
        for path in (ETC, STATE, RUN):
            if os.path.isdir(path) and not os.listdir(path):
                os.rmdir(path)
        if units:
            self._systemctl("daemon-reload")


def main() -> None:
    """Run the module."""
    present = ["run_id", "member", "rendezvous_address", "ca", "certificate", "key"]
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "run_id": {"type": "str"},
            "member": {"type": "str"},
            "rendezvous_address": {"type": "str"},
            "rendezvous_port": {"type": "int", "default": 7447},
            "rendezvous": {"type": "bool", "default": False},
            "tls_directory": {"type": "path"},
            "expires": {"type": "str"},
            "ca": {"type": "str"},
            "certificate": {"type": "str"},
            "key": {"type": "str", "no_log": True},
            "rendezvous_certificate": {"type": "str"},
            "rendezvous_key": {"type": "str", "no_log": True},
            "imds": {"type": "str", "default": "http://169.254.169.254"},
            "transport": {"type": "str", "choices": ["tcp", "s3"], "default": "tcp"},
            "mailbox_bucket": {"type": "str"},
            "mailbox_prefix": {"type": "str"},
            "mailbox": {"type": "str", "no_log": True},
            "mailboxes": {"type": "str", "no_log": True},
            # Of the part on the controller alone; hosts never get credentials.
            "region": {"type": "str"},
            "endpoint_url": {"type": "str"},
            "access_key": {"type": "str", "no_log": False},
            "secret_key": {"type": "str", "no_log": True},
            "session_token": {"type": "str", "no_log": True},
        },
        required_if=[
            ("state", "present", present),
            ("rendezvous", True, ["rendezvous_certificate", "rendezvous_key"]),
            ("transport", "s3", ["mailbox"]),
        ],
        supports_check_mode=True,
    )
    host = Host(module)
    try:
        if module.params["state"] == "present":
            sources = {name: (pkgutil.get_data(PACKAGE, name) or b"").decode("utf-8") for name in SOURCES}
            host.install(module.params, sources, sys.executable)
        else:
            host.remove()
    except OSError as error:
        module.fail_json(msg=f"cannot change {error.filename}: {error.strerror}", changed_parts=host.changed)
    diff = {"before": "".join(host.before), "after": "".join(host.after)}
    module.exit_json(changed=bool(host.changed), changed_parts=host.changed, diff=diff)


if __name__ == "__main__":
    main()
