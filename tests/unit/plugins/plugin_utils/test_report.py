# SPDX-License-Identifier: GPL-3.0-or-later
"""The report says what run.json says, draws it, and needs nothing else."""

from __future__ import annotations

import html.parser
import json
import pathlib
import re
import typing as t

import pytest

from ansible_collections.startline.lab.plugins.plugin_utils import _network_check as check
from ansible_collections.startline.lab.plugins.plugin_utils import _report
from ansible_collections.startline.lab.plugins.plugin_utils._report import ReportError
from tests.support import synthetic as syn


class Page(html.parser.HTMLParser):
    """What is in a page: text, elements, and every attribute that could make a browser fetch something."""

    VOID: t.Final = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.trials: list[str] = []
        self.verdict = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self._open.append(tag)
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                self.links.append(value or "")
            elif name == "id":
                self.ids.append(value or "")
            elif name == "data-verdict":
                self.verdict = value or ""
            elif name == "data-trial":
                self.trials.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def made(root: pathlib.Path, plan: t.Any, objects: syn.Objects) -> tuple[_report.Results, Page]:
    results = _report.load(syn.results(root, plan, objects))
    text = _report.render(results)
    assert not re.search(r"https?:|//[a-z]|url\((?!#)|@import|<script", text)
    page = Page(text)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    return results, page


def test_a_valid_run(tmp_path: pathlib.Path) -> None:
    plan = syn.plan()
    results, page = made(tmp_path, plan, syn.run_objects(plan))
    assert page.verdict == "valid"
    assert page.trials == [trial["trial_id"] for trial in plan["trials"]]
    assert page.tags.count("svg") == 3
    for words in (
        "4 of 4",
        "16 of 16",
        "n = 16 starts in 4 trials",
        "n = 4 trials at 2 points",
        "Debian GNU/Linux 12",
        "seed 7",
    ):
        assert words in page.text
    assert "Missing evidence" not in page.text
    summary = _report.summary(results, s3_uri="s3://bucket/dkg/run")
    assert summary.splitlines()[0] == f"{syn.RUN_ID}: VALID"
    assert "4 of 4 valid" in summary
    assert "16 of 16" in summary
    assert "at protocol=normal (mean, n=2)" in summary
    assert summary.splitlines()[-2:] == [f"  report    {results.report}", "  kept in   s3://bucket/dkg/run/"]


def test_who_was_last_and_why(tmp_path: pathlib.Path) -> None:
    plan = syn.plan()
    objects = syn.run_objects(plan)
    key = f"trials/{plan['trials'][0]['trial_id']}/1/trial.json"
    skew = json.loads(objects[key])["skew"]
    skew |= {"min_us": 20.0, "p50_us": 84.2, "p99_us": 4800.0, "max_us": 5000.0, "bound_us": 410.0}
    skew |= {"last": "party-2", "why": "CPU: woken 5000 us late"}
    spread = {"n": 4, "min_us": 1.0, "p50_us": 2.0, "p99_us": 90.0, "max_us": 90.0, "last": "party-0", "bound_us": 1.0}
    arrival = {"member": "party-1", "at": syn.T0}
    meeting = {"name": "halfway", "generation": 1, "arrived": 4, "first": arrival, "last": arrival, "reason": None}
    syn.edit(
        objects,
        key,
        skew=skew,
        last_armed={"member": "party-1", "at": syn.T0 + 7, "behind_s": 6.5, "states": {}},
        replaced=[{"member": "party-0", "was": "absent"}],
        barriers=[
            {**meeting, "released": syn.T0, "skew": spread},
            {**meeting, "generation": 2, "skew": None, "reason": "nobody"},
        ],
    )
    _results, page = made(tmp_path, plan, objects)
    for words in (
        "Hosts min p50 p99 max Clocks known to Last to start Why Last to be ready",
        "1 4 20 µs 84.2 µs 4.8 ms 5 ms 410 µs 4 chrony party-2 CPU: woken 5000 us late party-0 replaced (absent)",
        "party-1 6.5 s behind",
        "barrier halfway: 4 went on within 90 µs of their instant, party-1 came last",
        "barrier halfway (2): nobody",
    ):
        assert words in page.text


