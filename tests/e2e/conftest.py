# SPDX-License-Identifier: GPL-3.0-or-later
"""What the end-to-end tests share: one local cloud for all of them."""

from __future__ import annotations

import json
import typing as t

import pytest

from tests.support.commands import ec2_client, localcloud

_WAS_UP = pytest.StashKey[bool]()


def _is_worker(config: pytest.Config) -> bool:
    """Is this one of the processes that pytest-xdist spreads the tests over?"""
    return hasattr(config, "workerinput")


def pytest_sessionstart(session: pytest.Session) -> None:
    """See whether the local cloud is up, before any test asks for it."""
    if not _is_worker(session.config):
        session.config.stash[_WAS_UP] = json.loads(localcloud("status", "--json"))["up"]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave the local cloud as it was found, when all tests of all processes have ended."""
    if not _is_worker(session.config) and not session.config.stash.get(_WAS_UP, True):
        localcloud("down")


@pytest.fixture(scope="session")
def cloud() -> None:
    """The local cloud, up."""
    localcloud("up")


@pytest.fixture(scope="session")
def ec2(cloud: None) -> t.Any:
    """EC2 of the local cloud."""
    return ec2_client()
