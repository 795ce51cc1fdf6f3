# SPDX-License-Identifier: GPL-3.0-or-later
"""One trial, as start_barrier takes it: seats, ranks, commands, files and links, from the plan and the hosts that stand
for its members.

This util is PRIVATE to the collection.
"""

from __future__ import annotations

import dataclasses
import hashlib
import typing as t

from ansible_collections.startline.lab.plugins.plugin_utils import _hosts_config, _netem, _template
from ansible_collections.startline.lab.plugins.plugin_utils._errors import PlanError, did_you_mean

#: Where the runtime role puts artifacts on a host; working directories have links to them.
ARTIFACTS_DIR: t.Final = "/opt/startline/artifacts"

Hosts = t.Mapping[str, t.Mapping[str, t.Any]]


@dataclasses.dataclass(frozen=True)
class Failure:
    """A template that cannot be rendered for one member. `path` is relative to the group, or to the experiment."""

    group: str
    member: str
    path: tuple[str, ...]
    message: str


@dataclasses.dataclass(frozen=True)
class Formation:
    """Who is to start an attempt at a trial, and who may step in.

    `seats` has, for each group, the candidates in the order in which they are wanted (``members``), how many start
    (``seats``), and how few may (``least``). `formed_from` tells the attempts before this one that ended because
    others would have started than those that it was rendered for.
    """

    seats: tuple[dict[str, t.Any], ...]
    formed_from: tuple[dict[str, t.Any], ...] = ()

    @classmethod
    def planned(cls, plan: t.Mapping[str, t.Any], trial: t.Mapping[str, t.Any]) -> Formation:
        """As the plan has it."""
        group_of = {member["name"]: member["group"] for member in plan["members"]}
        members: dict[str, list[str]] = {group: [] for group in trial["least"]}
        for name in trial["members"]:
            members[group_of[name]].append(name)
        seats = {group: len(names) for group, names in members.items()}
        for name in trial["spares"]:
            members[group_of[name]].append(name)
        least = trial["least"]
        return cls(tuple({"members": members[g], "seats": seats[g], "least": least[g]} for g in members))

    @property
    def meant(self) -> list[str]:
        """Who starts when all goes well: hosts.config, ranks and commands are made for them."""
        return [name for entry in self.seats for name in entry["members"][: entry["seats"]]]

    @property
    def others(self) -> list[str]:
        """Who gets ready besides."""
        return [name for entry in self.seats for name in entry["members"][entry["seats"] :]]

    def formed(self, result: t.Mapping[str, t.Any]) -> Formation:
        """The next attempt, from the result of this one: the roster that it came to, and the spares that are ready.

        A group that has lost hosts keeps its seats, so that the next attempt knows, and says, that some stay empty.
        """
        roster, rows = result["roster"], result["members"]
        seats = []
        for entry in self.seats:
            chosen = [name for name in entry["members"] if name in roster]
            spares = [
                name
                for name in entry["members"]
                if rows[name]["role"] == "spare" and rows[name]["state"] == "armed" and rows[name]["connected"]
            ]
            seats.append({**entry, "members": chosen + spares})
        # The result repeats what it was formed from; what is new comes after it.
        attempt = {
            "attempt": result["epoch"]["attempt"],
            "roster": list(roster),
            **{role: [row for row in result[role] if row not in self._known(role)] for role in ("replaced", "dropped")},
        }
        return Formation(tuple(seats), (*self.formed_from, attempt))

    def _known(self, role: str) -> list[dict[str, t.Any]]:
        return [row for attempt in self.formed_from for row in attempt[role]]


def session_id(bucket: str | None, experiment: str, run_id: str, trial_id: str, attempt: int) -> str:
    """The sid of a trial: first 4 hex digits of md5 of its S3 address and a line feed, as DKG's test framework makes
    it.
    """
    address = f"s3://{bucket or ''}/{experiment}/{run_id}/trials/{trial_id}/{attempt}\n"
    return hashlib.md5(address.encode(), usedforsecurity=False).hexdigest()[:4]


