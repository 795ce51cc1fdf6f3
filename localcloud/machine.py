# SPDX-License-Identifier: GPL-3.0-or-later
"""What the local cloud asks of the machine it runs on: commands, control groups, limits, and that nothing is left.

Mounts and network namespaces are made in the daemon's own mount namespace and end with its last process. What else is
made has a name or number that is ours alone, so `sweep` finds it without a record of what a killed daemon did.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import typing as t
from pathlib import Path

from localcloud import uml

RUN = Path("/run/startline")
STATE = Path("/var/lib/startline")
LOGS = Path("/var/log/startline")
INSTANCES = STATE / "instances"
NETNS = Path("/run/netns")
UML = RUN / "uml"  # memory and consoles of user-mode kernels
PROJECT = Path(__file__).resolve().parent.parent

LINK_PREFIX = "sl-"
# A bridge without ports: not every kernel has dummy interfaces.
API_LINK = "startline0"
TABLE = "startline"
# Free in /etc/iproute2/rt_protos: marks our routes, and only them.
ROUTE_PROTOCOL = "83"

# What hosts need that a machine's defaults do not give (without inotify instances the 29th systemd hangs in boot).
LIMITS = {"net.ipv4.ip_forward": 1, "fs.inotify.max_user_instances": 8192}
LIMITS_BEFORE = RUN / "limits.json"

# The programs that are run, and the package that brings each.
TOOLS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "ip": "iproute2",
}


class CloudError(Exception):
    """The local cloud cannot do what was asked: what is in the way, and what to do about it (the one error class)."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}\n{remedy}" if remedy else problem)


def run(*command: str | os.PathLike[str], stdin: str | None = None) -> str:
    """The output of a command; CloudError with what it said when it fails."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise CloudError(f"`{' '.join(map(str, command))}` failed ({done.returncode}): {said}")
    return done.stdout


def attempt(*command: str) -> None:
    """Run a command that may find nothing to do."""
    subprocess.run(command, capture_output=True, check=False)


def ip_batch(*commands: str, netns: str | None = None) -> None:
    """Several `ip` commands in one process, in a namespace when one is named."""
    run("ip", *(["-n", netns] if netns else []), "-batch", "-", stdin="\n".join(commands) + "\n")


def require_tools() -> None:
    if sys.platform != "linux":
        raise CloudError("the local cloud runs on Linux only", "Use a Linux machine, or run on AWS: -i inventories/aws")
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None] + [uml.missing()] * bool(uml.missing())
    if missing:
        packages = " ".join({**TOOLS, uml.missing(): uml.PACKAGES}[tool] for tool in missing)
        raise CloudError(f"missing here: {', '.join(missing)}", f"Install with: sudo apt-get install -y {packages}")
    if not any((root / "cgroup.controllers").exists() for root in _HIERARCHIES):
        raise CloudError(
            "no cgroup2 file system is mounted", "Mount one at /sys/fs/cgroup/unified (hybrid) or /sys/fs/cgroup"
        )


@functools.cache
def has_netem() -> bool:
    """Can this machine's kernel delay packets? Tried, not looked up: it may be built in, or load on demand."""
    command = ["unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def become_root() -> None:
    """Start this command again through sudo when that asks nothing; else say how to."""
    if os.geteuid() == 0:
        return
    command = [sys.executable, "-m", "localcloud", *sys.argv[1:]]
    if (
        shutil.which("sudo")
        and subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0
    ):
        os.execvp("sudo", ["sudo", "-n", "env", f"PYTHONPATH={PROJECT}", *command])  # noqa: S606
    raise CloudError(
        "the local cloud needs root: it makes namespaces and boots hosts", f"Run: sudo {' '.join(command)}"
    )


# --- control groups: a host and all it ever forked, killed as one -----------------------------------------------------

# cgroup2, and on a hybrid machine the tree that systemd keeps beside it.
_HIERARCHIES = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup/systemd"))


def _groups(name: str = "") -> list[Path]:
    return [root / "startline" / name for root in _HIERARCHIES if (root / "cgroup.procs").exists()]


def cgroup_command(name: str, command: t.Sequence[str]) -> list[str]:
    """`command`, started in control group startline/<name> of its own.

    Without this the systemds of all hosts would share one tree, and stopping ssh.service in one would stop it in all.
    """
    groups = _groups(name)
    for group in groups:
        group.mkdir(parents=True, exist_ok=True)
    enter = "".join(f"echo $$ >{group}/cgroup.procs || exit 125; " for group in groups)
    return ["sh", "-c", enter + 'exec "$@"', "startline", *command]


def cgroup_kill(name: str = "") -> None:
    """Kill all in startline/<name> (all of ours without a name), wait until it is empty, remove it."""
    for group in _groups(name):
        with contextlib.suppress(OSError):  # version 1, or gone meanwhile: two may want the same end
            (group / "cgroup.kill").write_text("1")
            with (group / "cgroup.events").open() as events:
                poll = select.poll()
                poll.register(events, select.POLLPRI)
                while "populated 1" in events.read():
                    poll.poll(1000)
                    events.seek(0)
    for group in _groups(name):
        for directory, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):  # the kernel may still be letting go of it; `down` looks again
                os.rmdir(directory)


