# SPDX-License-Identifier: GPL-3.0-or-later
"""One rendezvous and ten thousand others: those that say nothing, and those that take part."""

from __future__ import annotations

import json
import pathlib
import resource
import subprocess
import sys
import typing as t

import pytest

from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent.silence import check_silence
from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent.world import World

ROOT = pathlib.Path(__file__).resolve().parents[2]
#: Ten thousand connections, and room for everything else.
DESCRIPTORS = 11_000


@pytest.fixture(autouse=True)
def many_descriptors() -> t.Iterator[None]:
    """Ten thousand connections have two ends on this machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < DESCRIPTORS:
        pytest.fail(
            f"a process may have {hard:,} file descriptors and needs {DESCRIPTORS:,}: ulimit -Hn {DESCRIPTORS}, as root"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def scale(members: int) -> dict[str, float]:
    """What benchmarks/barrier_scale.py measures, on 2 cores that the rendezvous shares with its clients."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/barrier_scale.py"), "--json", "--members", str(members)],
        check=True,
        capture_output=True,
        text=True,
        timeout=900,
    )
    found: dict[str, float] = json.loads(done.stdout)
    print(found)
    return found


def test_ten_thousand_connections_that_say_nothing(make_world: t.Callable[..., World]) -> None:
    check_silence(make_world(2), 10_000)


def test_the_last_of_128_knows_t_at_once() -> None:
    assert scale(128)["publish_last_ms"] < 50


@pytest.mark.parametrize(("members", "seconds", "kib"), [(1000, 10, 60), (10_000, 60, 60)])
def test_agents_are_connected_armed_and_released(members: int, seconds: float, kib: float) -> None:
    found = scale(members)
    assert found["kib_each"] < kib
    assert found["descriptors"] < members + 50
    assert found["total_s"] < seconds, found
