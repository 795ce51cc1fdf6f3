# SPDX-License-Identifier: GPL-3.0-or-later
"""A run on a network that the experiment has asked for, and what may go wrong with the rules of a trial."""

from __future__ import annotations

import contextlib
import json
import pathlib
import typing as t

import pytest

from tests.support.commands import EXPERIMENTS, PROJECT, playbook
from tests.support.lab import Lab, until


@pytest.fixture(scope="module")
def lab(cloud: None, ec2: t.Any) -> t.Iterator[Lab]:
    """Two hosts, after a run of two trials with different networks."""
    lab = Lab(EXPERIMENTS / "shaped.yml")
    try:
        lab.find(ec2)
        yield lab
    finally:
        lab.close()


def shaped(lab: Lab, command: str, rate: str = "8mbit", **arguments: t.Any) -> dict[str, t.Any]:
    """A trial in which every host shapes what it sends to all."""
    rules = [{"to": sorted(lab.private_addresses.values()), "rate": rate}]
    network = {"phases": [{"at": 0, "rules": rules}], "exempt": [{"protocol": "tcp", "port": 22}]}
    trial = lab.trial(command, networks={"n": network}, **arguments)
    for member in trial["members"]:
        member.update(network="n", addresses=[lab.private_addresses[member["name"]]])
    return trial


def qdiscs(lab: Lab, member: str) -> str:
    return lab.shell(member, "tc qdisc show")


def test_each_trial_has_its_network_which_changes_on_its_timeline(lab: Lab) -> None:
    results = PROJECT / "results" / "shaped" / lab.run_id
    assert json.loads((results / "run.json").read_text())["verdict"] == "valid"
    for rate in ("8", "4"):
        attempt = results / "trials" / f"rate-{rate}mbit.r1" / "1"
        rows = json.loads((attempt / "trial.json").read_text())["members"]
        for member in lab.members:
            shown = (attempt / member / "stdout").read_text()
            assert "qdisc htb 57a1: dev" in shown
            assert f"rate {rate}Mbit ceil {rate}Mbit" in shown
            assert "rate 1Mbit ceil 1Mbit" in shown
            network = rows[member]["network"]
            assert (network["cleared"], network["problem"]) == (True, None)
            assert [phase["phase"] for phase in network["phases"]] == [0, 1]
            assert network["phases"][1]["at_s"] >= 0.5
            words = json.loads((attempt / member / "meta.json").read_text())["network"]["phases"][0]["words"]
            assert f"rate {rate}mbit" in str(words)


def read(path: pathlib.Path) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", json.loads(path.read_text()))


def metrics(trial: dict[str, t.Any]) -> dict[tuple[str, str, str], dict[str, t.Any]]:
    """What was measured before a trial, by the ends of a pair and the metric."""
    return {
        (pair["from"], pair["to"], entry["metric"]): entry
        for pair in trial["network"]["pairs"]
        for entry in pair["metrics"]
    }


def test_what_is_in_force_in_a_trial_was_measured_before_it_and_is_in_the_report(lab: Lab) -> None:
    results = PROJECT / "results" / "shaped" / lab.run_id
    first, second = lab.members
    for number, rate in enumerate((8, 4), 1):
        trial = read(results / "trials" / f"rate-{rate}mbit.r1" / "1" / "trial.json")
        assert (trial["network"]["verdict"], trial["network"]["network"]) == ("valid", f"network-{number}")
        found = metrics(trial)
        assert set(found) == {
            (first, second, "rtt"), (first, second, "loss"), (first, second, "rate"), (second, first, "rate"),
        }  # fmt: skip
        for pair in ((first, second), (second, first)):
            rated = found[(*pair, "rate")]
            assert rated["asked"] == rate * 10**6
            assert 0.9 <= rated["measured"] / rated["asked"] <= 1.1
    checks = {entry["key"] for entry in read(results / "manifest.json")["objects"] if not entry.get("superseded")}
    for check in ("check-baseline", "check-network-1", "check-network-2"):
        assert f"trials/{check}/1/{first}/stdout" in checks
    page = (results / "report.html").read_text()
    assert f'data-pair="{second} {first} rate"' in page
    assert "network-2: 1 pair as asked" in page


def test_nothing_is_left_after_the_last_trial(lab: Lab) -> None:
    for member in lab.members:
        assert "57a1:" not in qdiscs(lab, member)
        assert "startline-netem" not in lab.shell(member, "systemctl list-units --all --plain --no-legend")


