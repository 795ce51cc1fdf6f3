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
        "links": {"dkg": "/opt/startline/artifacts/dkg"},
        "deadline": 60,
        "timeout": 120,
        "seats": [
            {"members": ["party-0", "party-1"], "seats": 2, "least": 2},
            {"members": ["chain-0"], "seats": 1, "least": 1},
        ],
        "grace": 10,
        "form": True,
        "formed_from": [],
        "on_early_exit": "continue",
        "max_clock_error": 0.05,
        "on_clock_error": "mark",
        "collect": ["*.log"],
        "user": None,
        "evidence": {"bucket": "bucket", "prefix": f"demo/{RUN}", "region": "us-east-1", "endpoint_url": "http://s3"},
    }


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
