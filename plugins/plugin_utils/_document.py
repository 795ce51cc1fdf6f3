# SPDX-License-Identifier: GPL-3.0-or-later
"""A YAML document whose every value knows where the user typed it, and the overrides of ``-e set=...``.

The text is read by the core schema of YAML 1.2, as editors do it: ``on``, ``no`` and ``12:30`` are text, ``1e3`` is a
number, a date is text. Duplicate keys, unknown tags and values that are no data are problems with a line, never
surprises. This util is PRIVATE to the collection.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import typing as t

import yaml
import yaml.nodes
import yaml.reader

from ansible_collections.startline.lab.plugins.plugin_utils._errors import Problem, did_you_mean

#: Where a value stands in a document: keys of mappings and indexes of lists.
Path = tuple[str | int, ...]

#: What the user typed an override into, as problems name it.
OVERRIDES: t.Final = "-e set"

#: Aliases may make a small text large: no experiment has as many values as this.
_MAX_VALUES: t.Final = 100_000
#: The parser, and everything after it, recurses.
_MAX_DEPTH: t.Final = 50


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema."""


_Loader.yaml_implicit_resolvers = {}  # those of YAML 1.1 are its parent's

_INTEGER: t.Final = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: t.Final = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
for _tag, _pattern, _first in (
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("int", _INTEGER, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("merge", re.compile(r"<<"), "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern.pattern})$"), list(_first))


_COLLECTIONS: t.Final = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


def _scalar(node: yaml.nodes.ScalarNode) -> t.Any:
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    text: str = node.value
    if kind in ("str", "merge"):
        return text
    if kind == "bool":
        return text.lower() == "true"
    if kind == "null":
        return None
    if kind == "int":
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if kind == "float":
        return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    raise ValueError(node.tag)


@dataclasses.dataclass
class Document:
    """Plain data, and the line of every value in it.

    `lines` maps a path to a line of the file, or to None where an override put the value.
    """

    file: str
    data: t.Any
    lines: dict[Path, int | None]
    problems: list[Problem]
    #: Where something stands that is no data; `problems` has it already.
    unreadable: set[Path] = dataclasses.field(default_factory=set)

    def problem(self, path: Path, message: str, remedy: str) -> Problem:
        """A problem at `path`, or at the nearest thing around it that the user did type."""
        known = next((path[:n] for n in range(len(path), -1, -1) if path[:n] in self.lines), ())
        line = self.lines.get(known, 1)
        return Problem(OVERRIDES if line is None else self.file, line, format_path(path), message, remedy)


def format_path(path: Path) -> str:
    """``("artifacts", 0, "src")`` as the user writes it: ``artifacts[0].src``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def parse(text: str, file: str) -> Document:
    """Read one YAML document. What is wrong with it is in `problems`; `data` is None when nothing can be read."""
    document = Document(file, None, {(): 1}, [])
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1 if isinstance(exc.position, int) else None
        document.problems.append(
            Problem(
                file,
                line,
                "",
                f"is not text that YAML allows: {exc.reason}",
                "Save the file as UTF-8 without control characters.",
            )
        )
        return document
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        context = f" {exc.context}" if exc.context else ""
        message = f"is not YAML: {exc.problem or 'cannot be read'}{context}"
        document.problems.append(Problem(file, mark.line + 1 if mark else None, "", message, _yaml_remedy(exc)))
        return document
    except RecursionError:
        document.problems.append(
            Problem(file, None, "", "is nested too deeply", "An experiment needs a few levels only.")
        )
        return document
    if root is None:
        document.problems.append(
            Problem(file, 1, "", "is empty", "docs/experiment.md shows a short experiment to start from.")
        )
        return document
    document.data = _Reader(document).read(root, ())
    return document


def _yaml_remedy(exc: yaml.MarkedYAMLError) -> str:
    problem = exc.problem or ""
    if "'\\t'" in problem:
        return "Indent with spaces: YAML allows no tabs."
    if "mapping values are not allowed" in problem:
        return "Quote the value that has ': ' in it, or check the indentation of this line."
    if "single document" in (exc.context or ""):
        return "One file holds one experiment: remove the second '---'."
    if "undefined alias" in problem:
        return "Define the anchor (&name) above its first use (*name)."
    return "Check indentation, quotes and brackets on this line and the one above."


class _Reader:
    """Turns nodes into data and notes lines and problems on the way."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._left = _MAX_VALUES
        self._open: list[int] = []  # ids of the nodes around the current one: an alias may point to one of them

    def read(self, node: yaml.nodes.Node, path: Path) -> t.Any:
        line = node.start_mark.line + 1
        self._document.lines.setdefault(path, line)
        self._left -= 1
        if id(node) in self._open or self._left == 0 or len(path) > _MAX_DEPTH:
            why = "contains itself" if id(node) in self._open else "is nested too deeply or is too large"
            self._document.unreadable.add(path)
            self._problem(line, path, why, "Write the value out; an experiment is a small, flat file.")
        if id(node) in self._open or self._left <= 0 or len(path) > _MAX_DEPTH:
            return None
        self._open.append(id(node))
        try:
            if not isinstance(node, yaml.nodes.ScalarNode) and node.tag not in _COLLECTIONS:
                self._foreign(node, path)
                return None
            if isinstance(node, yaml.nodes.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.nodes.SequenceNode):
                return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._scalar(t.cast("yaml.nodes.ScalarNode", node), path)
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.nodes.MappingNode, path: Path) -> dict[str, t.Any]:
        data: dict[str, t.Any] = {}
        merged: list[yaml.nodes.Node] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag.endswith(":merge"):
                merged += value_node.value if isinstance(value_node, yaml.nodes.SequenceNode) else [value_node]
                continue
            if not isinstance(key_node, yaml.nodes.ScalarNode):
                self._document.unreadable.add(path)
                self._problem(
                    line,
                    path,
                    "a template at the start of a value looks like a mapping to YAML",
                    'Quote it: "{{ name }}".',
                )
                continue
            key = key_node.value
            here = (*path, key)
            if key in data:
                first = self._document.lines[here]
                self._problem(
                    line, here, f"the key stands here a second time; line {first} has it already", "Remove one of them."
                )
                continue
            self._document.lines[here] = line
            data[key] = self.read(value_node, here)
        for source in merged:
            if not isinstance(source, yaml.nodes.MappingNode):
                self._problem(
                    source.start_mark.line + 1, path, "'<<' merges mappings only", "Give it an alias of a mapping."
                )
                continue
            for key, value in self._mapping_of(source, path, known=data).items():
                data.setdefault(key, value)
        return data

    def _mapping_of(self, node: yaml.nodes.MappingNode, path: Path, known: t.Container[str]) -> dict[str, t.Any]:
        rest = [(k, v) for k, v in node.value if not (isinstance(k, yaml.nodes.ScalarNode) and k.value in known)]
        self._left -= 1  # merges of merges multiply like any other alias
        if id(node) in self._open or self._left <= 0:
            why = "contains itself" if id(node) in self._open else "is too large"
            self._document.unreadable.add(path)
            self._problem(node.start_mark.line + 1, path, why, "Write the value out.")
            return {}
        self._open.append(id(node))
        try:
            return self._mapping(yaml.nodes.MappingNode(node.tag, rest, node.start_mark, node.end_mark), path)
        finally:
            self._open.pop()

    def _scalar(self, node: yaml.nodes.ScalarNode, path: Path) -> t.Any:
        try:
            return _scalar(node)
        except ValueError:
            self._foreign(node, path)
            return None

    def _foreign(self, node: yaml.nodes.Node, path: Path) -> None:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        self._document.unreadable.add(path)
        message = f"cannot be read as {tag}" if tag in ("!!int", "!!float") else f"the tag {tag} means nothing here"
        self._problem(node.start_mark.line + 1, path, message, "Remove the tag; quote the value if it is text.")

    def _problem(self, line: int, path: Path, message: str, remedy: str) -> None:
        self._document.problems.append(Problem(self._document.file, line, format_path(path), message, remedy))