def test_rules_that_cannot_be_had_are_named_and_nobody_starts(lab: Lab) -> None:
    first, second = lab.members
    device = lab.shell(second, "ip -o route show default").split(" dev ")[1].split()[0]
    lab.shell(second, f"tc qdisc add dev {device} root pfifo limit 77")
    try:
        result = lab.submit(shaped(lab, "true")).result()
    finally:
        left = qdiscs(lab, second)
        lab.shell(second, f"tc qdisc del dev {device} root")
    assert result["outcome"] == "aborted"
    assert f"{second}: network: {device} has a root qdisc of somebody else" in result["reasons"][0]
    assert "limit 77p" in left
    until(lambda: "57a1:" not in qdiscs(lab, first), 10, "the other's rules are gone")
    assert lab.submit(shaped(lab, "true")).result()["verdict"] == "valid"


def test_a_rate_that_the_device_does_not_have_is_named_and_nobody_starts(lab: Lab) -> None:
    result = lab.submit(shaped(lab, "true", rate="20gbit")).result()
    assert result["outcome"] == "aborted"
    assert "network: the rate 20gbit is more than the 10gbit of " in result["reasons"][0]
    assert all("57a1:" not in qdiscs(lab, member) for member in lab.members)


def test_rules_that_somebody_changes_are_noticed(lab: Lab) -> None:
    victim = lab.members[1]
    pending = lab.submit(shaped(lab, "while [ ! -e /tmp/startline-changed ]; do sleep 0.05; done"))
    until(lambda: "57a1:" in qdiscs(lab, victim), 20, "rules")
    lab.reach(pending, "running")
    device = qdiscs(lab, victim).split("qdisc htb 57a1: dev ")[1].split()[0]
    lab.shell(victim, f"tc qdisc del dev {device} root")
    for member in lab.members:
        lab.shell(member, "touch /tmp/startline-changed")
    result = pending.result()
    assert result["verdict"] == "degraded"
    assert result["reasons"] == [
        f"{victim}: network: the rules that were in force were changed or removed by somebody else"
    ]


def test_rules_that_cannot_be_removed_are_said_to_stand_and_go_with_those_of_the_next_trial(lab: Lab) -> None:
    victim = lab.members[1]
    pending = lab.submit(shaped(lab, "while [ ! -e /tmp/startline-go-on ]; do sleep 0.05; done", timeout=60.0))
    lab.reach(pending, "running")
    tc = lab.shell(victim, "command -v tc").strip()
    try:
        lab.shell(victim, f"mv {tc} {tc}.away")
    finally:
        for member in lab.members:
            lab.shell(member, "touch /tmp/startline-go-on")
    try:
        result = pending.result()
    finally:
        lab.shell(victim, f"mv {tc}.away {tc}")
        for member in lab.members:
            lab.shell(member, "rm -f /tmp/startline-go-on")
    assert result["verdict"] == "degraded"
    networks = [result["members"][member]["network"] for member in lab.members]
    assert [network["cleared"] for network in networks] == [True, False]
    assert "rules are left until they remove themselves: there is no tc here" in networks[1]["problem"]
    assert "57a1:" in qdiscs(lab, victim)
    assert lab.submit(shaped(lab, "true")).result()["verdict"] == "valid"
    assert "57a1:" not in qdiscs(lab, victim)


def test_an_agent_that_never_comes_back_leaves_a_timer_that_removes_the_rules(lab: Lab) -> None:
    victim = lab.members[1]
    pending = lab.submit(shaped(lab, "while [ ! -e /tmp/startline-go-on ]; do sleep 0.05; done", timeout=60.0))
    lab.reach(pending, "running")
    lab.shell(victim, "systemctl kill --signal=KILL --kill-who=main startline-agent; systemctl stop startline-agent")
    try:
        assert "57a1:" in qdiscs(lab, victim)
        timers = lab.shell(victim, "systemctl list-units --plain --no-legend 'startline-netem-revert-*.timer'").split()
        assert timers[3] == "waiting"
        # What the timer does when its time has come; that it comes is shown by the scenario `netem`.
        lab.shell(victim, f"systemctl start --wait {timers[0].replace('.timer', '.service')}")
        assert "57a1:" not in qdiscs(lab, victim)
    finally:
        lab.shell(victim, "systemctl start startline-agent")
        for member in lab.members:
            lab.shell(member, "touch /tmp/startline-go-on")
    result = pending.result()
    assert result["verdict"] == "degraded"
    assert result["members"][victim]["network"]["cleared"]


