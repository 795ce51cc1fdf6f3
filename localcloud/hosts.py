# SPDX-License-Identifier: GPL-3.0-or-later
"""A host: an instance as a systemd-nspawn container with a kernel of the machine and everything else of its own.

    pending -> running -> ended          one thread per host, which waits on events of the kernel and never polls

The thread mounts an overlay on the image, attaches the network, boots, waits for nspawn to end, and takes all of it
away. A reboot inside boots again; what another end means for the instance, the caller decides.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import hashlib
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
import typing as t
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from localcloud import machine
from localcloud.machine import INSTANCES, LOGS, STATE, CloudError, cgroup_command, run
from localcloud.network import Fabric, Port, resolvers

log = logging.getLogger(__name__)

# What systemd-nspawn --keep-unit says when the container asked for a reboot.
REBOOT = 133
# How long an orderly shutdown may take before the host is cut off.
GRACE = 10.0
PACKAGES = STATE / "cache" / "apt"
_ARCHIVES = Path("var/cache/apt/archives")
# systemd's signals for PID 1.
_POWEROFF, _REBOOT = signal.SIGRTMIN + 4, signal.SIGRTMIN + 5
# Booting is CPU: more at once than this only makes all of them late together.
_BOOTING = threading.BoundedSemaphore(max(4, 2 * (os.cpu_count() or 1)))


class End(enum.Enum):
    """Why a host is no longer running."""

    ASKED = "asked"  # by the API
    INSIDE = "inside"  # shutdown in the host
    DIED = "died"  # its process was killed
    FAILED = "failed"  # it never ran


@dataclass(frozen=True)
class Spec:
    id: str
    root: Path  # of the image
    vpc: str
    cidr: IPv4Network
    port: Port

    @property
    def hostname(self) -> str:
        return f"ip-{str(self.port.address).replace('.', '-')}"

    @property
    def directory(self) -> Path:
        return INSTANCES / self.id

    @property
    def console(self) -> Path:
        return LOGS / f"{self.id}.log"

    @property
    def cgroup(self) -> str:
        return f"hosts/{self.id}"


class Host:
    def __init__(
        self, spec: Spec, fabric: Fabric, *, running: t.Callable[[], None], ended: t.Callable[[End, str], None]
    ) -> None:
        """`running` and `ended` are called in the host's thread: its init is started, and all of it is gone."""
        self.spec = spec
        self._fabric = fabric
        self._running = running
        self._ended = ended
        self._lock = threading.Lock()
        self._leader: int | None = None  # pidfd of the host's PID 1
        self._asked = False
        self._thread = threading.Thread(target=self._live, name=spec.id, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def shut_down(self, grace: float = GRACE) -> None:
        """End the host in order, or by force when that takes longer than `grace` seconds. Returns when it has ended."""
        with self._lock:
            self._asked = True
        self._signal(_POWEROFF)
        self._thread.join(grace)
        if self._thread.is_alive():
            machine.cgroup_kill(self.spec.cgroup)
        self._thread.join()

    def reboot(self) -> None:
        self._signal(_REBOOT)

    def _signal(self, number: int) -> None:
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._leader is not None:
                signal.pidfd_send_signal(self._leader, number)

    def _live(self) -> None:
        end, why = End.FAILED, ""
        try:
            with _BOOTING:
                _mount(self.spec)
                self._fabric.attach(self.spec.vpc, self.spec.cidr, self.spec.port)
            end, why = self._run()
        except (CloudError, OSError) as problem:
            why = str(problem)
            log.error("%s cannot run: %s", self.spec.id, problem)
        finally:
            self._clear()
            self._ended(end, why)

    def _run(self) -> tuple[End, str]:
        """Boot until an end that is not a reboot."""
        code, ran = REBOOT, False
        while code == REBOOT:
            with self._lock:
                if self._asked:
                    return End.ASKED, ""
            code, ran = self._boot()
        with self._lock:
            if self._asked:
                return End.ASKED, ""
        if not ran:
            tail = self.spec.console.read_text(errors="replace").splitlines()[-3:]
            return End.FAILED, f"init did not start ({code}): {' '.join(tail)}"
        return (End.INSIDE, "") if code == 0 else (End.DIED, f"systemd-nspawn ended with {code}")

    def _boot(self) -> tuple[int, bool]:
        """One life of the container: nspawn's exit code, and whether the host's init ever ran."""
        spec = self.spec
        address = spec.directory / "notify"
        address.unlink(missing_ok=True)
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify,
            spec.console.open("ab") as console,
        ):
            notify.bind(str(address))
            process = subprocess.Popen(
                cgroup_command(spec.cgroup, _nspawn(spec)),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
                # Without a network of nspawn's making, /proc/sys/net and /sys belong to the host only when asked.
                env={
                    "PATH": os.environ["PATH"],
                    "NOTIFY_SOCKET": str(address),
                    "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
                },
            )
            ran = self._watch(notify, process)
            code = process.wait()
        with self._lock:
            if self._leader is not None:
                os.close(self._leader)
                self._leader = None
        # The host's processes outlive a killed nspawn; none may outlive this.
        machine.cgroup_kill(spec.cgroup)
        return code, ran

    def _watch(self, notify: socket.socket, process: subprocess.Popen[bytes]) -> bool:
        """Hear nspawn until it ends (unheard, it would wait for us in its 10th message). Did the host's init start?"""
        ran = False
        handle = os.pidfd_open(process.pid)
        try:
            while notify.fileno() in select.select([notify.fileno(), handle], [], [])[0]:
                for line in notify.recv(4096).decode(errors="replace").splitlines():
                    name, _, value = line.partition("=")
                    if name == "X_NSPAWN_LEADER_PID" and not ran:
                        ran = True
                        self._init_started(int(value))
        finally:
            os.close(handle)
        return ran

    def _init_started(self, pid: int) -> None:
        with self._lock:
            try:
                self._leader = os.pidfd_open(pid)
            except ProcessLookupError:
                return  # gone already: nspawn's end says so
            asked = self._asked
        if asked:
            machine.cgroup_kill(self.spec.cgroup)
        else:
            self._running()

    def _clear(self) -> None:
        """Take away all but the files. Nothing here may keep the rest from being done."""
        for step in (
            functools.partial(machine.cgroup_kill, self.spec.cgroup),
            functools.partial(self._fabric.detach, self.spec.vpc, self.spec.id),
            functools.partial(_unmount, self.spec),
        ):
            try:
                step()
            except (CloudError, OSError):
                log.exception("%s: left for `down`", self.spec.id)


