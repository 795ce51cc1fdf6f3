# SPDX-License-Identifier: GPL-3.0-or-later
"""The launcher, as real processes."""

from __future__ import annotations

import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import typing as t

import pytest

from ansible_collections.startline.lab.plugins.module_utils._agent import launcher
from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent.world import SOURCE


class Launch:
    """One armed launcher that is its own test's child."""

    def __init__(self, spool: pathlib.Path, command: str, **changes: t.Any) -> None:
        self.spool = str(spool)
        program = launcher.Program(command, self.spool, {"PATH": os.environ["PATH"]}, 10.0)._replace(**changes)
        self.handle = launcher.arm(self.spool, program)
        self.events = launcher.follow(self.spool)

    def wait(self, byte: bytes) -> None:
        poll = select.poll()
        poll.register(self.events, select.POLLIN)
        assert poll.poll(5000)
        assert byte in os.read(self.events, 10)

    def fire(self, seconds: float = 0.02) -> int:
        start_ns = time.monotonic_ns() + int(seconds * 1e9)
        launcher.fire(self.handle, start_ns)
        return start_ns

    def end(self) -> dict[str, t.Any] | None:
        os.waitpid(self.handle.pid, 0)
        os.close(self.events)
        return launcher.read_record(self.spool, "exit.json")


def test_it_starts_at_t_and_not_before(tmp_path: pathlib.Path) -> None:
    launch = Launch(tmp_path, "cut -d' ' -f1 /proc/uptime")
    launch.wait(b"r")
    start_ns = launch.fire(0.2)
    end = launch.end()
    fired = launcher.read_record(str(tmp_path), "fired.json")
    assert fired is not None
    assert fired["noticed_ns"] < start_ns <= fired["fired_ns"] <= fired["reading"][1]
    # The kernel says the time since boot in hundredths of a second, cut off.
    assert start_ns - 10**7 <= float((tmp_path / "stdout").read_text()) * 1e9
    assert end is not None
    assert (end["code"], end["signal"], end["leftovers"], end["detail"]) == (0, None, 0, None)
    assert 0 < end["duration_ns"] < 10**9
    assert end["at_ns"] >= fired["fired_ns"]


def test_released_it_starts_nothing(tmp_path: pathlib.Path) -> None:
    launch = Launch(tmp_path, "touch started")
    launch.wait(b"r")
    assert launcher.supervisor_of(str(tmp_path)) == launch.handle.pid
    assert not launcher.started_nothing(str(tmp_path)), "not yet"
    launcher.release(launch.handle)
    assert launch.end() is None
    assert launcher.started_nothing(str(tmp_path))
    assert not (tmp_path / "started").exists()
    assert launcher.supervisor_of(str(tmp_path)) is None


def test_a_stop_before_t_starts_nothing(tmp_path: pathlib.Path) -> None:
    launch = Launch(tmp_path, "touch started")
    launch.wait(b"r")
    launch.fire(0.3)
    assert launcher.stop(str(tmp_path))
    assert launch.end() == {"unfit": "cannot start the command: stopped before T"}
    assert not (tmp_path / "started").exists()


def test_a_stop_after_t_ends_the_command(tmp_path: pathlib.Path) -> None:
    launch = Launch(tmp_path, "exec sleep 60")
    launch.wait(b"r")
    launch.fire()
    launch.wait(b"f")
    assert launcher.stop(str(tmp_path))
    end = launch.end()
    assert end is not None
    assert (end["signal"], end["stopped"], end["timed_out"]) == (15, True, False)
    assert not launcher.stop(str(tmp_path)), "there is nobody left to stop"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"directory": "/no/such/directory"}, "cannot make the command ready: [Errno 2]"),
        ({"environment": {"A": "nul\0"}}, "cannot make the command ready: embedded null byte"),
        ({"command": "x" * (3 * 1024 * 1024)}, "cannot make the command ready: [Errno 7] Argument list too long"),
    ],
)
def test_a_command_that_cannot_be_started_is_told(
    tmp_path: pathlib.Path, changes: dict[str, t.Any], words: str
) -> None:
    end = Launch(tmp_path, changes.pop("command", "true"), **changes).end()
    assert end is not None
    assert words in end["unfit"]
    assert launcher.read_record(str(tmp_path), "fired.json") is None


def test_a_shell_that_ends_before_t_is_told(tmp_path: pathlib.Path) -> None:
    launch = Launch(tmp_path, "touch started")
    launch.wait(b"r")
    children = pathlib.Path(f"/proc/{launch.handle.pid}/task/{launch.handle.pid}/children").read_text().split()
    os.kill(int(*children), signal.SIGKILL)
    assert launch.end() == {"unfit": "cannot make the command ready: its shell has ended"}
    launcher.release(launch.handle)
    assert not (tmp_path / "started").exists()


