# SPDX-License-Identifier: GPL-3.0-or-later
"""A kept run on the local cloud, for tests that hand trials to its rendezvous themselves and hurt its hosts meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import typing as t

from ansible_collections.startline.lab.plugins.plugin_utils import _barrier_call
from localcloud.daemon import RECORD
from tests.support.commands import PROJECT, playbook

Json = dict[str, t.Any]


def until(condition: t.Callable[[], t.Any], limit: float, what: str) -> t.Any:
    """The first true value of `condition`, which asks a host and so takes its time."""
    give_up = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < give_up, f"{what}: not within {limit:g} s"
        time.sleep(0.1)
    return value


@dataclasses.dataclass
class Pending:
    """A trial that somebody waits for."""

    epoch: Json
    process: subprocess.Popen[str]
    began: float

    def result(self, limit: float = 120) -> Json:
        """Its trial.json."""
        output, errors = self.process.communicate(timeout=limit)
        answer = _barrier_call.parse(self.process.returncode, output, errors)
        assert answer.result is not None, answer.problem
        return answer.result


class Lab:
    """The hosts of one run that was started with keep=true. Its first member is the rendezvous' host."""

    def __init__(self, experiment: pathlib.Path, *words: str) -> None:
        kept = playbook("site.yml", "-e", f"exp={experiment}", "-e", "keep=true", *words)
        assert kept.returncode == 0, kept.output[-6000:]
        self.run_id = kept.run_id
        self.private = PROJECT / ".startline" / "runs" / self.run_id
        self._numbers = itertools.count(1)
        self._control = tempfile.mkdtemp(prefix="startline-lab-")  # short: a socket's path has 108 bytes
        self.plan: Json = json.loads((self.private / "plan.json").read_text())
        self.members = [member["name"] for member in self.plan["members"]]
        self.addresses: dict[str, str] = {}

    def find(self, ec2: t.Any) -> None:
        """Learn the hosts' addresses and instances."""
        self.instances, self.private_addresses, self.vpcs = {}, {}, {}
        tagged = [{"Name": "tag:startline:run", "Values": [self.run_id]}]
        for reservation in ec2.describe_instances(Filters=tagged)["Reservations"]:
            for instance in reservation["Instances"]:
                tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
                if instance["State"]["Name"] == "running":
                    name = f"{tags['startline:group']}-{tags['startline:index']}"
                    self.addresses[name] = instance["PublicIpAddress"]
                    self.private_addresses[name] = instance["PrivateIpAddress"]
                    self.instances[name] = instance["InstanceId"]
                    self.vpcs[name] = instance["VpcId"]

    def close(self) -> None:
        """Remove everything."""
        for member in self.addresses:
            subprocess.run(["ssh", "-O", "exit", *self.ssh_command(member, "")[1:-1]], capture_output=True, check=False)
        shutil.rmtree(self._control, ignore_errors=True)
        gone = playbook("playbooks/destroy.yml", "-e", f"run={self.run_id}")
        assert gone.returncode == 0, gone.output[-4000:]

    # -- hosts --

    def ssh_command(self, member: str, command: str) -> list[str]:
        """The words that run a command as root on a host; connections are kept for a minute."""
        options = {
            "IdentityFile": self.private / "ssh_key",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.private / "known_hosts",
            "StrictHostKeyChecking": "accept-new",
            "ConnectTimeout": 10,
            "ServerAliveInterval": 5,
            "LogLevel": "ERROR",
            "ControlMaster": "auto",
            "ControlPersist": "60",
            "ControlPath": f"{self._control}/%C",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", *words, f"admin@{self.addresses[member]}", f"sudo sh -c {shlex.quote(command)}"]

    def shell(self, member: str, command: str, *, check: bool = True, stdin: str = "") -> str:
        """What a command of root on a host prints."""
        done = subprocess.run(
            self.ssh_command(member, command), input=stdin, capture_output=True, text=True, timeout=120, check=False
        )
        assert not check or done.returncode == 0, f"{member}: {command}: {done.stderr}"
        return done.stdout

    @contextlib.contextmanager
    def cut(self, member: str) -> t.Iterator[None]:
        """Take a host's link down, as a pulled cable would, and up again at the end."""
        self._link(member, "down")
        try:
            yield
        finally:
            self._link(member, "up")

    def _link(self, member: str, state: str) -> None:
        # The namespaces of the local cloud have their names in its daemon's mounts alone.
        daemon = json.loads(RECORD.read_text())["pid"]
        port = f"h-{self.instances[member].rpartition('-')[2][:11]}"
        switch = ["nsenter", f"--target={daemon}", "--mount", "ip", "-n", self.vpcs[member], "link", "set", port]
        subprocess.run([*switch, state], check=True)

    def _init(self, member: str) -> int:
        """The first process of a host of the machine's own kernel."""
        machine = f"systemd-nspawn .*--machine={self.instances[member]}"
        nspawn = subprocess.check_output(["pgrep", "--full", machine], text=True).strip()
        return int(subprocess.check_output(["pgrep", "--parent", nspawn], text=True))

    def spool(self, member: str, pending: Pending) -> pathlib.Path:
        """Where a host of the machine's own kernel has a trial's record and evidence; within reach even when it is cut off."""
        where = "/".join(str(part) for part in pending.epoch.values())
        return pathlib.Path(f"/proc/{self._init(member)}/root/var/lib/startline/trials/{where}")

    def power_off(self, member: str) -> None:
        """End a host of the machine's own kernel for good, as a power cut does: it says nothing to anybody any more."""
        self._link(member, "down")
        os.kill(self._init(member), signal.SIGKILL)

    def kill_at_start(self, member: str, pending: Pending) -> float:
        """Kill a host of the machine's own kernel at T of a trial; how late that was (s).

        T is what the agent has written down when it was told, some 60 ms before. Hosts and machine read one clock."""
        init = self._init(member)
        record = self.spool(member, pending) / "record.json"
        give_up = time.monotonic() + 30
        start_ns = None
        while start_ns is None:
            assert time.monotonic() < give_up, f"{member}: {record} has no T"
            time.sleep(0.001)
            with contextlib.suppress(FileNotFoundError):
                start_ns = json.loads(record.read_text())["start_ns"]
        while (left := start_ns - time.time_ns()) > 0:
            time.sleep(left / 1e9)
        os.kill(init, signal.SIGKILL)
        return (time.time_ns() - start_ns) / 1e9

    def status(self) -> Json:
        """What the rendezvous says of its agents and trials."""
        found: Json = json.loads(self.shell(self.members[0], "startline-agent status"))
        return found

    def connected(self, *members: str) -> bool:
        """Whether these members' agents are with the rendezvous."""
        return set(members) <= set(self.status()["connected"])

    # -- trials --

    def new_trial_id(self) -> str:
        """Of a trial that the run has not had."""
        return f"t{next(self._numbers)}"

    def trial(self, command: str, *, members: t.Sequence[str] = (), **arguments: t.Any) -> Json:
        """What start_barrier would submit."""
        given = {
            "run_id": self.run_id,
            "trial_id": self.new_trial_id(),
            "attempt": 1,
            "members": [
                {"name": name, "rank": rank, "command": command, "environment": {}, "links": {}}
                for rank, name in enumerate(members or self.members)
            ],
            "files": {},
            "links": {},
            "deadline": 20.0,
            "timeout": 30.0,
            "delivery_deadline": 30.0,
            "seats": None,
            "grace": 5.0,
            "on_early_exit": "continue",
            "max_clock_error": 0.5,
            "on_clock_error": "mark",
            "collect": [],
            "user": None,
            "evidence": {
                "bucket": "startline-local",
                "prefix": f"{self.plan['experiment']}/{self.run_id}",
                "region": "us-east-1",
                "endpoint_url": "http://198.18.0.1:4566",
            },
        }
        return _barrier_call.submission({**given, **arguments})

    def submit(self, trial: Json, wait: str = "delivered") -> Pending:
        """Hand it to the rendezvous and go on; `Pending.result` waits."""
        process = subprocess.Popen(
            self.ssh_command(self.members[0], f"startline-agent submit --wait {wait}"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin
        process.stdin.write(json.dumps(trial))
        process.stdin.close()
        process.stdin = None
        return Pending(
            {"run": self.run_id, "trial": trial["trial_id"], "attempt": trial["attempt"]}, process, time.monotonic()
        )

    def run(self, command: str, **arguments: t.Any) -> Json:
        """The result of a trial."""
        return self.submit(self.trial(command, **arguments)).result()

    def member_state(self, pending: Pending, member: str) -> str:
        """The state in which the rendezvous last saw a member of a trial."""
        for trial in self.status()["trials"]:
            if trial["epoch"] == pending.epoch:
                return str(trial["members"].get(member, "unknown"))
        return "unknown"

    def phase(self, pending: Pending) -> str:
        """gathering, running, ended, settled; or unknown."""
        for trial in self.status()["trials"]:
            if trial["epoch"] == pending.epoch:
                return str(trial["phase"])
        return "unknown"

    def reach(self, pending: Pending, phase: str, limit: float = 30) -> None:
        """Wait until a trial is in a phase."""
        until(lambda: self.phase(pending) == phase, limit, f"{pending.epoch['trial']} {phase}")
