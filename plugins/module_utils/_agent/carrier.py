# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries an agent's messages to its mailbox and back.

PRIVATE to the collection. It runs as a child of the agent (`reactor.Reactor.companion`), since requests to the object
store have to wait: for names, for TLS, for the network. To the agent it looks like a connection: lines go in and come out, and
its end is the end of the conversation. It has no credentials, only requests that others have signed: first the
controller, then the rendezvous with every letter.

A store that cannot be reached, throttles or fails is tried again after a pause that doubles, with jitter; nothing is
lost by it but time. A request that is refused (403: its grant has ended) is tried with the other grants that are known.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import socket
import time
import typing as t

from . import mailbox, presigned, wire
from .launcher import read_record, write_record
from .log import log
from .mailbox import IN, OUT, MailError

#: Seconds before the first new attempt at a request that has failed, and at most between two.
BACKOFF_FIRST, BACKOFF_MOST = 0.3, 15.0

_OWN = "mailbox.json"


class Over(Exception):
    """The conversation is over; a new carrier may begin another."""


class Carrier:
    """One incarnation of the member: from its first letter until either side begins anew."""

    def __init__(self, address: mailbox.Address, path: str, state_directory: str, agent: socket.socket) -> None:
        self._address = address
        self._agent = agent
        self._state = state_directory
        self._store = mailbox.Store()
        with open(path, "rb") as stream:
            given = json.loads(stream.read().decode("utf-8"))
        self._key = bytes.fromhex(given["key"])
        self._pace = mailbox.Pace(**given.get("pace", {}))
        kept = read_record(state_directory, _OWN) or {}
        self._given = mailbox.checked_grants(given["grants"])
        #: Those that are known; the first one was good last.
        self._grants = [mailbox.checked_grants(kept["grants"]), self._given] if kept else [self._given]
        self._last_author = int(kept.get("author", 0))
        self._conversation = mailbox.Conversation(0)
        self._inbox: t.Optional[str] = None  # ETags of what was read and written last
        self._outbox: t.Optional[str] = None
        self._lines = wire.Lines()
        self._unsaid = True  # the first letter says that we are here
        now = time.monotonic()
        self._look_at = self._write_at = now
        self._written_at = now
        self._haste_until = now
        self._failures = 0

    def run(self, first: bool) -> None:
        """Until the agent closes its end, or (`Over`) the conversation ends. `first`: the agent itself has just started, so it
        takes the place of whoever was there."""
        before = self._patiently(self._own_letter)
        if not first and before is not None and before.author > self._last_author:
            self._keep_silent(before.author)
        author = max(time.time_ns(), self._last_author + 1, before.author + 1 if before else 0)
        self._conversation = mailbox.Conversation(author)
        self._remember()
        while True:
            now = time.monotonic()
            if now >= self._write_at and (self._unsaid or now >= self._written_at + mailbox.BEAT):
                self._attempt(self._write)
            elif now >= self._look_at:
                self._attempt(self._look)
            due = self._look_at
            if self._unsaid:
                due = min(due, self._write_at)
            readable = select.select([self._agent], [], [], max(0.0, due - time.monotonic()))[0]
            if readable:
                self._take_lines()

    # -- the agent's side --

    def _take_lines(self) -> None:
        data = self._agent.recv(1 << 20)
        if not data:
            os._exit(0)
        for line in self._lines.feed(data):
            self._conversation.say(wire.decode(line))
            self._unsaid = True
        # An answer is likely.
        self._hurry(mailbox.LINGER)

    def _hurry(self, seconds: float) -> None:
        now = time.monotonic()
        self._haste_until = max(self._haste_until, now + seconds)
        if not self._failures:
            self._look_at = min(self._look_at, now + self._pace.fast)

    # -- the store's side --

    def _attempt(self, request: t.Callable[[], None]) -> None:
        """Do a request; after a failure, wait before the next."""
        try:
            request()
        except (OSError, MailError) as error:
            self._failures += 1
            pause = self._pause()
            self._look_at = self._write_at = time.monotonic() + pause
            if self._failures in (1, 10) or self._failures % 100 == 0:
                log("mailbox unreachable", reason=str(error), attempts=self._failures, again_in=f"{pause:.1f}s")
        else:
            if self._failures:
                log("mailbox reached again", attempts=self._failures)
            self._failures = 0

    def _pause(self) -> float:
        longest: float = min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** min(self._failures, 10))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311

    def _patiently(self, request: t.Callable[[], t.Any]) -> t.Any:
        """The result of a request without which nothing can begin."""
        while True:
            result: t.List[t.Any] = []
            self._attempt(lambda result=result: result.append(request()))  # type: ignore[misc]
            if result:
                return result[0]
            readable = select.select([self._agent], [], [], max(0.0, self._look_at - time.monotonic()))[0]
            if readable:
                self._take_lines()

    def _signed(self, name: str, request: t.Callable[[str], presigned.Answer]) -> presigned.Answer:
        """Do a signed request with the first grant that is still good.

        A 403 for a read may as well mean that there is nothing: S3 tells apart what is not there and what may not be read only
        for who may list the whole bucket (GetObject, "Permissions"). That no grant is good any more is told by the next write.
        """
        answer = None
        for grants in list(self._grants):
            answer = request(grants[name])
            if answer.status != 403:
                break
            # To the end of the list: next time the other is tried first.
            self._grants.append(self._grants.pop(0))
        if answer is None or (answer.status == 403 and name == "put_out"):
            raise OSError(f"no grant is good any more ({answer}): configure the host anew, or mend the role")
        if answer.status >= 500 or answer.status == 429 or answer.code == "RequestTimeout":
            raise OSError(str(answer))
        return answer

    def _own_letter(self) -> t.Optional[mailbox.Letter]:
        """What stands in our outbox, and its ETag."""
        answer = self._signed("get_out", self._store.get)
        self._outbox = None
        if answer.status in (403, 404):
            return None
        if answer.status != 200:
            raise OSError(str(answer))
        self._outbox = answer.etag
        try:
            return mailbox.unseal(self._key, self._address, OUT, answer.body)
        except MailError as error:
            log("a stranger's letter in our mailbox", reason=str(error))
            return None

    def _write(self) -> None:
        talk = self._conversation
        body = mailbox.seal(self._key, self._address, OUT, talk.letter())
        if len(body) > mailbox.LIMIT:
            raise Over("more is unsaid than one letter holds")
        answer = self._signed("put_out", lambda url: self._store.put(url, body, self._outbox))
        if answer.taken:
            # Ours, if an earlier request has come without an answer; an older one, replayed; or somebody else's.
            there = self._own_letter()
            if there is not None and there.author > talk.own:
                self._keep_silent(there.author)
            if there is None or there.author < talk.own or there.number < talk.number - 1:
                log("our letter was written over", author=there.author if there else "unknown")
            raise OSError(f"the letter was not taken: {answer}")
        if answer.status != 200:
            raise OSError(str(answer))
        self._outbox = answer.etag
        self._unsaid = False
        self._written_at = time.monotonic()

    def _look(self) -> None:
        answer = self._signed("get_in", lambda url: self._store.get(url, self._inbox))
        now = time.monotonic()
        if answer.status == 200:
            self._inbox = answer.etag
            self._read(answer.body)
        elif answer.status not in (304, 403, 404):
            raise OSError(str(answer))
        soon = now < self._haste_until or not self._conversation.other
        self._look_at = now + (self._pace.fast if soon else self._pace.slow)

    def _read(self, body: bytes) -> None:
        """Take what the rendezvous has written."""
        talk = self._conversation
        try:
            letter = mailbox.unseal(self._key, self._address, IN, body)
            if letter.hears > talk.own:
                self._keep_silent(letter.hears)
            if letter.author < talk.other:
                raise MailError("it is of a rendezvous before the present one")
            if talk.other and (letter.author > talk.other or letter.hears != talk.own):
                raise Over("the rendezvous has begun anew")
            if letter.hears != talk.own:
                return  # to an agent before us; the answer to us is to come
            if not talk.other:
                talk.other, self._unsaid = letter.author, True
            fresh = talk.hear(letter)
        except MailError as error:
            log("a letter refused", reason=str(error))
            return
        if letter.grants is not None and letter.grants != self._grants[0]:
            self._grants = [letter.grants, self._given]
            self._remember()
        if letter.haste:
            self._hurry(letter.haste)
        if fresh:
            self._unsaid = True  # that they have come
            self._hurry(mailbox.LINGER)
            self._agent.sendall(b"".join(wire.dump(message) for message in fresh))

    def _remember(self) -> None:
        """Keep what a carrier after us needs."""
        os.makedirs(self._state, 0o755, exist_ok=True)
        old = os.umask(0o077)  # the grants are for us alone
        try:
            write_record(self._state, _OWN, {"author": self._conversation.own, "grants": self._grants[0]})
        finally:
            os.umask(old)

    def _keep_silent(self, author: int) -> None:
        """Somebody of our name has come after us: it is that one's mailbox now."""
        log(
            "fenced",
            reason="another agent of this name has begun after this one; start this one anew to take over",
            author=author,
        )
        while self._agent.recv(1 << 16):
            pass
        os._exit(0)


def carry(address: mailbox.Address, path: str, state_directory: str, first: bool, agent: socket.socket) -> None:
    """What the companion runs."""
    agent.setblocking(True)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        try:
            Carrier(address, path, state_directory, agent).run(first)
        except (Over, wire.WireError) as error:
            log("conversation over", reason=str(error))
        except FileNotFoundError as error:
            log("no mailbox", path=error.filename)
