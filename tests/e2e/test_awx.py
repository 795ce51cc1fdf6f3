# SPDX-License-Identifier: GPL-3.0-or-later
"""The project under AWX's engine, as AWX does it: ansible-runner, a fresh copy of the project, a job's extra vars."""

from __future__ import annotations

import json
import pathlib
import subprocess
import typing as t

import ansible_runner

from tests.support.commands import PROJECT, run_resources


def fresh_copy(target: pathlib.Path) -> pathlib.Path:
    """What AWX's project update makes of the tree: the committed files, and links as links."""
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(PROJECT), str(target)], check=True)
    return target


def test_a_job_ends_valid_and_leaves_its_artifacts(cloud: None, ec2: t.Any, tmp_path: pathlib.Path) -> None:
    project = fresh_copy(tmp_path / "project")
    private = tmp_path / "job"
    private.mkdir()
    runner = ansible_runner.run(
        private_data_dir=str(private),
        project_dir=str(project),
        playbook="site.yml",
        inventory=str(project / "inventories" / "local"),
        extravars={
            "exp": "tests/e2e/experiments/tiny.yml",
            "awx_job_id": 4711,
            "awx_job_template_name": "Startline",
            "awx_project_revision": "0" * 40,
        },
        quiet=True,
    )
    output = runner.stdout.read()
    assert runner.status == "successful", output[-4000:]
    stats = [event["event_data"] for event in runner.events if event["event"] == "playbook_on_stats"]
    artifacts = stats[-1]["artifact_data"]
    assert artifacts["startline_run_id"] == "tiny-awx4711"
    assert artifacts["startline_verdict"] == "valid"
    assert "tiny-awx4711: VALID" in artifacts["startline_summary"]
    assert "tiny-awx4711: VALID" in output.partition("PLAY RECAP")[2]
    assert artifacts["startline_results"].startswith("s3://startline-")
    assert artifacts["startline_results"].endswith("/tiny/tiny-awx4711/")
    assert run_resources(ec2, "tiny-awx4711") == []
    assert json.loads((project / "results" / "tiny" / "tiny-awx4711" / "run.json").read_text())["verdict"] == "valid"
