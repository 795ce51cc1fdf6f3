# SPDX-License-Identifier: GPL-3.0-or-later
"""The action network_check: what it submits, and what it makes of what the hosts have delivered to an S3 on loopback."""

from __future__ import annotations

import json
import typing as t
from unittest import mock

import boto3
import pytest
import yaml
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.task import Task
from ansible.template import Templar
from moto.server import ThreadedMotoServer

from ansible_collections.startline.lab.plugins.action import network_check as action_plugin
from ansible_collections.startline.lab.plugins.doc_fragments.aws import ModuleDocFragment
from ansible_collections.startline.lab.plugins.modules import network_check as documented
from ansible_collections.startline.lab.plugins.plugin_utils import _plan
from ansible_collections.startline.lab.plugins.plugin_utils._experiment import load_experiment

TEXT = "groups: {a: {count: 2}}\ncommand: run\nparameters: {rtt: [none, 40ms, 80ms]}\norder: sequential\n"
TEXT += 'network: {a: {a: {rtt: "{{ rtt }}"}}}\n'
HOSTS = {f"a-{index}": {"address": f"10.0.0.{index + 1}"} for index in range(2)}
AWS = {"region": "us-east-1", "access_key": "unit", "secret_key": "unit-secret", "bucket": "results"}


@pytest.fixture
def bucket() -> t.Iterator[t.Any]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "unit", "aws_secret_access_key": "unit-secret"}
    made = boto3.resource("s3", region_name="us-east-1", endpoint_url=endpoint, **keys).create_bucket(Bucket="results")
    made.endpoint = endpoint
    yield made
    made.objects.delete()
    made.delete()
    server.stop()


class Fleet:
    """Hosts that deliver what they are asked to measure: round trips in ms by (check, attempt)."""

    def __init__(self, bucket: t.Any, trips: dict[tuple[str, int], float]) -> None:
        self.bucket, self.trips = bucket, trips
        self.submitted: list[dict[str, t.Any]] = []

    def execute(self, command: str, in_data: bytes) -> dict[str, t.Any]:
        trial = json.loads(in_data)
        self.submitted.append(trial)
        name, attempt = trial["trial_id"], trial["attempt"]
        program = json.loads(trial["files"]["probes.json"])
        for member, own in program["members"].items():
            results = [
                {**step, "output": "", "problem": None, "errors": self.said(step, self.trips[name, attempt])}
                for step in own["steps"]
            ]
            self.bucket.put_object(
                Key=f"demo/run-1/trials/{name}/{attempt}/{member}/stdout",
                Body=json.dumps({"format": "startline-probe/1", "results": results}).encode(),
            )
        row = {"role": "starter", "state": "delivered", "exit_code": 0}
        answer = {"format": "startline-trial/1", "outcome": "completed", "members": dict.fromkeys(HOSTS, row)}
        return {"rc": 0, "stdout": json.dumps(answer), "stderr": ""}

    @staticmethod
    def said(step: dict[str, t.Any], trip: float) -> str:
        return "".join(f"{address} : {' '.join([str(trip)] * 100)}\n" for address in step["targets"])


def run(fleet: Fleet, key: str = "", check_mode: bool = False, **arguments: t.Any) -> dict[str, t.Any]:
    plan = _plan.expand(load_experiment(f"{TEXT}{key}", "experiments/demo.yml"))
    task = mock.MagicMock(Task)
    task.action, task.async_val, task.check_mode, task.diff = "startline.lab.network_check", False, check_mode, False
    task.args = {"plan": plan, "run_id": "run-1", "hosts": HOSTS, **AWS, "endpoint_url": fleet.bucket.endpoint}
    task.args.update(arguments)
    loader = DataLoader()
    action = action_plugin.ActionModule(
        task, mock.MagicMock(), mock.MagicMock(), loader, Templar(loader=loader, variables={}), mock.MagicMock()
    )
    with mock.patch.object(action, "_low_level_execute_command", mock.Mock(side_effect=fleet.execute)):
        found: dict[str, t.Any] = action.run(task_vars={})
        return found


