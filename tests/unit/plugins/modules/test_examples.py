# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples of modules are what their documentation says that they take."""

from __future__ import annotations

import types
import typing as t

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.startline.lab.plugins.module_utils import _netem, _sshuttle
from ansible_collections.startline.lab.plugins.modules import netem, sshuttle, sshuttle_gateway

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHw5hCYXM0QzU1b1kqCq5dO6hX1Ksm8ZJ1cW0Zq8kq9a"
PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----"


def specification(options: dict[str, t.Any]) -> dict[str, t.Any]:
    """The argument_spec of documented options."""
    spec = {}
    for name, option in options.items():
        spec[name] = {
            key: option[key] for key in ("type", "elements", "choices", "required", "default") if key in option
        }
        if "suboptions" in option:
            spec[name]["options"] = specification(option["suboptions"])
    return spec


def filled(value: t.Any) -> t.Any:
    """The value with the files that its templates read."""
    if isinstance(value, list):
        return [filled(item) for item in value]
    if isinstance(value, str) and value.startswith("{{"):
        assert "lookup('ansible.builtin.file', " in value
        return PRIVATE if value.endswith("'vpn_key') }}") else KEY
    return value


def examples(module: types.ModuleType) -> list[dict[str, t.Any]]:
    """The parameters of each example, checked by the module's documentation."""
    name, found = f"startline.lab.{module.__name__.rpartition('.')[2]}", []
    for task in yaml.safe_load(module.EXAMPLES):
        # Anew for each: the validation of nested options writes into the defaults.
        spec = specification(yaml.safe_load(module.DOCUMENTATION)["options"])
        assert set(task) <= {name, "name", "become", "register"}
        validated = ArgumentSpecValidator(spec).validate({key: filled(value) for key, value in task[name].items()})
        assert validated.error_messages == []
        found.append(validated.validated_parameters)
    assert {parameters["state"] for parameters in found} == {"present", "absent"}
    return found


def tunnel(parameters: dict[str, t.Any]) -> None:
    _sshuttle.client_files(_sshuttle.parse_tunnel(parameters), parameters["private_key"], "", "python3")


def shaping(parameters: dict[str, t.Any]) -> None:
    assert _netem.parse_rules(parameters["rules"])
    _netem.parse_exemptions(parameters["exempt"])


@pytest.mark.parametrize(
    ("module", "check"),
    [(netem, shaping), (sshuttle, tunnel), (sshuttle_gateway, _sshuttle.parse_gateway)],
    ids=lambda value: value.__name__.rpartition(".")[2],
)
def test_examples_are_what_the_module_takes(
    module: types.ModuleType, check: t.Callable[[dict[str, t.Any]], object]
) -> None:
    for parameters in examples(module):
        if parameters["state"] == "present":
            check(parameters)
