# SPDX-License-Identifier: GPL-3.0-or-later
"""What EC2 is asked for: the places and the launches of a run, as amazon.aws's modules take them.

Hosts are launched a group at a time, as many as are missing: a fleet that was half launched is completed. Which host
is which member is decided afterwards (`_fleet`). This util is PRIVATE to the collection.
"""

from __future__ import annotations

import typing as t

from ansible_collections.startline.lab.plugins.plugin_utils import _netem
from ansible_collections.startline.lab.plugins.plugin_utils._errors import PlanError
from ansible_collections.startline.lab.plugins.plugin_utils._hosts_config import behind_gateway, version_key
from ansible_collections.startline.lab.plugins.plugin_utils._plan import site_subnets


def sites(plan: t.Mapping[str, t.Any], default_region: str | None = None) -> list[dict[str, str]]:
    """The places of a run that have hosts: ``[{"name", "region", "cidr", "subnet", "private_subnet"}]``.

    `subnet` has public addresses; `private_subnet`, where hosts are behind a gateway, has none, and else is empty.

    Raises:
        PlanError: a site names no region, and there is no default.
    """
    groups: dict[str, list[str]] = {}
    for name, group in plan["groups"].items():
        groups.setdefault(group["site"], []).append(name)
    result = []
    for name, site in plan["sites"].items():
        if name in groups:
            subnets = site_subnets(site)
            private = any(behind_gateway(site, group) for group in groups[name])
            result.append(
                {
                    "name": name,
                    "region": _region(name, site, default_region),
                    "cidr": site["cidr"],
                    "subnet": str(subnets[0]),
                    "private_subnet": str(subnets[-1]) if private else "",
                }
            )
    return result


def peers(
    plan: t.Mapping[str, t.Any], hosts: t.Mapping[str, t.Mapping[str, t.Any]], default_region: str | None = None
) -> list[dict[str, t.Any]]:
    """Who is let into each site from outside: ``[{"name", "region", "addresses"}]``, single addresses as CIDRs.

    They are what the hosts of other sites are seen to come from: their own public addresses, or their NAT gateway's. A
    site's own hosts come from there too when they are told public addresses of each other.
    """
    public = plan["addresses"] == "public"
    return [
        {
            "name": site["name"],
            "region": site["region"],
            "addresses": [
                f"{address}/32"
                for address in sorted(
                    {
                        host["public_address"] or host["nat_address"]
                        for host in hosts.values()
                        if host["site"] != site["name"] or public
                    }
                    - {""},
                    key=version_key,
                )
            ],
        }
        for site in sites(plan, default_region)
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
    missing: t.Mapping[str, int] | None = None,
    default_region: str | None = None,
    default_image: t.Mapping[str, str] | None = None,
    netem_image: t.Mapping[str, str] | None = None,
) -> list[dict[str, t.Any]]:
    """One launch for each group that lacks hosts: `missing` of them by group, or all.

    A group that names no image gets `netem_image` where its hosts need netem in their kernel, else `default_image`.
    Where there is no `netem_image`, nothing is known of images with netem, and the hosts themselves say what they lack.

    Returns:
        ``[{"group", "site", "private", "region", "count", "instance_type", "volume_size", "image", "tags"}]``: `private`
        says that they get no public address, `tags` is what all hosts of the group carry (index and name come with the
        numbering), `image` is ``{"id"}`` or ``{"owner", "name"}``.

    Raises:
        PlanError: a group has no image, or its site no region.
    """
    result = []
    need_netem = _netem.netem_groups(plan)
    for name, group in plan["groups"].items():
        count = group["count"] if missing is None else missing[name]
        if not count:
            continue
        image = group["image"] or (name in need_netem and netem_image) or default_image
        if not image:
            raise PlanError(
                f"group {name} names no image, and the inventory has none: give groups.{name}.image, or startline_image"
            )
        site = plan["sites"][group["site"]]
        private = behind_gateway(site, name)
        result.append(
            {
                "group": name,
                "site": group["site"],
                "private": private,
                "region": _region(group["site"], site, default_region),
                "count": count,
                "instance_type": group["instance_type"],
                "volume_size": group["volume_size"],
                "image": dict(image),
                "tags": {
                    **run_tags(plan, run_id, expires),
                    "startline:group": name,
                    "startline:site": group["site"],
                    # Who finds the host by its tags has to know the way to it.
                    **({"startline:gateway": site["gateway"]} if private else {}),
                },
            }
        )
    return result
