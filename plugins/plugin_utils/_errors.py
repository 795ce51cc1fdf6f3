# SPDX-License-Identifier: GPL-3.0-or-later
"""The errors of the core. Each says what is wrong, where, and what to do about it.

  StartlineError
  ├── ExperimentError    the experiment file or its overrides: every problem at once
  ├── PlanError          a plan that does not fit what it is used with (a member without a host, a foreign format)
  ├── RunError           a run that cannot be named, resumed or recorded
  ├── FleetError         hosts that are missing, do not answer, or are left
  ├── ArtifactError      an artifact that cannot be packed or stored
  └── RequirementError   a Python package that the controller lacks

Plugins translate at one place: C(except StartlineError as exc: raise AnsibleActionFail(str(exc)) from exc).
This util is PRIVATE to the collection.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing as t


class StartlineError(Exception):
    """Base of all errors that the core raises on purpose. The text is meant for the user."""


class PlanError(StartlineError):
    """The plan does not fit what it is used with."""


class RunError(StartlineError):
    """A run cannot be named, resumed or recorded."""


class FleetError(StartlineError):
    """Hosts are missing, do not answer, or are left. The message names each of them."""


class ArtifactError(StartlineError):
    """An artifact cannot be packed or stored. The message names it."""


class RequirementError(StartlineError):
    """A Python package is missing on the controller; `what` cannot go on without it."""

    def __init__(self, what: str, cause: ImportError) -> None:
        super().__init__(f"{what} needs {cause.name}: pip install -r requirements.txt")


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong with an experiment.

    `file` is what the user typed it into: a file, or ``-e set`` for an override, which has no `line`.
    `path` is the key as an override would name it: ``groups.party.count``, ``artifacts[0].src``; empty for the whole
    file.
    """

    file: str
    line: int | None
    path: str
    message: str
    remedy: str

    @property
    def where(self) -> str:
        """``experiments/dkg.yml:12: groups.party.count``: clickable in most terminals and editors."""
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.path}" if self.path else place

    def __str__(self) -> str:
        return f"{self.where}: {self.message}\n    {self.remedy}"

    def as_dict(self) -> dict[str, t.Any]:
        """For machine readers of a failed task."""
        return dataclasses.asdict(self)


class ExperimentError(StartlineError):
    """Everything that is wrong with an experiment, in the order of the file; overrides come last."""

    def __init__(self, problems: t.Iterable[Problem]) -> None:
        unique = dict.fromkeys(problems)
        self.problems: t.Final = tuple(sorted(unique, key=lambda p: (p.line is None, p.line or 0, p.path, p.message)))
        super().__init__(str(self))

    def __str__(self) -> str:
        count = len(self.problems)
        title = "The experiment has a problem." if count == 1 else f"The experiment has {count} problems."
        return "\n".join([title, *(f"  {problem}" for problem in self.problems)])


def nearest(name: str, known: t.Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be, or None."""
    matches = difflib.get_close_matches(str(name).lower(), list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def listed(names: t.Iterable[str], limit: int = 20) -> str:
    """Names in the order given, shortened where there are many: ``a, b, c and 5 more``."""
    names = list(names)
    if not names:
        return "none"
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def did_you_mean(name: str, known: t.Iterable[str], what: str) -> str:
    """A remedy for an unknown name: the nearest one if there is one, and those there are."""
    known = list(known)
    guess = nearest(name, known)
    hint = f"Did you mean {guess}? " if guess else ""
    return f"{hint}{what}: {listed(known)}."
