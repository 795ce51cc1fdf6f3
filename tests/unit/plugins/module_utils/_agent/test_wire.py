# SPDX-License-Identifier: GPL-3.0-or-later
"""What the network may say, and what it may not."""

from __future__ import annotations

import contextlib
import json
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.startline.lab.plugins.module_utils._agent import wire

EPOCH = {"run": "dkg-1", "trial": "r1", "attempt": 1}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def through(line: bytes) -> wire.Message:
    (only,) = wire.Lines().feed(line)
    return wire.check(wire.decode(only), wire.FROM_MEMBER)


def test_a_message_comes_out_as_it_went_in() -> None:
    epoch = wire.Epoch(**EPOCH)
    files = [{"path": "a/b.log", "size": 3, "sha256": "0" * 64}]
    assert through(wire.encode("ask", epoch=epoch, files=files)) == {"type": "ask", "epoch": epoch, "files": files}
    assert str(epoch) == "dkg-1/r1/1"


def test_unknown_fields_are_dropped_and_missing_ones_may_be_null() -> None:
    message = through(b'{"type":"report","epoch":%s,"state":"prepared","news":1}\n' % json.dumps(EPOCH).encode())
    assert "news" not in message
    assert message["failed"] is None


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (None, "not an object"),
        ([], "not an object"),
        ({}, "unknown type"),
        ({"type": ["hello"]}, "unknown type"),
        ({"type": "prepare"}, "unknown type"),
        ({"type": "hello", "run": "r", "member": "m"}, "hello has no version"),
        ({"type": "hello", "version": True, "run": "r", "member": "m"}, "hello.version is not an integer"),
        ({"type": "hello", "version": 1, "run": "../..", "member": "m"}, "hello.run does not match"),
        ({"type": "hello", "version": 1, "run": "r", "member": "m\n"}, "hello.member does not match"),
        ({"type": "hello", "version": 1, "run": "r" * 200, "member": "m"}, "longer than 128"),
        ({"type": "ping", "sent_ns": 2**70}, "not in"),
        ({"type": "ping", "sent_ns": 1.5}, "not an integer"),
        ({"type": "report", "epoch": {**EPOCH, "attempt": 0}, "state": "armed"}, "report.epoch.attempt is not in"),
        ({"type": "report", "epoch": EPOCH, "state": "dancing"}, "report.state is not one of"),
        ({"type": "report", "epoch": EPOCH, "state": []}, "report.state is not one of"),
        ({"type": "ask", "epoch": EPOCH, "files": [{}]}, "ask.files[0] has no path"),
        ({"type": "ask", "epoch": EPOCH, "files": [{"path": "../x", "size": 1, "sha256": "0" * 64}]}, "relative path"),
        ({"type": "ask", "epoch": EPOCH, "files": [{"path": "x", "size": -1, "sha256": "0" * 64}]}, "size is not in"),
        ({"type": "ask", "epoch": EPOCH, "files": [{"path": "\ud800", "size": 1, "sha256": "0" * 64}]}, "not text"),
    ],
)
def test_what_is_not_a_message_is_named(message: t.Any, words: str) -> None:
    with pytest.raises(wire.WireError) as caught:
        wire.check(message, wire.FROM_MEMBER)
    assert words in str(caught.value)


@pytest.mark.parametrize("path", ["", "/etc/passwd", "a//b", "./a", "a/..", "a/../b", "a/", "a\0b"])
def test_paths_that_leave_their_directory(path: str) -> None:
    with pytest.raises(wire.WireError):
        wire.relative_path(path, "path")


@pytest.mark.parametrize("line", [b"", b"{", b"\xff", b"NaN", b"[Infinity]", b"[" * 10**5, b"1" * 10**5])
def test_lines_that_are_not_json(line: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.check(wire.decode(line), wire.FROM_MEMBER)


@given(JSON, st.sampled_from(sorted(wire.FROM_MEMBER)))
def test_nothing_but_a_wire_error_comes_of_garbage(value: t.Any, kind: str) -> None:
    for message in (value, {"type": kind, "epoch": value, "files": value, "state": value, "clock": value}):
        with contextlib.suppress(wire.WireError):
            wire.check(message, wire.FROM_MEMBER)


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.booleans(), min_size=1), min_size=1))
def test_merged_lines_are_one_object(parts: list[dict[str, t.Any]]) -> None:
    own = [{f"{number}{name}": value for name, value in part.items()} for number, part in enumerate(parts)]
    (line,) = wire.Lines().feed(wire.merge(*map(wire.dump, own)))
    assert wire.decode(line) == {name: value for part in own for name, value in part.items()}


@given(st.binary(max_size=300), st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_lines_do_not_depend_on_how_they_are_cut(data: bytes, cuts: list[int]) -> None:
    lines, found, rest = wire.Lines(), [], data
    for cut in cuts:
        found += lines.feed(rest[:cut])
        rest = rest[cut:]
    found += lines.feed(rest)
    assert found == data.split(b"\n")[:-1]


def test_a_line_over_the_limit_is_refused_before_it_ends() -> None:
    lines = wire.Lines(limit=100)
    assert lines.feed(b"x" * 100 + b"\n") == [b"x" * 100]
    with pytest.raises(wire.WireError):
        lines.feed(b"x" * 101)
    with pytest.raises(wire.WireError):
        wire.Lines(limit=100).feed(b"x" * 101 + b"\n")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"verdict": "valid", "reasons": []}, None),
        ({"verdict": "good", "reasons": []}, "n.verdict is not one of valid, degraded, invalid"),
        ({"verdict": "valid"}, "n has no reasons"),
        ({"verdict": "valid", "reasons": [], "pairs": "x" * wire.NETWORK_LIMIT}, "n is longer than 1048576 bytes"),
        ([], "n is not an object"),
    ],
)
def test_what_was_measured_of_the_network_is_kept_as_it_is_if_it_has_a_verdict(value: t.Any, words: str | None) -> None:
    if words is None:
        assert wire.network_report({**value, "pairs": [1]}, "n") == {**value, "pairs": [1]}
    else:
        with pytest.raises(wire.WireError, match=words):
            wire.network_report(value, "n")
