# SPDX-License-Identifier: GPL-3.0-or-later
"""The report of a run: one page from its results alone, and the same in a few lines for a terminal.

The page says the verdict first and draws what it rests on. It loads nothing from anywhere, and the same results
give the same bytes, so a report can be made again from stored results and compared.

This util is PRIVATE to the collection.
"""

from __future__ import annotations

import collections
import dataclasses
import html
import itertools
import json
import math
import os
import pathlib
import tempfile
import typing as t

import jinja2

from ansible_collections.startline.lab.plugins.plugin_utils import _figures, _network_check
from ansible_collections.startline.lab.plugins.plugin_utils._errors import StartlineError, listed
from ansible_collections.startline.lab.plugins.plugin_utils._evidence import (
    RUN,
    member_key,
    point_label,
    trial_key,
    utc,
)
from ansible_collections.startline.lab.plugins.plugin_utils._figures import BLUE, GREEN, GREY, INK, ORANGE, RED

Json = t.Mapping[str, t.Any]

#: Rows up to which a figure names every one of them.
_NAMED: t.Final = 24
#: How strong the color of a band behind the measurements is.
_PALE: t.Final = 0.15
#: For what was not measured.
NONE: t.Final = "\N{EN DASH}"
_TEMPLATE: t.Final = pathlib.Path(__file__).with_name("_report.html.j2")


class ReportError(StartlineError):
    """A report cannot be made of what is there."""


@dataclasses.dataclass(frozen=True)
class Results:
    """What a run left: run.json, plan.json, and of the attempts that count trial.json and what the hosts said they are.

    `trials` are the rows of run.json in the order in which they ran, numbered from 1; those that did not run come last.
    """

    root: pathlib.Path
    run: Json
    plan: Json
    trials: tuple[dict[str, t.Any], ...]
    hosts: tuple[Json, ...]

    @property
    def report(self) -> pathlib.Path:
        return self.root / "report.html"

    @property
    def fired(self) -> list[dict[str, t.Any]]:
        """Trials in which at least one host started."""
        return [
            trial for trial in self.trials if any(row.get("late_us") is not None for row in trial["members"].values())
        ]


def load(root: pathlib.Path) -> Results:
    """Read the results at `root`.

    Raises:
        ReportError: there are none, or they are not whole.
    """
    if not (root / RUN).is_file():
        raise ReportError(f"{root} has no {RUN}, so there is nothing to report: collect the run's evidence first")
    run = _read(root / RUN)
    if run.get("format") != "startline-run/1":
        raise ReportError(
            f"{root / RUN} has the format {run.get('format')!r}, not 'startline-run/1': collect the run again"
        )
    plan = _read(root / "plan.json") if (root / "plan.json").is_file() else {}
    rows = sorted(run["trials"], key=lambda row: (row["submitted"] is None, row["submitted"] or 0, row["trial_id"]))
    trials, hosts = [], []
    for number, row in enumerate(rows, 1):
        result, metas = {}, []
        if row["attempt"] is not None:
            result = _read_if_there(root / trial_key(row["trial_id"], row["attempt"]))
            names = sorted(result.get("members", {}), key=lambda name: result["members"][name].get("rank", 0))
            metas = [_read_if_there(root / member_key(row["trial_id"], row["attempt"], name)) for name in names]
        trials.append(
            {
                **row,
                "number": number,
                "label": point_label(row["point"]),
                "members": result.get("members", {}),
                "start_row": _start_row(row, result),
                "network": result.get("network"),
            }
        )
        hosts += [meta["host"] for meta in metas if isinstance(meta.get("host"), dict)]
    return Results(root, run, plan, tuple(trials), tuple(hosts))


