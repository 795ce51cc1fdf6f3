# SPDX-License-Identifier: GPL-3.0-or-later
"""A host has an artifact whole or not at all."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import pathlib
import tarfile
import threading
import typing as t

import pytest

from ansible_collections.startline.lab.plugins.modules import artifact
from ansible_collections.startline.lab.plugins.plugin_utils._artifact import packed


@pytest.fixture
def served(tmp_path: pathlib.Path) -> t.Iterator[tuple[pathlib.Path, str]]:
    """A directory, and the address under which its files can be fetched."""
    root = tmp_path / "served"
    root.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_args: t.Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield root, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def contents(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "artifacts" / artifact.CONTENTS
    path.mkdir(parents=True)
    return path


def test_a_directory_arrives_as_it_was(served: tuple[pathlib.Path, str], tmp_path: pathlib.Path) -> None:
    root, url = served
    source = tmp_path / "dkg"
    source.mkdir()
    (source / "run.py").write_text("print(1)\n")
    with packed(source) as ready:
        (root / "object").write_bytes(ready.path.read_bytes())
        wanted = {"dest": "dkg", "kind": ready.kind, "sha256": ready.sha256, "url": f"{url}/object"}
    store = contents(tmp_path)
    artifact.install(wanted, str(store), 10)
    assert (store / ready.sha256 / "run.py").read_text() == "print(1)\n"
    assert [path.name for path in store.iterdir()] == [ready.sha256]


@pytest.mark.parametrize(
    ("name", "sha256", "said"), [("object", "0" * 64, "arrived damaged"), ("gone", "", "HTTP status 404")]
)
def test_what_is_not_as_promised_leaves_nothing(
    served: tuple[pathlib.Path, str], tmp_path: pathlib.Path, name: str, sha256: str, said: str
) -> None:
    root, url = served
    (root / "object").write_bytes(b"data")
    store = contents(tmp_path)
    with pytest.raises(artifact.FetchError, match=said) as caught:
        artifact.install(
            {"dest": "x", "kind": "file", "sha256": sha256, "url": f"{url}/{name}?key=secret"}, str(store), 10
        )
    assert "secret" not in str(caught.value)
    assert list(store.iterdir()) == []


def test_a_member_outside_the_archive_is_refused(tmp_path: pathlib.Path) -> None:
    archive = tmp_path / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        info = tarfile.TarInfo("../evil")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(artifact.FetchError, match="outside itself"):
        artifact.unpack(str(archive), str(tmp_path / "target"))
    assert not (tmp_path / "evil").exists()


def test_a_link_moves_in_one_step_and_old_contents_go(tmp_path: pathlib.Path) -> None:
    store = contents(tmp_path)
    root = store.parent
    for name in ("old", "new"):
        (store / name).write_text(name)
    assert artifact.point(str(root / "dkg"), f"{artifact.CONTENTS}/old")
    assert not artifact.point(str(root / "dkg"), f"{artifact.CONTENTS}/old")
    assert artifact.point(str(root / "dkg"), f"{artifact.CONTENTS}/new")
    artifact.prune(str(root), str(store))
    assert (root / "dkg").read_text() == "new"
    assert [path.name for path in store.iterdir()] == ["new"]


def test_the_checksum_is_of_what_was_sent(served: tuple[pathlib.Path, str], tmp_path: pathlib.Path) -> None:
    root, url = served
    data = bytes(range(256)) * 9000  # more than two chunks
    (root / "object").write_bytes(data)
    artifact.download(f"{url}/object", str(tmp_path / "got"), hashlib.sha256(data).hexdigest(), 10)
    assert (tmp_path / "got").read_bytes() == data
