# SPDX-License-Identifier: GPL-3.0-or-later
"""The module agent: which files it installs. That they work on a host is shown by its molecule scenario."""

from __future__ import annotations

import json
import pkgutil
import typing as t

import pytest
import yaml

from ansible_collections.startline.lab.plugins.module_utils import _agent
from ansible_collections.startline.lab.plugins.module_utils._agent import config as agent_config
from ansible_collections.startline.lab.plugins.modules import agent

PARAMS: dict[str, t.Any] = {
    "run_id": "run-1",
    "member": "a-0",
    "rendezvous_address": "10.0.0.4",
    "rendezvous_port": 7447,
    "rendezvous": False,
    "ca": "CA",
    "certificate": "CERTIFICATE",
    "key": "KEY",
    "rendezvous_certificate": None,
    "rendezvous_key": None,
    "imds": "http://169.254.169.254",
    "mailbox": None,
    "mailboxes": None,
}


def files(**changes: t.Any) -> dict[str, agent.File]:
    made = agent.wanted_files({**PARAMS, **changes}, {"wire": "x"}, "/usr/bin/python3")
    return {file.path: file for file in made}


def test_every_subject_of_the_agent_is_shipped() -> None:
    names = {found.name for found in pkgutil.iter_modules(_agent.__path__)}
    assert set(agent.SUBJECTS) == names
    with open(agent.__file__, encoding="utf-8") as stream:
        imported = stream.read().partition("import (")[2].partition(")")[0]
    assert {name.strip() for name in imported.split("\n")[1:] if name.strip()} == {f"{name}," for name in names}


@pytest.mark.parametrize("rendezvous", [False, True])
def test_the_configuration_is_one_that_the_agent_takes(tmp_path: t.Any, rendezvous: bool) -> None:
    found = files(rendezvous=rendezvous, rendezvous_certificate="RC", rendezvous_key="RK")
    text = found["/etc/startline/agent.json"].text
    (tmp_path / "agent.json").write_text(text)
    config = agent_config.load(str(tmp_path / "agent.json"))
    assert (config.member, config.imds) == ("a-0", "http://169.254.169.254")
    assert (config.rendezvous_key is not None) is rendezvous
    assert set(json.loads(text)) >= {"ca", "certificate", "key"}
    assert ("/etc/systemd/system/startline-rendezvous.service" in found) is rendezvous


def test_the_service_manager_starts_both_again_however_often_they_end() -> None:
    """On a full disk the rendezvous ends time and again, until there is room."""
    found = files(rendezvous=True, rendezvous_certificate="RC", rendezvous_key="RK")
    for name in (agent.AGENT, agent.RENDEZVOUS):
        unit = found[f"{agent.UNITS}/{name}"].text
        assert "\nStartLimitIntervalSec=0\n" in unit.partition("[Service]")[0]


def test_keys_are_for_root_alone_and_never_in_a_diff() -> None:
    for path, file in files(rendezvous=True, rendezvous_certificate="RC", rendezvous_key="RK").items():
        if path.endswith(".key"):
            assert file.mode == 0o600
        assert not (file.show and "/tls/" in path)
        assert "KEY" not in file.text or path.endswith(".key")


def test_a_mailbox_is_for_root_alone_and_never_in_a_diff(tmp_path: t.Any) -> None:
    served = {"rendezvous": True, "rendezvous_certificate": "RC", "rendezvous_key": "RK"}
    found = files(mailbox="MINE", mailboxes="ALL", **served)
    (tmp_path / "agent.json").write_text(found["/etc/startline/agent.json"].text)
    config = agent_config.load(str(tmp_path / "agent.json"))
    assert (config.mailbox, config.mailboxes) == (
        "/etc/startline/tls/mailbox.json",
        "/etc/startline/tls/mailboxes.json",
    )
    for path, text in ((config.mailbox, "MINE"), (config.mailboxes, "ALL")):
        assert (found[path].text, found[path].mode, found[path].show) == (text, 0o600, False)
    assert "/etc/startline/tls/mailboxes.json" not in files(mailboxes="ALL"), "for the rendezvous alone"


def test_no_instance_metadata() -> None:
    assert json.loads(files(imds="")["/etc/startline/agent.json"].text)["imds"] is None


def test_commands_outlive_the_agent() -> None:
    unit = files()["/etc/systemd/system/startline-agent.service"].text
    assert "\nKillMode=process\n" in unit
    assert "\nDelegate=yes\n" in unit


def test_the_documentation_is_yaml_and_its_examples_are_tasks() -> None:
    assert set(yaml.safe_load(agent.DOCUMENTATION)["options"]) >= {"member", "rendezvous", "tls_directory"}
    assert all("startline.lab.agent" in task for task in yaml.safe_load(agent.EXAMPLES))
