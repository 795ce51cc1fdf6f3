# SPDX-License-Identifier: GPL-3.0-or-later
"""The actions evidence and report, as real Ansible objects, over HTTP against an S3 on loopback."""

from __future__ import annotations

import os
import pathlib
import typing as t
from unittest.mock import MagicMock

import boto3
import pytest
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.plugins.loader import connection_loader
from ansible.template import Templar
from moto.server import ThreadedMotoServer

from ansible_collections.startline.lab.plugins.action import evidence as evidence_action
from ansible_collections.startline.lab.plugins.action import report as report_action
from tests.support import synthetic as syn

PLAN = syn.plan()
IDS = [trial["trial_id"] for trial in PLAN["trials"]]
PREFIX = f"dkg/{syn.RUN_ID}"
AWS = {"region": "us-east-1", "access_key": "unit", "secret_key": "unit-secret"}


@pytest.fixture(scope="module")
def endpoint() -> t.Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def aws(endpoint: str) -> dict[str, t.Any]:
    """The actions' AWS options, with the evidence of a good run in the bucket."""
    keys = {"aws_access_key_id": "unit", "aws_secret_access_key": "unit-secret"}
    s3 = boto3.resource("s3", region_name="us-east-1", endpoint_url=endpoint, **keys)
    bucket = s3.create_bucket(Bucket="results-bucket")
    for key, body in syn.run_objects(PLAN).items():
        bucket.put_object(Key=f"{PREFIX}/{key}", Body=body)
    return {**AWS, "endpoint_url": endpoint, "bucket": "results-bucket", "prefix": PREFIX}


def act(module: t.Any, check_mode: bool = False, **args: t.Any) -> dict[str, t.Any]:
    task = MagicMock(Task)
    task.action, task.args, task.async_val, task.check_mode, task.diff = "x", args, 0, check_mode, False
    play_context = PlayContext()
    loader = DataLoader()
    action = module.ActionModule(
        task=task,
        connection=connection_loader.get("local", play_context, os.devnull),
        play_context=play_context,
        loader=loader,
        templar=Templar(loader=loader),
        shared_loader_obj=None,
    )
    found: dict[str, t.Any] = action.run(task_vars={})
    return found


def test_from_the_first_look_to_the_published_report(aws: dict[str, t.Any], tmp_path: pathlib.Path) -> None:
    before = act(evidence_action, **aws, state="attempts", plan=PLAN)
    assert (before["changed"], before["finished"]) == (False, IDS)

    args = {**aws, "plan": PLAN, "results_dir": str(tmp_path), "attempts": before["attempts"], "wait": 0}
    assert act(evidence_action, check_mode=True, **args)["skipped"]
    assert list(tmp_path.iterdir()) == []
    collected = act(evidence_action, **args, provenance={"AWX job": "17"})
    assert collected["changed"]
    assert (collected["verdict"], collected["reasons"], collected["late"]) == ("valid", [], [])
    assert collected["figures"]["logs"] == {"expected": 16, "delivered": 16}
    assert collected["path"] == str(tmp_path / PREFIX)
    assert collected["s3_uri"] == f"s3://results-bucket/{PREFIX}"

    drawn = act(report_action, path=collected["path"], s3_uri=collected["s3_uri"])
    assert drawn["changed"]
    assert drawn["verdict"] == "valid"
    assert drawn["report"] == str(tmp_path / PREFIX / "report.html")
    assert "AWX job" in pathlib.Path(drawn["report"]).read_text()
    assert drawn["summary"].startswith(f"{syn.RUN_ID}: VALID\n")
    assert not act(report_action, path=collected["path"])["changed"]

    files = {"report.html": drawn["report"]}
    assert act(evidence_action, **aws, state="published", files=files)["uploaded"] == ["report.html"]
    assert not act(evidence_action, **aws, state="published", files=files)["changed"]


def test_a_run_that_is_not_valid_is_a_result_and_no_failure(aws: dict[str, t.Any], tmp_path: pathlib.Path) -> None:
    attempts = {IDS[0]: 2}
    found = act(evidence_action, **aws, plan=PLAN, results_dir=str(tmp_path), attempts=attempts, wait=0)
    assert found["verdict"] == "invalid"
    assert "failed" not in found
    assert found["late"] == [f"trials/{IDS[0]}/2/trial.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bucket": "no-such-bucket"}, f"s3://no-such-bucket/{PREFIX}: .*NoSuchBucket"),
        ({"plan": None}, "state is attempts but all of the following are missing: plan"),
        ({"state": "lost"}, "value of state must be one of"),
        ({"state": "published", "files": {"report.html": "/no/such/file"}}, "cannot read /no/such/file"),
    ],
)
def test_what_cannot_be_is_said(aws: dict[str, t.Any], change: dict[str, t.Any], message: str) -> None:
    args = {**aws, "state": "attempts", "plan": PLAN, **change}
    with pytest.raises(AnsibleActionFail, match=message):
        act(evidence_action, **{key: value for key, value in args.items() if value is not None})


def test_a_report_of_nothing_says_what_to_do(tmp_path: pathlib.Path) -> None:
    with pytest.raises(AnsibleActionFail, match="collect the run's evidence first"):
        act(report_action, path=str(tmp_path))
