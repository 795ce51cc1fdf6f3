# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes are named by pid and start time; commands that fail say what they said."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from localcloud import machine
from localcloud.machine import CloudError, Process


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])


def test_a_process_is_known_to_be_gone_and_not_taken_for_another() -> None:
    with sleeper() as child:
        process = Process.of(child.pid)
        assert process is not None
        assert process.alive()
        assert not replace(process, started=process.started - 1).alive()
        child.kill()
        child.wait(10)
        assert not process.alive()


def test_this_process_is_current() -> None:
    assert Process.current() == Process.of(os.getpid())


def test_a_failing_command_is_named_with_its_words() -> None:
    with pytest.raises(CloudError, match=r"`sh -c echo no >&2; exit 3` failed \(3\): no"):
        machine.run("sh", "-c", "echo no >&2; exit 3")


def test_missing_programs_are_named_with_their_packages_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda name: None if name in ("nft", "mmdebstrap") else f"/bin/{name}")
    with pytest.raises(CloudError, match=r"missing here: mmdebstrap, nft\nInstall with: .* mmdebstrap nftables"):
        machine.require_tools()


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    with pytest.raises(CloudError, match="Linux only\n"):
        machine.require_tools()


def test_without_root_and_sudo_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    with pytest.raises(CloudError, match=r"needs root: .*\nRun: sudo "):
        machine.become_root()
