# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of a host that are whole at any moment.

This util is PRIVATE to the collection.
"""

from __future__ import annotations

import os


def read(path: str) -> str:
    """The file's text, empty when there is no file."""
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""


def write(path: str, text: str, mode: int) -> None:
    """Replace the file in one step: a reader sees the old text or the new one, never a part."""
    scratch = f"{path}.{os.getpid()}.new"
    try:
        with open(scratch, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            os.fchmod(stream.fileno(), mode)
        os.replace(scratch, path)
    except OSError:
        if os.path.exists(scratch):
            os.unlink(scratch)
        raise
