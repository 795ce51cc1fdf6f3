# SPDX-License-Identifier: GPL-3.0-or-later
"""A file is the old one or the new one, never a part."""

from __future__ import annotations

import pathlib

import pytest

from ansible_collections.startline.lab.plugins.module_utils._files import read, write


def test_bytes_and_mode_are_as_asked(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "hosts.config"
    write(str(path), "10.0.0.9\n10.0.0.10\n", 0o644)
    assert path.read_bytes() == b"10.0.0.9\n10.0.0.10\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert read(str(path)) == "10.0.0.9\n10.0.0.10\n"


def test_a_missing_file_reads_as_nothing(tmp_path: pathlib.Path) -> None:
    assert read(str(tmp_path / "none")) == ""


def test_a_write_that_fails_leaves_what_was_there(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "directory"
    target.mkdir()
    with pytest.raises(OSError, match="directory"):
        write(str(target), "x", 0o644)
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]


def test_a_directory_that_is_not_there_is_the_callers_business(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError):
        write(str(tmp_path / "none" / "file"), "x", 0o644)
