# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration of the agent and the rendezvous on one host: a JSON file.

PRIVATE to the collection.
"""

from __future__ import annotations

import os
import typing as t

from . import wire

PATH = "/etc/startline/agent.json"

_SHAPE = wire.record(
    run_id=wire.RUN,
    member=wire.MEMBER,
    rendezvous_address=wire.text(255),
    rendezvous_port=wire.integer(1, 65535),
    ca=wire.text(4096),
    certificate=wire.text(4096),
    key=wire.text(4096),
    rendezvous_certificate=wire.maybe(wire.text(4096)),
    rendezvous_key=wire.maybe(wire.text(4096)),
    listen_address=wire.maybe(wire.text(255)),
    state_directory=wire.maybe(wire.text(4096)),
    runtime_directory=wire.maybe(wire.text(4096)),
    imds=wire.maybe(wire.text(1024)),
    shared=wire.maybe(wire.flag),
)


class ConfigError(Exception):
    """The configuration cannot be used; the text says what to mend."""


class Config(t.NamedTuple):
    """Where things are. Paths may be changed for tests; everything else has one place."""

    run_id: str
    member: str
    rendezvous_address: str
    rendezvous_port: int
    ca: str
    certificate: str
    key: str
    rendezvous_certificate: t.Optional[str] = None
    rendezvous_key: t.Optional[str] = None
    listen_address: str = "0.0.0.0"  # noqa: S104  mutual TLS guards it, and the security group
    state_directory: str = "/var/lib/startline"
    runtime_directory: str = "/run/startline"
    #: Address of the instance metadata service, null where there is none.
    imds: t.Optional[str] = None
    #: Others work on this host too: a port that is taken during a trial need not be the trial's.
    shared: bool = False

    @property
    def socket(self) -> str:
        """The control socket of the rendezvous."""
        return os.path.join(self.runtime_directory, "rendezvous.sock")

    @property
    def wait_socket(self) -> str:
        """The socket of the agent at which a trial's programs wait."""
        return os.path.join(self.runtime_directory, "agent.sock")


def load(path: str) -> Config:
    """The configuration in the file at `path`."""
    try:
        with open(path, "rb") as stream:
            found = wire.checked(wire.decode(stream.read()), _SHAPE, os.path.basename(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except wire.WireError as error:
        raise ConfigError(f"{path}: {error}") from error
    return Config(**{name: value for name, value in found.items() if value is not None})
