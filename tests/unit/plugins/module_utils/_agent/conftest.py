# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the agent's tests."""

from __future__ import annotations

import pathlib
import tempfile
import typing as t

import pytest

from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent.world import World


@pytest.fixture
def tmp_path() -> t.Iterator[pathlib.Path]:
    """pytest's own is too deep for a socket, whose path has 108 bytes, where tests are spread over processes."""
    with tempfile.TemporaryDirectory(prefix="agent-", ignore_cleanup_errors=True) as directory:
        yield pathlib.Path(directory)


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
