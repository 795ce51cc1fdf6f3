# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run was led by: versions of the programs on the controller, and the commit of the project.

This util is PRIVATE to the collection.
"""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import platform
import re
import subprocess
import typing as t

#: The collection's own directory, in a clone or installed.
_COLLECTION: t.Final = pathlib.Path(__file__).resolve().parents[2]
_PACKAGES: t.Final = ("ansible-core", "boto3", "matplotlib", "moto")


def controller(project_dir: pathlib.Path | None = None) -> dict[str, t.Any]:
    """Versions, and the git commit of `project_dir` if it is a clone. What cannot be told is left out."""
    versions = {"startline.lab": _collection_version(), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    found: dict[str, t.Any] = {"controller": {name: version for name, version in versions.items() if version}}
    commit = _git(project_dir, "rev-parse", "HEAD") if project_dir else None
    if commit:
        changed = _git(project_dir, "status", "--porcelain", "--untracked-files=no")
        found["project"] = {"commit": commit, "changed": bool(changed)}
    return found


def _collection_version() -> str | None:
    """Version in MANIFEST.json of an installed collection, or in galaxy.yml of a clone."""
    manifest, galaxy = _COLLECTION / "MANIFEST.json", _COLLECTION / "galaxy.yml"
    try:
        if manifest.exists():
            return str(json.loads(manifest.read_text())["collection_info"]["version"])
        match = re.search(r"^version:\s*(\S+)", galaxy.read_text(), re.MULTILINE)
    except (OSError, ValueError, KeyError):
        return None
    return match[1] if match else None


def _git(directory: pathlib.Path | None, *args: str) -> str | None:
    """What git says, None when it cannot say anything."""
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *args], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
