# SPDX-License-Identifier: GPL-3.0-or-later
"""What is missing is said with its remedy; commands that fail say what they said."""

from __future__ import annotations

import pytest

from localcloud import machine
from localcloud.machine import CloudError


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
