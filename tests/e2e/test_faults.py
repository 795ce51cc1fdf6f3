# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong is named, nothing hangs, nothing is left, nothing is lost."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import typing as t

import pytest

from tests.support.commands import (
    EXPERIMENTS,
    PROJECT,
    playbook,
    playbook_killed_at,
    processes,
    run_resources,
    start_playbook,
)
from tests.support.lab import until

TINY = f"exp={EXPERIMENTS / 'tiny.yml'}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["exp=dgk"], ["Did you mean dkg?"]),
        ([], ["Which experiment?", "dkg"]),
        (["exp=dkg", "-e", "set=groups.party.count=0"], ["groups.party.count"]),
        (["exp=dkg", "-e", "set=groups.party.cuont=4"], ["groups.party.cuont", "Did you mean count?"]),
        (["exp=dkg", "-e", "set=timeout=soon"], ["timeout"]),
    ],
)
def test_bad_input_is_refused_before_anything_is_created(words: list[str], said: list[str]) -> None:
    ended = playbook("site.yml", *(["-e", *words] if words else []))
    assert ended.returncode != 0
    for text in said:
        assert text in ended.output
    assert "PLAY [Provision" not in ended.output


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path: pathlib.Path) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("groups:\n  node: {count: zero}\ncomand: echo\ncommand: echo {{ nobody }}\ntimeout: -1\n")
    ended = playbook("playbooks/plan.yml", "-e", f"exp={wrong}")
    assert ended.returncode != 0
    for where, what in ((2, "groups.node.count"), (3, "comand"), (4, "nobody"), (5, "timeout")):
        assert f"wrong.yml:{where}" in ended.output
        assert what in ended.output


NETWORK = """
sites: {us: {region: us-east-1}, lab: {region: us-west-2, gateway: login}}
groups: {party: {site: us, count: 2}, login: {site: lab, count: 1}, node: {site: lab, count: 2}}
command: echo
network:
"""


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (
            "  party:\n    nobody: {rtt: 10ms}\n    login: {rtt: 10, loss: 200%}\n    node: {rate: 10bps}\n",
            [
                "wrong.yml:6: network.party.nobody: nobody is not a group",
                "wrong.yml:7: network.party.login.rtt: 10 has no unit: write 40ms",
                "wrong.yml:7: network.party.login.loss: 200% is more than all packets",
                "wrong.yml:8: network.party.node.rate: 10bps: bps is bytes to tc",
            ],
        ),
        ("  party:\n    party-7: {rtt: 1ms}\n", ["there is no host party-7"]),
        ("  us: {lab: {rtt: 80ms}}\n  lab: {us: {rtt: 60ms}}\n", ["neither rule is narrower"]),
        (
            "  party:\n    node: {rtt: 80ms}\n",
            ["but node-0 is reached through login-0", "Name the site (lab) in the rule"],
        ),
        ("  us:\n    lab: {rtt: 80ms, jitter: 90ms}\n", ["no packet can arrive before it is sent"]),
    ],
)
def test_mistakes_of_a_network_are_told_before_anything_is_created(
    tmp_path: pathlib.Path, network: str, said: list[str]
) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(NETWORK.lstrip() + network)
    ended = playbook("site.yml", "-e", f"exp={wrong}")
    assert ended.returncode != 0
    for text in said:
        assert text in ended.output
    assert "PLAY [Provision" not in ended.output


def test_broken_yaml_is_named_with_its_line(tmp_path: pathlib.Path) -> None:
    broken = tmp_path / "broken.yml"
    broken.write_text("groups:\n  node: {count: 1\ncommand: x\n")
    ended = playbook("playbooks/plan.yml", "-e", f"exp={broken}")
    assert ended.returncode != 0
    assert "broken.yml:" in ended.output


def test_a_command_that_fails_makes_the_run_invalid_and_keeps_every_log(cloud: None, ec2: t.Any) -> None:
    ended = playbook("site.yml", "-e", f"exp={EXPERIMENTS / 'failing.yml'}")
    assert ended.returncode != 0
    results = PROJECT / "results" / "failing" / ended.run_id
    run = json.loads((results / "run.json").read_text())
    assert run["verdict"] == "invalid"
    assert any("node-1" in reason and "3" in reason for reason in run["reasons"])
    assert (results / "trials" / "r1" / "1" / "node-1" / "stderr").read_text() == "disk on fire\n"
    assert (results / "trials" / "r1" / "1" / "node-0" / "stdout").read_text() == "about to end\n"
    assert "node-1" in ended.output
    assert run_resources(ec2, ended.run_id) == []


