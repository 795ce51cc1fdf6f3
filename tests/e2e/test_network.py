# SPDX-License-Identifier: GPL-3.0-or-later
"""A run on a network that the experiment has asked for."""

from __future__ import annotations

from tests.support.commands import EXPERIMENTS, PROJECT, adhoc, playbook


def test_the_network_is_shaped_while_trials_run_and_not_afterwards(cloud: None) -> None:
    kept = playbook("site.yml", "-e", f"exp={EXPERIMENTS / 'shaped.yml'}", "-e", "keep=true")
    try:
        assert kept.returncode == 0, kept.output[-4000:]
        assert f"{kept.run_id}: VALID" in kept.output
        for member in ("node-0", "node-1"):
            path = PROJECT / "results" / "shaped" / kept.run_id / "trials" / "r1" / "1" / member / "stdout"
            shown = path.read_text()
            assert "qdisc htb 57a1: dev" in shown
            assert "rate 8Mbit ceil 8Mbit" in shown
        left = adhoc("node:&experiment_shaped", "-m", "ansible.builtin.command", "-a", "/usr/sbin/tc qdisc show")
        assert left.returncode == 0, left.output
        assert left.output.count("CHANGED") == 2
        assert "57a1:" not in left.output
    finally:
        gone = playbook("playbooks/destroy.yml", "-e", f"run={kept.run_id}")
    assert gone.returncode == 0, gone.output[-4000:]
