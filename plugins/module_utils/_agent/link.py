# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's connection to the rendezvous, kept up: TCP with mutual TLS, or a mailbox in S3.

PRIVATE to the collection. The agent knows `Link` and no more. Messages that are sent while the link is down are
dropped: what matters is said again when it is up.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import selectors
import socket
import ssl
import typing as t

from . import wire
from .config import Config
from .log import log
from .reactor import Reactor, Timer

#: Seconds before the first new attempt, and at most between two.
BACKOFF_FIRST, BACKOFF_MOST = 0.2, 5.0
#: Seconds for connecting, handshake and welcome.
PATIENCE = 10.0

_PENDING = {0, errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY}


def keep_alive(connection: socket.socket) -> None:
    """Let the kernel find out within some 8 s that the other side is gone, at no cost to us, and send at once.

    A member that has vanished while it was armed is waited for from then on; one that vanishes later than that before T is
    told T in vain.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (("TCP_KEEPIDLE", 3), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 5), ("TCP_USER_TIMEOUT", 8000)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def context(config: Config) -> ssl.SSLContext:
    """The agent's side of TLS: our certificate, and no authority but the run's."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.check_hostname = False  # an address says nothing; the name in the certificate does (`_on_secure`)
    made.load_verify_locations(cafile=config.ca)
    made.load_cert_chain(config.certificate, config.key)
    return made


def open_link(
    config: Config,
    reactor: Reactor,
    on_up: t.Callable[[], None],
    on_message: t.Callable[[wire.Message], None],
    on_down: t.Callable[[], None],
) -> Link:
    """The link that the configuration asks for, not yet connected."""
    kind = TcpLink if config.mailbox is None else MailLink
    return kind(config, reactor, on_up, on_message, on_down)


class Link:
    """Connects, again and again; `on_up` after the welcome, `on_message` for every valid message, `on_down` at the
    end. How to connect is the transport's; this is what all have in common: a socket with a message a line."""

    def __init__(
        self,
        config: Config,
        reactor: Reactor,
        on_up: t.Callable[[], None],
        on_message: t.Callable[[wire.Message], None],
        on_down: t.Callable[[], None],
    ) -> None:
        self._config = config
        self._reactor = reactor
        self._on_up, self._on_message, self._on_down = on_up, on_message, on_down
        self._attempts = 0
        self._socket: t.Optional[socket.socket] = None
        self._timer: t.Optional[Timer] = None
        self._out = bytearray()
        self._lines = wire.Lines()
        self.up = False

    def connect(self) -> None:
        """Start, now."""
        self._out, self._lines = bytearray(), wire.Lines()
        try:
            self._open()
        except OSError as error:
            self.drop(f"cannot connect: {error}")

    def _open(self) -> None:
        """Begin to connect; `_opened` when that is done."""
        raise NotImplementedError

    def _opened(self, connection: socket.socket) -> None:
        """Read and write from now on; nobody has welcomed us yet."""
        self._socket = connection
        self._reactor.watch(connection.fileno(), selectors.EVENT_READ, self._on_ready)
        self._on_ready()

    def send(self, kind: str, **fields: t.Any) -> None:
        """Send a message, or drop it while the link is down."""
        if self.up:
            self._write(wire.encode(kind, **fields))

    def drop(self, reason: str) -> None:
        """Close, say why, and try again after a pause that doubles, with jitter so that hosts do not come all at
        once."""
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._reactor.unwatch(self._socket.fileno())
            with contextlib.suppress(OSError):
                self._socket.close()
        self._socket = None
        pause = min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** min(self._attempts, 10)) * random.uniform(0.5, 1.0)  # noqa: S311
        # Said when it begins, and seldom after that: an agent may wait for its rendezvous for a long time.
        if self.up or self._attempts in (0, 5) or self._attempts % 50 == 0:
            log("link down", reason=reason, attempts=self._attempts, again_in=f"{pause:.1f}s")
        self._attempts += 1
        was_up, self.up = self.up, False
        self._timer = self._reactor.after(pause, self.connect)
        if was_up:
            self._on_down()

    def close(self) -> None:
        """Close for good."""
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()

    # -- up --

    def _on_ready(self) -> None:
        """Read what there is, write what is left."""
        connection = self._socket
        if connection is None:
            return
        self._write(b"")
        try:
            while self._socket is connection:
                data = connection.recv(65536)
                if not data:
                    self.drop("closed by the rendezvous")
                    return
                for line in self._lines.feed(data):
                    self._take(wire.check(wire.decode(line), wire.FROM_RENDEZVOUS))
                    if self._socket is not connection:
                        return
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except wire.WireError as error:
            self.drop(f"not our protocol: {error}")
        except OSError as error:
            self.drop(str(error))

    def _take(self, message: wire.Message) -> None:
        if self.up:
            self._on_message(message)
        elif message["type"] == "welcome":
            if self._timer is not None:
                self._timer.cancel()
            self.up, self._attempts = True, 0
            log("link up", rendezvous=self._config.rendezvous_address)
            self._on_up()
        elif message["type"] == "refuse":
            self.drop("refused: {}".format(message["reason"]))

    def _write(self, data: bytes) -> None:
        self._out += data
        connection = self._socket
        if connection is None:
            return
        try:
            while self._out:
                del self._out[: connection.send(self._out)]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self.drop(str(error))
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
        self._reactor.watch(connection.fileno(), events, self._on_ready)


