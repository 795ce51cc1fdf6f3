# SPDX-License-Identifier: GPL-3.0-or-later
"""A controller without a package: what needs it says so, what does not goes on."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from ansible_collections.startline.lab.plugins.plugin_utils._aws import AwsOptions
from ansible_collections.startline.lab.plugins.plugin_utils._errors import RequirementError
from ansible_collections.startline.lab.plugins.plugin_utils._requirements import Absent, require

PLUGIN_UTILS = "ansible_collections.startline.lab.plugins.plugin_utils"
#: Modules, and the packages that they are imported without.
WITHOUT = [
    ("_plan", "pydantic"), ("_trial", "pydantic"), ("_launch", "pydantic"), ("_hosts_config", "pydantic"),
    ("_experiment", "pydantic"), ("_tls", "cryptography"), ("_aws", "boto3"), ("_figures", "matplotlib"),
]  # fmt: skip


def python_without(package: str, program: str) -> str:
    """What a program prints where `package` is not installed."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.modules[{package!r}] = None\n{program}"],
        env={"PYTHONPATH": str(pathlib.Path(__file__).parents[4] / "collections")},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.mark.parametrize(("module", "package"), WITHOUT)
def test_is_imported_without(module: str, package: str) -> None:
    python_without(package, f"import {PLUGIN_UTILS}.{module}")


def test_an_experiment_needs_pydantic() -> None:
    program = (
        f"from {PLUGIN_UTILS} import _errors, _experiment\n"
        "try:\n"
        "    _experiment.load_experiment('', 'experiments/demo.yml')\n"
        "except _errors.RequirementError as exc:\n"
        "    print(exc)\n"
    )
    assert python_without("pydantic", program) == "an experiment needs pydantic: pip install -r requirements.txt\n"


def test_aws_needs_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(RequirementError, match=r"AWS needs boto3: pip install -r requirements\.txt"):
        AwsOptions().client("s3")


def test_the_stand_in_lets_declarations_through_and_nothing_else() -> None:
    package = Absent(ModuleNotFoundError("No module named 'x'", name="x"))

    class Model(package.BaseModel):  # type: ignore[misc]
        field = package.Field(default=package.fields.Undefined)

    assert Model.__mro__ == (Model, object)
    assert not hasattr(package, "__len__")
    with pytest.raises(RequirementError, match="it needs x: pip install"):
        require(package, "it")
    require(sys, "it")
