# SPDX-License-Identifier: GPL-3.0-or-later
"""hosts.config: one address a line, and the ranks that follow from it.

The form that programs of the field read (docs/experiment.md): version-sort order inside a group, groups in the order
of the experiment, a line feed after every line, nothing else. Rank = line number - 1. This util is PRIVATE to the
collection.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.startline.lab.plugins.plugin_utils._errors import PlanError

FILE_NAME: t.Final = "hosts.config"


def version_key(address: str) -> tuple[str | int, ...]:
    """Sorts like ``sort -V``: 10.0.0.9 before 10.0.0.10. For IPv4 that is the order of the addresses as numbers."""
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", address))


def hosts_config(addresses_by_group: t.Iterable[t.Iterable[str]]) -> str:
    """The file's text, from the addresses of each group, groups in rank order."""
    return "".join(f"{address}\n" for group in addresses_by_group for address in sorted(group, key=version_key))


def behind_gateway(site: t.Mapping[str, t.Any], group: str) -> bool:
    """Whether the hosts of a site's group have no public address, and are reached through the site's gateway."""
    return site["gateway"] is not None and group != site["gateway"].rpartition("-")[0]


def seen_from(
    site: str, plan: t.Mapping[str, t.Any], member: t.Mapping[str, t.Any], host: t.Mapping[str, t.Any]
) -> str:
    """The address by which hosts of `site` reach a member.

    Within a site the private one, between sites the public one, unless the plan's ``addresses`` says something else.
    What has no public address is known by its private one: hosts behind a gateway, to which a VPN leads.
    """
    private = plan["addresses"] == "private" or (plan["addresses"] == "auto" and member["site"] == site)
    return str(host["address"] if private else host.get("public_address") or host["address"])


def ranked(
    plan: t.Mapping[str, t.Any],
    members: t.Iterable[str],
    hosts: t.Mapping[str, t.Mapping[str, t.Any]],
    site: str | None = None,
) -> list[dict[str, t.Any]]:
    """The members of a trial in rank order: ``[{"name", "group", "index", "rank", "address"}]``.

    Ranks go by private addresses, so they are the same in every site.

    Args:
        plan: the plan.
        members: names of those who take part.
        hosts: what is known of each member by name: ``address``, and ``public_address`` where there is one.
        site: where addresses are to work from; each member's own site if None.

    Raises:
        PlanError: a member has no host or no address; every such member is named.
    """
    wanted = set(members)
    missing = sorted((name for name in wanted if not hosts.get(name, {}).get("address")), key=version_key)
    if missing:
        raise PlanError(
            f"no address is known of {', '.join(missing)}: the fleet has to be complete before hosts.config is written"
        )
    known = [member for member in plan["members"] if member["name"] in wanted]
    if len(known) != len(wanted):
        strangers = sorted(wanted - {member["name"] for member in known})
        raise PlanError(f"the plan has no member {', '.join(strangers)}")
    order = {
        group: position for position, group in enumerate(dict.fromkeys(member["group"] for member in plan["members"]))
    }
    known.sort(key=lambda m: (order[m["group"]], version_key(hosts[m["name"]]["address"]), m["index"]))
    return [
        {
            "name": m["name"],
            "group": m["group"],
            "index": m["index"],
            "rank": rank,
            "address": seen_from(site or m["site"], plan, m, hosts[m["name"]]),
        }
        for rank, m in enumerate(known)
    ]


def text(entries: t.Iterable[t.Mapping[str, t.Any]]) -> str:
    """The file's text, from what `ranked` gives."""
    return "".join(f"{entry['address']}\n" for entry in entries)


def fleet_hosts_config(
    plan: t.Mapping[str, t.Any], hosts: t.Mapping[str, t.Mapping[str, t.Any]], site: str | None = None
) -> str:
    """hosts.config of the whole fleet in a site. A trial has its own: smaller trials use the first hosts of a group."""
    return text(ranked(plan, [m["name"] for m in plan["members"]], hosts, site))
