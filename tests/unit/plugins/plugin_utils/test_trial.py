# SPDX-License-Identifier: GPL-3.0-or-later
"""One trial as start_barrier takes it."""

from __future__ import annotations

import hashlib
import typing as t

import pytest

from ansible_collections.startline.lab.plugins.plugin_utils import _plan, _template, _trial
from ansible_collections.startline.lab.plugins.plugin_utils._errors import PlanError
from ansible_collections.startline.lab.plugins.plugin_utils._experiment import load_experiment

TEXT = """
groups:
  party: {count: 2, environment: {ME: "{{ name }} of {{ size }}"}}
  chain: {command: "chain {{ hosts | map(attribute='address') | join(',') }}"}
parameters: {protocol: [normal, two words], flag: true, rate: 0.5}
environment: {SEED: "{{ repeat }}"}
artifacts: [{src: ../w/dkg}, {src: y, groups: [chain]}]
command: run {{ rank }} hosts.config {{ sid }} {{ protocol | quote }} {{ flag }} {{ rate }}
collect: ["*.log"]
order: sequential
repeats: 2
"""
RUN = "demo-20261121T093000Z-3fa9"
HOSTS = {"party-0": {"address": "10.0.0.10"}, "party-1": {"address": "10.0.0.9"}, "chain-0": {"address": "10.0.0.4"}}


@pytest.fixture(scope="module")
def plan() -> dict[str, t.Any]:
    return _plan.expand(load_experiment(TEXT, "experiments/demo.yml"))


def test_the_arguments_of_start_barrier(plan: dict[str, t.Any]) -> None:
    sid = hashlib.md5(b"s3://bucket/demo/" + RUN.encode() + b"/trials/protocol-two-words.r1/2\n").hexdigest()[:4]  # noqa: S324
    composed = _trial.compose_trial(
        plan,
        plan["trials"][1],
        HOSTS,
        run_id=RUN,
        attempt=2,
        bucket="bucket",
        region="us-east-1",
        endpoint_url="http://s3",
    )
    assert composed == {
        "run_id": RUN,
        "trial_id": "protocol-two-words.r1",
        "attempt": 2,
        "members": [
            {
                "name": "party-1",
                "rank": 0,
                "command": f"run 0 hosts.config {sid} 'two words' true 0.5",
                "environment": {"SEED": "1", "ME": "party-1 of 3"},
            },
            {
                "name": "party-0",
                "rank": 1,
                "command": f"run 1 hosts.config {sid} 'two words' true 0.5",
                "environment": {"SEED": "1", "ME": "party-0 of 3"},
            },
            {
                "name": "chain-0",
                "rank": 2,
                "command": "chain 10.0.0.9,10.0.0.10,10.0.0.4",
                "environment": {"SEED": "1"},
                # Only this group has it: a link that leads nowhere would abort the trial.
                "links": {"y": "/opt/startline/artifacts/y"},
            },
        ],
        "files": {"hosts.config": "10.0.0.9\n10.0.0.10\n10.0.0.4\n"},
        "site_files": None,
        "links": {"dkg": "/opt/startline/artifacts/dkg"},
        "networks": {},
        "deadline": 60,
        "timeout": 120,
        "seats": [
            {"members": ["party-0", "party-1"], "seats": 2, "least": 2},
            {"members": ["chain-0"], "seats": 1, "least": 1},
        ],
        "grace": 10,
        "form": True,
        "formed_from": [],
        "network_check": None,
        "on_early_exit": "continue",
        "max_clock_error": 0.05,
        "on_clock_error": "mark",
        "collect": ["*.log"],
        "user": None,
        "evidence": {"bucket": "bucket", "prefix": f"demo/{RUN}", "region": "us-east-1", "endpoint_url": "http://s3"},
    }


SEATS = """
groups:
  party: {count: 3, spares: 1, command: "p {{ rank }}/{{ size }}"}
  chain: {command: "c {{ rank }}"}
rendezvous: chain
command: x
barrier: {quorum: {party: 2}, grace: 2s, on_early_exit: stop}
"""
SEAT_HOSTS = {**{f"party-{i}": {"address": f"10.0.0.{9 - i}"} for i in range(4)}, "chain-0": {"address": "10.0.0.1"}}


