# SPDX-License-Identifier: GPL-3.0-or-later
"""A host: systemd-nspawn with a kernel of the machine and everything else of its own.

`Host.live` is its whole life in one call: it mounts an overlay on the image, attaches the network, boots, waits for the
end, and takes all of it away but the files. A reboot boots again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import subprocess
import threading
import typing as t
from pathlib import Path

from localcloud import machine
from localcloud.machine import INSTANCES, LOGS, STATE, CloudError, run
from localcloud.network import Fabric, Port, resolvers

log = logging.getLogger(__name__)

# What systemd-nspawn --keep-unit says when the container asked for a reboot.
REBOOT = 133
# How long an orderly shutdown may take before the host is cut off.
GRACE = 10.0
PACKAGES = STATE / "cache" / "apt"
_ARCHIVES = Path("var/cache/apt/archives")
# Setting up is CPU: more at once than this only makes all of them late together.
_STARTING = threading.BoundedSemaphore(max(4, 2 * (os.cpu_count() or 1)))


class Host:
    def __init__(self, port: Port, image: Path, fabric: Fabric) -> None:
        self.id = port.instance
        self._port = port
        self._image = image
        self._fabric = fabric
        self._directory = INSTANCES / self.id
        self._root = self._directory / "root"
        self._cgroup = f"hosts/{self.id}"
        self._lock = threading.Lock()  # guards what follows
        self._process: subprocess.Popen[bytes] | None = None
        self._again = True  # boot after this end?

    def live(self, running: t.Callable[[], None]) -> str | None:
        """From nothing to the end: None when it shut down, as asked or by itself; else what went wrong.

        `running` is called when it boots for the first time.
        """
        try:
            with _STARTING:
                self._mount()
                self._fabric.attach(self._port)
            code = REBOOT
            while process := self._boot():
                running()
                code = self._wait(process)
            return None if code in (0, REBOOT) else f"systemd-nspawn ended with {code}: {self._last_words()}"
        except (CloudError, OSError) as problem:
            return str(problem)
        finally:
            for clear in (self._unmount, lambda: self._fabric.detach(self._port)):
                try:
                    clear()
                except OSError:
                    log.exception("%s: left for `down`", self.id)

    def shut_down(self, reboot: bool = False) -> None:
        """Ask the host to end in order; it is cut off when that takes longer than GRACE. Returns at once."""
        with self._lock:
            self._again = reboot
            process = self._process
        if process is not None:
            process.terminate()  # nspawn passes it on to the host's init, as _NSPAWN says
            threading.Thread(target=self._cut_off, args=(process,), daemon=True).start()

    def _boot(self) -> subprocess.Popen[bytes] | None:
        """Start the container, unless it has ended for good."""
        with self._lock, (LOGS / f"{self.id}.log").open("ab") as console:
            if self._again:
                self._again = False
                self._process = subprocess.Popen(
                    machine.cgroup_command(self._cgroup, _nspawn(self._port, self._root)),
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=console,
                    start_new_session=True,
                    # Without a network of nspawn's making, /proc/sys/net and /sys belong to the host only when asked.
                    env={"PATH": os.environ["PATH"], "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"},
                )
                return self._process
            return None

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        code = process.wait()
        # The host's processes outlive a killed nspawn; none may outlive this.
        machine.cgroup_kill(self._cgroup)
        with self._lock:
            self._again = self._again or code == REBOOT
            self._process = None
        return code

    def _cut_off(self, process: subprocess.Popen[bytes]) -> None:
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            machine.cgroup_kill(self._cgroup)

    def _last_words(self) -> str:
        return " ".join((LOGS / f"{self.id}.log").read_text(errors="replace").splitlines()[-3:])

    def _mount(self) -> None:
        """The host's root: its own changes over the packages downloaded before, over the image."""
        upper, work, packages = (self._directory / name for name in ("upper", "work", "packages"))
        first = not upper.exists()
        if first:
            _share_packages(packages / _ARCHIVES)
        # A volatile overlay refuses a used work directory, since after a crash of the machine its files may be torn.
        shutil.rmtree(work, ignore_errors=True)
        for path in (upper, work, self._root):
            path.mkdir(parents=True, exist_ok=True)
        layers = f"lowerdir={packages}:{self._image},upperdir={upper},workdir={work},volatile"
        run("mount", "-t", "overlay", "startline", "-o", layers, str(self._root))
        if first:
            name = _hostname(self._port)
            servers = "".join(f"nameserver {address}\n" for address in resolvers())
            machine_id = hashlib.sha256(self.id.encode()).hexdigest()[:32]
            (self._root / "etc/machine-id").write_text(f"{machine_id}\n")
            (self._root / "etc/hostname").write_text(f"{name}\n")
            (self._root / "etc/resolv.conf").write_text(servers)
            (self._root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{self._port.address} {name}\n")

    def _unmount(self) -> None:
        machine.attempt("umount", "--lazy", str(self._root))


def _hostname(port: Port) -> str:
    return f"ip-{str(port.address).replace('.', '-')}"


def _nspawn(port: Port, root: Path) -> list[str]:
    return [
        "systemd-nspawn",
        "--quiet",
        "--settings=no",
        "--register=no",
        "--keep-unit",
        f"--directory={root}",
        f"--machine={port.instance}",
        f"--hostname={_hostname(port)}",
        f"--network-namespace-path=/run/netns/{port.instance}",
        "--capability=CAP_NET_ADMIN",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        "--kill-signal=SIGRTMIN+4",  # power off
        "--boot",
    ]


def delete(instance: str) -> None:
    """Delete the files of a host that has ended for good."""
    keep_packages()
    shutil.rmtree(INSTANCES / instance, ignore_errors=True)


# --- packages: downloaded once, for all hosts to come -----------------------------------------------------------------
#
# apt locks its archives, so hosts cannot share that directory. Each host gets a layer of its own below its root, with
# hard links to all that any host has downloaded: apt finds the file, verifies it against the signed lists, and
# downloads nothing. New files are linked into the cache from the host's own layer. No lock, no proxy, no copy.


def _share_packages(archives: Path) -> None:
    keep_packages()
    archives.mkdir(parents=True)
    for package in PACKAGES.iterdir():
        os.link(package, archives / package.name)


def keep_packages() -> None:
    """Link what hosts have downloaded into the cache. Complete files only: apt downloads in partial/ and renames."""
    PACKAGES.mkdir(parents=True, exist_ok=True)
    for package in INSTANCES.glob(f"*/upper/{_ARCHIVES}/*.deb"):
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            if package.is_file() and not package.is_symlink():
                os.link(package, PACKAGES / package.name)