# --- overrides --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Override:
    """One ``path=value`` of ``-e set``. `text` is what the user typed."""

    path: Path
    value: t.Any
    text: str


_PATH: t.Final = re.compile(r"[^\s.=\[\]]+(?:\[\d+\])*(?:\.[^\s.=\[\]]+(?:\[\d+\])*)*")
_FORM: t.Final = (
    "Write path=value, several with commas: set=groups.party.count=16,parameters.protocol=[normal,corrupted]."
)


def parse_overrides(text: str) -> tuple[list[Override], list[Problem]]:
    """The overrides of ``-e set=...``: ``path=value`` with YAML values, between commas or on lines of their own.

    Commas inside brackets, braces and quotes belong to the value.
    """
    overrides: list[Override] = []
    problems: list[Problem] = []
    pieces, unclosed = _split(text)
    if unclosed:
        problems.append(
            Problem(
                OVERRIDES,
                None,
                "",
                f"{unclosed} is never closed in: {pieces[-1].strip()}",
                "Close it, or quote the value.",
            )
        )
        pieces.pop()
    for piece in filter(None, (piece.strip() for piece in pieces)):
        key, equals, raw = piece.partition("=")
        key = key.strip()
        if not equals or not _PATH.fullmatch(key):
            problems.append(
                Problem(
                    OVERRIDES,
                    None,
                    "",
                    f"{piece!r} is not of the form path=value",
                    f"{_FORM} Quote a value that has commas.",
                )
            )
            continue
        document = parse(raw, OVERRIDES) if raw.strip() else Document(OVERRIDES, None, {}, [])
        if document.problems:
            reasons = "; ".join(problem.message for problem in document.problems)
            problems.append(
                Problem(
                    OVERRIDES, None, key, f"the value cannot be read: {raw.strip()} ({reasons})", "Quote the value."
                )
            )
            continue
        overrides.append(Override(_parse_path(key), document.data, piece))
    return overrides, problems