def test_spares_get_ready_without_a_place_in_hosts_config() -> None:
    plan = _plan.expand(load_experiment(SEATS, "experiments/demo.yml"))
    composed = _trial.compose_trial(plan, plan["trials"][0], SEAT_HOSTS, run_id=RUN)
    assert composed["files"]["hosts.config"] == "10.0.0.7\n10.0.0.8\n10.0.0.9\n10.0.0.1\n"
    assert composed["seats"] == [
        {"members": ["party-0", "party-1", "party-2", "party-3"], "seats": 3, "least": 2},
        {"members": ["chain-0"], "seats": 1, "least": 1},
    ]
    assert [(m["name"], m["rank"], m["command"]) for m in composed["members"]] == [
        ("party-2", 0, "p 0/4"),
        ("party-1", 1, "p 1/4"),
        ("party-0", 2, "p 2/4"),
        ("chain-0", 3, "c 3"),
        ("party-3", 4, ":"),
    ]
    assert (composed["grace"], composed["on_early_exit"], composed["form"]) == (2, "stop", True)


def reform(formation: _trial.Formation, roles: dict[str, str], attempt: int = 1) -> dict[str, t.Any]:
    """What the rendezvous says of an attempt that others would have started."""
    return {
        "epoch": {"attempt": attempt},
        "roster": [name for name, role in roles.items() if role == "starter"],
        "members": {
            name: {"role": role, "state": "armed" if role in ("starter", "spare") else "absent", "connected": True}
            for name, role in roles.items()
        },
        **{
            role: [entry for f in formation.formed_from for entry in f[role]]
            + [{"member": name, "was": "absent"} for name, found in roles.items() if found == role]
            for role in ("replaced", "dropped")
        },
    }


def test_each_attempt_is_made_for_those_who_can_start() -> None:
    plan = _plan.expand(load_experiment(SEATS, "experiments/demo.yml"))
    trial = plan["trials"][0]
    planned = _trial.Formation.planned(plan, trial)
    roles = {"party-0": "starter", "party-1": "replaced", "party-2": "starter", "party-3": "starter"}
    second = planned.formed(reform(planned, {**roles, "chain-0": "starter"}))
    assert second.meant == ["party-0", "party-2", "party-3", "chain-0"]
    assert second.others == []
    roles = {"party-0": "starter", "party-2": "dropped", "party-3": "starter", "chain-0": "starter"}
    third = second.formed(reform(second, roles, attempt=2))
    assert third.meant == ["party-0", "party-3", "chain-0"]
    assert third.seats[0]["seats"] == 3, "so that the result knows that a seat is empty"
    assert third.formed_from == (
        {
            "attempt": 1,
            "roster": ["party-0", "party-2", "party-3", "chain-0"],
            "replaced": [{"member": "party-1", "was": "absent"}],
            "dropped": [],
        },
        {
            "attempt": 2,
            "roster": ["party-0", "party-3", "chain-0"],
            "replaced": [],
            "dropped": [{"member": "party-2", "was": "absent"}],
        },
    )
    composed = _trial.compose_trial(plan, trial, SEAT_HOSTS, run_id=RUN, attempt=3, formation=third)
    assert composed["files"]["hosts.config"] == "10.0.0.6\n10.0.0.9\n10.0.0.1\n"
    assert [member["command"] for member in composed["members"]] == ["p 0/3", "p 1/3", "c 2"]


@pytest.mark.parametrize(
    ("missing", "needed"),
    [
        ([], []),
        (["party-1"], []),
        (["party-1", "party-3"], []),
        (["party-3", "party-1", "party-0"], ["party-0", "party-1", "party-3"]),
        (["chain-0", "party-1"], ["chain-0"]),
    ],
)
def test_who_cannot_be_done_without(missing: list[str], needed: list[str]) -> None:
    plan = _plan.expand(load_experiment(SEATS, "experiments/demo.yml"))
    assert _trial.needed(plan, missing) == needed


def test_a_trial_that_is_not_planned(plan: dict[str, t.Any]) -> None:
    with pytest.raises(PlanError, match=r"the plan has no trial r1\. "):
        _trial.find(plan, "r1")


def test_without_a_bucket_evidence_stays_on_the_hosts(plan: dict[str, t.Any]) -> None:
    assert _trial.compose_trial(plan, plan["trials"][0], HOSTS, run_id=RUN)["evidence"] is None


def test_a_new_attempt_has_a_new_session_id() -> None:
    one, two = (_trial.session_id("b", "dkg", RUN, "r1", attempt) for attempt in (1, 2))
    assert one != two
    assert len(one) == 4


