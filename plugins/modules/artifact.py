#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Fetch artifacts on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: artifact
short_description: Fetch artifacts on a host, proven by their sha256
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Fetches each artifact that is not there yet, compares its sha256, and puts it in place in one step, so that a host
    has an artifact whole or not at all.
  - Contents are kept under their sha256; a link with the artifact's name points at the one in use. Contents that no
    link points at are removed.
options:
  artifacts:
    description: What M(startline.lab.artifact_upload) returned, or the part of it that this host needs.
    type: list
    elements: dict
    required: true
    suboptions:
      dest:
        description: Name of the link below O(root).
        type: str
        required: true
      kind:
        description: Whether the object is the file itself or a C(tar.gz) of a directory.
        type: str
        choices: [file, directory]
        required: true
      sha256:
        description: Checksum of the object.
        type: str
        required: true
      size:
        description: Size of the object in bytes.
        type: int
      url:
        description: Where to fetch it.
        type: str
        required: true
      groups:
        description: Ignored here. The caller selects.
        type: list
        elements: str
  root:
    description: Directory that holds the artifacts.
    type: path
    default: /opt/startline/artifacts
  timeout:
    description: Seconds without a byte after which a transfer has failed.
    type: int
    default: 30
attributes:
  check_mode:
    support: full
    description: Can run in check mode and return changed status without modifying the host.
  diff_mode:
    support: none
    description: Returns no diff.
"""

EXAMPLES = r"""
- name: Fetch the program
  startline.lab.artifact:
    artifacts: "{{ stored.artifacts }}"
"""

RETURN = r"""
fetched:
  description: Names of the artifacts that were fetched.
  returned: success
  type: list
  elements: str
  sample: [dkg]
"""

import hashlib
import os
import shutil
import tarfile
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

CONTENTS = ".contents"
CHUNK = 1 << 20


class FetchError(Exception):
    """The artifact could not be fetched or is not what was promised."""


def download(url, path, sha256, timeout):
    """Write the object at `url` to `path` and compare its checksum."""
    digest = hashlib.sha256()
    try:
        response = open_url(url, timeout=timeout)
        with open(path, "wb") as target:
            while True:
                chunk = response.read(CHUNK)
                if not chunk:
                    break
                digest.update(chunk)
                target.write(chunk)
    except Exception as exc:
        # open_url's errors carry the address, which is a key to the object: say what happened without it.
        reason = f"HTTP status {exc.code}" if hasattr(exc, "code") else getattr(exc, "reason", type(exc).__name__)
        raise FetchError(f"could not be fetched: {reason}") from exc
    if digest.hexdigest() != sha256:
        raise FetchError(f"arrived damaged: its sha256 is {digest.hexdigest()}, expected {sha256}")


def unpack(archive, target):
    """Unpack a tar.gz of our own making; a name that would leave `target` is refused."""
    os.mkdir(target, 0o755)
    root = os.path.realpath(target)
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar.getmembers():
            path = os.path.realpath(os.path.join(root, member.name))
            if path != root and not path.startswith(root + os.sep):
                raise FetchError(f"has a member outside itself: {member.name}")
        # Every name was checked above; Python 3.12 and later want to be told as well.
        extra = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
        tar.extractall(target, **extra)  # noqa: S202


def install(artifact, contents, timeout):
    """Fetch `artifact` into `contents`, whole or not at all."""
    scratch = tempfile.mkdtemp(prefix=".fetch-", dir=contents)
    try:
        received = os.path.join(scratch, "received")
        download(artifact["url"], received, artifact["sha256"], timeout)
        if artifact["kind"] == "directory":
            ready = os.path.join(scratch, "unpacked")
            unpack(received, ready)
        else:
            ready = received
            # Any user of the host may run it.
            os.chmod(ready, 0o755)  # noqa: S103
        os.rename(ready, os.path.join(contents, artifact["sha256"]))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def point(link, target):
    """Make `link` a symbolic link to `target` in one step. True when that changed anything."""
    if os.path.islink(link) and os.readlink(link) == target:
        return False
    scratch = link + ".new"
    if os.path.lexists(scratch):
        os.unlink(scratch)
    os.symlink(target, scratch)
    os.replace(scratch, link)
    return True


def prune(root, contents):
    """Remove the contents that no link points at any more."""
    used = {os.path.basename(os.readlink(e.path)) for e in os.scandir(root) if e.is_symlink()}
    for entry in os.scandir(contents):
        if entry.name not in used:
            if entry.is_dir():
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def main():
    module = AnsibleModule(
        argument_spec={
            "artifacts": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "dest": {"type": "str", "required": True},
                    "kind": {"type": "str", "choices": ["file", "directory"], "required": True},
                    "sha256": {"type": "str", "required": True},
                    "size": {"type": "int"},
                    "url": {"type": "str", "required": True},
                    "groups": {"type": "list", "elements": "str"},
                },
            },
            "root": {"type": "path", "default": "/opt/startline/artifacts"},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    root = module.params["root"]
    contents = os.path.join(root, CONTENTS)
    fetched, changed = [], False
    if not module.check_mode:
        os.makedirs(contents, 0o755, exist_ok=True)
    for artifact in module.params["artifacts"]:
        name = artifact["dest"]
        if os.path.basename(name) != name or name in ("", ".", "..", CONTENTS):
            module.fail_json(msg=f"artifact {name}: dest must be a plain name, without a slash")
        if not os.path.exists(os.path.join(contents, artifact["sha256"])):
            fetched.append(name)
        try:
            if not module.check_mode:
                if name in fetched:
                    install(artifact, contents, module.params["timeout"])
                changed |= point(os.path.join(root, name), os.path.join(CONTENTS, artifact["sha256"]))
        except (FetchError, OSError, tarfile.TarError) as exc:
            module.fail_json(msg=f"artifact {name} {exc}")
    if not module.check_mode:
        prune(root, contents)
    module.exit_json(changed=changed or bool(fetched), fetched=fetched)


if __name__ == "__main__":
    main()
