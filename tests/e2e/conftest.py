# SPDX-License-Identifier: GPL-3.0-or-later
"""What the end-to-end tests share: one local cloud for all of them."""

from __future__ import annotations

import json
import typing as t

import pytest

from tests.support.commands import ec2_client, localcloud


@pytest.fixture(scope="session")
def cloud() -> t.Iterator[None]:
    """The local cloud, up. Left as it was found."""
    was_up = json.loads(localcloud("status", "--json"))["up"]
    localcloud("up")
    yield
    if not was_up:
        localcloud("down")


@pytest.fixture(scope="session")
def ec2(cloud: None) -> t.Any:
    """EC2 of the local cloud."""
    return ec2_client()
