# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests to the object store that somebody else has signed, over one connection that is kept.

PRIVATE to the collection. Blocks, and is for one thread.
"""

from __future__ import annotations

import http.client
import ssl
import typing as t
import urllib.parse


class Answer(t.NamedTuple):
    """What the store says. `code` is S3's own word for a refusal."""

    status: int
    etag: t.Optional[str]
    body: bytes
    code: str

    @property
    def taken(self) -> bool:
        """It is certain that a write has not met its condition."""
        return self.status in (404, 409, 412)

    def __str__(self) -> str:
        return f"{self.status} {self.code}".rstrip()


class Client:
    """Gives up a request after `timeout` seconds without progress, and an answer of more than `most` bytes."""

    def __init__(self, timeout: float, most: int) -> None:
        self._timeout = timeout
        self._most = most
        self._connection: t.Optional[http.client.HTTPConnection] = None
        self._where: t.Tuple[str, str] = ("", "")
        self._trust: t.Optional[ssl.SSLContext] = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def request(
        self, method: str, url: str, headers: t.Mapping[str, str], body: t.Union[bytes, t.BinaryIO, None] = None
    ) -> Answer:
        """One request that may come twice without harm. A body that is a file is sent from its beginning.

        Raises:
            OSError: there is no answer.
            ValueError: the answer is too large.
        """
        parts = urllib.parse.urlsplit(url)
        if (parts.scheme, parts.netloc) != self._where:
            self.close()
            self._where = (parts.scheme, parts.netloc)
        target = parts.path + ("?" + parts.query if parts.query else "")
        kept = self._connection is not None
        if body is not None and not isinstance(body, bytes):
            body.seek(0)
        try:
            if self._connection is None:
                self._connection = self._connect(parts.scheme, parts.hostname or "", parts.port)
            self._connection.request(method, target, body=body, headers=dict(headers))
            answer = self._connection.getresponse()
            content = answer.read(self._most + 1)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if kept and isinstance(error, (ConnectionError, http.client.BadStatusLine)):
                # A kept connection that the store has closed meanwhile.
                return self.request(method, url, headers, body)
            raise error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}") from error
        if answer.will_close or len(content) > self._most:
            self.close()
        if len(content) > self._most:
            raise ValueError(f"it is larger than {self._most} bytes")
        code = ""
        if answer.status >= 400:
            text = content.decode("utf-8", "replace")
            code = text.partition("<Code>")[2].partition("</Code>")[0] or answer.reason or ""
        return Answer(answer.status, answer.getheader("ETag"), content, code)

    def _connect(self, scheme: str, host: str, port: t.Optional[int]) -> http.client.HTTPConnection:
        if scheme != "https":
            return http.client.HTTPConnection(host, port, timeout=self._timeout)
        if self._trust is None:
            self._trust = ssl.create_default_context()
        return http.client.HTTPSConnection(host, port, timeout=self._timeout, context=self._trust)
