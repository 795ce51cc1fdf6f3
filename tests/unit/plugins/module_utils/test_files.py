# SPDX-License-Identifier: GPL-3.0-or-later
"""A file is the old one or the new one, never a part."""

from __future__ import annotations

import pathlib

import pytest

from ansible_collections.startline.lab.plugins.module_utils._files import ensure, read, remove, write


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


def test_a_file_is_made_with_its_directories_and_removed_with_all_that_is_in_them(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "vpn" / "default" / "key"
    ensure(str(path), "secret", 0o600, 0o700)
    assert path.read_text() == "secret"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    remove(str(path))
    assert not path.exists()
    remove(str(tmp_path / "vpn"))
    remove(str(tmp_path / "vpn"))
    assert list(tmp_path.iterdir()) == []


def test_of_a_link_the_link_is_removed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    remove(str(tmp_path / "link"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
