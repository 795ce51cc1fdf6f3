# SPDX-License-Identifier: GPL-3.0-or-later
"""The error tree: what a user reads."""

from __future__ import annotations

from ansible_collections.startline.lab.plugins.plugin_utils import _errors
from ansible_collections.startline.lab.plugins.plugin_utils._errors import ExperimentError, Problem, StartlineError


def problem(line: int | None, path: str = "repeats", file: str = "experiments/x.yml") -> Problem:
    return Problem(file, line, path, "is wrong", "Mend it.")


def test_problems_come_in_the_order_of_the_file_and_overrides_last() -> None:
    override = problem(None, file="-e set")
    error = ExperimentError([override, problem(10), problem(9), problem(9)])
    assert [p.line for p in error.problems] == [9, 10, None]


def test_the_message_has_every_problem_with_place_and_remedy() -> None:
    assert str(ExperimentError([problem(3), problem(5, "timeout")])) == (
        "The experiment has 2 problems.\n"
        "  experiments/x.yml:3: repeats: is wrong\n    Mend it.\n"
        "  experiments/x.yml:5: timeout: is wrong\n    Mend it."
    )


def test_a_problem_of_the_whole_file_has_no_path() -> None:
    assert problem(None, "").where == "experiments/x.yml"


def test_all_errors_are_startline_errors() -> None:
    for kind in (_errors.ExperimentError, _errors.PlanError, _errors.RunError):
        assert issubclass(kind, StartlineError)


def test_did_you_mean_ignores_case_and_gives_up_on_the_unrelated() -> None:
    assert _errors.did_you_mean("Pary", ["party", "chain"], "Known") == "Did you mean party? Known: party, chain."
    assert _errors.did_you_mean("zzz", ["party"], "Known") == "Known: party."
    assert _errors.did_you_mean("zzz", [], "Known") == "Known: none."


def test_long_lists_are_shortened() -> None:
    assert _errors.listed("abcde", limit=3) == "a, b, c and 2 more"
