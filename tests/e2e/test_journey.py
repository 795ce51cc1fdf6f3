# SPDX-License-Identifier: GPL-3.0-or-later
"""The journey as a user makes it: one command, then the results."""

from __future__ import annotations

import hashlib
import json
import pathlib
import typing as t

import pytest

from tests.support.commands import EXPERIMENTS, PROJECT, Ended, adhoc, playbook, run_resources


@pytest.fixture(scope="module")
def demo(cloud: None) -> Ended:
    """``ansible-playbook site.yml -e exp=dkg``"""
    return playbook("site.yml", "-e", "exp=dkg")


@pytest.fixture(scope="module")
def results(demo: Ended) -> pathlib.Path:
    return PROJECT / "results" / "dkg" / demo.run_id


def read(path: pathlib.Path) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", json.loads(path.read_text()))


def test_the_demo_is_valid_and_says_so(demo: Ended) -> None:
    assert demo.returncode == 0, demo.output[-4000:]
    last_words = demo.output.partition("PLAY RECAP")[2]
    assert f"{demo.run_id}: VALID" in last_words
    assert "report.html" in last_words
    assert "WARNING" not in demo.output


def test_every_log_of_every_trial_is_home_with_its_checksum(results: pathlib.Path) -> None:
    run = read(results / "run.json")
    assert run["verdict"] == "valid"
    plan = read(results / "plan.json")
    assert len(plan["trials"]) == 4
    for trial in plan["trials"]:
        folder = results / "trials" / trial["trial_id"] / "1"
        assert len(trial["members"]) == 9
        for member in trial["members"]:
            meta = read(folder / member / "meta.json")
            assert {"stdout", "stderr"} <= {entry["path"] for entry in meta["files"]}
            for entry in meta["files"]:
                content = (folder / member / entry["path"]).read_bytes()
                assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["size"], entry["sha256"])


def value_after(label: str, text: str) -> str:
    lines = text.splitlines()
    return lines[lines.index(label) + 1]


def test_the_parties_of_a_trial_agree_on_one_key_and_trials_differ(results: pathlib.Path) -> None:
    keys = set()
    for trial in read(results / "plan.json")["trials"]:
        folder = results / "trials" / trial["trial_id"] / "1"
        of_trial = {
            value_after("group public key:", (folder / f"party-{index}" / "stdout").read_text())
            for index in range(8)
            if "group public key:" in (folder / f"party-{index}" / "stdout").read_text()
        }
        assert len(of_trial) == 1
        keys |= of_trial
    assert len(keys) == 4


def test_the_start_was_one_instant(results: pathlib.Path) -> None:
    for trial in read(results / "plan.json")["trials"]:
        record = read(results / "trials" / trial["trial_id"] / "1" / "trial.json")
        assert record["outcome"] == "completed"
        assert record["skew"]["n"] == 9
        assert all(member["fired_at"] >= record["start"] for member in record["members"].values())
        assert set(record["members"]) == set(trial["members"])


def test_the_ranks_are_complete_and_the_blockchain_is_last(results: pathlib.Path) -> None:
    for trial in read(results / "plan.json")["trials"]:
        record = read(results / "trials" / trial["trial_id"] / "1" / "trial.json")
        assert record["members"]["blockchain-0"]["rank"] == 8
        assert sorted(member["rank"] for member in record["members"].values()) == list(range(9))


def test_nothing_is_left_that_costs_money(demo: Ended, ec2: t.Any) -> None:
    assert run_resources(ec2, demo.run_id) == []


def test_the_report_is_one_page_that_names_the_verdict(results: pathlib.Path) -> None:
    page = (results / "report.html").read_text()
    assert 'data-verdict="valid"' in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_day_two_commands_reach_the_hosts_of_a_kept_run(cloud: None, ec2: t.Any) -> None:
    # Of a seed of its own: it must not go on with a run that another test has killed.
    kept = playbook("site.yml", "-e", f"exp={EXPERIMENTS / 'tiny.yml'}", "-e", "keep=true", "-e", "set=seed=1")
    try:
        assert kept.returncode == 0, kept.output[-4000:]
        own = f"run_{kept.run_id.replace('-', '_')}"  # other tests have hosts of this experiment, too
        asked = adhoc(f"node:&experiment_tiny:&{own}", "-m", "ansible.builtin.command", "-a", "uptime")
        assert asked.returncode == 0, asked.output
        assert asked.output.count("CHANGED") == 2
    finally:
        gone = playbook("playbooks/destroy.yml", "-e", f"run={kept.run_id}")
    assert gone.returncode == 0, gone.output[-4000:]
    assert run_resources(ec2, kept.run_id) == []


def test_hosts_without_a_route_to_the_coordinator_run_their_trials_all_the_same(cloud: None, ec2: t.Any) -> None:
    ended = playbook(
        "site.yml", "-e", f"exp={EXPERIMENTS / 'tiny.yml'}", "-e", "set=barrier.transport=s3,barrier.max_clock_error=5"
    )
    assert ended.returncode == 0, ended.output[-4000:]
    results = PROJECT / "results" / "tiny" / ended.run_id
    assert read(results / "run.json")["verdict"] == "valid"
    assert not list(results.glob("barrier/**/*")), "letters are no evidence"
    assert run_resources(ec2, ended.run_id) == []
