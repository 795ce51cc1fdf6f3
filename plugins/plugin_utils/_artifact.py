# SPDX-License-Identifier: GPL-3.0-or-later
"""Artifacts: what an experiment brings to its hosts, named by content.

An artifact is a file or a directory of the experimenter. It is stored once in the run's S3 prefix under its sha256, so
the same content is uploaded once however many hosts, groups or attempts use it, and a host can prove what it runs. A
directory travels as a tar archive that depends on nothing but names, contents and the executable bits.

This util is PRIVATE to the collection.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import gzip
import hashlib
import os
import pathlib
import tarfile
import tempfile
import typing as t

from ansible_collections.startline.lab.plugins.plugin_utils._errors import ArtifactError

#: Never part of an artifact: they differ between machines and no program needs them.
IGNORED: t.Final = frozenset(
    {".git", "__pycache__", ".venv", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".DS_Store"}
)
#: Seconds for which a host may fetch an artifact with the address that it is given.
ADDRESS_LIFETIME: t.Final = 3600


@dataclasses.dataclass(frozen=True)
class Packed:
    """A file that is ready to travel. `kind` is ``file`` or ``directory`` (then `path` is a tar.gz of it)."""

    path: pathlib.Path
    kind: str
    sha256: str
    size: int


@contextlib.contextmanager
def packed(source: pathlib.Path) -> t.Iterator[Packed]:
    """`source`, ready to travel; what had to be made for that is gone afterwards."""
    if source.is_file():
        yield _describe(source, "file")
        return
    if not source.is_dir():
        raise ArtifactError(f"artifact {source}: no such file or directory")
    with tempfile.TemporaryDirectory(prefix="startline-") as scratch:
        archive = pathlib.Path(scratch) / "artifact.tar.gz"
        try:
            _archive(source, archive)
        except OSError as exc:
            raise ArtifactError(f"artifact {source}: cannot read {exc.filename}: {exc.strerror}") from exc
        yield _describe(archive, "directory")


def _describe(path: pathlib.Path, kind: str) -> Packed:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Packed(path, kind, digest, path.stat().st_size)


def _archive(source: pathlib.Path, archive: pathlib.Path) -> None:
    """Write a reproducible tar.gz: sorted, without owner, time or name of the machine."""
    with (
        archive.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as zipped,
        tarfile.open(fileobj=t.cast("t.IO[bytes]", zipped), mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for folder, folders, files in os.walk(source):
            folders[:] = sorted(name for name in folders if name not in IGNORED)
            for name in sorted(folders) + sorted(name for name in files if name not in IGNORED):
                path = pathlib.Path(folder) / name
                tar.add(path, str(path.relative_to(source)), recursive=False, filter=_anonymous)


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = 0
    info.mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
    return info


class ArtifactStore:
    """The artifacts of a run in S3."""

    def __init__(self, client: t.Any, bucket: str, prefix: str) -> None:
        """`client` is boto3's S3 client; `prefix` the run's, ``<exp>/<run_id>``."""
        self._client = client
        self._bucket = bucket
        self._prefix = prefix

    def store(self, artifact: Packed) -> bool:
        """Upload `artifact` unless it is there already. True when it was uploaded."""
        from botocore.exceptions import ClientError

        key = self.key(artifact)
        try:
            if self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"] == artifact.size:
                return False
        except ClientError as exc:
            if exc.response["Error"]["Code"] not in ("404", "NoSuchKey", "NotFound"):
                raise
        with artifact.path.open("rb") as body:
            self._client.put_object(
                Bucket=self._bucket,
                Key=key,
                Body=body,
                ChecksumSHA256=base64.b64encode(bytes.fromhex(artifact.sha256)).decode(),
            )
        return True

    def address(self, artifact: Packed) -> str:
        """A URL that fetches `artifact` for `ADDRESS_LIFETIME` seconds, without credentials."""
        url: str = self._client.generate_presigned_url(
            "get_object", Params={"Bucket": self._bucket, "Key": self.key(artifact)}, ExpiresIn=ADDRESS_LIFETIME
        )
        return url

    def key(self, artifact: Packed) -> str:
        """The object's key below the run's prefix."""
        return f"{self._prefix}/artifacts/{artifact.sha256}"
