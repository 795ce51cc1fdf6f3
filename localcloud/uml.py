# SPDX-License-Identifier: GPL-3.0-or-later
"""What user-mode Linux needs to run on this machine's processor."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

_SOURCE = Path(__file__).with_name("uml_xstate.c")
#: What brings the compiler.
PACKAGES = "gcc libc6-dev"


def _has_amx() -> bool:
    return " amx_tile " in Path("/proc/cpuinfo").read_text()


def missing() -> str:
    """What this machine lacks for user-mode Linux besides the program itself, by its command; empty when nothing."""
    return "cc" if _has_amx() and not shutil.which("cc") else ""


def environment(directory: Path) -> dict[str, str]:
    """The variables that user-mode Linux has to be started with. What it needs is compiled once, into `directory`, whose
    file system has to bear programs."""
    if not _has_amx():
        return {}
    library = directory / "uml_xstate.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=directory) as scratch:  # of each host that starts at the same time
            part = Path(scratch) / library.name
            subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", part, _SOURCE, "-ldl"], check=True)
            part.rename(library)
    return {"LD_PRELOAD": str(library)}
