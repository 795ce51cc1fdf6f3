# SPDX-License-Identifier: GPL-3.0-or-later
"""Mailboxes of a run: what a host needs that reaches the rendezvous through S3, and what the rendezvous needs for it.

This util is PRIVATE to the collection.

A host gets the key of its letters and three signed requests, nothing else; the rendezvous has the secret that all keys
come from, and the role of its host. Both are made on the controller. The format is `module_utils/_agent/mailbox.py`'s.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import secrets
import tempfile
import time
import typing as t

from ansible_collections.startline.lab.plugins.module_utils._agent import mailbox

#: Seconds for which requests that were signed are given out again: a host is not changed for the sake of new ones.
REUSE: t.Final = 3600.0


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run's mailboxes are. `prefix` is the run's."""

    bucket: str
    prefix: str
    region: str | None = None
    endpoint_url: str | None = None
    pace: mailbox.Pace = dataclasses.field(default_factory=mailbox.Pace)


class Directory:
    """The mailboxes of one run, below a directory that only its owner can read. Several processes may use it at once.

    Its methods raise `OSError`, and what boto3 raises when there are no credentials.
    """

    def __init__(self, path: str | os.PathLike[str], run_id: str, place: Place) -> None:
        self._path = pathlib.Path(path)
        self._run_id = run_id
        self._place = place

    def member(self, member: str, client: t.Callable[[], t.Any]) -> str:
        """A host's file. `client` makes boto3's S3 client, if one is needed."""
        address = mailbox.Address(self._run_id, member)
        key = mailbox.member_key(self._secret(), address).hex()
        kept = self._path / f"mailbox-{member}.json"
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
            text = kept.read_text(encoding="ascii")
            known = json.loads(text)
            same = known == {"key": key, "grants": known["grants"], **self._describe()}
            if same and time.time() - kept.stat().st_mtime < REUSE:
                return text
        made = client()
        grants = {
            name: made.generate_presigned_url(
                call,
                Params={"Bucket": self._place.bucket, "Key": mailbox.object_key(self._place.prefix, box, member)},
                ExpiresIn=mailbox.GRANT_TIME,
            )
            for name, call, box in (
                ("get_in", "get_object", mailbox.IN),
                ("get_out", "get_object", mailbox.OUT),
                ("put_out", "put_object", mailbox.OUT),
            )
        }
        text = json.dumps({"key": key, "grants": grants, **self._describe()})
        os.replace(self._scratch(text), kept)
        return text

    def rendezvous(self) -> str:
        """The file of the rendezvous."""
        return json.dumps({"secret": self._secret().hex(), **self._describe()})

    def _describe(self) -> dict[str, t.Any]:
        return {**dataclasses.asdict(self._place), "pace": self._place.pace._asdict()}

    def _secret(self) -> bytes:
        """The run's secret, made by the first who asks."""
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path / "mailbox.secret"
        if not path.exists():
            scratch = self._scratch(secrets.token_hex(32))
            with contextlib.suppress(FileExistsError):
                os.link(scratch, path)  # unlike a rename, it leaves what another process has made
            scratch.unlink()
        return bytes.fromhex(path.read_text(encoding="ascii"))

    def _scratch(self, text: str) -> pathlib.Path:
        """A new file with `text` that only its owner can read."""
        descriptor, name = tempfile.mkstemp(dir=self._path)
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        return pathlib.Path(name)
