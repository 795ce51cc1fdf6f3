# SPDX-License-Identifier: GPL-3.0-or-later
"""A host, of one of two kinds: systemd-nspawn with the kernel of the machine, or a kernel of its own, user-mode Linux.

`Host.live` is its whole life in one call: it mounts an overlay on the image, attaches the network, boots, waits for the
end, and takes all of it away but the files. A reboot boots again. Root, wire, control group, console and the power
button are the same for both kinds; only the command differs, and how it is told that the button was pressed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import struct
import subprocess
import threading
import typing as t
from pathlib import Path

from localcloud import machine, uml
from localcloud.machine import INSTANCES, LOGS, NETNS, STATE, UML, CloudError, run
from localcloud.network import HOST_INTERFACE, Fabric, Port, resolvers

# What systemd-nspawn --keep-unit says when the container asked for a reboot.
REBOOT = 133
# How long an orderly shutdown may take before the host is cut off.
GRACE = 10.0
UML_MEMORY = "512M"
PACKAGES = STATE / "cache" / "apt"
_ARCHIVES = Path("var/cache/apt/archives")
# Setting up is CPU: more at once than this only makes all of them late together.
_STARTING = threading.BoundedSemaphore(max(4, 2 * (os.cpu_count() or 1)))


class Host:
    def __init__(self, port: Port, image: Path, kernel: Path | None, fabric: Fabric) -> None:
        """`kernel`: the program of user-mode Linux, or None for the machine's kernel."""
        self.id = port.instance
        self._port = port
        self._image = image
        self._kernel = kernel
        self._fabric = fabric
        self._directory = INSTANCES / self.id
        self._root = self._directory / "root"
        self._cgroup = f"hosts/{self.id}"
        self._lock = threading.Lock()  # guards what follows
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False  # for good, as the API asked
        self._reboot = False  # as the API asked

    def live(self, running: t.Callable[[], None]) -> str | None:
        """From nothing to the end: None when it shut down, as asked or by itself; else what went wrong.

        `running` is called when it boots for the first time.
        """
        try:
            with _STARTING:
                self._mount()
                self._fabric.attach(self._port)
                self._configure_network()
            code, again = 0, True
            while again and (process := self._boot()):
                running()
                code = process.wait()
                # A host's processes outlive a killed nspawn; none may outlive this.
                machine.cgroup_kill(self._cgroup)
                again, self._reboot = code == REBOOT or self._reboot, False
            if code in (0, REBOOT):
                return None
            last_words = (LOGS / f"{self.id}.log").read_text(errors="replace").splitlines()[-3:]
            return f"the host ended with {code}: {' '.join(last_words)}"
        except (CloudError, OSError) as problem:
            return str(problem)
        finally:
            machine.attempt("umount", "--lazy", str(self._root))
            self._fabric.detach(self._port)

    def shut_down(self, reboot: bool = False) -> None:
        """Ask the host to end in order; it is cut off when that takes longer than GRACE. Returns at once."""
        with self._lock:
            self._reboot, self._ended = reboot, self._ended or not reboot
            process = self._process
        if process is not None:
            self._press_power_button(process)
            threading.Thread(target=self._cut_off, args=(process,), daemon=True).start()

    def _boot(self) -> subprocess.Popen[bytes] | None:
        """Start the host, unless it has been ended meanwhile."""
        command, environment = self._uml() if self._kernel else self._nspawn()
        with self._lock, (LOGS / f"{self.id}.log").open("ab") as console:
            if self._ended:
                return None
            self._process = subprocess.Popen(
                machine.cgroup_command(self._cgroup, command),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
                env={"PATH": os.environ["PATH"], **environment},
            )
            return self._process

    def _press_power_button(self, process: subprocess.Popen[bytes]) -> None:
        if self._kernel is None:
            process.terminate()
            return
        # The management console of user-mode Linux; the image takes Ctrl-Alt-Del for the button.
        request = struct.pack("IiI512s", 0xCAFEBABE, 2, 3, b"cad")
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as console:
            console.sendto(request, str(UML / self.id / "mconsole"))

    def _cut_off(self, process: subprocess.Popen[bytes]) -> None:
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            machine.cgroup_kill(self._cgroup)

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

    def _configure_network(self) -> None:
        if self._kernel is None:
            machine.ip_batch(*self._port.configuration, netns=self.id)
        else:  # startline-network.service does it inside
            own = (f"link set vec0 name {HOST_INTERFACE} address {self._port.mac}", *self._port.configuration)
            (self._root / "etc/startline-network").write_text("\n".join(own) + "\n")
            machine.ip_batch(f"link set {HOST_INTERFACE} up", netns=self.id)
            # It takes no packet above its MTU, as the machine's kernel would pass on to save work.
            machine.ip_batch(f"link set {self._port.interface} gso_max_segs 1", netns=self._port.vpc)

    def _nspawn(self) -> tuple[list[str], dict[str, str]]:
        command = [
            "systemd-nspawn",
            "--quiet",
            "--settings=no",
            "--register=no",
            "--keep-unit",
            f"--directory={self._root}",
            f"--machine={self.id}",
            f"--hostname={_hostname(self._port)}",
            f"--network-namespace-path={NETNS / self.id}",
            "--capability=CAP_NET_ADMIN",
            "--resolv-conf=off",
            "--timezone=off",
            "--link-journal=no",
            "--kill-signal=SIGRTMIN+4",  # on SIGTERM: power off
            "--boot",
        ]
        # Without a network of nspawn's making, /proc/sys/net and /sys belong to the host only when asked.
        return command, {"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"}

    def _uml(self) -> tuple[list[str], dict[str, str]]:
        command = [
            *("nsenter", f"--net={NETNS / self.id}", str(self._kernel)),
            f"mem={UML_MEMORY}",
            *(f"umid={self.id}", f"uml_dir={UML}/"),
            *("root=/dev/root", "rootfstype=hostfs", f"rootflags={self._root}", "rw", "init=/lib/systemd/systemd"),
            f"vec0:transport=raw,ifname={HOST_INTERFACE},depth=128,gro=0",
            *("con=null", "con0=null,fd:1", "selinux=0"),
        ]
        # Its memory is a file there; a page of it exists once it is used.
        return command, {"TMPDIR": str(UML), "HOME": str(UML), **uml.environment(UML)}


def _hostname(port: Port) -> str:
    return f"ip-{str(port.address).replace('.', '-')}"


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
