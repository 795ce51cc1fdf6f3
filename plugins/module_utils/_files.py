# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of a host that are whole at any moment.

This util is PRIVATE to the collection.
"""

from __future__ import annotations

import os
import shutil
import tempfile


def read(path: str) -> str:
    """The file's text, empty when there is no file."""
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""


def write(path: str, text: str, mode: int) -> None:
    """Replace the file in one step: a reader sees the old text or the new one, never a part."""
    # mkstemp's file is its owner's alone until it has its mode: the text may be a key.
    descriptor, scratch = tempfile.mkstemp(dir=os.path.dirname(path))
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            os.fchmod(stream.fileno(), mode)
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise


def ensure(path: str, text: str, mode: int, directory_mode: int = 0o755) -> None:
    """`write`, with the directories above."""
    os.makedirs(os.path.dirname(path), directory_mode, exist_ok=True)
    write(path, text, mode)


def remove(path: str) -> None:
    """Remove a file, or a directory with all that is in it; nothing when it is not there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)