def test_a_shell_that_never_comes_is_given_up_with_the_launcher(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sh").write_text("#!/bin/sh\nexec sleep 3600\n")
    (tmp_path / "sh").chmod(0o755)
    monkeypatch.setattr(launcher, "SHELL", str(tmp_path / "sh"))
    launch = Launch(tmp_path, "true")
    launcher.release(launch.handle)
    assert launch.end() is None


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_the_command_is_the_shells_that_has_waited(
    tmp_path: pathlib.Path, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script of several lines, with syntax that is read only at T, no input, and a last command that takes the shell's place."""
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"there is no {shell} here")
    (tmp_path / "sh").symlink_to(found)  # by this name, bash is what it is as /bin/sh
    monkeypatch.setattr(launcher, "SHELL", str(tmp_path / "sh"))
    launch = Launch(tmp_path, "echo $# $$; cat\ncat <<X\ntext\nX\nexec sh -c 'echo $$; kill -9 $$'")
    launch.wait(b"r")
    launch.fire()
    end = launch.end()
    assert end is not None
    assert end["signal"] == 9
    counted, process, text, last = (tmp_path / "stdout").read_text().split()
    assert (counted, text) == ("0", "text")
    assert process == last
    wrong = Launch(tmp_path, "echo first\n(")
    wrong.wait(b"r")
    wrong.fire()
    end = wrong.end()
    assert end is not None
    assert end["code"] == 2, "a mistake in the command is the command's"
    assert (tmp_path / "stdout").read_text() == "first\n"


def test_only_standard_streams_are_inherited(tmp_path: pathlib.Path) -> None:
    secret = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(secret, True)
    launch = Launch(tmp_path, "ls /proc/self/fd | wc -l")
    launch.fire()
    launch.end()
    os.close(secret)
    assert (tmp_path / "stdout").read_text().strip() == "4"  # the three, and the one that ls reads


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_it_runs_as_the_asked_user(tmp_path: pathlib.Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    for directory in (work, tmp_path):
        directory.chmod(0o755)
    launch = Launch(tmp_path, "id -u; id -g; id -G", directory="/", uid=65534, gid=65534, groups=(65534,))
    launch.fire()
    launch.end()
    assert (tmp_path / "stdout").read_text().split() == ["65534"] * 3


def test_records_are_written_whole(tmp_path: pathlib.Path) -> None:
    launcher.write_record(str(tmp_path), "a.json", {"x": 1})
    launcher.write_record(str(tmp_path), "a.json", {"x": 2})
    assert launcher.read_record(str(tmp_path), "a.json") == {"x": 2}
    assert launcher.read_record(str(tmp_path), "b.json") is None
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_sleep_ends_at_once_when_the_instant_has_passed() -> None:
    begin = time.monotonic()
    launcher.sleep_until(time.monotonic_ns() - 10**12)
    assert time.monotonic() - begin < 0.1


def test_a_port_that_is_taken_after_the_end_is_told(tmp_path: pathlib.Path) -> None:
    launch = Launch(tmp_path, "cat go")
    os.mkfifo(tmp_path / "go")
    launch.wait(b"r")
    launch.fire()
    launch.wait(b"f")
    with socket.create_server(("127.0.0.1", 0)) as listener:  # somebody who is not below the command
        (tmp_path / "go").write_text("")
        end = launch.end()
        assert end is not None
        assert (listener.getsockname()[1], os.getpid()) in [(entry["port"], entry["pid"]) for entry in end["ports"]]
    assert end["remaining"] == []


TREE = """
import os, subprocess, sys
from module_utils._agent import launcher

launcher.STOP_GRACE = 0.3
spool, group = sys.argv[1:]
if group:
    with open(group + "/cgroup.procs", "w") as stream:
        stream.write(str(os.getpid()))
program = launcher.Program(open(spool + "/command").read(), spool, {"PATH": os.environ["PATH"]}, 1.0)
handle = launcher.arm(spool, program)
launcher.fire(handle, 0)
os.waitpid(handle.pid, 0)
"""


@pytest.mark.parametrize("way", ["cgroup", "subreaper"])
@pytest.mark.parametrize("end", ["exit 0", "sleep 60"])
def test_nothing_of_a_tree_is_left(tmp_path: pathlib.Path, way: str, end: str) -> None:
    """Processes that have left their session and their parent, twice over, and do not listen to TERM."""
    group = None
    if way == "cgroup":
        root = pathlib.Path("/sys/fs/cgroup")
        root = root / "unified" if (root / "unified").is_dir() else root
        group = root / f"startline-test-{os.getpid()}" / "startline-agent.service"
        try:
            group.mkdir(parents=True)
        except OSError as error:
            pytest.skip(f"no cgroup of our own: {error}")
    marker = str(60000 + os.getpid())
    deaf = f"trap '' TERM; (setsid sleep {marker} &); while :; do sleep {marker}; done"
    seen = "cat /proc/self/cgroup"
    (tmp_path / "command").write_text(f'{seen}; (setsid sh -c "{deaf}" >/dev/null 2>&1 &); {end}')
    arguments = [sys.executable, "-c", TREE, str(tmp_path), str(group or "")]
    try:
        subprocess.run(arguments, env={**os.environ, "PYTHONPATH": SOURCE}, check=True, timeout=30)
    finally:
        if group is not None:
            group.rmdir()  # fails if the trial's cgroup below it is still there, which only goes when it is empty
            group.parent.rmdir()
    assert ("/startline-agent.service/trial-" in (tmp_path / "stdout").read_text()) == (group is not None)
    record = launcher.read_record(str(tmp_path), "exit.json")
    assert record is not None
    assert (record["remaining"], record["timed_out"]) == ([], end != "exit 0")
    assert not [
        path
        for path in pathlib.Path("/proc").glob("[0-9]*/cmdline")
        if marker.encode() in (path.read_bytes() if path.exists() else b"")
    ]
