# SPDX-License-Identifier: GPL-3.0-or-later
"""The action agent: certificates come from the run's directory, everything else goes to the module as it is."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import typing as t
from unittest import mock

import pytest
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.task import Task
from ansible.template import Templar

from ansible_collections.startline.lab.plugins.action import agent
from ansible_collections.startline.lab.plugins.module_utils._agent import mailbox


def run(**arguments: t.Any) -> dict[str, t.Any]:
    """What the module is given."""
    task = mock.MagicMock(Task)
    task.action, task.async_val, task.check_mode, task.diff = "startline.lab.agent", False, False, False
    task.args = arguments
    loader = DataLoader()
    action = agent.ActionModule(
        task, mock.MagicMock(), mock.MagicMock(), loader, Templar(loader=loader, variables={}), mock.MagicMock()
    )
    with mock.patch.object(action, "_execute_module", return_value={"changed": True}) as module:
        assert action.run(task_vars={})["changed"]
    assert module.call_args.kwargs["module_name"] == "startline.lab.agent"
    return t.cast("dict[str, t.Any]", module.call_args.kwargs["module_args"])


def test_certificates_are_issued_and_reused(tmp_path: pathlib.Path) -> None:
    first = run(run_id="run-1", member="a-0", tls_directory=str(tmp_path), rendezvous=True)
    second = run(run_id="run-1", member="a-0", tls_directory=str(tmp_path), rendezvous="yes")
    for name in ("ca", "certificate", "key", "rendezvous_certificate", "rendezvous_key"):
        assert first[name] == second[name]
        assert first[name].startswith("-----BEGIN ")
    other = run(run_id="run-1", member="a-1", tls_directory=str(tmp_path), rendezvous=False)
    assert other["ca"] == first["ca"]
    assert other["key"] != first["key"]
    assert "rendezvous_key" not in other


AWS = {"region": "eu-west-1", "access_key": "key-of-a-test", "secret_key": "secret-of-a-test"}
PLACE = {"mailbox_bucket": "lab-evidence", "mailbox_prefix": "dkg/run-1", **AWS}


def test_a_mailbox_is_signed_on_the_controller_and_signed_again_only_when_it_is_old(tmp_path: pathlib.Path) -> None:
    asked = {"run_id": "run-1", "tls_directory": str(tmp_path), **PLACE}
    first = run(member="a-0", transport="s3", **asked)
    mine = json.loads(first["mailbox"])
    assert mine["grants"]["put_out"].startswith(
        "https://lab-evidence.s3.eu-west-1.amazonaws.com/dkg/run-1/barrier/out/a-0?X-Amz-"
    )
    assert not AWS.keys() & first.keys(), "credentials stay here"
    assert run(member="a-0", transport="s3", **asked)["mailbox"] == first["mailbox"]
    other = run(member="a-1", transport="s3", **asked)
    assert json.loads(other["mailbox"])["key"] != mine["key"]
    kept = tmp_path / "mailbox-a-0.json"
    os.utime(kept, (0, 0))
    renewed = run(member="a-0", transport="s3", **{**asked, "mailbox_prefix": "dkg/else"})
    assert json.loads(renewed["mailbox"])["key"] == mine["key"]
    assert "/dkg/else/" in renewed["mailbox"]
    served = run(member="a-2", rendezvous=True, **asked)
    assert "mailbox" not in served
    secret = json.loads(served["mailboxes"])["secret"]
    assert mailbox.member_key(bytes.fromhex(secret), mailbox.Address("run-1", "a-0")).hex() == mine["key"]
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}


def test_a_mailbox_without_a_place_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(AnsibleActionFail, match="mailbox_bucket"):
        run(run_id="run-1", member="a-0", tls_directory=str(tmp_path), transport="s3")


def test_nothing_is_issued_for_a_removal(tmp_path: pathlib.Path) -> None:
    assert run(state="absent", tls_directory=str(tmp_path)) == {"state": "absent", "tls_directory": str(tmp_path)}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"run_id": "run-1"}, "member"),
        ({"member": "a-0"}, "run_id"),
        ({"run_id": "run-1", "member": "a-0", "expires": "tomorrow"}, "expires is not"),
        ({"run_id": "run-1", "member": "a-0", "expires": "2001-01-01T00:00:00Z"}, "expires has passed"),
    ],
)
def test_what_is_missing_is_named(tmp_path: pathlib.Path, arguments: dict[str, t.Any], words: str) -> None:
    with pytest.raises(AnsibleActionFail, match=words):
        run(tls_directory=str(tmp_path), **arguments)


def test_expiry_is_utc_unless_it_says_otherwise() -> None:
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    assert agent._expiry("2026-01-02T00:00:00", now) == agent._expiry("2026-01-02T00:00:00Z", now)
    assert agent._expiry(None, now) - now == agent.DEFAULT_LIFE
