# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import typing as t

from ansible_collections.startline.lab.plugins.module_utils import _agent
from ansible_collections.startline.lab.plugins.module_utils._agent import mailbox
from ansible_collections.startline.lab.plugins.plugin_utils import _mailbox, _tls
from ansible_collections.startline.lab.plugins.plugin_utils._aws import AwsOptions

#: What makes ``python -m AGENT`` run the clone's agent.
SOURCE = str(pathlib.Path(_agent.__file__).absolute().parents[2])
AGENT = "module_utils._agent.cli"
RUN = "test-20260101T000000Z-abcd"
#: Of mailboxes: nobody pays for the requests here.
PACE = mailbox.Pace(0.1, 0.3)


def free_port() -> int:
    """A TCP port of loopback that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: t.Callable[[], t.Any], limit: float = 20.0, what: str = "it") -> t.Any:
    """The first true value of `condition`."""
    give_up = time.monotonic() + limit
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < give_up, f"{what} did not happen within {limit} s"
        time.sleep(0.01)


class World:
    """Starts, kills and restarts the processes; `close` leaves nothing behind."""

    def __init__(self, directory: pathlib.Path, members: t.Iterable[str], python: str = sys.executable) -> None:
        self.directory = directory
        self.members = list(members)
        self.python = python
        self.port = free_port()
        self.run_id = RUN
        self.extra_environment: dict[str, str] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._now = datetime.datetime.now(datetime.UTC)
        self._expires = self._now + datetime.timedelta(hours=3)
        self.tls = _tls.Directory(directory / "tls", RUN)
        authority = self.tls.authority(self._now, self._expires)
        self.write("ca.crt", authority.certificate)
        for member in self.members:
            self.configure(member)
        served = self.tls.rendezvous(self._now, self._expires)
        self.write("rendezvous.crt", served.certificate)
        self.write("rendezvous.key", served.key)
        self.configure("rendezvous", serve=True)

    # -- files --

    def write(self, name: str, text: str) -> str:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        return str(path)

    def configure(self, member: str, serve: bool = False, **changes: t.Any) -> None:
        """Write the configuration and the certificate of a member."""
        own = self.tls.member(member, self._now, self._expires)
        config = {
            "run_id": RUN,
            "member": member,
            "rendezvous_address": "127.0.0.1",
            "rendezvous_port": self.port,
            "ca": str(self.directory / "ca.crt"),
            "certificate": self.write(f"{member}/member.crt", own.certificate),
            "key": self.write(f"{member}/member.key", own.key),
            "state_directory": str(self.directory / member / "state"),
            "runtime_directory": str(self.directory / member / "run"),
            "listen_address": "127.0.0.1",
            "shared": True,
        }
        if serve:
            config.update(
                rendezvous_certificate=str(self.directory / "rendezvous.crt"),
                rendezvous_key=str(self.directory / "rendezvous.key"),
            )
        config.update(changes)
        self.write(f"{member}/agent.json", json.dumps(config))

    def spool(self, member: str, trial: str = "r1", attempt: int = 1) -> pathlib.Path:
        return self.directory / member / "state" / "trials" / RUN / trial / str(attempt)

    def log(self, name: str) -> str:
        return (self.directory / name / "log").read_text(encoding="utf-8")

    def use_mailboxes(self, endpoint_url: str, *members: str) -> None:
        """Have these members reach the rendezvous through the object store at `endpoint_url`."""
        keys = {"access_key": "key-of-a-test", "secret_key": "secret-of-a-test"}
        options = AwsOptions(region="us-east-1", endpoint_url=endpoint_url, **keys)
        place = _mailbox.Place("lab", f"dkg/{RUN}", "us-east-1", endpoint_url, PACE)
        made = _mailbox.Directory(self.directory / "mail", RUN, place)
        for member in members:
            text = made.member(member, lambda: options.client("s3"))
            self.configure(member, mailbox=self.write(f"{member}/mailbox.json", text), rendezvous_port=1)
        self.configure("rendezvous", serve=True, mailboxes=self.write("mailboxes.json", made.rendezvous()))
        self.extra_environment = {
            "AWS_ACCESS_KEY_ID": keys["access_key"],
            "AWS_SECRET_ACCESS_KEY": keys["secret_key"],
        }

    # -- processes --

    def command(self, name: str, *arguments: str) -> list[str]:
        return [self.python, "-m", AGENT, "--config", str(self.directory / name / "agent.json"), *arguments]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": SOURCE, **self.extra_environment}

    def start(self, *names: str) -> None:
        """Start the rendezvous (``rendezvous``) or agents (by name)."""
        for name in names:
            role = "rendezvous" if name == "rendezvous" else "run"
            with open(self.directory / name / "log", "ab") as log:
                self._processes[name] = subprocess.Popen(
                    self.command(name, role), env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )

    def start_all(self) -> None:
        self.start("rendezvous", *self.members)

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        process = self._processes.pop(name)
        process.send_signal(number)
        process.wait(20)

    def close(self) -> None:
        for name in list(self._processes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.kill(name, signal.SIGTERM)
        # Launchers outlive their agents on purpose; end those of this world.
        for lock in self.directory.glob("*/state/trials/*/*/*/lock"):
            from ansible_collections.startline.lab.plugins.module_utils._agent import launcher

            pid = launcher.supervisor_of(str(lock.parent))
            if pid is not None:
                os.kill(pid, signal.SIGTERM)
                until(lambda lock=lock: launcher.supervisor_of(str(lock.parent)) is None, what="the end of a launcher")

    # -- the controller --

    def trial(self, command: str = "true", trial_id: str = "r1", **changes: t.Any) -> dict[str, t.Any]:
        """Arguments of start_barrier."""
        commands = changes.pop("commands", {})
        return {
            "run_id": RUN,
            "trial_id": trial_id,
            "attempt": 1,
            "members": [
                {"name": name, "rank": rank, "command": commands.get(name, command), "environment": {}}
                for rank, name in enumerate(self.members)
            ],
            "files": {"hosts.config": "127.0.0.1\n" * len(self.members)},
            "links": {},
            "deadline": 20,
            "timeout": 20,
            "delivery_deadline": 20,
            "grace": 5,
            "form": False,
            "on_early_exit": "continue",
            "max_clock_error": 0.05,
            "on_clock_error": "mark",
            "collect": ["*.log"],
            "user": None,
            "evidence": None,
            **changes,
        }

    def submit(self, trial: dict[str, t.Any], *arguments: str) -> subprocess.Popen[str]:
        """Submit a trial; the process writes its result."""
        process = subprocess.Popen(
            self.command("rendezvous", "submit", *arguments),
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        json.dump(trial, process.stdin)
        process.stdin.close()
        process.stdin = None
        return process

    def result(self, process: subprocess.Popen[str], limit: float = 60.0) -> dict[str, t.Any]:
        output, errors = process.communicate(timeout=limit)
        assert process.returncode == 0, errors
        return json.loads(output)

    def run(self, trial: dict[str, t.Any], *arguments: str) -> dict[str, t.Any]:
        return self.result(self.submit(trial, *arguments))

    def status(self) -> dict[str, t.Any]:
        done = subprocess.run(
            self.command("rendezvous", "status"), env=self.environment, check=True, capture_output=True, text=True
        )
        return json.loads(done.stdout)

    def state(self, member: str, trial_id: str = "r1") -> str | None:
        """The state of a member in a trial as the rendezvous has it."""
        for trial in self.status()["trials"]:
            if trial["epoch"]["trial"] == trial_id:
                return trial["members"].get(member)
        return None
