# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for a Python package that the controller lacks.

What only declares things with a package can then be imported without it, by ansible-doc as by a filter that needs no
more than a function next to them; what works with the package says first that it is missing. This util is PRIVATE to
the collection.
"""

from __future__ import annotations

import typing as t

from ansible_collections.startline.lab.plugins.plugin_utils._errors import RequirementError


class Absent:
    """Stands for a package and for everything in it: may be called, asked for attributes, and used as a base class."""

    def __init__(self, cause: ImportError) -> None:
        self.cause: t.Final = cause

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):  # protocols that it does not take part in
            raise AttributeError(name)
        return self

    def __call__(self, *args: t.Any, **kwargs: t.Any) -> Absent:
        return self

    def __mro_entries__(self, bases: tuple[t.Any, ...]) -> tuple[type, ...]:
        return ()


def require(package: object, what: str) -> None:
    """Refuse to go on without a package.

    Raises:
        RequirementError: `package` is a stand-in, and `what` needs it.
    """
    if isinstance(package, Absent):
        raise RequirementError(what, package.cause) from package.cause
