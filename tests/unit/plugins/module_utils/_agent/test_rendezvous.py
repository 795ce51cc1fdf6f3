# SPDX-License-Identifier: GPL-3.0-or-later
"""What the rendezvous does by itself, without a process of its own."""

from __future__ import annotations

import asyncio
import os
import pathlib

import pytest

from ansible_collections.startline.lab.plugins.module_utils._agent import config, rendezvous

from .world import World


def test_the_time_daemon_is_asked_once_for_all_who_measure_at_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "asked"
    daemon = tmp_path / "bin" / "chronyc"
    daemon.parent.mkdir()
    daemon.write_text(f"#!/bin/sh\necho >> {asked}\n")
    daemon.chmod(0o700)
    monkeypatch.setenv("PATH", str(daemon.parent), prepend=os.pathsep)
    world = World(tmp_path / "world", [])

    async def measure() -> None:
        desk = rendezvous.Rendezvous(config.load(str(world.directory / "rendezvous" / "agent.json")))
        for _attempt in range(1000):
            desk.clock_bound()
        await asyncio.gather(*desk._tasks)

    asyncio.run(measure())
    assert asked.read_text() == "\n"
