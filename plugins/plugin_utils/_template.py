# SPDX-License-Identifier: GPL-3.0-or-later
"""Templates of the experiment file: sandboxed Jinja2 that refuses what it does not know.

Not Ansible's templating: a template of an experiment is rendered per host and trial, long after Ansible read it, and
sees only what docs/experiment.md lists. This util is PRIVATE to the collection.
"""

from __future__ import annotations

import functools
import shlex
import typing as t

import jinja2
import jinja2.meta
import jinja2.sandbox

#: Known where a command or an environment is rendered, that is per host and trial; in the order of the docs.
HOST_VARIABLES: t.Final = (
    "rank", "index", "group", "name", "size", "address", "hosts",
    "trial_id", "repeat", "attempt", "run_id", "sid",
)  # fmt: skip

#: Names that mean something to Jinja2 itself, so that a parameter cannot have them.
JINJA_NAMES: t.Final = frozenset(
    [
        *("and", "else", "false", "for", "if", "in", "is", "none", "not", "or", "recursive", "true"),
        *("caller", "context", "cycler", "dict", "environment", "joiner", "lipsum", "loop", "namespace", "range"),
        *("self", "super", "varargs"),
    ]
)


class TemplateProblem(ValueError):
    """A template cannot be compiled or rendered. The text says why, without a place: the caller knows it."""


def as_text(value: t.Any) -> str:
    """A value of the experiment file as a program sees it on its command line: ``true``, not ``True``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    raise TemplateProblem(f"a {type(value).__name__} has no text: pick one of its items, or join them")


def _finalize(value: t.Any) -> t.Any:
    # An undefined value is left to Jinja2, which names it in its own error.
    return value if isinstance(value, jinja2.Undefined) else as_text(value)


def _quote(value: t.Any) -> str:
    return shlex.quote(as_text(value))


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, finalize=_finalize, autoescape=False, cache_size=0
    )
    environment.globals = {"range": environment.globals["range"]}
    environment.filters["quote"] = _quote
    return environment


_ENVIRONMENT: t.Final = _environment()


def is_template(text: object) -> bool:
    """Whether Jinja2 would do anything with `text`."""
    return isinstance(text, str) and any(mark in text for mark in ("{{", "{%", "{#"))


@functools.lru_cache(maxsize=4096)
def _compiled(text: str) -> jinja2.Template:
    try:
        return _ENVIRONMENT.from_string(text)
    except jinja2.TemplateSyntaxError as exc:  # unknown filters and tests too
        raise TemplateProblem(f"template syntax: {exc.message}") from exc


@functools.lru_cache(maxsize=4096)
def undeclared(text: str) -> frozenset[str]:
    """The variables that a template wants from outside.

    Raises:
        TemplateProblem: the template does not compile.
    """
    _compiled(text)
    names = jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(text))
    return frozenset(names) - frozenset(_ENVIRONMENT.globals)


def render(text: str, variables: t.Mapping[str, t.Any]) -> str:
    """`text` with its templates filled in. Plain text comes back as it is.

    Raises:
        TemplateProblem: the template does not compile, or a name, attribute or operation in it fails.
    """
    if not is_template(text):
        return text
    template = _compiled(text)
    try:
        return template.render(variables)
    except TemplateProblem:
        raise
    except Exception as exc:  # an expression of the user may raise anything: 1 / 0, hosts[99].address, "a" + 1
        raise TemplateProblem(f"{exc}") from exc
