# SPDX-License-Identifier: GPL-3.0-or-later
"""Evidence of a trial on its way out: which files there are, their checksums, and their upload.

PRIVATE to the collection. All of it runs in children of the agent (`workers.Workers`), and is imported there alone, so that
the agent stays small. What is uploaded stays in the spool until the object store has confirmed its checksum.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fnmatch
import hashlib
import http.client
import json
import os
import random
import stat
import sys
import time
import typing as t
import urllib.parse

from . import presigned, wire
from .launcher import read_record, write_record

#: What the spool itself holds, in the order of upload; meta.json is last because it says that all is there.
FIRST, LAST = ("stdout", "stderr"), "meta.json"
#: Tries of one file, and the seconds before the second; each further pause is twice the last.
TRIES, PAUSE = 6, 0.25
#: Seconds without progress after which a connection is given up.
STALL = 30.0
#: Bytes of an answer to an upload: a refusal in a few words.
ANSWER = 65536

_CHUNK = 1024 * 1024

File = t.Dict[str, t.Any]


class DeliveryError(Exception):
    """A file was not taken. `again` tells that new grants may help."""

    def __init__(self, message: str, again: bool = False) -> None:
        super().__init__(message)
        self.again = again


class Courier:
    """What a child of the agent does: it collects or uploads, and keeps its connection to the store from one upload to the
    next."""

    def __init__(self, runtime_directory: str, imds: t.Optional[str]) -> None:
        self._runtime_directory = runtime_directory
        self._imds = imds
        self._client = presigned.Client(STALL, ANSWER)

    def serve(self, job: t.Mapping[str, t.Any]) -> t.Dict[str, t.Any]:
        """A job with ``grants`` is an upload."""
        if "grants" in job:
            return upload(self._client, **job)
        host = host_facts(self._runtime_directory, self._imds)
        return collect(job["spool"], job["patterns"], dict(job["meta"], host=host))


def matches(path: str, pattern: str) -> bool:
    """Whether a relative path matches a glob: ``*`` and ``?`` stay within a directory, ``**`` is any number of
    directories."""
    return _match(path.split("/"), pattern.split("/"))


def _match(parts: t.Sequence[str], patterns: t.Sequence[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_match(parts[skip:], patterns[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], patterns[0]) and _match(parts[1:], patterns[1:])


def find(directory: str, patterns: t.Sequence[str]) -> t.List[str]:
    """Relative paths of the regular files below `directory` that match. Symbolic links are neither files nor
    directories."""
    found = []
    for root, _directories, names in os.walk(directory):
        below = os.path.relpath(root, directory)
        for name in names:
            path = name if below == "." else f"{below}/{name}"
            if any(matches(path, pattern) for pattern in patterns):
                with contextlib.suppress(OSError):
                    if stat.S_ISREG(os.lstat(os.path.join(root, name)).st_mode):
                        found.append(path)
    return sorted(found)


def open_inside(directory: str, path: str) -> int:
    """A file descriptor of the regular file at the relative `path`, no part of which is a symbolic link."""
    *above, name = path.split("/")
    here = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in above:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
        found = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=here)
    finally:
        os.close(here)
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise OSError(f"{path} is not a regular file")
    return found


def source_of(spool: str, path: str) -> t.Tuple[str, str]:
    """Directory and relative path in it of a file that is delivered as `path`."""
    if path in (*FIRST, LAST):
        return spool, path
    inner = path[5:] if path.startswith("work/") and path[5:] in (*FIRST, LAST) else path
    return os.path.join(spool, "work"), inner


def checksum(descriptor: int) -> t.Tuple[int, str]:
    """Size and SHA-256 (hexadecimal) of an open file."""
    digest, size = hashlib.sha256(), 0
    while True:
        chunk = os.read(descriptor, _CHUNK)
        if not chunk:
            return size, digest.hexdigest()
        digest.update(chunk)
        size += len(chunk)


def collect(spool: str, patterns: t.Sequence[str], meta: t.Mapping[str, t.Any]) -> t.Dict[str, t.Any]:
    """Find the evidence and write meta.json, which is `meta` and a list of all other files.

    Gives the ``files`` in the order of upload, and a ``problem`` when something that was to be collected could not
    be: a log is never left behind in silence.
    """
    files: t.List[File] = []
    skipped: t.List[t.Dict[str, str]] = []
    found = find(os.path.join(spool, "work"), patterns)
    room = wire.MAX_FILES - len(FIRST) - 1
    if len(found) > room:
        skipped.append({"path": "...", "reason": f"{len(found)} files match, {room} can be delivered: pack them"})
    # A collected file that is named like one of ours keeps its name below work/.
    for path in [*FIRST, *(f"work/{path}" if path in (*FIRST, LAST) else path for path in found[:room])]:
        try:
            wire.relative_path(path, "name")
            descriptor = open_inside(*source_of(spool, path))
        except (OSError, wire.WireError) as error:
            skipped.append({"path": ascii(path), "reason": str(error)})
            continue
        try:
            size, digest = checksum(descriptor)
        finally:
            os.close(descriptor)
        files.append({"path": path, "size": size, "sha256": digest})
    write_record(spool, LAST, dict(meta, files=files, skipped=skipped))
    descriptor = open_inside(spool, LAST)
    try:
        size, digest = checksum(descriptor)
    finally:
        os.close(descriptor)
    files.append({"path": LAST, "size": size, "sha256": digest})
    problem = "; ".join(f"{entry['path']}: {entry['reason']}" for entry in skipped[:3])
    return {"files": files, "problem": f"{len(skipped)} not collected: {problem}" if skipped else None}


# ---- facts of the host -----------------------------------------------------------------------------------------------


def host_facts(cache: str, imds: t.Optional[str]) -> t.Dict[str, t.Any]:
    """What the host is; null where it cannot be found out. Found out once and kept in the directory `cache`."""
    with contextlib.suppress(OSError, ValueError):
        known = read_record(cache, "host.json")
        if known is not None:
            return known
    found = _host_facts(imds)
    with contextlib.suppress(OSError):
        os.makedirs(cache, 0o755, exist_ok=True)
        write_record(cache, "host.json", found)
    return found


def _host_facts(imds: t.Optional[str]) -> t.Dict[str, t.Any]:
    uname = os.uname()
    release = {}
    with contextlib.suppress(OSError):
        with open("/etc/os-release", encoding="utf-8", errors="replace") as stream:
            release = dict(line.rstrip("\n").split("=", 1) for line in stream if "=" in line)
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "hostname": uname.nodename,
        "kernel": uname.release,
        "machine": uname.machine,
        "os": release.get("PRETTY_NAME", "").strip('"') or None,
        "python": ".".join(map(str, sys.version_info[:3])),
        "cpus": os.cpu_count(),
        "memory": pages * size,
        "instance": instance(imds) if imds else None,
    }


def instance(imds: str) -> t.Optional[t.Dict[str, t.Any]]:
    """Identity of the instance from its metadata service (IMDSv2), or None."""
    parts = urllib.parse.urlsplit(imds)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=2)
    try:
        connection.request("PUT", "/latest/api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"})
        answer = connection.getresponse()
        token = answer.read(4096).decode("ascii")
        if answer.status != 200:
            return None
        where = "/latest/dynamic/instance-identity/document"
        connection.request("GET", where, headers={"X-aws-ec2-metadata-token": token})
        answer = connection.getresponse()
        document = json.loads(answer.read(65536).decode("utf-8")) if answer.status == 200 else {}
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    names = {"id": "instanceId", "type": "instanceType", "zone": "availabilityZone", "image": "imageId"}
    return {name: document.get(key) for name, key in names.items()}


# ---- upload ----------------------------------------------------------------------------------------------------------


def upload(
    client: presigned.Client, spool: str, files: t.Sequence[File], grants: t.Sequence[t.Mapping[str, t.Any]]
) -> t.Dict[str, t.Any]:
    """Upload files, each once the one before it is confirmed. ``failed`` says why it stopped, ``again`` that new grants may
    help."""
    granted = {grant["path"]: grant for grant in grants}
    try:
        for file in files:
            if file["path"] not in granted:
                raise DeliveryError("no grant for {}".format(file["path"]), again=True)
            _put_patiently(client, spool, file, granted[file["path"]])
    except DeliveryError as error:
        return {"failed": str(error), "again": error.again}
    return {"failed": None, "again": False}


def _put_patiently(client: presigned.Client, spool: str, file: File, grant: t.Mapping[str, t.Any]) -> None:
    """Upload one file; what may pass is tried again."""
    pause = PAUSE
    for attempt in range(1, TRIES + 1):
        try:
            answer = _put(client, spool, file, grant)
        except (OSError, ValueError) as error:
            answer = presigned.Answer(0, None, b"", f"{type(error).__name__}: {error}")
        if answer.status == 200:
            return
        problem = "{}: {}".format(file["path"], answer if answer.status else f"no answer {answer.code}")
        if answer.status == 403:
            raise DeliveryError(problem, again=True)  # the grant's time is over, or the role may not
        passing = answer.status >= 500 or answer.status == 429 or answer.code in ("BadDigest", "RequestTimeout")
        if answer.status and not passing:
            raise DeliveryError(problem)
        if attempt == TRIES:
            raise DeliveryError(problem, again=True)
        time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
        pause *= 2


def _put(client: presigned.Client, spool: str, file: File, grant: t.Mapping[str, t.Any]) -> presigned.Answer:
    """One PUT. Status 200 means that the store has found the checksum right."""
    headers = {"content-length": str(file["size"])}
    headers.update((name.lower(), value) for name, value in grant["headers"].items() if name.lower() != "host")
    # The one thing that the agent adds by itself, should the grant not ask for it: the store must check what it got.
    headers["x-amz-checksum-sha256"] = base64.b64encode(binascii.unhexlify(file["sha256"])).decode("ascii")
    with os.fdopen(open_inside(*source_of(spool, file["path"])), "rb") as stream:
        return client.request("PUT", grant["url"], headers, stream)
