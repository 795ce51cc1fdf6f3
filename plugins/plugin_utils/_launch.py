# SPDX-License-Identifier: GPL-3.0-or-later
"""What EC2 is asked for: the places and the launches of a run, as amazon.aws's modules take them.

Hosts are launched a group at a time, with C(exact_count) over the tags of the run and the group: a fleet that was
half launched is completed. Which host is which member is decided afterwards (`_fleet`). This util is PRIVATE to the
collection.
"""

from __future__ import annotations

import typing as t

from ansible_collections.startline.lab.plugins.plugin_utils._errors import PlanError
from ansible_collections.startline.lab.plugins.plugin_utils._plan import site_subnet

#: States of an instance that is part of the fleet, or can be again.
_PRESENT: t.Final = ("pending", "running", "stopping", "stopped")


def sites(plan: t.Mapping[str, t.Any], default_region: str | None = None) -> list[dict[str, str]]:
    """The places of a run that have hosts: ``[{"name", "region", "cidr", "subnet"}]``.

    Raises:
        PlanError: a site names no region, and there is no default.
    """
    used = {group["site"] for group in plan["groups"].values()}
    return [
        {
            "name": name,
            "region": _region(name, site, default_region),
            "cidr": site["cidr"],
            "subnet": str(site_subnet(site["cidr"])),
        }
        for name, site in plan["sites"].items()
        if name in used
    ]


def _region(name: str, site: t.Mapping[str, t.Any], default_region: str | None) -> str:
    region = site["region"] or default_region
    if not region:
        raise PlanError(
            f"site {name} names no region, and the inventory has none: "
            f"give sites.{name}.region, or startline_aws.region"
        )
    return str(region)


def run_tags(plan: t.Mapping[str, t.Any], run_id: str, expires: str) -> dict[str, str]:
    """The tags of everything that a run makes."""
    return {"startline:experiment": str(plan["experiment"]), "startline:run": run_id, "startline:expires": expires}


def launches(
    plan: t.Mapping[str, t.Any],
    run_id: str,
    expires: str,
    *,
    default_region: str | None = None,
    default_image: t.Mapping[str, str] | None = None,
) -> list[dict[str, t.Any]]:
    """One launch for each group.

    Returns:
        ``[{"group", "site", "region", "count", "instance_type", "volume_size", "image", "filters", "tags"}]``:
        `filters` finds the group's hosts that there are, `tags` is what all of them carry (index and name come with
        the numbering), `image` is ``{"id"}`` or ``{"owner", "name"}``.

    Raises:
        PlanError: a group has no image, or its site no region.
    """
    result = []
    for name, group in plan["groups"].items():
        image = group["image"] or default_image
        if not image:
            raise PlanError(
                f"group {name} names no image, and the inventory has none: give groups.{name}.image, or startline_image"
            )
        result.append(
            {
                "group": name,
                "site": group["site"],
                "region": _region(group["site"], plan["sites"][group["site"]], default_region),
                "count": group["count"],
                "instance_type": group["instance_type"],
                "volume_size": group["volume_size"],
                "image": dict(image),
                "filters": {
                    "tag:startline:run": run_id,
                    "tag:startline:group": name,
                    "instance-state-name": list(_PRESENT),
                },
                "tags": {**run_tags(plan, run_id, expires), "startline:group": name, "startline:site": group["site"]},
            }
        )
    return result
