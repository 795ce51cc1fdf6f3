# SPDX-License-Identifier: GPL-3.0-or-later
"""Which machine image a group gets: an id, or the newest image of an owner whose name matches.

This util is PRIVATE to the collection.
"""

from __future__ import annotations

import typing as t

from ansible_collections.startline.lab.plugins.plugin_utils._errors import PlanError

Launch = t.Mapping[str, t.Any]


def image_queries(launches: t.Iterable[Launch]) -> list[dict[str, t.Any]]:
    """What amazon.aws.ec2_ami_info has to be asked, each question once: its arguments, and a `label` for people."""
    queries: dict[tuple[str, str], dict[str, t.Any]] = {}
    for launch in launches:
        image, region = launch["image"], launch["region"]
        label = _label(image)
        if "id" in image:
            asked: dict[str, t.Any] = {"image_ids": [image["id"]]}
        else:
            asked = {"owners": [image["owner"]], "filters": {"name": image["name"], "state": "available"}}
        queries.setdefault((label, region), {"label": label, "region": region, **asked})
    return list(queries.values())


def with_images(launches: t.Iterable[Launch], answers: t.Iterable[t.Mapping[str, t.Any]]) -> list[dict[str, t.Any]]:
    """The launches, each with the `image_id` it gets and the `root_device` of that image.

    `answers` are the results of a task that loops over `image_queries`. The newest image wins; of two with the same
    date the later name, so that the choice does not depend on the order of the answer.

    Raises:
        PlanError: no image matches; group, image and region are named.
    """
    found = {(answer["item"]["label"], answer["item"]["region"]): answer["images"] for answer in answers}
    result = []
    for launch in launches:
        images = found.get((_label(launch["image"]), launch["region"]), [])
        if not images:
            raise PlanError(
                f"group {launch['group']}: no image {_label(launch['image'])} in {launch['region']}. "
                f"Give groups.{launch['group']}.image, or startline_image in the inventory, an id or a name that exists there."
            )
        newest = max(
            images, key=lambda image: (image.get("creation_date", ""), image.get("name", ""), image["image_id"])
        )
        result.append(
            {**launch, "image_id": newest["image_id"], "root_device": newest.get("root_device_name") or "/dev/xvda"}
        )
    return result


def _label(image: t.Mapping[str, str]) -> str:
    return image["id"] if "id" in image else f"{image['name']} of {image['owner']}"