def test_a_host_that_never_comes_up_is_named_and_the_rest_is_cleaned_up(cloud: None, ec2: t.Any) -> None:
    # The fault is real: the host's first boot stops its SSH server for good.
    ended = playbook(
        "site.yml",
        "-e",
        TINY,
        "-e",
        "startline_fleet_deadline=15",
        "-e",
        '{"fleet_user_data": "systemctl mask --now ssh"}',
    )
    assert ended.returncode != 0
    assert "2 of 2 hosts did not come up within 15 s" in ended.output
    assert "node-0" in ended.output
    assert "node-1" in ended.output
    assert run_resources(ec2, ended.run_id) == []


#: A line that is printed where each begins.
STAGES = (
    "PLAY [Provision the fleet]",
    "TASK [startline.lab.fleet : Present | Wait",
    "PLAY [Configure the hosts]",
    "TASK [Run the trial]",
    "PLAY [Collect",
    "PLAY [Destroy",
)


def test_the_same_command_completes_a_run_that_was_killed_in_every_stage(cloud: None, ec2: t.Any) -> None:
    begun = []
    for stage in STAGES:
        killed = playbook_killed_at(stage, "site.yml", "-e", TINY)
        assert killed.returncode == -9, f"it never came to {stage}: {killed.output[-4000:]}"
        begun.append(killed)
    again = playbook("site.yml", "-e", TINY)
    assert again.returncode == 0, again.output[-4000:]
    first = begun[0].run_id
    for ended in (*begun[1:], again):
        assert f"Going on with run {first}" in ended.output
    run = json.loads((PROJECT / "results" / "tiny" / first / "run.json").read_text())
    assert run["verdict"] == "valid"
    assert run_resources(ec2, first) == []


def test_a_controller_killed_while_a_trial_runs_attaches_to_it(cloud: None, ec2: t.Any, tmp_path: pathlib.Path) -> None:
    # The hosts' processes are seen from here, so the event is the command itself.
    sleep = ("sleep", "6.517")
    command = f"echo >> /var/tmp/starts; {' '.join(sleep)}; wc -l < /var/tmp/starts"
    experiment = {"groups": {"node": {"count": 2}}, "command": command, "repeats": 2, "timeout": 20}
    path = tmp_path / "killed.yml"
    path.write_text(json.dumps(experiment))
    process = start_playbook("site.yml", "-e", f"exp={path}")
    try:
        until(lambda: len(processes(*sleep)) == 2 or process.poll() is not None, 180, "the command on both hosts")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert processes(*sleep), "the trial goes on alone"
    again = playbook("site.yml", "-e", f"exp={path}")
    assert again.returncode == 0, again.output[-4000:]
    trials = PROJECT / "results" / "killed" / again.run_id / "trials"
    starts = {str(path.relative_to(trials)): path.read_text().strip() for path in trials.glob("*/*/node-1/stdout")}
    assert starts == {"r1/1/node-1/stdout": "1", "r2/1/node-1/stdout": "2"}, (
        "each once on each host, at the first attempt"
    )
    assert run_resources(ec2, again.run_id) == []


def destroy(ec2: t.Any, run_id: str) -> None:
    """Destroy what there is of a run: something before, nothing after."""
    assert run_resources(ec2, run_id)
    gone = playbook("playbooks/destroy.yml", "-e", f"run={run_id}")
    assert gone.returncode == 0, gone.output[-4000:]
    assert run_resources(ec2, run_id) == []


def test_destroy_alone_leaves_nothing_of_a_run_that_was_killed(cloud: None, ec2: t.Any) -> None:
    killed = playbook_killed_at("TASK [startline.lab.fleet : Network | Create the subnet", "site.yml", "-e", TINY)
    destroy(ec2, killed.run_id)


def test_a_run_whose_fleet_was_destroyed_is_completed_on_new_hosts(cloud: None, ec2: t.Any) -> None:
    # The new hosts get the old ones' addresses, with other host keys.
    killed = playbook_killed_at("PLAY [Run the trials]", "site.yml", "-e", TINY)
    destroy(ec2, killed.run_id)
    again = playbook("site.yml", "-e", TINY)
    assert again.returncode == 0, again.output[-4000:]
    assert again.run_id == killed.run_id
    assert f"{killed.run_id}: VALID" in again.output
