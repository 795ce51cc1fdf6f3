# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files are evidence. Their upload is tested with real processes (test_processes.py)."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib

import pytest

from ansible_collections.startline.lab.plugins.module_utils._agent import delivery, wire


@pytest.mark.parametrize(
    ("path", "pattern", "expected"),
    [
        ("a.log", "*.log", True),
        ("d/a.log", "*.log", False),
        ("d/a.log", "*/*.log", True),
        ("d/e/a.log", "**/*.log", True),
        ("a.log", "**/*.log", True),
        ("d/e/a.log", "d/**", True),
        ("d", "d/**", True),
        ("a.log", "a.lo?", True),
        ("a.log", "[ab].log", True),
        ("a.log", "", False),
        ("A.log", "a.log", False),
    ],
)
def test_matches(path: str, pattern: str, expected: bool) -> None:
    assert delivery.matches(path, pattern) is expected


@pytest.fixture
def spool(tmp_path: pathlib.Path) -> pathlib.Path:
    spool = tmp_path / "spool"
    (spool / "work/deep").mkdir(parents=True)
    (spool / "stdout").write_text("out")
    (spool / "stderr").write_text("")
    return spool


def test_links_and_devices_are_not_followed(spool: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "secret.log").write_text("secret")
    work = spool / "work"
    (work / "real.log").write_text("real")
    (work / "link.log").symlink_to(tmp_path / "secret.log")
    (work / "linked").symlink_to(tmp_path)
    (work / "directory.log").mkdir()
    os.mkfifo(work / "fifo.log")
    assert delivery.find(str(work), ["**/*.log"]) == ["real.log"]
    for path in ("link.log", "linked/secret.log", "fifo.log", "directory.log"):
        with pytest.raises(OSError):  # noqa: PT011  whichever of them
            os.close(delivery.open_inside(str(work), path))


def test_collect_lists_everything_with_its_checksum_and_meta_last(spool: pathlib.Path) -> None:
    (spool / "work/deep/a.log").write_text("a")
    (spool / "work/stdout").write_text("not the real one")
    found = delivery.collect(str(spool), ["**/*.log", "stdout"], {"format": "startline-meta/1"})
    assert found["problem"] is None
    assert [file["path"] for file in found["files"]] == ["stdout", "stderr", "deep/a.log", "work/stdout", "meta.json"]
    for file in found["files"]:
        directory, inner = delivery.source_of(str(spool), file["path"])
        data = pathlib.Path(directory, inner).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["size"], file["sha256"])
    meta = json.loads((spool / "meta.json").read_text())
    assert meta["files"] == found["files"][:-1]


def test_what_cannot_be_collected_is_said(spool: pathlib.Path) -> None:
    os.unlink(spool / "stdout")
    (spool / "work" / os.fsdecode(b"\xff.log")).write_text("a name that is not text")
    found = delivery.collect(str(spool), ["*.log"], {})
    assert found["problem"].startswith("2 not collected: 'stdout'")
    assert "\\udcff.log" in found["problem"]


def test_too_many_files_are_said(spool: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_FILES", 5)
    for index in range(4):
        (spool / f"work/{index}.log").write_text("")
    found = delivery.collect(str(spool), ["*.log"], {})
    assert len(found["files"]) == 5
    assert "4 files match, 2 can be delivered" in found["problem"]


def test_facts_are_found_out_once(tmp_path: pathlib.Path) -> None:
    facts = delivery.host_facts(str(tmp_path), None)
    assert facts["instance"] is None
    assert facts["cpus"] == os.cpu_count()
    (tmp_path / "host.json").write_text('{"cpus": 77}')
    assert delivery.host_facts(str(tmp_path), None) == {"cpus": 77}