def test_what_the_vpn_carried(tmp_path: pathlib.Path) -> None:
    plan = syn.plan()
    results = _report.load(syn.results(tmp_path, plan, syn.run_objects(plan)))
    assert "  vpn " not in _report.summary(results)
    results.run["provenance"]["vpn"] = {"lab": {"client": "party-0", "sent": 6.9, "received": 10.71}}
    assert "  vpn       lab 6.9 Mbit/s there, 10.71 back (from party-0)" in _report.summary(results)
    assert "VPN lab 6.9 Mbit/s there, 10.71 back (from party-0)" in " ".join(Page(_report.render(results)).words)


@pytest.mark.parametrize(
    ("vpn", "line"),
    [
        ({"restarts": {"party-0": 0}}, None),
        (
            {"restarts": {"party-1": 2, "party-0": 1, "party-2": 0}},
            "lab started anew 3 times during the run (of party-0, party-1)",
        ),
        (
            {"client": "party-0", "sent": 6.9, "received": 10.71, "restarts": {"party-0": 0}},
            "lab 6.9 Mbit/s there, 10.71 back (from party-0)",
        ),
        (
            {"client": "party-0", "sent": 6.9, "received": 10.71, "restarts": {"party-0": 1}},
            "lab 6.9 Mbit/s there, 10.71 back (from party-0), started anew once during the run (of party-0)",
        ),
    ],
)
def test_a_tunnel_that_was_started_anew(tmp_path: pathlib.Path, vpn: dict[str, t.Any], line: str | None) -> None:
    plan = syn.plan()
    results = _report.load(syn.results(tmp_path, plan, syn.run_objects(plan)))
    results.run["provenance"]["vpn"] = {"lab": vpn}
    shown = [text[12:] for text in _report.summary(results).splitlines() if text.startswith("  vpn ")]
    assert shown == ([line] if line else [])
    words = " ".join(Page(_report.render(results)).words)
    assert (f"VPN {line}" in words) if line else ("VPN" not in words)


def test_the_network_asked_and_measured(tmp_path: pathlib.Path) -> None:
    plan = syn.shaped(syn.plan(parties=5))
    objects = syn.run_objects(plan)
    syn.put_network(objects, plan, syn.measure(plan))
    good = _report.load(syn.results(tmp_path / "good", plan, objects))
    assert "  network   15 pairs as asked\n" in _report.summary(good)
    page = Page(_report.render(good))
    assert "network" in page.ids
    text = " ".join(page.words)
    assert "The network was measured, and is the one that was asked for." in text
    assert "network-1: 15 pairs as asked" in text
    assert "Pairs that are off" not in text
    syn.put_network(objects, plan, syn.measure(plan, [("party-0", "party-1")], silent=["party-2"]))
    off = _report.load(syn.results(tmp_path / "off", plan, objects))
    line = next(line for line in _report.summary(off).splitlines() if line.startswith("  network"))
    assert line.startswith("  network   4 of 15 pairs off: party-2 to party-3: rtt: 80 ms asked, could not be measured")
    text = " ".join(Page(_report.render(off)).words)
    assert "4 of 15 pairs off" in text
    assert "Pairs that are off (4)" in text
    assert "party-2 did not take part (absent)" in text
    nothing = _report.load(syn.results(tmp_path / "nothing", plan, syn.run_objects(plan)))
    assert "  network   was not measured\n" in _report.summary(nothing)
    assert "network" not in Page(_report.render(nothing)).ids


def test_a_network_that_cannot_be_made_is_said(tmp_path: pathlib.Path) -> None:
    plan = syn.shaped(syn.plan())
    objects = syn.run_objects(plan)
    problem = "party-0 to party-1: 40ms one way cannot be made of the 50ms that are there already"
    report = check.judge_check(plan, plan["checks"][1], {}, {}, attempt=1, problems=[problem])
    syn.put_network(objects, plan, report)
    results = _report.load(syn.results(tmp_path, plan, objects))
    assert f"  network   cannot be made: {problem}\n" in _report.summary(results)
    assert "network-1: cannot be made" in " ".join(Page(_report.render(results)).words)


def test_an_invalid_run_names_what_is_missing(tmp_path: pathlib.Path) -> None:
    plan = syn.plan()
    ids = [trial["trial_id"] for trial in plan["trials"]]
    objects = {key: body for key, body in syn.run_objects(plan).items() if ids[2] not in key and ids[3] not in key}
    objects |= syn.aborted(plan["trials"][2], "party-2")
    del objects[f"trials/{ids[0]}/1/party-1/stdout"]
    results, page = made(tmp_path, plan, objects)
    assert page.verdict == "invalid"
    assert "Missing evidence" in page.text
    reasons = [f"trial {ids[0]}: party-1: stdout missing", f"trial {ids[2]}: after 60 s not armed: party-2 (absent)"]
    for reason in [*reasons, f"trial {ids[3]}: was not run, or left nothing"]:
        assert reason in page.text
        assert reason in _report.summary(results)
    assert "1 of 4 valid (2 invalid, 1 not run)" in _report.summary(results)


