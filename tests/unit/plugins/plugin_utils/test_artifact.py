# SPDX-License-Identifier: GPL-3.0-or-later
"""Artifacts are named by content, whatever machine packs them."""

from __future__ import annotations

import os
import pathlib
import tarfile

import pytest

from ansible_collections.startline.lab.plugins.plugin_utils._artifact import packed
from ansible_collections.startline.lab.plugins.plugin_utils._errors import ArtifactError


def tree(root: pathlib.Path) -> pathlib.Path:
    (root / "lib").mkdir(parents=True)
    (root / "run.py").write_text("print('hello')\n")
    (root / "run.py").chmod(0o755)
    (root / "lib" / "data.txt").write_text("x\n")
    return root


def digest(source: pathlib.Path) -> str:
    with packed(source) as artifact:
        return artifact.sha256


def test_the_same_content_has_the_same_name_whoever_packs_it_when(tmp_path: pathlib.Path) -> None:
    one, two = tree(tmp_path / "one"), tree(tmp_path / "two")
    os.utime(two / "run.py", (1, 1))
    (two / "lib" / "data.txt").chmod(0o600)
    (two / "lib" / "__pycache__").mkdir()
    (two / "lib" / "__pycache__" / "x.pyc").write_bytes(b"\0")
    assert digest(one) == digest(two)


@pytest.mark.parametrize("change", ["content", "name", "mode", "extra"])
def test_a_difference_that_matters_changes_the_name(tmp_path: pathlib.Path, change: str) -> None:
    one, two = tree(tmp_path / "one"), tree(tmp_path / "two")
    if change == "content":
        (two / "run.py").write_text("print('hallo')\n")
    elif change == "name":
        (two / "run.py").rename(two / "go.py")
    elif change == "mode":
        (two / "run.py").chmod(0o644)
    else:
        (two / "extra").mkdir()
    assert digest(one) != digest(two)


def test_a_directory_arrives_whole(tmp_path: pathlib.Path) -> None:
    with packed(tree(tmp_path / "one")) as artifact, tarfile.open(artifact.path) as archive:
        assert artifact.kind == "directory"
        assert artifact.size == artifact.path.stat().st_size
        assert {m.name: m.mode for m in archive} == {"lib": 0o755, "lib/data.txt": 0o644, "run.py": 0o755}
    assert not artifact.path.exists()


def test_a_file_travels_as_it_is(tmp_path: pathlib.Path) -> None:
    (tmp_path / "run.jar").write_bytes(b"PK")
    with packed(tmp_path / "run.jar") as artifact:
        assert (artifact.kind, artifact.path, artifact.size) == ("file", tmp_path / "run.jar", 2)
    assert artifact.path.exists()


def test_a_missing_source_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere: no such file or directory"), packed(tmp_path / "nowhere"):
        pass
