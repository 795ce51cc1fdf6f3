# SPDX-License-Identifier: GPL-3.0-or-later
"""A run on a network that the experiment has asked for."""

from __future__ import annotations

import json

from tests.support.commands import EXPERIMENTS, PROJECT, adhoc, playbook


def test_each_trial_has_its_network_which_changes_on_its_timeline_and_is_gone_afterwards(cloud: None) -> None:
    kept = playbook("site.yml", "-e", f"exp={EXPERIMENTS / 'shaped.yml'}", "-e", "keep=true")
    try:
        assert kept.returncode == 0, kept.output[-4000:]
        assert f"{kept.run_id}: VALID" in kept.output
        trials = PROJECT / "results" / "shaped" / kept.run_id / "trials"
        for rate in ("8", "4"):
            attempt = trials / f"rate-{rate}mbit.r1" / "1"
            rows = json.loads((attempt / "trial.json").read_text())["members"]
            for member in ("node-0", "node-1"):
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
        left = adhoc("node:&experiment_shaped", "-m", "ansible.builtin.command", "-a", "/usr/sbin/tc qdisc show")
        assert left.returncode == 0, left.output
        assert left.output.count("CHANGED") == 2
        assert "57a1:" not in left.output
    finally:
        gone = playbook("playbooks/destroy.yml", "-e", f"run={kept.run_id}")
    assert gone.returncode == 0, gone.output[-4000:]