def test_a_run_in_which_nothing_started(tmp_path: pathlib.Path) -> None:
    plan = syn.plan()
    _results, page = made(tmp_path / "none", plan, {})
    assert page.tags.count("svg") == 0
    for words in ("No host started in any trial.", "No trial was run.", "No trial came to a usable end."):
        assert words in page.text
    objects: syn.Objects = {}
    for trial in plan["trials"]:
        objects |= syn.aborted(trial, "party-0")
    _results, page = made(tmp_path / "aborted", plan, objects)
    assert page.tags.count("svg") == 1


@pytest.mark.parametrize("count", [1, 200])
def test_one_trial_and_two_hundred(tmp_path: pathlib.Path, count: int) -> None:
    plan = syn.plan({} if count == 1 else {"size": list(range(50))}, 1 if count == 1 else 4, parties=1)
    _results, page = made(tmp_path, plan, syn.run_objects(plan))
    assert len(page.trials) == count
    assert page.tags.count("svg") == 3
    assert f"{count} of {count}" in page.text


def test_what_an_experiment_or_a_host_calls_itself_is_text(tmp_path: pathlib.Path) -> None:
    plan = syn.plan({"mode": ["<b>$x_1$</b>", "{{ 7 * 7 }}", "a" * 300]}, 1)
    for number, trial in enumerate(plan["trials"]):
        trial["trial_id"] = f"mode-{number}.r1"
    plan["description"] = "<script>alert(1)</script>"
    objects = syn.run_objects(plan)
    for key in [key for key in objects if key.endswith("/meta.json")]:
        syn.edit(objects, key, host={"os": '"><img src=x>', "kernel": ["a", {"b": 1}], "python": None, "instance": 7})
    _results, page = made(tmp_path, plan, objects)
    assert "img" not in page.tags
    assert "script" not in page.tags
    for words in ("<b>$x_1$</b>", "{{ 7 * 7 }}", "<script>alert(1)</script>", '"><img src=x>', "a" * 300):
        assert words in page.text


def test_the_same_results_give_the_same_page(tmp_path: pathlib.Path) -> None:
    plan = syn.plan()
    root = syn.results(tmp_path, plan, syn.run_objects(plan))
    results = _report.load(root)
    page = _report.render(results)
    assert page == _report.render(_report.load(root))
    assert _report.write(results, page, dry=True)
    assert not results.report.exists()
    assert _report.write(results, page)
    assert not _report.write(results, page)
    assert results.report.read_text() == page
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []


def test_evidence_that_is_gone_since_it_was_judged_stops_nothing(tmp_path: pathlib.Path) -> None:
    plan = syn.plan()
    root = syn.results(tmp_path, plan, syn.run_objects(plan))
    for path in [*root.rglob("meta.json"), *root.rglob("trial.json"), root / "plan.json"]:
        path.unlink()
    page = Page(_report.render(_report.load(root)))
    assert page.verdict == "valid"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no run.json, so there is nothing to report: collect the run's evidence first"),
        ("{", "run.json cannot be read"),
        ("[]", "run.json is not what Startline writes"),
        (json.dumps({"format": "startline-run/9"}), "has the format 'startline-run/9', not 'startline-run/1'"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: pathlib.Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(ReportError, match=re.escape(message)):
        _report.load(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EN DASH}"),
        (0.0, "0 µs"),
        (84.2, "84.2 µs"),
        (999.0, "999 µs"),
        (8130.0, "8.13 ms"),
        (-2500.0, "-2.5 ms"),
        (1.2e6, "1.2 s"),
    ],
)
def test_microseconds(value: float | None, text: str) -> None:
    assert _report.microseconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "\N{EN DASH}"), (0.0, "0 s"), (1.534, "1.53 s"), (125.0, "2 min 5 s"), (7265.0, "2 h 1 min")],
)
def test_seconds(value: float | None, text: str) -> None:
    assert _report.seconds(value) == text
