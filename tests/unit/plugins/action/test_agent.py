# SPDX-License-Identifier: GPL-3.0-or-later
"""The action agent: certificates come from the run's directory, everything else goes to the module as it is."""

from __future__ import annotations

import datetime
import pathlib
import typing as t
from unittest import mock

import pytest
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.task import Task
from ansible.template import Templar

from ansible_collections.startline.lab.plugins.action import agent


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