def epochs(fleet: Fleet) -> list[tuple[str, int]]:
    return [(trial["trial_id"], trial["attempt"]) for trial in fleet.submitted]


def test_networks_are_measured_after_the_baseline_each_with_its_rules(bucket: t.Any) -> None:
    fleet = Fleet(bucket, {("check-baseline", 1): 0.2, ("check-network-1", 1): 40.2, ("check-network-2", 1): 80.2})
    result = run(fleet)
    assert (result["changed"], result["msg"]) == (True, "2 pairs as asked")
    assert {name: report["verdict"] for name, report in result["checks"].items()} == {
        "network-1": "valid",
        "network-2": "valid",
    }
    assert epochs(fleet) == list(fleet.trips)
    bare, first, _second = fleet.submitted
    assert bare["networks"] == {}
    assert next(iter(first["networks"].values()))["phases"][0]["rules"][0]["delay"] == "20ms"
    assert bare["evidence"]["prefix"] == "demo/run-1"


def test_what_is_off_is_measured_once_more_and_the_next_session_takes_the_next_number(bucket: t.Any) -> None:
    fleet = Fleet(
        bucket,
        {
            ("check-baseline", 1): 0.2,
            ("check-network-2", 1): 95.0,
            ("check-network-2", 2): 80.2,
            ("check-baseline", 2): 0.2,
            ("check-network-2", 3): 40.0,
            ("check-network-2", 4): 41.0,
        },
    )
    first = run(fleet, trials=["rtt-80ms.r1"])["checks"]["network-2"]
    assert (first["verdict"], first["check"]["attempt"], first["check"]["again"]) == ("valid", 2, 1)
    second = run(fleet, trials=["rtt-80ms.r1"])
    assert epochs(fleet) == list(fleet.trips)
    assert second["msg"] == (
        "1 of 1 pair off: a-0 to a-1: rtt: 80 ms asked, 40.8 ms measured (78.4 to 81.6 ms is right)"
    )
    assert "failed" not in second


def test_what_was_there_already_is_compensated(bucket: t.Any) -> None:
    fleet = Fleet(bucket, {("check-baseline", 1): 50.0, ("check-network-2", 1): 80.0})
    reports = run(fleet, "network_check: {compensate: true}\n")["checks"]
    assert (reports["network-1"]["verdict"], reports["network-2"]["verdict"]) == ("invalid", "valid")
    assert "20ms one way cannot be made of the 25ms that are there already" in reports["network-1"]["reasons"][0]
    assert reports["network-2"]["delays"] == [["15ms"]]
    assert next(iter(fleet.submitted[1]["networks"].values()))["phases"][0]["rules"][0]["delay"] == "15ms"
    assert epochs(fleet) == list(fleet.trips)


def test_nothing_is_measured_that_nobody_needs(bucket: t.Any) -> None:
    fleet = Fleet(bucket, {})
    for arguments in ({"trials": ["rtt-none.r1"]}, {"trials": []}, {"check_mode": True}):
        result = run(fleet, **arguments)
        assert (result["changed"], result["checks"], fleet.submitted) == (False, {}, [])
    assert result["msg"] == "would measure baseline, network-1, network-2"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bucket": "no-such-bucket"}, "s3://no-such-bucket: .*NoSuchBucket"),
        ({"plan": {}}, "a plan of the format"),
        ({"hosts": {}}, "check-baseline: no two hosts of the fleet have an address"),
    ],
)
def test_what_cannot_be_measured_is_refused(bucket: t.Any, changes: dict[str, t.Any], words: str) -> None:
    with pytest.raises(AnsibleActionFail, match=words):
        run(Fleet(bucket, {}), **changes)


def test_the_documentation_has_the_arguments_that_are_checked() -> None:
    options = yaml.safe_load(documented.DOCUMENTATION)["options"]
    options.update(yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"])
    wanted = {
        name: {key: value for key, value in option.items() if key != "description"} for name, option in options.items()
    }
    checked = {
        name: {key: value for key, value in option.items() if key != "no_log"}
        for name, option in action_plugin.ARGUMENT_SPEC.items()
    }
    assert wanted == checked
