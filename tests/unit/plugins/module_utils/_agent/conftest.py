# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the agent's tests."""

from __future__ import annotations

import pathlib
import typing as t

import pytest

from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent.world import World


@pytest.fixture
def make_world(tmp_path: pathlib.Path) -> t.Iterator[t.Callable[..., World]]:
    """Makes worlds of real processes on loopback; ends them afterwards."""
    worlds: list[World] = []

    def make(count: int = 2, **options: t.Any) -> World:
        world = World(tmp_path / f"world{len(worlds)}", [f"party-{i}" for i in range(count)], **options)
        worlds.append(world)
        return world

    yield make
    for world in worlds:
        world.close()
