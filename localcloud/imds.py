# SPDX-License-Identifier: GPL-3.0-or-later
"""The instance metadata service, at 169.254.169.254 of each VPC: who asks is known by the address it asks from.

`respond` is pure; `serve` puts it behind a socket inside the VPC's namespace. Tokens of version 2 are
signed and not stored: the instance and the time they end at, with a MAC of this process.
Reference: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-categories.html
"""

from __future__ import annotations

import hashlib
import hmac
import http.server
import logging
import secrets
import socket
import socketserver
import threading
import time
import typing as t
import urllib.parse
from dataclasses import dataclass, field

from localcloud.machine import in_netns
from localcloud.network import METADATA_ADDRESS, Vpc

TOKEN_TTL = "x-aws-ec2-metadata-token-ttl-seconds"  # noqa: S105 (the name of a header)
TOKEN = "x-aws-ec2-metadata-token"  # noqa: S105
MAX_TTL = 21600

log = logging.getLogger(__name__)
Document = str | t.Callable[[], str]


@dataclass(frozen=True)
class Metadata:
    """What an instance may learn about itself. Of `documents` the paths are below /latest/."""

    instance: str
    documents: t.Mapping[str, Document]
    key_name: str | None = None
    user_data: bytes | None = None
    token_required: bool = True
    enabled: bool = True


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    headers: t.Mapping[str, str] = field(default_factory=dict)


def listing(paths: t.Iterable[str], directory: str) -> str | None:
    """The entries of a directory, directories with a slash; None when there is no such directory."""
    prefix = f"{directory}/" if directory else ""
    inside = [path[len(prefix) :] for path in paths if path.startswith(prefix)]
    entries = {name if not below else f"{name}/" for name, _, below in (path.partition("/") for path in inside)}
    return "\n".join(sorted(entries)) if entries else None


def make_token(secret: bytes, instance: str, ends: int) -> str:
    text = f"{instance}:{ends}"
    return f"{ends}.{hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()}"


def token_holds(token: str, secret: bytes, instance: str, now: float) -> bool:
    ends = token.partition(".")[0]
    if not ends.isdecimal() or now >= int(ends):
        return False
    return hmac.compare_digest(token.encode(), make_token(secret, instance, int(ends)).encode())


def respond(
    me: Metadata | None, method: str, target: str, headers: t.Mapping[str, str], *, secret: bytes, now: float
) -> Answer:
    """The answer to one request. `headers` have lower-case names; `me` is None when nobody has the asker's address."""
    if me is None:
        return Answer(404)
    if not me.enabled:
        return Answer(403)
    path = urllib.parse.unquote(urllib.parse.urlsplit(target).path).strip("/")
    if method == "PUT" and path == "latest/api/token":
        if "x-forwarded-for" in headers:  # a proxy, not the instance
            return Answer(403)
        ttl = headers.get(TOKEN_TTL, "")
        if not ttl.isdecimal() or not 1 <= int(ttl) <= MAX_TTL:
            return Answer(400)
        return Answer(200, make_token(secret, me.instance, int(now) + int(ttl)).encode(), {TOKEN_TTL: ttl})
    if method not in ("GET", "HEAD"):
        return Answer(405, headers={"allow": "GET, HEAD"})
    token = headers.get(TOKEN)
    holds = not me.token_required if token is None else token_holds(token, secret, me.instance, now)
    if not holds:
        return Answer(401)
    root, _, below = path.partition("/")
    if root != "latest":
        return Answer(404) if path else Answer(200, b"latest")
    if below == "user-data":
        return Answer(200, me.user_data) if me.user_data else Answer(404)
    if below in me.documents:
        content = me.documents[below]
        return Answer(200, (content if isinstance(content, str) else content()).encode())
    if below == "meta-data/public-keys" and me.key_name:
        return Answer(200, f"0={me.key_name}".encode())
    entries = listing([*me.documents, *(["user-data"] if me.user_data else [])], below)
    return Answer(200, entries.encode()) if entries else Answer(404)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "EC2ws"
    sys_version = ""
    timeout = 30
    server: _Server

    def answer(self) -> None:
        length = self.headers.get("content-length", "0")
        self.rfile.read(min(int(length), 65536) if length.isdecimal() else 0)
        me = self.server.lookup(self.client_address[0])
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = respond(me, self.command, self.path, headers, secret=self.server.secret, now=time.time())
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("content-type", "text/plain")
        self.send_header("content-length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)
        log.info("%s %s %s %d", me.instance if me else self.client_address[0], self.command, self.path, reply.status)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def log_message(self, format: str, *args: object) -> None:
        """Logged in `answer`, with the instance."""


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, listener: socket.socket, lookup: t.Callable[[str], Metadata | None]) -> None:
        address = (str(METADATA_ADDRESS), 80)
        super().__init__(address, _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.lookup = lookup
        self.secret = secrets.token_bytes(32)


def serve(vpc: Vpc, lookup: t.Callable[[str], Metadata | None]) -> t.Callable[[], None]:
    """Answer in the VPC's namespace until the returned function is called. `lookup`: private address -> instance."""

    def listen() -> socket.socket:
        return socket.create_server((str(METADATA_ADDRESS), 80), backlog=128)

    server = _Server(in_netns(vpc.netns, listen), lookup)
    threading.Thread(target=server.serve_forever, name=f"imds {vpc.id}", daemon=True).start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return stop