def test_an_agent_killed_with_rules_in_force_takes_them_up_again(lab: Lab) -> None:
    victim = lab.members[1]
    pending = lab.submit(shaped(lab, "while [ ! -e /tmp/startline-taken-up ]; do sleep 0.05; done"))
    lab.reach(pending, "running")
    lab.shell(victim, "systemctl kill --signal=KILL --kill-who=main startline-agent")
    until(lambda: lab.connected(*lab.members), 20, "the agent is back")
    assert "57a1:" in qdiscs(lab, victim)
    for member in lab.members:
        lab.shell(member, "touch /tmp/startline-taken-up")
    assert pending.result()["verdict"] == "valid"
    assert "57a1:" not in qdiscs(lab, victim)


def test_a_host_that_reboots_has_no_rules_and_takes_part_again(lab: Lab) -> None:
    victim = lab.members[1]
    pending = lab.submit(shaped(lab, "sleep 3600", timeout=60.0))
    lab.reach(pending, "running")
    lab.shell(victim, "touch /run/before-the-reboot")
    with contextlib.suppress(AssertionError):  # the connection goes with the host
        lab.shell(victim, "systemctl reboot")
    lab.shell(lab.members[0], "startline-agent abort --reason 'seen enough'")
    result = pending.result()
    assert result["verdict"] == "invalid"
    assert any(victim in reason for reason in result["reasons"]), result["reasons"]
    until(lambda: lab.connected(*lab.members), 30, "the host is back")
    assert "before" not in lab.shell(victim, "ls /run")
    assert "57a1:" not in qdiscs(lab, victim)
    assert lab.submit(shaped(lab, "true")).result()["verdict"] == "valid"


def test_a_network_that_is_refused_starts_nobody(lab: Lab) -> None:
    found = read(PROJECT / "results" / "shaped" / lab.run_id / "trials" / "rate-8mbit.r1" / "1" / "trial.json")[
        "network"
    ]
    refused = {**found, "verdict": "invalid", "reasons": ["node-0 to node-1: rate: 8 Mbit/s asked, 2 Mbit/s measured"]}
    result = lab.submit(shaped(lab, "true", network_check=refused)).result()
    assert (result["outcome"], result["verdict"], result["start"]) == ("aborted", "invalid", None)
    assert result["reasons"] == [f"network: {refused['reasons'][0]}"]
    assert result["network"] == refused
    assert lab.submit(shaped(lab, "true", network_check=found)).result()["verdict"] == "valid"


def test_round_trip_loss_and_rate_are_measured_and_a_network_that_is_off_marks_its_trials(cloud: None) -> None:
    ended = playbook("site.yml", "-e", f"exp={EXPERIMENTS / 'measured.yml'}")
    assert ended.returncode != 0
    assert f"{ended.run_id}: DEGRADED" in ended.output
    results = PROJECT / "results" / "measured" / ended.run_id
    good, off = (read(results / "trials" / f"rate-{rate}.r1" / "1" / "trial.json") for rate in ("8mbit", "9gbit"))
    assert (good["verdict"], good["reasons"]) == ("valid", []), ended.output[-4000:]
    found = metrics(good)
    assert 30 <= found["node-0", "node-1", "rtt"]["measured"] <= 50
    assert 0 < found["node-0", "node-1", "loss"]["asked"] < 4
    assert found["node-1", "node-0", "rate"]["right"]
    # What is there already is part of the 40 ms, and the rules make the rest of it.
    delays = set(good["network"]["delays"][0])
    assert all(10 < float(delay.removesuffix("ms")) < 20 for delay in delays), delays
    meta = read(results / "trials" / "rate-8mbit.r1" / "1" / "node-0" / "meta.json")
    assert any(f"delay {delay}" in str(meta["network"]["phases"][0]["words"]) for delay in delays)
    assert (off["outcome"], off["verdict"]) == ("completed", "degraded")
    assert "network: node-" in off["reasons"][0]
    assert "of 9000 Mbit/s: the host is too slow or too busy" in off["reasons"][0]
    assert off["network"]["check"]["attempt"] == 4, "what is off is measured again, rates three times"
    assert "network   network-2: 1 of 1 pair off: node-" in ended.output
    assert "Pairs that are off" in (results / "report.html").read_text()
