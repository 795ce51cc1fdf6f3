# SPDX-License-Identifier: GPL-3.0-or-later
"""What it costs this machine to wake N processes that do nothing else: the floor of what a barrier can do on it.

    from benchmarks import floor
    late = floor.measure(8, "sleep 0.2")

Each process has all that the barrier's launcher gives its child: a session of its own (the kernel shares the processors out
by session), timers without slack, a sleep to an absolute instant that was called once before, everything ready before T. And
the parent is small, a fresh interpreter with the launcher alone: what is forked from a large one copies its pages at T.
"""

from __future__ import annotations

import os
import pathlib
import struct
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "collections"))

from ansible_collections.startline.lab.plugins.module_utils._agent import launcher  # noqa: E402

#: From the last process that is ready to T: the time in which all of them read T, and are asleep again.
LEAD, LEAD_EACH = 0.3, 0.003


def measure(members: int, command: str, directory: pathlib.Path | str = "/") -> list[float]:
    """Lateness after T (ms) of `members` processes that become `sh -c command` in `directory`, with their $NUMBER."""
    words = [sys.executable, "-IS", __file__, str(members), command]
    done = subprocess.run(words, cwd=directory, stdout=subprocess.PIPE, check=True)
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    members, command = int(sys.argv[1]), sys.argv[2]
    (go, give), (heard, tell) = os.pipe(), os.pipe()
    for number in range(members):
        if not os.fork():
            become(command, number, go, tell)
    for _ in range(members):
        os.read(heard, 1)
    start_ns = time.monotonic_ns() + int((LEAD + LEAD_EACH * members) * 1e9)
    for _ in range(members):
        os.write(give, struct.pack("!q", start_ns))
    for _ in range(members):
        os.wait()
    for _ in range(members):
        print((struct.unpack("!q", os.read(heard, 8))[0] - start_ns) / 1e6)


def become(command: str, number: int, go: int, tell: int) -> None:
    """The life of a process until it is the command."""
    os.setsid()
    environment = {**os.environ, "NUMBER": str(number)}
    launcher._prctl(launcher._PR_SET_TIMERSLACK, 1)
    launcher.sleep_until(1)  # loads and warms what T will need
    os.write(tell, b"r")
    start_ns = struct.unpack("!q", os.read(go, 8))[0]
    launcher.sleep_until(start_ns)
    os.write(tell, struct.pack("!q", time.monotonic_ns()))
    os.execve("/bin/sh", ["/bin/sh", "-c", command], environment)  # noqa: S606  the shell is what we start


if __name__ == "__main__":
    main()
