# SPDX-License-Identifier: GPL-3.0-or-later
"""Trials of hosts of both transports: some reach the rendezvous by TCP, some through S3. T is said seconds ahead there, so
that much can go wrong between its publication and T."""

from __future__ import annotations

import json
import typing as t

import pytest

from tests.support.commands import EXPERIMENTS
from tests.support.lab import Json, Lab, Pending, until

NAMES = ["node-0", "node-1", "mail-0", "mail-1"]


@pytest.fixture(scope="module")
def kept(cloud: None, ec2: t.Any) -> t.Iterator[Lab]:
    lab = Lab(EXPERIMENTS / "mixed.yml")
    lab.find(ec2)
    yield lab
    lab.close()


@pytest.fixture
def lab(kept: Lab) -> Lab:
    """The lab with everybody present, whatever the test before this one did."""
    until(lambda: kept.connected(*NAMES), 90, "all agents connected")
    return kept


def trial(lab: Lab, command: str, **arguments: t.Any) -> Pending:
    return lab.submit(lab.trial(command, **{"deadline": 60.0, "max_clock_error": 5.0, **arguments}))


def start_ns(lab: Lab, pending: Pending, member: str) -> int | None:
    """T, once an agent has accepted it."""
    where = "/".join(str(part) for part in pending.epoch.values())
    record = lab.shell(member, f"cat /var/lib/startline/trials/{where}/record.json 2>/dev/null || echo '{{}}'")
    return t.cast("int | None", json.loads(record).get("start_ns"))


def killed_in_the_lead(lab: Lab, pending: Pending, member: str, service: str) -> float:
    """Kill a service of a host once `member` knows T; how many seconds are left to T."""
    until(lambda: start_ns(lab, pending, member), 60, f"{member} knows T")
    after = lab.shell(lab.members[0] if service.endswith("rendezvous") else member, kill(service) + "; date +%s%N")
    return ((start_ns(lab, pending, member) or 0) - int(after)) / 1e9


def kill(service: str) -> str:
    return f"systemctl kill --kill-whom=main --signal=SIGKILL {service}"


def all_started(result: Json) -> None:
    assert (result["verdict"], result["reasons"]) == ("valid", [])
    assert result["skew"]["n"] == 4
    assert result["skew"]["min_us"] >= 0
    assert {row["exit_code"] for row in result["members"].values()} == {0}


def test_hosts_of_both_transports_start_together(lab: Lab) -> None:
    result = trial(lab, "echo here").result()
    all_started(result)
    assert result["lead_s"] > 0.5, "until the slowest look into a mailbox"
    assert result["skew"]["max_us"] < 0.5e6


def test_the_rendezvous_killed_between_publication_and_t_loses_nothing(lab: Lab) -> None:
    pending = trial(lab, "echo here")
    left = killed_in_the_lead(lab, pending, "node-1", "startline-rendezvous")
    assert left > 0, "T was still to come"
    all_started(pending.result())


@pytest.mark.parametrize("member", ["node-1", "mail-1"])
def test_an_agent_killed_between_hearing_of_t_and_t_is_no_loss(lab: Lab, member: str) -> None:
    pending = trial(lab, "echo here")
    left = killed_in_the_lead(lab, pending, member, "startline-agent")
    print(f"{member}: killed {left:.3f} s before T")
    if member == "node-1":  # a mailbox is looked into in time, not long before
        assert left > 0, "T was still to come"
    all_started(pending.result())


def test_a_host_whose_mailbox_is_out_of_reach_is_named_by_the_deadline(lab: Lab) -> None:
    with lab.cut("mail-1"):
        result = trial(lab, "echo here", deadline=12.0).result()
    assert result["outcome"] == "aborted"
    assert "mail-1" in result["reasons"][0]
    assert "mail-0" not in result["reasons"][0]
    assert result["skew"] is None


def test_a_mailbox_out_of_reach_during_the_trial_loses_no_evidence(lab: Lab) -> None:
    pending = trial(lab, "until [ -e go ]; do sleep 0.2; done; echo through", timeout=180.0, delivery_deadline=90.0)
    until(lambda: start_ns(lab, pending, "mail-0"), 60, "mail-0 knows T")
    until(lambda: lab.member_state(pending, "mail-0") == "fired", 30, "mail-0 fired")
    with lab.cut("mail-0"):
        for member in NAMES:
            (lab.spool(member, pending) / "work/go").touch()
        until(lambda: lab.member_state(pending, "mail-1") == "delivered", 60, "mail-1 delivered")
        until((lab.spool("mail-0", pending) / "exit.json").exists, 30, "the end of mail-0's command")
    all_started(pending.result(180))