def compose_trial(
    plan: t.Mapping[str, t.Any],
    trial: t.Mapping[str, t.Any],
    hosts: Hosts,
    *,
    run_id: str,
    attempt: int = 1,
    formation: Formation | None = None,
    bucket: str | None = None,
    region: str | None = None,
    endpoint_url: str | None = None,
    network_check: t.Mapping[str, t.Any] | None = None,
) -> dict[str, t.Any]:
    """The arguments of start_barrier for one trial.

    Args:
        plan: the plan.
        trial: one of its trials.
        hosts: by member; ``address`` is private, ``public_address`` is where other sites reach it.
        run_id: the run.
        attempt: 1, or one more for each time that the trial was tried before.
        formation: who takes part; as planned if None.
        bucket: where evidence goes; None keeps it on the hosts.
        region: of the bucket.
        endpoint_url: of S3 as the hosts see it; None is AWS.
        network_check: what was measured of the trial's network.

    Raises:
        PlanError: a member without an address, or a template that fails; every one is named.
    """
    formation = formation or Formation.planned(plan, trial)
    views = _views(plan, formation.meant, hosts)
    contexts = {
        site: _context(plan, trial, view, run_id=run_id, attempt=attempt, bucket=bucket) for site, view in views.items()
    }
    failures: list[Failure] = []
    ranked = next(iter(views.values()))
    groups = {entry["group"] for entry in ranked}
    sites = {name: group["site"] for name, group in plan["groups"].items()}
    members = [
        _member(plan, views[site][entry["rank"]], contexts[site], failures)
        for entry in ranked
        for site in [sites[entry["group"]]]
    ]
    spares = _hosts_config.ranked(plan, formation.others, hosts)
    # What they are given never runs: whoever steps in has an attempt made for it.
    members += [
        {"name": entry["name"], "rank": len(ranked) + entry["rank"], "command": ":", "environment": {}}
        for entry in spares
    ]
    texts = {site: {_hosts_config.FILE_NAME: _hosts_config.text(view)} for site, view in views.items()}
    # One text for all of a large fleet where that is right: it is sent and stored once.
    differ = len({text[_hosts_config.FILE_NAME] for text in texts.values()}) > 1
    for entry, member in zip([*ranked, *spares], members, strict=True):
        if differ:
            member["site"] = sites[entry["group"]]
        own = [a for a in plan["artifacts"] if entry["group"] in a["groups"] and not groups <= set(a["groups"])]
        if own:
            member["links"] = _links(own)
    shaped = _netem.host_networks(plan, trial, hosts)
    for member in members:
        member.update(shaped.of.get(member["name"], {}))
    if failures:
        reasons = "; ".join(
            f"{failure.member}: {'.'.join(failure.path)}: {failure.message}" for failure in failures[:10]
        )
        raise PlanError(f"trial {trial['trial_id']}: {reasons}")
    return {
        "run_id": run_id,
        "trial_id": trial["trial_id"],
        "attempt": attempt,
        "members": members,
        "networks": shaped.networks,
        "files": {} if differ else next(iter(texts.values())),
        "site_files": texts if differ else None,
        # What every group has; the rest is with the members that have it. A link that leads nowhere would abort the trial.
        "links": _links(artifact for artifact in plan["artifacts"] if groups <= set(artifact["groups"])),
        "deadline": plan["barrier"]["deadline"],
        "timeout": trial["timeout"],
        "seats": list(formation.seats),
        "grace": plan["barrier"]["grace"],
        "form": True,
        "formed_from": list(formation.formed_from),
        "network_check": network_check,
        "on_early_exit": plan["barrier"]["on_early_exit"],
        "max_clock_error": plan["barrier"]["max_clock_error"],
        "on_clock_error": plan["barrier"]["on_clock_error"],
        "collect": list(plan["collect"]),
        # One login name for all: every group of a plan has the same.
        "user": plan["groups"][ranked[0]["group"]]["user"],
        "evidence": {
            "bucket": bucket,
            "prefix": f"{plan['experiment']}/{run_id}",
            "region": region,
            "endpoint_url": endpoint_url,
        }
        if bucket
        else None,
    }


def _views(plan: t.Mapping[str, t.Any], names: t.Collection[str], hosts: Hosts) -> dict[str, list[dict[str, t.Any]]]:
    """Those who take part in rank order, as each site sees them."""
    sites = dict.fromkeys(group["site"] for group in plan["groups"].values())
    return {site: _hosts_config.ranked(plan, names, hosts, site) for site in sites}


