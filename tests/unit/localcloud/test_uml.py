# SPDX-License-Identifier: GPL-3.0-or-later
"""What user-mode Linux is started with on a processor whose registers it has no room for."""

from __future__ import annotations

import concurrent.futures
import ctypes
import pathlib

import pytest

from localcloud import machine, uml
from localcloud.machine import CloudError


def test_hosts_that_boot_at_once_have_one_library(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uml, "_has_amx", lambda: True)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _number: uml.environment(tmp_path), range(4)))
    assert found == [{"LD_PRELOAD": str(tmp_path / "uml_xstate.so")}] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["uml_xstate.so"]
    assert ctypes.CDLL(found[0]["LD_PRELOAD"]).ptrace


def test_other_processors_need_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uml, "_has_amx", lambda: False)
    assert (uml.missing(), uml.environment(tmp_path)) == ("", {})


def test_a_missing_compiler_is_named_with_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uml, "_has_amx", lambda: True)
    monkeypatch.setattr(machine.shutil, "which", lambda name: None if name == "cc" else f"/bin/{name}")
    with pytest.raises(CloudError, match=r"missing here: cc\nInstall with: sudo apt-get install -y gcc libc6-dev"):
        machine.require_tools()