# --- limits -----------------------------------------------------------------------------------------------------------


def _limits() -> dict[str, int]:
    return {name: int(_limit(name).read_text()) for name in LIMITS}


def _limit(name: str) -> Path:
    return Path("/proc/sys", *name.split("."))


def raise_limits() -> None:
    """Set LIMITS, and keep what they were for `_restore_limits`. Never lowers one."""
    before = _limits()
    LIMITS_BEFORE.write_text(json.dumps(before))
    for name, value in LIMITS.items():
        _limit(name).write_text(str(max(value, before[name])))


def forwarding_before() -> bool:
    """Did this machine forward packets before we made it?"""
    return bool(json.loads(LIMITS_BEFORE.read_text())["net.ipv4.ip_forward"])


def _restore_limits() -> None:
    with contextlib.suppress(ValueError):  # killed while it was written: nothing was set yet
        for name, value in json.loads(LIMITS_BEFORE.read_text()).items():
            if _limits()[name] == LIMITS[name]:  # else somebody has set it after us, and it is theirs
                _limit(name).write_text(str(value))
    LIMITS_BEFORE.unlink()


# --- what is ours on the machine, and its end -------------------------------------------------------------------------


def _ours() -> t.Iterator[tuple[str, t.Callable[[], object]]]:
    """All that is ours on the machine, in words, and how each is removed: in an order in which that works."""
    for group in _groups():
        if group.exists():
            yield f"cgroup {group}", cgroup_kill
    # Namespaces take their veths along a little after their last process; deleting does it now, and their routes too.
    for _, name in socket.if_nameindex():
        if name == API_LINK or name.startswith(LINK_PREFIX):
            yield f"interface {name}", functools.partial(attempt, "ip", "link", "del", name)
    for route in run("ip", "-4", "route", "show", "proto", ROUTE_PROTOCOL).splitlines():
        words = (*route.split(), "proto", ROUTE_PROTOCOL)
        yield f"route {route}", functools.partial(attempt, "ip", "route", "del", *words)
    # Only root may ask.
    if os.geteuid() == 0 and f"table ip {TABLE}" in run("nft", "list", "tables").splitlines():
        yield f"nft table {TABLE}", functools.partial(attempt, "nft", "delete", "table", "ip", TABLE)
    if LIMITS_BEFORE.exists():
        yield f"limits in {LIMITS_BEFORE}", _restore_limits


def leftovers() -> list[str]:
    """All that is ours on the machine, in words."""
    return [what for what, _ in _ours()]


def sweep() -> None:
    """Remove all that is ours from the machine. Can be interrupted anywhere, and run again."""
    for _, remove in _ours():
        remove()
    for directory in (INSTANCES, RUN):
        shutil.rmtree(directory, ignore_errors=True)