def _nspawn(spec: Spec) -> list[str]:
    return [
        "systemd-nspawn",
        "--quiet",
        "--settings=no",
        "--register=no",
        "--keep-unit",
        f"--directory={spec.directory / 'root'}",
        f"--machine={spec.id}",
        f"--hostname={spec.hostname}",
        f"--network-namespace-path={machine.NETNS / spec.port.netns}",
        "--capability=CAP_NET_ADMIN",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        "--boot",
    ]


def _mount(spec: Spec) -> None:
    """The host's root: its own changes over the packages downloaded before, over the image."""
    upper, work, packages, root = (spec.directory / name for name in ("upper", "work", "packages", "root"))
    first = not upper.exists()
    for path in (upper, root):
        path.mkdir(parents=True, exist_ok=True)
    if first:
        _share_packages(packages)
    # A volatile overlay refuses a used work directory, since after a crash of the machine its files may be torn.
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    layers = f"lowerdir={packages}:{spec.root},upperdir={upper},workdir={work},volatile"
    run("mount", "-t", "overlay", "startline", "-o", layers, str(root))
    if first:
        servers = "".join(f"nameserver {address}\n" for address in resolvers())
        (root / "etc/machine-id").write_text(hashlib.sha256(spec.id.encode()).hexdigest()[:32] + "\n")
        (root / "etc/hostname").write_text(f"{spec.hostname}\n")
        (root / "etc/resolv.conf").write_text(servers)
        (root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{spec.port.address} {spec.hostname}\n")


def _unmount(spec: Spec) -> None:
    root = spec.directory / "root"
    if os.path.ismount(root):
        run("umount", "--lazy", str(root))
    keep_packages(spec.directory)


def delete(instance: str) -> None:
    """Delete the files of a host that has ended for good."""
    shutil.rmtree(INSTANCES / instance, ignore_errors=True)


# --- packages: downloaded once, for all hosts to come -----------------------------------------------------------------
#
# apt locks its archives, so hosts cannot share that directory. Each host gets a layer of its own below its root, with
# hard links to all that any host has downloaded: apt finds the file, verifies it against the signed lists, and
# downloads nothing. New files are linked into the cache from the host's own layer. No lock, no proxy, no copy.


def _share_packages(layer: Path) -> None:
    for directory in INSTANCES.iterdir():
        keep_packages(directory)
    archives = layer / _ARCHIVES
    archives.mkdir(parents=True)
    PACKAGES.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES.iterdir():
        os.link(package, archives / package.name)


def keep_packages(directory: Path) -> None:
    """Link what a host has downloaded into the cache. Complete files only: apt downloads in partial/ and renames."""
    PACKAGES.mkdir(parents=True, exist_ok=True)
    for package in (directory / "upper" / _ARCHIVES).glob("*.deb"):
        try:
            if package.is_file() and not package.is_symlink():
                os.link(package, PACKAGES / package.name)
        except (FileExistsError, FileNotFoundError):
            continue
