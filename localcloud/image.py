# SPDX-License-Identifier: GPL-3.0-or-later
"""The root file system that every host starts from: the machine's own distribution, made by mmdebstrap.

An image is a directory named by the digest of its recipe (distribution, packages, our files in rootfs/, the machine's
apt configuration): a changed recipe is built anew, an unchanged one is found. It appears by a rename: whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
import typing as t
from dataclasses import asdict, dataclass
from pathlib import Path

from localcloud import machine
from localcloud.machine import LOGS, STATE, CloudError, run

IMAGES = STATE / "images"
ROOTFS = Path(__file__).parent / "rootfs"
LOGIN_USER = "admin"
# Debian's account on AWS: the same owner and name pattern find an image there and here.
OWNER = "136693071363"

PACKAGES = (
    "ca-certificates", "chrony", "dbus", "iproute2", "iptables", "iputils-ping", "netcat-openbsd", "nftables",
    "kmod", "openssh-server", "procps", "python3", "python3-apt", "python3-boto3", "rsync", "sudo", "systemd-sysv",
    # The kernel of hosts that have one of their own, where the distribution has it.
    "?exact-name(user-mode-linux)",
)  # fmt: skip

# What a host of some hours does not need. logind is only started on demand (`shutdown +5` asks for it).
MASKED = (
    "apt-daily-upgrade.timer", "apt-daily.timer", "console-getty.service", "dev-hugepages.mount",
    "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer", "getty.target",
    "modprobe@.service", "proc-sys-fs-binfmt_misc.automount", "proc-sys-fs-binfmt_misc.mount",
    "sys-fs-fuse-connections.mount", "sys-kernel-config.mount", "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount", "systemd-binfmt.service", "systemd-journal-flush.service",
    "systemd-modules-load.service", "systemd-pstore.service", "systemd-random-seed.service",
    "systemd-remount-fs.service", "systemd-update-utmp-runlevel.service", "systemd-update-utmp.service",
)  # fmt: skip
# As on AWS, who wants another kernel takes another image: first digit of its id, end of its name, what its hosts have.
VARIANTS = (
    ("0", "", "the kernel of this machine"),
    ("1", "-uml", "a kernel of their own, user-mode Linux"),
    ("2", "-netem", "sch_netem: the kernel of this machine where it has it, else user-mode Linux"),
)
# The distribution's pool of servers is outside; a host's clock is set up by a role.
DISABLED = ("chrony.service",)

# Of /etc/apt, what decides where packages come from. Not auth.conf: secrets do not go into images.
_APT = (
    "sources.list", "sources.list.d/*.list", "sources.list.d/*.sources", "apt.conf", "apt.conf.d/*", "preferences",
    "preferences.d/*", "keyrings/*", "trusted.gpg", "trusted.gpg.d/*",
)  # fmt: skip


@dataclass(frozen=True)
class Image:
    digest: str
    name: str  # as DescribeImages shows it
    built: str  # UTC, ISO 8601
    seconds: float  # that the build took

    @property
    def directory(self) -> Path:
        return IMAGES / self.digest

    @property
    def root(self) -> Path:
        return self.directory / "root"

    def kernel(self, ami: str) -> Path | None:
        """The program that is the kernel of an AMI's hosts; None for the machine's own."""
        variant = ami[len("ami-")]
        own = variant == "1" or (variant == "2" and not machine.has_netem())
        return self.root / "usr/bin/linux.uml" if own else None

    def amis(self) -> list[dict[str, t.Any]]:
        """The entries of MOTO_AMIS_PATH, of those that can be had here."""
        found = []
        for variant, suffix, what in VARIANTS:
            kernel = self.kernel(identity := f"ami-{variant}{self.digest}")
            entry = {
                "ami_id": identity,
                "name": self.name + suffix,
                "description": f"Hosts of the local cloud with {what}",
                "owner_id": OWNER,
                "public": True,
                "architecture": "arm64" if platform.machine() == "aarch64" else "x86_64",
                "virtualization_type": "hvm",
                "hypervisor": "xen",
                "image_location": f"amazon/{self.name}{suffix}",
                "creation_date": self.built,
                "root_device_name": "/dev/xvda",
                "root_device_type": "ebs",
            }
            if kernel is None or kernel.exists():
                found.append(entry)
        return found


def recipe(files: t.Mapping[str, bytes], distribution: t.Mapping[str, str]) -> str:
    """The digest (16 hex digits) of all that shapes an image."""
    digest = hashlib.sha256()
    shape = [distribution["ID"], distribution["VERSION_CODENAME"], platform.machine(), PACKAGES, _FINISH]
    digest.update(json.dumps(shape).encode())
    for name in sorted(files):
        digest.update(f"\n{name} {len(files[name])}\n".encode() + files[name])
    return digest.hexdigest()[:16]


def ensure(rebuild: bool = False, say: t.Callable[[str], None] = print) -> Image:
    """The image of this machine's recipe, built when there is none."""
    files = _files()
    distribution = platform.freedesktop_os_release()
    if "VERSION_CODENAME" not in distribution or not shutil.which("dpkg"):
        name = distribution.get("PRETTY_NAME", "this distribution")
        raise CloudError(f"hosts are made of the machine's own Debian or Ubuntu packages; this is {name}")
    digest = recipe(files, distribution)
    image = None if rebuild else find(digest)
    if image is None:
        LOGS.mkdir(parents=True, exist_ok=True)
        IMAGES.mkdir(parents=True, exist_ok=True)
        say(f"building the image of {distribution['PRETTY_NAME']}: about half a minute; log {LOGS / 'image.log'}")
        image = _build(digest, distribution, files)
        say(f"image built in {image.seconds:.0f} s")
    return image