def test_a_member_without_a_host_is_named(plan: dict[str, t.Any]) -> None:
    with pytest.raises(PlanError, match="no address is known of chain-0"):
        _trial.compose_trial(plan, plan["trials"][0], {**HOSTS, "chain-0": {}}, run_id=RUN)


def test_a_template_that_fails_names_trial_member_and_key(plan: dict[str, t.Any]) -> None:
    groups = {**plan["groups"], "chain": {**plan["groups"]["chain"], "command": "{{ hosts[9].address }}"}}
    with pytest.raises(PlanError, match=r"trial protocol-normal\.r1: chain-0: command: .*no element 9"):
        _trial.compose_trial({**plan, "groups": groups}, plan["trials"][0], HOSTS, run_id=RUN)


def test_only_what_is_not_finished_is_run_again_and_attempts_count_on(plan: dict[str, t.Any]) -> None:
    first, second, *_rest = [trial["trial_id"] for trial in plan["trials"]]
    attempts = {first: {"attempt": 1, "finished": True}, second: {"attempt": 3, "finished": False}}
    assert [(entry["trial_id"], entry["attempt"]) for entry in _trial.left(plan, attempts)] == [
        ("protocol-two-words.r1", 3),
        ("protocol-normal.r2", 1),
        ("protocol-two-words.r2", 1),
    ]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain {braces}", "plain {braces}"),
        ("{{ flag }}/{{ number }}", "true/0.1"),
        ("{{ text | quote }}", "'a b'"),
        ("{% for n in range(3) %}{{ n }}{% endfor %}", "012"),
        ("{{ [1, 2] | join(',') }}", "1,2"),
    ],
)
def test_templates(template: str, text: str) -> None:
    assert _template.render(template, {"flag": True, "number": 0.1, "text": "a b"}) == text


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ range(10 ** 9) | list | length }}",
        "{{ nothing }}",
        "{{ none }}",
        "{{ {} }}",
        "{{ text.nothing }}",
        "{% set x = cycler('a') %}{{ x }}",
    ],
)
def test_templates_that_are_refused(template: str) -> None:
    with pytest.raises(_template.TemplateProblem):
        _template.render(template, {"text": "x"})


def test_what_a_template_wants() -> None:
    assert _template.undeclared("{{ a }}{% for b in c %}{{ b.d }}{% endfor %}{{ range(2) | list }}") == {"a", "c"}


def test_sites_that_see_other_addresses_have_files_and_commands_of_their_own() -> None:
    text = (
        "sites: {us: {}, eu: {}}\ngroups: {a: {site: us, count: 2, spares: 1}, b: {site: eu}}\n"
        "command: run {{ address }} {{ hosts | map(attribute='address') | join(',') }}\n"
    )
    plan = _plan.expand(load_experiment(text, "experiments/demo.yml"))
    hosts = {
        "a-0": {"address": "10.77.0.4", "public_address": "198.18.1.1"},
        "a-1": {"address": "10.77.0.5", "public_address": "198.18.1.2"},
        "a-2": {"address": "10.77.0.6", "public_address": "198.18.1.3"},
        "b-0": {"address": "10.78.0.4", "public_address": "198.18.1.4"},
    }
    composed = _trial.compose_trial(plan, plan["trials"][0], hosts, run_id=RUN)
    assert composed["files"] == {}
    assert composed["site_files"] == {
        "us": {"hosts.config": "10.77.0.4\n10.77.0.5\n198.18.1.4\n"},
        "eu": {"hosts.config": "198.18.1.1\n198.18.1.2\n10.78.0.4\n"},
    }
    assert {member["name"]: (member["site"], member["command"]) for member in composed["members"]} == {
        "a-0": ("us", "run 10.77.0.4 10.77.0.4,10.77.0.5,198.18.1.4"),
        "a-1": ("us", "run 10.77.0.5 10.77.0.4,10.77.0.5,198.18.1.4"),
        "b-0": ("eu", "run 10.78.0.4 198.18.1.1,198.18.1.2,10.78.0.4"),
        "a-2": ("us", ":"),
    }
    alike = _trial.compose_trial({**plan, "addresses": "private"}, plan["trials"][0], hosts, run_id=RUN)
    assert alike["site_files"] is None
    assert alike["files"] == {"hosts.config": "10.77.0.4\n10.77.0.5\n10.78.0.4\n"}
    assert not any("site" in member for member in alike["members"])