def _parse_path(text: str) -> Path:
    parts: list[str | int] = []
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", text):
        parts.append(name or int(index))
    return tuple(parts)


def _split(text: str) -> tuple[list[str], str]:
    """Pieces between top-level commas and line ends, and the bracket or quote that stays open, if one does."""
    pieces, start, closers, quote, before = [], 0, "", "", ","
    position = 0
    while position < len(text):
        char = text[position]
        if quote:
            if quote == '"' and char == "\\":
                position += 1
            elif char == quote:
                quote = ""
        elif char in "'\"" and before in "=,[{:\n":  # elsewhere it is an apostrophe
            quote = char
        elif char in "[{" and (closers or "=" in text[start:position]):  # a bracket in the path is an index
            closers += "]" if char == "[" else "}"
        elif closers and char == closers[-1]:
            closers = closers[:-1]
        elif char in ",\n" and not closers:
            pieces.append(text[start:position])
            start = position + 1
        if not char.isspace() or char == "\n":
            before = char
        position += 1
    pieces.append(text[start:])
    return pieces, quote or {"]": "[", "}": "{", "": ""}[closers[-1:]]


def apply_overrides(document: Document, overrides: t.Iterable[Override], fixed: t.Collection[str] = ()) -> Document:
    """A copy of `document` with the overrides in it, the later over the earlier.

    An override may add a key to a mapping, so that a default can be overridden; whether the key means something is
    for the check of the experiment to say. Only the mappings named in `fixed` (``groups``) take no new entries: there
    a new name is a typing error. Problems join those of the document.
    """
    result = Document(
        document.file,
        copy.deepcopy(document.data),
        dict(document.lines),
        list(document.problems),
        set(document.unreadable),
    )
    for override in overrides:
        problem = _apply(result, override, fixed)
        if problem:
            result.problems.append(problem)
    return result


def _apply(document: Document, override: Override, fixed: t.Collection[str]) -> Problem | None:
    *parents, last = override.path

    def problem(message: str, remedy: str) -> Problem:
        return Problem(OVERRIDES, None, format_path(override.path), message, remedy)

    target: t.Any = document.data
    for depth, part in enumerate(override.path):
        here = format_path(override.path[:depth]) or "the experiment"
        if isinstance(part, int):
            if not isinstance(target, list):
                return problem(f"{here} is not a list", "Name keys with a dot, items of lists with [index].")
            if part >= len(target):
                return problem(
                    f"{here} has no item {part}", f"It has {len(target)}, counted from 0; or set the whole list."
                )
        else:
            if not isinstance(target, dict):
                return problem(f"{here} is not a mapping", "Items of lists are named with [index].")
            if part not in target and depth == 1 and override.path[0] in fixed:
                return problem(f"there is no {part} in {here}", did_you_mean(part, target, "There are"))
            if part not in target and depth < len(parents):
                target[part] = {}
                document.lines[override.path[: depth + 1]] = None
        if depth < len(parents):
            target = target[part]
    target[last] = override.value
    for path in [path for path in document.lines if path[: len(override.path)] == override.path]:
        del document.lines[path]
    document.lines[override.path] = None
    return None