def find(digest: str) -> Image | None:
    try:
        return Image(**json.loads((IMAGES / digest / "image.json").read_text()))
    except FileNotFoundError:
        return None


def remove_old(keep: Image) -> None:
    """Remove what was built a week ago, but for `keep`. While no daemon is up: hosts stand on an image."""
    for path in IMAGES.iterdir():
        if path != keep.directory and path.lstat().st_mtime < time.time() - 7 * 86400:
            shutil.rmtree(path, ignore_errors=True)


def _files() -> dict[str, bytes]:
    """Path in the image -> content: our files, and the machine's apt configuration."""
    files = {str(path.relative_to(ROOTFS)): path.read_bytes() for path in ROOTFS.rglob("*") if path.is_file()}
    apt = Path("/etc/apt")
    found = [path for pattern in _APT for path in apt.glob(pattern)] + list(Path("/usr/share/keyrings").glob("*"))
    files.update({str(path.relative_to("/")): path.read_bytes() for path in found if path.is_file()})
    return files


# Run in the new root. Host keys are made by each host; the package cache spares every host 2 s of its first install.
_FINISH = f"""
set -e
useradd --create-home --shell /bin/bash --groups sudo {LOGIN_USER}
rm -f /etc/ssh/ssh_host_* /usr/lib/systemd/system/multi-user.target.wants/systemd-logind.service
systemctl --quiet mask {" ".join(MASKED)}
systemctl --quiet disable {" ".join(DISABLED)}
systemctl --quiet enable startline-first-boot.service startline-network.service startline-clock.service tmp.mount
systemctl --quiet set-default multi-user.target
if [ -d /usr/lib/uml/modules ]; then ln -s /usr/lib/uml/modules /usr/lib/modules; fi
ln -s poweroff.target /etc/systemd/system/ctrl-alt-del.target
apt-cache gencaches
rm -rf /var/cache/apt/archives/*.deb /var/log/*.log /var/log/apt
"""


def _build(digest: str, distribution: t.Mapping[str, str], files: t.Mapping[str, bytes]) -> Image:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=IMAGES, prefix="building-") as work:
        stage, root = Path(work, "stage"), Path(work, "image", "root")
        for name, content in files.items():
            path = stage / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o644)
        root.parent.mkdir()
        # The stage goes in before the first package: its mirrors, proxies and dpkg options hold for the build itself.
        _logged(
            "mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}", "--skip=cleanup/apt",
            f'--setup-hook=cp -rT "{stage}" "$1"', f'--customize-hook=chroot "$1" sh -c \'{_FINISH}\'',
            distribution["VERSION_CODENAME"], str(root), "-",
        )  # fmt: skip
        now = time.gmtime()
        architecture = run("dpkg", "--print-architecture").strip()
        release = f"{distribution['ID']}-{distribution.get('VERSION_ID', distribution['VERSION_CODENAME'])}"
        image = Image(
            digest=digest,
            name=f"{release}-{architecture}-{time.strftime('%Y%m%d', now)}-startline",
            built=time.strftime("%Y-%m-%dT%H:%M:%S.000Z", now),
            seconds=round(time.monotonic() - began, 1),
        )
        Path(work, "image", "image.json").write_text(json.dumps(asdict(image)))
        Path(work, "image").chmod(0o755)
        if image.directory.exists():
            os.rename(image.directory, Path(work, "old"))
        os.rename(Path(work, "image"), image.directory)
    return image


def _logged(*command: str) -> None:
    path = LOGS / "image.log"
    with path.open("w") as log:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)
    if done.returncode != 0:
        tail = "\n".join(path.read_text(errors="replace").splitlines()[-5:])
        raise CloudError(
            f"{command[0]} failed ({done.returncode}):\n{tail}", f"Whole log: {path}. Does `apt-get update` work here?"
        )