def _start_row(row: Json, result: Json) -> dict[str, t.Any] | None:
    """How a trial came to its start: who held it up, how late after T its hosts were, who was last and why, how well the
    clocks were known; None if it did not start."""
    skew, armed = row["skew"], result.get("last_armed")
    if not skew:
        return None
    sources = collections.Counter(
        member["clock"]["source"]
        for member in result.get("members", {}).values()
        if member.get("clock") and member.get("fired_at")
    )
    changed = [
        f"{entry['member']} {word} ({entry['was']})"
        for key, word in (("replaced", "replaced"), ("dropped", "left out"))
        for entry in result.get(key) or ()
    ]
    return {
        "n": skew["n"],
        "waited": None if not armed or row["submitted"] is None else max(0.0, armed["at"] - row["submitted"]),
        "last_armed": armed and armed["member"],
        "behind": armed and armed["behind_s"],
        **{key: skew[key] for key in ("min_us", "p50_us", "p99_us", "max_us", "bound_us", "last", "why")},
        "sources": ", ".join(f"{count} {name}" for name, count in sources.most_common()),
        "changed": "; ".join(changed),
        "meetings": [_meeting(entry) for entry in result.get("barriers") or ()],
    }


def _meeting(entry: Json) -> str:
    """What came of a named barrier inside the trial."""
    name = f"{entry['name']} ({entry['generation']})" if entry["generation"] > 1 else entry["name"]
    if entry["skew"]:
        return (
            f"barrier {name}: {entry['skew']['n']} went on within {microseconds(entry['skew']['max_us'])} of their instant, "
            f"{entry['last']['member']} came last"
        )
    return f"barrier {name}: {entry['reason'] or 'nobody said when it went on'}"


