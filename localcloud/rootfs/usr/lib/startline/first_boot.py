# SPDX-License-Identifier: GPL-3.0-or-later
"""What cloud-init does on EC2, as far as Startline needs it: runs inside a host of the local cloud, once in its life.

Asks IMDSv2 for the key pair and the user data, makes the ssh host keys, and runs user data that starts with `#!` as
root (output on the console and in /var/log/user-data.log). Standard library only: this is the distribution's Python.
"""

from __future__ import annotations

import http.client
import os
import pwd
import subprocess
import sys
from pathlib import Path

METADATA = "169.254.169.254"
LOGIN_USER = "admin"
DONE = Path("/var/lib/localcloud/first-boot.done")
USER_DATA_LOG = Path("/var/log/user-data.log")


class Metadata:
    """The instance metadata service, version 2: a session token first, then plain GETs."""

    def __init__(self) -> None:
        self._token = self._ask("PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})

    def get(self, path: str) -> bytes | None:
        return self._ask("GET", "/latest/" + path, {"X-aws-ec2-metadata-token": (self._token or b"").decode()})

    @staticmethod
    def _ask(method: str, path: str, headers: dict[str, str]) -> bytes | None:
        connection = http.client.HTTPConnection(METADATA, timeout=10)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status == 404:
            return None
        if response.status != 200:
            raise OSError(f"{method} {path} on {METADATA}: {response.status} {response.reason}")
        return body


def install_public_key(key: bytes) -> None:
    user = pwd.getpwnam(LOGIN_USER)
    directory = Path(user.pw_dir, ".ssh")
    authorized = directory / "authorized_keys"
    directory.mkdir(mode=0o700, exist_ok=True)
    authorized.write_bytes(key.rstrip(b"\n") + b"\n")
    authorized.chmod(0o600)
    os.chown(directory, user.pw_uid, user.pw_gid)
    os.chown(authorized, user.pw_uid, user.pw_gid)


def run_user_data(script: bytes) -> None:
    if not script.startswith(b"#!"):
        print("user data is not a script (#!): the local cloud runs nothing else", file=sys.stderr)
        return
    path = DONE.with_name("user-data")
    path.write_bytes(script)
    path.chmod(0o700)
    with USER_DATA_LOG.open("wb") as log:
        process = subprocess.Popen(
            [path], cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for line in process.stdout or ():
            log.write(line)
            log.flush()
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
    if process.wait() != 0:
        print(f"user data ended with {process.returncode}", file=sys.stderr)


def main() -> None:
    # RSA would take longer than the rest of the boot together.
    makers = [
        subprocess.Popen(["/usr/bin/ssh-keygen", "-q", "-t", kind, "-N", "", "-f", f"/etc/ssh/ssh_host_{kind}_key"])
        for kind in ("ed25519", "ecdsa")
    ]
    metadata = Metadata()
    key = metadata.get("meta-data/public-keys/0/openssh-key")
    if key is not None:
        install_public_key(key)
    user_data = metadata.get("user-data")
    if any(maker.wait() for maker in makers):
        raise SystemExit("ssh-keygen failed")
    # Marked before it runs: whatever user data does (a reboot, a power-off), it does once.
    DONE.parent.mkdir(parents=True, exist_ok=True)
    DONE.touch()
    if user_data:
        run_user_data(user_data)


if __name__ == "__main__":
    main()
