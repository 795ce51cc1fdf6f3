# SPDX-License-Identifier: GPL-3.0-or-later
"""One line an event on stderr, which the service manager keeps. Never a command, an environment or a signed address.

PRIVATE to the collection.
"""

from __future__ import annotations

import json
import sys
import typing as t


def log(event: str, **fields: t.Any) -> None:
    """``event key=value ...``; values that are not plain words are quoted."""
    words = [event]
    for name, value in fields.items():
        text = str(value)
        plain = text and all(character.isalnum() or character in "._:/+-" for character in text)
        words.append(f"{name}={text if plain else json.dumps(text)}")
    # One write, so that lines of several processes are not mixed.
    sys.stderr.write(" ".join(words) + "\n")
    sys.stderr.flush()