def _read(path: pathlib.Path) -> dict[str, t.Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise ReportError(f"{path} cannot be read: {exc}") from exc
    if not isinstance(content, dict):
        raise ReportError(f"{path} is not what Startline writes: a JSON object is expected")
    return content


def _read_if_there(path: pathlib.Path) -> dict[str, t.Any]:
    """Evidence may be missing or broken; run.json has judged that already."""
    try:
        return _read(path)
    except ReportError:
        return {}


# --- the network ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Network:
    """What was measured of one network by one check: of each pair, the metrics as `_network_check.Finding`."""

    name: str
    attempt: int
    again: int
    trials: int
    problems: tuple[str, ...]
    pairs: tuple[tuple[str, str, str, tuple[_network_check.Finding, ...]], ...]

    @property
    def off(self) -> list[tuple[str, str, str, tuple[_network_check.Finding, ...]]]:
        return [pair for pair in self.pairs if not all(finding.right for finding in pair[3])]

    @property
    def headline(self) -> str:
        """``15 pairs as asked``."""
        if self.problems:
            return f"cannot be made: {self.problems[0]}"
        if self.off:
            return f"{_count_ends(self.off)} of {_pairs(self.pairs)} off"
        return f"{_pairs(self.pairs)} as asked{_network_check.doubts(one for pair in self.pairs for one in pair[3])}"

    @property
    def kinds(self) -> list[dict[str, t.Any]]:
        """Each metric of each kind of link: what was asked, the range of what was measured, and how many are off."""
        found: dict[tuple[str, str], list[_network_check.Finding]] = {}
        for _source, _target, link, findings in self.pairs:
            for finding in findings:
                found.setdefault((link, finding.metric), []).append(finding)
        rows = []
        for (link, metric), own in found.items():
            seen = [finding for finding in own if finding.measured is not None]
            worst = max(seen, key=lambda finding: finding.excess, default=None)
            values = [finding.measured for finding in seen if finding.measured is not None]
            rows.append(
                {
                    "link": link,
                    "metric": metric,
                    "asked": _network_check.quantity(own[0].asked, own[0].unit),
                    "measured": _between(values, own[0].unit) if values else NONE,
                    "n": len(values),
                    "right": _network_check.span(worst.low, worst.high, worst.unit) if worst else NONE,
                    "off": sum(not finding.right for finding in own),
                    "findings": own,
                }
            )
        return rows


def _count_ends(pairs: t.Iterable[tuple[str, str, str, t.Any]]) -> int:
    """Pairs, whichever way they were measured."""
    return len({frozenset(pair[:2]) for pair in pairs})


def _pairs(pairs: t.Iterable[tuple[str, str, str, t.Any]]) -> str:
    return _count(_count_ends(pairs), "pair")


def networks(results: Results) -> list[Network]:
    """What was measured of the networks of a run, as its trials have it."""
    found: dict[tuple[str, int], list[dict[str, t.Any]]] = {}
    for trial in results.trials:
        network = trial["network"]
        try:
            _network_check.verdict(network)
            found.setdefault((network["network"], network["check"]["attempt"]), []).append(network)
        except (_network_check.ProbeError, KeyError, TypeError):
            continue  # run.json says so
    return [_network(name, attempt, reports) for (name, attempt), reports in sorted(found.items())]


def _network(name: str, attempt: int, reports: list[dict[str, t.Any]]) -> Network:
    pairs = {}
    for report in reports:
        for pair in report["pairs"]:
            findings = tuple(map(_network_check.finding, pair["metrics"]))
            pairs[pair["from"], pair["to"]] = (pair["from"], pair["to"], pair["link"], findings)
    problems = dict.fromkeys(problem for report in reports for problem in report["problems"])
    again = reports[0]["check"].get("again", 0)
    return Network(name, attempt, again, len(reports), tuple(problems), tuple(pairs.values()))


def _between(values: t.Sequence[float], unit: str) -> str:
    low, high = min(values), max(values)
    same = _network_check.quantity(low, unit) == _network_check.quantity(high, unit)
    return _network_check.quantity(low, unit) if same else _network_check.span(low, high, unit)


def network_figure(results: Results) -> Drawn | None:
    """How far each measurement is from what was asked, in what is right; None where no network was measured."""
    rows = [
        (f"{network.name}: {kind['metric']} {kind['asked']}", kind["findings"])
        for network in networks(results)
        for kind in network.kinds
        if kind["n"]
    ][:60]
    if not rows:
        return None
    title, edge = "Network, asked and measured", 3.0
    with _figures.figure(_row_height(len(rows)), "network") as (drawn, axes):
        axes.axvspan(-1, 1, color=GREEN, alpha=_PALE, linewidth=0)
        for place, (_label, findings) in enumerate(rows):
            for right, color, marker in ((True, BLUE, "o"), (False, RED, "x")):
                values = [_position(finding) for finding in findings if finding.right is right]
                shown = [max(-edge, min(edge, value)) for value in values if value is not None]
                axes.plot(shown, [place] * len(shown), marker, color=color, markersize=4, alpha=0.75)
        axes.set_yticks(range(len(rows)))
        axes.set_yticklabels(
            [f"{_shortened(label)} (n={len(own)})" for label, own in rows], fontsize=8 if len(rows) <= _NAMED else 5.5
        )
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(-edge * 1.04, edge * 1.04)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("away from what was asked; 1 is as far as is right")
        handles = [
            _figures.sign("bar", GREEN, "right", _PALE),
            _figures.sign("o", BLUE, "a pair as asked"),
            _figures.sign("x", RED, "a pair that is off"),
        ]
        drawn.legend(handles=handles, loc="outside upper right", ncols=3)
        svg = _svg(drawn, "network", title)
    total = sum(len(own) for _label, own in rows)
    caption = f"n = {_count(total, 'measurement')} before the trials. What is farther off stands at the edge."
    return Drawn(title, svg, caption)


def _position(finding: _network_check.Finding) -> float | None:
    if finding.measured is None:
        return None
    away = finding.measured - finding.asked
    room = finding.high - finding.asked if away > 0 else finding.asked - finding.low
    return away / room if room else math.copysign(math.inf, away) if away else 0.0


# --- figures ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A figure for the page. `svg` is None where there is nothing to draw, and `caption` says why."""

    title: str
    svg: str | None
    caption: str


def _row_height(rows: int) -> float:
    """Inches of a figure with a row per item: roomy when they are few, dense when they are many."""
    return 1.1 + (rows * 0.26 if rows <= _NAMED else max(_NAMED * 0.26, rows * 0.12))


def skew_figure(results: Results) -> Drawn:
    """Lateness of every host after T, per trial, with the bound within which the clocks were known."""
    title = "Start skew"
    trials = results.fired
    if not trials:
        return Drawn(title, None, "No host started in any trial.")
    late = [row["late_us"] for trial in trials for row in trial["members"].values() if row.get("late_us") is not None]
    bounds = [trial["skew"]["bound_us"] for trial in trials if (trial["skew"] or {}).get("bound_us")]
    scale, unit = (1000.0, "ms") if max([*late, *bounds]) >= 1000 else (1.0, "µs")
    wide = len(trials) > 60
    with _figures.figure(2.9, "skew") as (drawn, axes):
        for trial in trials:
            rows = [row for row in trial["members"].values() if row.get("late_us") is not None]
            ranks = sorted(row.get("rank", 0) for row in rows)
            middle, spread = (len(ranks) - 1) / 2, 0.0 if wide else 0.5 / max(1, len(ranks) - 1)
            axes.plot(
                [trial["number"] + (ranks.index(row.get("rank", 0)) - middle) * spread for row in rows],
                [row["late_us"] / scale for row in rows],
                linestyle="none",
                marker="o",
                markersize=2.2 if wide else 3.4,
                markeredgewidth=0,
                alpha=0.75,
                color=BLUE,
            )
            bound = (trial["skew"] or {}).get("bound_us")
            if bound:
                axes.hlines(bound / scale, trial["number"] - 0.4, trial["number"] + 0.4, color=ORANGE, linewidth=1.6)
        if min(late) > 0 and max([*late, *bounds]) > 30 * min([*late, *bounds]):
            axes.set_yscale("log")
            _figures.plain_numbers(axes.yaxis)
        else:
            axes.set_ylim(bottom=min(0.0, *late) / scale)
        axes.set_xlim(0.4, max(trial["number"] for trial in trials) + 0.6)
        _figures.whole_numbers(axes.xaxis, _NAMED)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("trial, in the order in which they ran")
        axes.set_ylabel(f"start after T ({unit})")
        handles = [_figures.sign("o", BLUE, "one host")]
        if bounds:
            handles.append(_figures.sign("-", ORANGE, "bound of the worst clock"))
        drawn.legend(handles=handles, loc="outside upper right", ncols=2)
        svg = _svg(drawn, "skew", title)
    caption = (
        f"n = {_count(len(late), 'start')} in {_count(len(trials), 'trial')}. Each host sleeps to the instant T on its "
        "own clock; a dot is the time from T to its program's start, on that clock."
    )
    bound_text = " The bound says how far that clock may have been from the rendezvous' time." if bounds else ""
    return Drawn(title, svg, caption + bound_text)


def duration_figure(results: Results) -> Drawn:
    """From T to the last exit, per point of the sweep: every usable repeat and their mean."""
    title = "Duration"
    points = [point for point in results.run["figures"]["durations"] if point["n"]]
    if not points:
        return Drawn(title, None, "No trial came to a usable end.")
    values = {point["label"]: [] for point in points}  # type: dict[str, list[float]]
    for trial in results.trials:
        if not trial["warmup"] and trial["verdict"] != "invalid" and trial["duration_s"] is not None:
            values[trial["label"]].append(trial["duration_s"])
    with _figures.figure(_row_height(min(len(points), 200)), "duration") as (drawn, axes):
        for place, point in enumerate(points):
            repeats = values[point["label"]]
            axes.plot(repeats, [place] * len(repeats), "o", color=BLUE, markersize=4, markeredgewidth=0, alpha=0.75)
            if len(repeats) > 1:
                axes.vlines(point["mean_s"], place - 0.3, place + 0.3, color=INK, linewidth=1.2)
        names = len(points) <= 200
        axes.set_yticks(range(len(points)) if names else [])
        size = 8 if len(points) <= _NAMED else 5.5
        labels = [f"{_shortened(point['label'])} (n={point['n']})" for point in points]
        axes.set_yticklabels(labels if names else [], fontsize=size)
        axes.set_ylim(len(points) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("from T to the last exit (s)")
        handles = [
            _figures.sign("o", BLUE, "one trial"),
            _figures.sign("|", INK, "mean"),
        ]
        drawn.legend(handles=handles, loc="outside upper right", ncols=2)
        svg = _svg(drawn, "duration", title)
    total = sum(point["n"] for point in points)
    return Drawn(
        title,
        svg,
        f"n = {_count(total, 'trial')} at {_count(len(points), 'point')}. Invalid trials and warm-ups are left out.",
    )


def timeline_figure(results: Results) -> Drawn:
    """What the run's time went to, a row per trial."""
    title = "Timeline of the run"
    trials = [trial for trial in results.trials if trial["submitted"] is not None]
    if not trials:
        return Drawn(title, None, "No trial was run.")
    origin = min(trial["submitted"] for trial in trials)
    spans = {"waiting for all hosts": GREY, "armed, until T": ORANGE, "running": BLUE, "delivering": GREEN}
    with _figures.figure(_row_height(min(len(trials), _NAMED)), "timeline") as (drawn, axes):
        for trial in trials:
            instants = [trial["submitted"], trial["armed"], trial["start"], trial["last_exit"], trial["settled"]]
            for (begin, end), color in zip(itertools.pairwise(instants), spans.values(), strict=True):
                if begin is not None and end is not None and end > begin:
                    axes.barh(trial["number"], end - begin, left=begin - origin, height=0.72, color=color, linewidth=0)
            if trial["start"] is None:
                axes.plot(trial["submitted"] - origin, trial["number"], "x", color=RED, markersize=5)
        last = max(trial["number"] for trial in trials)
        axes.set_ylim(last + 0.7, 0.3)
        if len(trials) <= _NAMED:
            axes.set_yticks([trial["number"] for trial in trials])
            axes.set_yticklabels([f"#{trial['number']} {_shortened(trial['trial_id'])}" for trial in trials])
        else:
            _figures.whole_numbers(axes.yaxis, _NAMED)
            axes.set_ylabel("trial")
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("since the first trial was submitted (s)")
        handles = [_figures.sign("bar", color, name) for name, color in spans.items()]
        if any(trial["start"] is None for trial in trials):
            handles.append(_figures.sign("x", RED, "never started"))
        drawn.legend(handles=handles, loc="outside upper right", ncols=len(handles))
        svg = _svg(drawn, "timeline", title)
    caption = (
        f"n = {_count(len(trials), 'trial')}. Delivery ends by the time of S3, which counts whole seconds; "
        "the next trial may run meanwhile."
    )
    return Drawn(title, svg, caption)


def _svg(drawn: t.Any, name: str, title: str) -> str:
    return _figures.page_svg(drawn, name, html.escape(title, quote=True))


def _shortened(text: str, limit: int = 44) -> str:
    """`text`, its middle left out when it is too long for a figure. The table has it whole."""
    return text if len(text) <= limit else f"{text[: limit * 2 // 3]}…{text[-(limit // 3) + 1 :]}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# --- words ------------------------------------------------------------------------------------------------------------


def microseconds(value: float | None) -> str:
    """``84 µs``, ``8.13 ms``, ``1.2 s``: three digits of a time that was measured in microseconds."""
    if value is None:
        return NONE
    for size, unit in ((1e6, "s"), (1e3, "ms")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} µs"


def seconds(value: float | None) -> str:
    """``1.53 s``, ``2 min 5 s``."""
    if value is None:
        return NONE
    if value < 100:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _facts(results: Results) -> list[tuple[str, str]]:
    """What a reader needs to know to believe the figures, and to repeat them."""
    run, plan, figures = results.run, results.plan, results.run["figures"]
    groups = [
        f"{group['count']} {name}" + (f" ({group['instance_type']})" if group.get("instance_type") else "")
        for name, group in plan.get("groups", {}).items()
    ]
    tally = figures["trials"]
    trials = ", ".join(
        f"{tally[key]} {key.replace('_', ' ')}" for key in ("valid", "degraded", "invalid", "not_run") if tally[key]
    )
    facts = [
        ("Experiment", f"{run['experiment']}: {run['description']}" if run["description"] else run["experiment"]),
        ("Hosts", f"{figures['hosts']}" + (f": {', '.join(groups)}" if groups else "")),
        (
            "Trials",
            f"{tally['planned']} planned: {trials or 'none'}"
            + (f"; {tally['warmups']} warm-ups" if tally["warmups"] else ""),
        ),
        ("Logs", f"of {figures['logs']['delivered']} of {figures['logs']['expected']} host-trials, checksums compared"),
    ]
    if run["first_submitted"] is not None and run["last_settled"] is not None:
        lasted = seconds(max(0.0, run["last_settled"] - run["first_submitted"]))
        facts.append(("Time", f"{utc(run['first_submitted'])} to {utc(run['last_settled'])} ({lasted})"))
    facts.append(("Clock limit", f"{run['max_clock_error_s'] * 1000:g} ms"))
    for title, pick in (
        ("Operating system", lambda host: host.get("os")),
        ("Kernel", lambda host: host.get("kernel")),
        ("Python of hosts", lambda host: host.get("python")),
        ("Instance", lambda host: _instance(host.get("instance"))),
    ):
        seen = collections.Counter(str(value) for value in map(pick, results.hosts) if value)
        if seen:
            facts.append((title, ", ".join(sorted(seen))))
    provenance = run["provenance"]
    versions = provenance.get("controller") or {}
    if versions:
        facts.append(("Controller", ", ".join(f"{name} {version}" for name, version in versions.items())))
    project = provenance.get("project") or {}
    if project.get("commit"):
        facts.append(
            ("Project", project["commit"] + (" with changes that are not committed" if project.get("changed") else ""))
        )
    vpn = _vpn_lines(run)
    if vpn:
        facts.append(("VPN", ", ".join(vpn)))
    facts += [
        (
            str(name)[:1].upper() + str(name)[1:].replace("_", " "),
            value if isinstance(value, str) else json.dumps(value, sort_keys=True),
        )
        for name, value in provenance.items()
        if name not in ("controller", "project", "vpn")
    ]
    return [*facts, ("Plan", f"sha256 {run['plan_digest']}, seed {run['seed']}")]


def _vpn_lines(run: t.Mapping[str, t.Any]) -> list[str]:
    """What each private site's tunnel carried before the trials, and whose tunnels were started anew since."""
    lines = []
    for site, vpn in sorted((run["provenance"].get("vpn") or {}).items()):
        words = []
        if "sent" in vpn:
            words.append(f"{vpn['sent']:g} Mbit/s there, {vpn['received']:g} back (from {vpn['client']})")
        again = {client: count for client, count in vpn.get("restarts", {}).items() if count}
        if again:
            count = sum(again.values())
            often = "once" if count == 1 else f"{count} times"
            words.append(f"started anew {often} during the run (of {listed(sorted(again), 5)})")
        if words:
            lines.append(f"{site} {', '.join(words)}")
    return lines


def _instance(instance: t.Any) -> str | None:
    if not isinstance(instance, dict):
        return None
    return " ".join(str(instance[key]) for key in ("type", "zone", "image") if instance.get(key)) or None


def summary(results: Results, *, s3_uri: str | None = None) -> str:
    """The run in a few lines for a terminal."""
    run, figures = results.run, results.run["figures"]
    tally, logs, skew = figures["trials"], figures["logs"], figures["skew_us"]
    others = ", ".join(
        f"{tally[key]} {key.replace('_', ' ')}" for key in ("degraded", "invalid", "not_run") if tally[key]
    )
    lines = [
        f"{run['run_id']}: {run['verdict'].upper()}",
        f"  trials    {tally['valid']} of {tally['planned']} valid" + (f" ({others})" if others else ""),
        f"  logs      {logs['delivered']} of {logs['expected']}, checksums compared",
    ]
    if skew:
        bound = f", clocks known to {microseconds(skew['bound'])}" if skew["bound"] is not None else ""
        lines.append(
            f"  start     half of the hosts within {microseconds(skew['p50'])} of T, "
            f"all within {microseconds(skew['max'])} (n={skew['n']}{bound})"
        )
    measured = {network.name: network for network in networks(results)}  # the last of each
    if measured:
        lines.append(f"  network   {_network_line(list(measured.values()))}")
    elif results.plan.get("checks"):
        lines.append("  network   was not measured")
    lines += [f"  vpn       {line}" for line in _vpn_lines(run)]
    durations = [point for point in figures["durations"] if point["n"]]
    for point in durations[:8]:
        lines.append(f"  duration  {seconds(point['mean_s'])} at {point['label']} (mean, n={point['n']})")
    if len(durations) > 8:
        lines.append(f"  duration  of {len(durations) - 8} more points: see the report")
    for reason in run["reasons"][:8]:
        lines.append(f"  because   {reason}")
    if len(run["reasons"]) > 8:
        lines.append(f"  because   {len(run['reasons']) - 8} more reasons: see the report")
    lines.append(f"  report    {results.report}")
    if s3_uri:
        lines.append(f"  kept in   {s3_uri}/")
    return "\n".join(lines)


def _network_line(measured: t.Sequence[Network]) -> str:
    bad = [network for network in measured if network.problems or network.off]
    if not bad:
        return f"{_count(sum(_count_ends(network.pairs) for network in measured), 'pair')} as asked"
    text = f"{bad[0].name}: {bad[0].headline}" if len(measured) > 1 else bad[0].headline
    if not bad[0].problems:
        source, target, _link, findings = max(bad[0].off, key=lambda pair: max(one.excess for one in pair[3]))
        text += f": {source} to {target}: {next(one for one in findings if not one.right)}"
    return text + (f" (and {_count(len(bad) - 1, 'more network')})" if len(bad) > 1 else "")


# --- the page ---------------------------------------------------------------------------------------------------------


def render(results: Results) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: _TEMPLATE.read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(us=microseconds, s=seconds, quantity=_network_check.quantity, span=_network_check.span)
    axes = list(dict.fromkeys(name for trial in results.trials for name in trial["point"]))
    page = environment.get_template("report").render(
        run=results.run,
        figures=results.run["figures"],
        facts=_facts(results),
        axes=axes,
        trials=results.trials,
        starts=[trial for trial in results.trials if trial["start_row"]],
        incomplete=[trial for trial in results.trials if trial["missing"] or trial["changed"]],
        drawings=[skew_figure(results), duration_figure(results), timeline_figure(results)],
        networks=networks(results),
        network_drawing=network_figure(results),
    )
    return page if page.endswith("\n") else f"{page}\n"


def write(results: Results, page: str, *, dry: bool = False) -> bool:
    """Put `page` beside the results. True when it is another one than before; `dry` only tells."""
    body, path = page.encode(), results.report
    if path.is_file() and path.read_bytes() == body:
        return False
    if not dry:
        try:
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".report-")
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(body)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except OSError as exc:
            raise ReportError(f"{path} cannot be written: {exc.strerror}") from exc
    return True
