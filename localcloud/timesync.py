# SPDX-License-Identifier: GPL-3.0-or-later
"""Amazon Time Sync of a VPC: a chronyd at 169.254.169.123 that serves the machine's clock and never touches it.

The program is the image's. The machine's own time service is none of our business, and chrony's package would replace it.
"""

from __future__ import annotations

import subprocess
import typing as t
from pathlib import Path

from localcloud.machine import LOGS, NETNS, cgroup_command, cgroup_kill
from localcloud.network import TIME_ADDRESS, Vpc

# Amazon's servers say stratum 3 or 4. Commands are off: nobody steers it.
DIRECTIVES = (
    f"bindaddress {TIME_ADDRESS}",
    "local stratum 3",
    "allow",
    "cmdport 0",
    "bindcmdaddress /",
    "pidfile /run/chronyd.pid",
)
# In a mount namespace of its own, so that nothing is written into the image, which hosts stand on.
CHROOT = 'mount -t tmpfs tmpfs "$0/run" && exec chroot "$0" chronyd -x -d -u root "$@"'


def serve(vpc: Vpc, image: Path) -> t.Callable[[], None]:
    """Answer in the VPC's namespace, with chronyd of the image, until the returned function is called."""
    group = f"time/{vpc.id}"
    command = [
        "nsenter",
        f"--net={NETNS / vpc.netns}",
        "unshare",
        "--mount",
        "sh",
        "-c",
        CHROOT,
        str(image),
        *DIRECTIVES,
    ]
    with (LOGS / "timesync.log").open("ab") as output:
        process = subprocess.Popen(
            cgroup_command(group, command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )

    def stop() -> None:
        cgroup_kill(group)
        process.wait()

    return stop
