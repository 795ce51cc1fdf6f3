# SPDX-License-Identifier: GPL-3.0-or-later
"""Which image a group gets."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.startline.lab.plugins.plugin_utils._errors import PlanError
from ansible_collections.startline.lab.plugins.plugin_utils._image import image_queries, with_images

DEBIAN = {"owner": "136693071363", "name": "debian-12-amd64-*"}


def launch(group: str, image: dict[str, str], region: str = "us-east-1") -> dict[str, t.Any]:
    return {"group": group, "image": image, "region": region}


def answer(label: str, *images: dict[str, str], region: str = "us-east-1") -> dict[str, t.Any]:
    return {"item": {"label": label, "region": region}, "images": list(images)}


def test_a_question_is_asked_once_for_all_groups_that_share_an_image() -> None:
    launches = [
        launch("a", DEBIAN),
        launch("b", DEBIAN),
        launch("c", {"id": "ami-1"}),
        launch("d", DEBIAN, "eu-west-1"),
    ]
    assert [(query["label"], query["region"]) for query in image_queries(launches)] == [
        ("debian-12-amd64-* of 136693071363", "us-east-1"),
        ("ami-1", "us-east-1"),
        ("debian-12-amd64-* of 136693071363", "eu-west-1"),
    ]


def test_the_newest_image_wins_in_each_region() -> None:
    old = {"image_id": "ami-old", "creation_date": "2026-01-01T00:00:00Z", "root_device_name": "/dev/xvda"}
    new = {"image_id": "ami-new", "creation_date": "2026-09-01T00:00:00Z", "root_device_name": "/dev/sda1"}
    label = "debian-12-amd64-* of 136693071363"
    launches = [launch("a", DEBIAN), launch("b", DEBIAN, "eu-west-1")]
    got = with_images(launches, [answer(label, new, old), answer(label, old, region="eu-west-1")])
    assert [(one["image_id"], one["root_device"]) for one in got] == [
        ("ami-new", "/dev/sda1"),
        ("ami-old", "/dev/xvda"),
    ]


def test_a_group_without_an_image_is_named() -> None:
    with pytest.raises(PlanError, match=r"group a: no image debian-12-amd64-\* of 136693071363 in us-east-1"):
        with_images([launch("a", DEBIAN)], [answer("debian-12-amd64-* of 136693071363")])
