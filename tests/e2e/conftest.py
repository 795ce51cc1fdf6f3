# SPDX-License-Identifier: GPL-3.0-or-later
"""What the end-to-end tests share: one local cloud for all of them."""

from __future__ import annotations

import json
import typing as t

import boto3
import pytest

from tests.support.commands import ENDPOINT, localcloud


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
    return boto3.client(
        "ec2",
        region_name="us-east-1",
        endpoint_url=ENDPOINT,
        aws_access_key_id="startline-local",
        aws_secret_access_key="local-cloud-of-this-machine",  # noqa: S106 the local cloud checks none
    )
