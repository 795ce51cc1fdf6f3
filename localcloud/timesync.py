# SPDX-License-Identifier: GPL-3.0-or-later
"""Amazon Time Sync of a VPC: a chronyd at 169.254.169.123 that serves the machine's clock and never touches it."""

from __future__ import annotations

import subprocess
import typing as t

from localcloud.machine import LOGS, NETNS, RUN, cgroup_command, cgroup_kill
from localcloud.network import TIME_ADDRESS, Vpc

# Amazon's servers say stratum 3 or 4. Commands are off: nobody steers it.
CONFIGURATION = f"""\
bindaddress {TIME_ADDRESS}
local stratum 3
allow
cmdport 0
bindcmdaddress /
"""


def serve(vpc: Vpc) -> t.Callable[[], None]:
    """Answer in the VPC's namespace until the returned function is called."""
    configuration = RUN / f"{vpc.netns}.chrony.conf"
    configuration.write_text(CONFIGURATION + f"pidfile {configuration.with_suffix('.pid')}\n")
    group = f"time/{vpc.id}"
    command = ["nsenter", f"--net={NETNS / vpc.netns}", "chronyd", "-x", "-n", "-u", "root", "-f", str(configuration)]
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
        configuration.unlink()

    return stop