def _links(artifacts: t.Iterable[t.Mapping[str, t.Any]]) -> dict[str, str]:
    return {artifact["dest"]: f"{ARTIFACTS_DIR}/{artifact['dest']}" for artifact in artifacts}


def rehearse(plan: t.Mapping[str, t.Any], trial: t.Mapping[str, t.Any], hosts: Hosts) -> list[Failure]:
    """What would fail when the trial is composed, for the first and last member of each group; with all hosts, and with
    as few as may start.
    """
    failures: list[Failure] = []
    seats = Formation.planned(plan, trial).seats
    smallest = [name for entry in seats for name in entry["members"][: entry["least"]]]
    for names in [trial["members"]] + [smallest] * (len(smallest) < len(trial["members"])):
        # Addresses are made up, so it does not matter from where they are seen.
        ranked = _hosts_config.ranked(plan, names, hosts)
        context = _context(plan, trial, ranked, run_id="rehearsal", attempt=1, bucket="rehearsal")
        by_group: dict[str, list[dict[str, t.Any]]] = {}
        for entry in ranked:
            by_group.setdefault(entry["group"], []).append(entry)
        for entries in by_group.values():
            for entry in [entries[0], *entries[1:][-1:]]:
                _member(plan, entry, context, failures)
    return failures


def _context(
    plan: t.Mapping[str, t.Any],
    trial: t.Mapping[str, t.Any],
    ranked: list[dict[str, t.Any]],
    *,
    run_id: str,
    attempt: int,
    bucket: str | None,
) -> dict[str, t.Any]:
    """The variables that are the same for all members."""
    return {
        **trial["parameters"],
        "size": len(ranked),
        "hosts": ranked,
        "trial_id": trial["trial_id"],
        "repeat": trial["repeat"],
        "attempt": attempt,
        "run_id": run_id,
        "sid": session_id(bucket, plan["experiment"], run_id, trial["trial_id"], attempt),
    }


def _member(
    plan: t.Mapping[str, t.Any], entry: dict[str, t.Any], context: dict[str, t.Any], failures: list[Failure]
) -> dict[str, t.Any]:
    group = plan["groups"][entry["group"]]
    variables = {**context, **entry}

    def render(text: str, *path: str) -> str:
        try:
            return _template.render(text, variables)
        except _template.TemplateProblem as exc:
            failures.append(Failure(entry["group"], entry["name"], path, str(exc)))
            return ""

    return {
        "name": entry["name"],
        "rank": entry["rank"],
        "command": render(group["command"], "command"),
        "environment": {name: render(value, "environment", name) for name, value in group["environment"].items()},
    }


def left(
    plan: t.Mapping[str, t.Any], attempts: t.Mapping[str, t.Mapping[str, t.Any]] | None = None
) -> list[dict[str, t.Any]]:
    """What is still to be run, in the order of the plan: ``[{"trial_id": str, "attempt": int}]``.

    Args:
        plan: the plan.
        attempts: ``{trial_id: {"attempt": int, "finished": bool}}``, the attempt to make now; trials that are not in
            it were never tried.
    """
    attempts = attempts or {}
    states = {trial["trial_id"]: attempts.get(trial["trial_id"], {}) for trial in plan["trials"]}
    return [
        {"trial_id": trial_id, "attempt": int(state.get("attempt", 1))}
        for trial_id, state in states.items()
        if not state.get("finished", False)
    ]


def find(plan: t.Mapping[str, t.Any], trial_id: str) -> t.Mapping[str, t.Any]:
    """A trial of the plan.

    Raises:
        PlanError: it has no such trial.
    """
    trials: dict[str, t.Mapping[str, t.Any]] = {trial["trial_id"]: trial for trial in plan["trials"]}
    if trial_id not in trials:
        raise PlanError(f"the plan has no trial {trial_id}. " + did_you_mean(trial_id, trials, "It has"))
    return trials[trial_id]


def needed(plan: t.Mapping[str, t.Any], missing: t.Collection[str]) -> list[str]:
    """The members among `missing` without which some trial cannot start, in the order of the plan."""
    found = {plan["rendezvous"]} & set(missing)
    for trial in plan["trials"]:
        for entry in Formation.planned(plan, trial).seats:
            gone = set(entry["members"]).intersection(missing)
            if len(entry["members"]) - len(gone) < entry["least"]:
                found |= gone
    return [member["name"] for member in plan["members"] if member["name"] in found]
