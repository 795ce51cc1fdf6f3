# SPDX-License-Identifier: GPL-3.0-or-later
"""What the documentation shows of the role sshuttle is what the role takes: it passes over a misspelt variable in silence."""

from __future__ import annotations

import pathlib
import re
import typing as t

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.startline.lab.plugins.module_utils import _sshuttle

ROOT = pathlib.Path(__file__).parents[3]
ROLE = ROOT / "roles" / "sshuttle"
DOCUMENTS = ("docs/vpn.md", "roles/sshuttle/README.md")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHw5hCYXM0QzU1b1kqCq5dO6hX1Ksm8ZJ1cW0Zq8kq9a"


def example(document: str) -> str:
    """The document's one example."""
    [text] = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    return t.cast(str, text)


def uses(document: str) -> dict[str, dict[str, t.Any]]:
    """The variables that its example gives to each entry point of the role."""
    found = {}
    for entry in yaml.safe_load(example(document)):
        for task in entry.get("tasks", [entry]):
            role = task["ansible.builtin.include_role"]
            assert role.pop("name") == "startline.lab.sshuttle"
            found[role.pop("tasks_from", "main")] = task["vars"]
            assert not role
    return found


def given(variables: dict[str, t.Any], **defaults: t.Any) -> dict[str, t.Any]:
    """What the role gives to its module, when the login host has told its key."""
    told = {"sshuttle_host_keys": [KEY]} if "sshuttle_host_keys" in variables else {}
    every = {**yaml.safe_load((ROLE / "defaults/main.yml").read_text()), **variables, **told}
    return {**defaults, **{name.partition("_")[2]: value for name, value in every.items()}}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_examples_give_the_role_what_it_takes(document: str) -> None:
    specs = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]
    found = uses(document)
    assert set(found) == {"gateway", "main"}
    for entry_point, variables in found.items():
        validated = ArgumentSpecValidator(specs[entry_point]["options"]).validate(variables)
        assert validated.error_messages == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_examples_give_both_ends_what_can_be(document: str) -> None:
    found = uses(document)
    assert found["main"]["sshuttle_private_key_file"] == found["gateway"]["sshuttle_private_key_file"]
    _sshuttle.parse_gateway(given(found["gateway"], public_keys=[KEY]))
    _sshuttle.parse_tunnel(given(found["main"], probe=None))


def test_the_example_measures_an_address_that_it_takes_into_the_tunnel() -> None:
    variables = uses("docs/vpn.md")["main"]
    assert variables["sshuttle_measure"] > 0
    # The other end of the measurement is the login host; what it is called there is what a user has to fill in.
    assert "# The last is the login host's own private address" in example("docs/vpn.md")
    assert len(variables["sshuttle_networks"]) > 1
    # The login host's own sshd would prove nothing of the hosts behind it.
    assert _sshuttle.parse_tunnel(given(variables, probe=None)).probe_address != variables["sshuttle_networks"][-1]


def test_the_defaults_are_those_of_the_documentation() -> None:
    specs = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    documented: dict[str, t.Any] = {}
    for entry_point in specs.values():
        for name, option in entry_point["options"].items():
            if "default" in option:
                assert documented.setdefault(name, option["default"]) == option["default"]
    assert defaults == documented