class TcpLink(Link):
    """TCP and TLS; each side proves its name in the run by its certificate."""

    def _open(self) -> None:
        address = (self._config.rendezvous_address, self._config.rendezvous_port)
        family, kind, protocol, _name, target = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
        raw = self._socket = socket.socket(family, kind, protocol)
        raw.setblocking(False)
        keep_alive(raw)
        result = raw.connect_ex(target)
        if result not in _PENDING:
            raise OSError(result, os.strerror(result))
        self._timer = self._reactor.after(PATIENCE, lambda: self.drop(f"no welcome within {PATIENCE:g} s"))
        self._reactor.watch(raw.fileno(), selectors.EVENT_WRITE, lambda: self._on_connected(raw))

    def _on_connected(self, raw: socket.socket) -> None:
        failed = raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            self.drop(f"cannot connect: {os.strerror(failed)}")
            return
        self._reactor.unwatch(raw.fileno())
        try:
            # Read anew each time, so that a renewed certificate is taken up.
            connection = context(self._config).wrap_socket(raw, do_handshake_on_connect=False)
        except (OSError, ValueError) as error:
            self.drop(f"cannot use the certificates: {error}")
            return
        self._socket = connection
        self._handshake(connection)

    def _handshake(self, connection: ssl.SSLSocket) -> None:
        try:
            connection.do_handshake()
        except ssl.SSLWantReadError:
            self._reactor.watch(connection.fileno(), selectors.EVENT_READ, lambda: self._handshake(connection))
        except ssl.SSLWantWriteError:
            self._reactor.watch(connection.fileno(), selectors.EVENT_WRITE, lambda: self._handshake(connection))
        except (OSError, ValueError) as error:
            self.drop(f"TLS: {error}")
        else:
            self._on_secure(connection)

    def _on_secure(self, connection: ssl.SSLSocket) -> None:
        wanted = wire.rendezvous_uri(self._config.run_id)
        if wanted not in wire.peer_uris(connection.getpeercert()):
            self.drop(f"who answered is not the rendezvous of {self._config.run_id}")
            return
        self._out += wire.encode("hello", version=wire.VERSION, run=self._config.run_id, member=self._config.member)
        self._opened(connection)


class MailLink(Link):
    """A mailbox in S3, by a child process that looks like a connection. It waits for the rendezvous as long as it
    takes: nothing would be gained by beginning anew."""

    _first = True

    def _open(self) -> None:
        config, first = self._config, self._first
        self._first = False

        def carry(agent: socket.socket) -> None:
            # Imported where it is needed: in the child.
            from . import carrier, mailbox

            address = mailbox.Address(config.run_id, config.member)
            carrier.carry(address, config.mailbox or "", config.state_directory, first, agent)

        self._opened(self._reactor.companion(carry))
