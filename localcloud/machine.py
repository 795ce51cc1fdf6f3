# SPDX-License-Identifier: GPL-3.0-or-later
"""What the local cloud asks of the machine it runs on: commands, namespaces, control groups, mounts, limits.

Everything here is found again by a name or number that is ours alone, so `sweep` clears after a killed daemon.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import typing as t
from dataclasses import dataclass
from pathlib import Path

RUN = Path("/run/startline")
STATE = Path("/var/lib/startline")
LOGS = Path("/var/log/startline")
INSTANCES = STATE / "instances"
NETNS = Path("/run/netns")
PROJECT = Path(__file__).resolve().parent.parent

NETNS_PREFIX = "startline-"
LINK_PREFIX = "sl-"
# A bridge without ports: not every kernel has dummy interfaces, and we need bridges anyway.
API_LINK = "startline0"
TABLE = "startline"
# Free in /etc/iproute2/rt_protos: marks our routes, and only them.
ROUTE_PROTOCOL = "83"

LIMITS_BEFORE = RUN / "limits.json"
# What hosts need that a machine's defaults do not give (without inotify instances the 29th systemd hangs in boot).
LIMITS = {"net.ipv4.ip_forward": 1, "fs.inotify.max_user_instances": 8192}

_CLONE_NEWNET = 0x40000000
_T = t.TypeVar("_T")


class CloudError(Exception):
    """The local cloud cannot do what was asked: what is in the way, and what to do about it (the one error class)."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}\n{remedy}" if remedy else problem)


# The programs that are run, and the package that brings each.
TOOLS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "ip": "iproute2",
}


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


def in_netns(name: str, function: t.Callable[[], _T]) -> _T:
    """The result of `function` in a network namespace: sockets it opens stay there.

    A namespace belongs to a thread, so this runs in one of its own that ends afterwards. (os.setns is new in 3.12.)
    """

    def enter() -> _T:
        with (NETNS / name).open("rb") as namespace:
            if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code), name)
        return function()

    libc = ctypes.CDLL(None, use_errno=True)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(enter).result()


def require_tools() -> None:
    if sys.platform != "linux":
        raise CloudError("the local cloud runs on Linux only", "Use a Linux machine, or run on AWS: -i inventories/aws")
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        packages = " ".join(TOOLS[tool] for tool in missing)
        raise CloudError(f"missing here: {', '.join(missing)}", f"Install with: sudo apt-get install -y {packages}")
    if _cgroup2() is None:
        raise CloudError(
            "no cgroup2 file system is mounted", "Mount one at /sys/fs/cgroup/unified (hybrid) or /sys/fs/cgroup"
        )


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


# --- processes: named by pid and start time, a pair that is never given out twice -------------------------------------


@dataclass(frozen=True)
class Process:
    pid: int
    started: int  # clock ticks since boot

    @classmethod
    def of(cls, pid: int) -> Process | None:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] == "Z" else cls(pid, int(fields[19]))

    @classmethod
    def current(cls) -> Process:
        me = cls.of(os.getpid())
        if me is None:
            raise CloudError("/proc is not mounted")
        return me

    def alive(self) -> bool:
        return Process.of(self.pid) == self


# --- control groups: a host and all it ever forked, killed as one -----------------------------------------------------


def _cgroup2() -> Path | None:
    for root in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        if (root / "cgroup.controllers").exists():
            return root
    return None


def _groups(name: str = "") -> list[Path]:
    """startline/<name> in each hierarchy that systemd keeps a tree in: cgroup2, and on a hybrid machine its own v1."""
    roots = [_cgroup2(), Path("/sys/fs/cgroup/systemd")]
    return [root / "startline" / name for root in roots if root and (root / "cgroup.procs").exists()]


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
    groups = _groups(name)
    with contextlib.suppress(OSError):  # not there, or gone meanwhile: two may want the same end
        (groups[0] / "cgroup.kill").write_text("1")
        with (groups[0] / "cgroup.events").open() as events:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            while "populated 1" in events.read():
                poll.poll(1000)
                events.seek(0)
    for group in groups:
        for directory, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):  # the kernel may still be letting go of it; `down` looks again
                os.rmdir(directory)


# --- limits -----------------------------------------------------------------------------------------------------------


def raise_limits() -> None:
    """Set LIMITS, and keep what they were for `restore_limits`. Never lowers one."""
    before = {name: int(_limit(name).read_text()) for name in LIMITS}
    LIMITS_BEFORE.write_text(json.dumps(before))
    for name, wanted in LIMITS.items():
        if before[name] < wanted:
            _limit(name).write_text(str(wanted))


def forwarding_before() -> bool:
    """Did this machine forward packets before we made it?"""
    return bool(json.loads(LIMITS_BEFORE.read_text())["net.ipv4.ip_forward"])


def restore_limits() -> None:
    with contextlib.suppress(ValueError):  # killed while it was written: nothing was set yet
        for name, value in json.loads(LIMITS_BEFORE.read_text()).items():
            # Somebody may have set it after us: then it is theirs.
            if int(_limit(name).read_text()) == LIMITS[name]:
                _limit(name).write_text(str(value))
    LIMITS_BEFORE.unlink()


def _limit(name: str) -> Path:
    return Path("/proc/sys", *name.split("."))


# --- what is ours on the machine, and its end -------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of thing the local cloud makes on the machine: how to find all that are ours, and how to remove one."""

    word: str
    find: t.Callable[[], list[str]]
    remove: t.Callable[[str], object]


def leftovers() -> list[str]:
    """All that is ours on the machine, in words."""
    return [f"{kind.word} {name}" for kind in _KINDS for name in kind.find()]


def sweep() -> None:
    """Remove all that is ours from the machine. Can be interrupted anywhere, and run again."""
    for kind in _KINDS:
        for name in kind.find():
            kind.remove(name)
    # Only now, with nothing mounted below.
    shutil.rmtree(INSTANCES, ignore_errors=True)
    shutil.rmtree(RUN, ignore_errors=True)


def remove_netns(name: str) -> None:
    attempt("ip", "netns", "del", name)
    (NETNS / name).unlink(missing_ok=True)  # made, but never mounted


def _mounts() -> list[str]:
    """Our mount points, the innermost first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in reversed(points) if point.startswith(f"{INSTANCES}/")]


def _links() -> list[str]:
    return [name for _, name in socket.if_nameindex() if name == API_LINK or name.startswith(LINK_PREFIX)]


def _tables() -> list[str]:
    # Only root may ask.
    return [TABLE] if os.geteuid() == 0 and f"table ip {TABLE}" in run("nft", "list", "tables").splitlines() else []


_KINDS = (
    Kind("cgroup", lambda: [str(g) for g in _groups() if g.exists()], lambda _: cgroup_kill()),
    Kind("mount", _mounts, lambda point: run("umount", "--lazy", point)),
    Kind("namespace", lambda: [p.name for p in NETNS.glob(f"{NETNS_PREFIX}*")], remove_netns),
    # The end of a namespace takes its veths along a little later; this does it now, and their routes with them.
    Kind("interface", _links, lambda name: attempt("ip", "link", "del", name)),
    Kind(
        "route",
        lambda: run("ip", "-4", "route", "show", "proto", ROUTE_PROTOCOL).splitlines(),
        lambda route: attempt("ip", "route", "del", *route.split(), "proto", ROUTE_PROTOCOL),
    ),
    Kind("nft table", _tables, lambda name: attempt("nft", "delete", "table", "ip", name)),
    Kind("limits in", lambda: [str(LIMITS_BEFORE)] if LIMITS_BEFORE.exists() else [], lambda _: restore_limits()),
)
