# SPDX-License-Identifier: GPL-3.0-or-later
"""Which tunnels a run has: from every host of another site to each private one, through its login host.

This util is PRIVATE to the collection.
"""

from __future__ import annotations

import typing as t

from ansible_collections.startline.lab.plugins.plugin_utils._errors import PlanError, listed
from ansible_collections.startline.lab.plugins.plugin_utils._hosts_config import version_key


def tunnels(plan: t.Mapping[str, t.Any], hosts: t.Mapping[str, t.Mapping[str, t.Any]]) -> list[dict[str, t.Any]]:
    """The run's tunnels, one entry for each private site that others have to reach.

    Args:
        plan: the plan. A site is private when it names its ``gateway``, a member.
        hosts: what is known of each member by name: ``site``, ``address``, ``public_address``, and ``nat_address`` of those
            that have no public one.

    Returns:
        ``[{"site", "gateway", "gateway_address", "networks", "sources", "probes"}]``. `networks` are the private addresses
        of all the site's hosts. The login host's is one of them: who is told private addresses is told that too, and the
        throughput is measured to it. `sources` is what the login host sees the clients come from. `probes` says by
        member what each client tries. They are spread over the hosts behind the login host, because sshd may hold it
        against an address that connections from there are left too often.

    Raises:
        PlanError: a gateway is not there, or it is not known where a client comes from.
    """
    result = []
    for name, site in plan["sites"].items():
        gateway = site.get("gateway")
        clients = [member["name"] for member in plan["members"] if member["site"] != name and member["name"] in hosts]
        inside = [member["name"] for member in plan["members"] if member["site"] == name and member["name"] in hosts]
        if not gateway or not clients:
            continue
        if not hosts.get(gateway, {}).get("public_address"):
            raise PlanError(
                f"{gateway}, which leads to site {name}, has no public address: the fleet has to have it first"
            )
        sources = {
            client: hosts[client].get("public_address") or hosts[client].get("nat_address") for client in clients
        }
        unknown = [client for client, source in sources.items() if not source]
        if unknown:
            raise PlanError(f"{listed(unknown)} would reach site {name}, but it is not known from which public address")
        # Those behind the login host are what the tunnel is for; where there are none, it has to do.
        behind = [member for member in inside if member != gateway] or [gateway]
        result.append(
            {
                "site": name,
                "gateway": gateway,
                "gateway_address": str(hosts[gateway]["public_address"]),
                "networks": sorted({str(hosts[member]["address"]) for member in inside}, key=version_key),
                "sources": sorted({str(source) for source in sources.values()}, key=version_key),
                "probes": {
                    client: f"{hosts[behind[number % len(behind)]]['address']}:22"
                    for number, client in enumerate(clients)
                },
            }
        )
    return result
