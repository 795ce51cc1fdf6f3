# SPDX-License-Identifier: GPL-3.0-or-later
"""The members as the rendezvous reaches them: over TCP with mutual TLS, or through mailboxes in S3.

PRIVATE to the collection. A peer has the name of a member once it has proved it, and can be sent lines; what comes
from it goes to the rendezvous, which knows no more of a transport than `member`, `send`, `drop` and `abort`.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import json
import os
import random
import ssl
import threading
import time
import typing as t

from . import mailbox, presigned, wire
from .config import Config
from .evidence import s3_client
from .launcher import read_record, write_record
from .link import keep_alive
from .log import log
from .mailbox import IN, OUT, MailError

if t.TYPE_CHECKING:
    from .rendezvous import Rendezvous

#: Seconds that a connection has for its handshake, and then for its hello.
HELLO_LIMIT = 10.0
#: Connections of nobody at a time; one more, and the one that has waited longest is closed.
STRANGERS = 8192
#: Bytes that are encrypted at a time, and bytes unsent with which a peer counts as behind.
PIECE, BEHIND = 4096, 16384
#: Seconds without a letter after which a member is taken for lost: two beats, and time for a third.
SILENCE = 2.5 * mailbox.BEAT
#: Requests to the object store at a time.
HANDS = 16
#: Seconds between tries while the object store cannot be reached: at first, and at most.
BACKOFF_FIRST, BACKOFF_MOST = 0.5, 15.0

_T = t.TypeVar("_T")


def _take(desk: Rendezvous, peer: Peer, message: wire.Message, came_ns: int) -> None:
    """A message of a peer that has proved who it is."""
    kind = message["type"]
    if kind == "ping":
        peer.send(wire.encode("pong", sent_ns=message["sent_ns"], came_ns=came_ns, **desk.standing()))
    elif kind == "report":
        desk.reported(peer, message)
    elif kind == "ask":
        desk.asked(peer, message)
    else:
        desk.met(peer, message)


# ---- TCP -------------------------------------------------------------------------------------------------------------


def server_context(config: Config) -> ssl.SSLContext:
    """The rendezvous' side of TLS: only certificates of the run's authority."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(cafile=config.ca)
    made.load_cert_chain(config.rendezvous_certificate or "", config.rendezvous_key)
    # An agent that comes again is to prove itself again, so tickets would be made and sent for nothing.
    made.options |= ssl.OP_NO_TICKET | getattr(ssl, "OP_NO_RENEGOTIATION", 0)
    if hasattr(made, "num_tickets"):  # Python 3.8
        made.num_tickets = 0  # novm
    return made


class Traffic:
    """Who has not taken yet what was sent to them."""

    #: So many at a time; and seconds after which nobody waits for the slow any more.
    MOST, PATIENCE = 64, 1.0

    def __init__(self) -> None:
        self._behind: t.Set[TcpPeer] = set()
        self._moved = asyncio.Event()

    def stalls(self, peer: TcpPeer) -> None:
        self._behind.add(peer)

    def moves(self, peer: TcpPeer) -> None:
        """It has taken most of it, or is gone."""
        self._behind.discard(peer)
        self._moved.set()

    async def clear(self) -> None:
        """Wait until few are behind, or those who are behind do not move."""
        await asyncio.sleep(0)
        while len(self._behind) >= self.MOST:
            self._moved.clear()
            try:
                await asyncio.wait_for(self._moved.wait(), self.PATIENCE)
            except asyncio.TimeoutError:
                self._behind.clear()


class Door:
    """Where TCP connections come in, and wait until they have said who they are: not for long, and not too many."""

    def __init__(self, desk: Rendezvous, context: ssl.SSLContext) -> None:
        self.desk = desk
        self.context = context
        self._strangers: t.Dict[TcpPeer, asyncio.TimerHandle] = {}

    def __call__(self) -> TcpPeer:
        return TcpPeer(self)

    def came(self, peer: TcpPeer) -> None:
        """A connection of nobody yet."""
        if len(self._strangers) >= STRANGERS:
            next(iter(self._strangers)).drop("too many have come that do not say who they are")
        self._strangers[peer] = asyncio.get_event_loop().call_later(HELLO_LIMIT, peer.drop, "no hello")

    def known(self, peer: TcpPeer) -> None:
        """It has a name, or is gone."""
        timer = self._strangers.pop(peer, None)
        if timer is not None:
            timer.cancel()


class TcpPeer(asyncio.Protocol):
    """One connection: nobody until its hello agrees with its certificate.

    TLS is done here and not by asyncio, whose buffers take 256 KiB a connection: with thousands of agents, that is all
    the memory of a small host. Nothing is set up for a connection before it says something.
    """

    def __init__(self, door: Door) -> None:
        self._door, self._desk = door, door.desk
        self._lines = wire.Lines()
        self._transport: t.Optional[asyncio.Transport] = None
        self._from, self._to = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: t.Optional[ssl.SSLObject] = None
        self._secure = False
        self.member: t.Optional[str] = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = t.cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=BEHIND)
        with contextlib.suppress(OSError, AttributeError):
            keep_alive(transport.get_extra_info("socket"))
        self._door.came(self)

    def data_received(self, data: bytes) -> None:
        came_ns = self._desk.time_ns()
        self._from.write(data)
        try:
            if self._tls is None:
                self._tls = self._door.context.wrap_bio(self._from, self._to, server_side=True)
            if not self._secure:
                self._tls.do_handshake()
                self._secure = True
            while self._transport is not None and not self._transport.is_closing():
                clear = self._tls.read(65536)
                if not clear:
                    self._transport.close()
                    return
                for line in self._lines.feed(clear):
                    self._take(wire.check(wire.decode(line), wire.FROM_MEMBER), came_ns)
        except ssl.SSLWantReadError:
            self._flush()
        except ssl.SSLZeroReturnError:
            self.abort()
        except (ssl.SSLError, ssl.CertificateError) as error:
            self.drop(f"TLS: {error}")
        except wire.WireError as error:
            self.drop(f"not our protocol: {error}")

    def pause_writing(self) -> None:
        self._desk.traffic.stalls(self)

    def resume_writing(self) -> None:
        self._desk.traffic.moves(self)

    def connection_lost(self, exc: t.Optional[BaseException]) -> None:
        self._door.known(self)
        self._desk.traffic.moves(self)
        self._transport = None
        if self.member is not None:
            self._desk.peer_lost(self, str(exc) if exc else "closed")

    def _take(self, message: wire.Message, came_ns: int) -> None:
        if message["type"] == "hello":
            self._hello(message)
        elif self.member is None:
            raise wire.WireError("{} before hello".format(message["type"]))
        else:
            _take(self._desk, self, message, came_ns)

    def _hello(self, message: wire.Message) -> None:
        run = self._desk.run_id
        member = message["member"]
        problem = None
        if message["version"] != wire.VERSION:
            problem = f"protocol {wire.VERSION} is spoken here, not {message['version']}"
        elif message["run"] != run:
            problem = "this is the rendezvous of {}, not of {}".format(run, message["run"])
        elif self._tls is None or wire.member_uri(run, member) not in wire.peer_uris(self._tls.getpeercert()):
            problem = f"the certificate is not that of {member}"
        if problem is not None:
            self.send(wire.encode("refuse", epoch=None, reason=problem))
            self.drop(problem)
            return
        self._door.known(self)
        self.member = member
        self.send(wire.encode("welcome", version=wire.VERSION))
        self._desk.peer_up(self)

    def send(self, line: bytes) -> None:
        if self._tls is not None and self._transport is not None and not self._transport.is_closing():
            # In pieces, because a memory BIO never gives back what it once had to hold.
            sealed = []
            for begin in range(0, len(line), PIECE):
                self._tls.write(line[begin : begin + PIECE])
                sealed.append(self._to.read())
            self._transport.write(b"".join(sealed))

    def _flush(self) -> None:
        if self._to.pending and self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._to.read())

    def abort(self) -> None:
        """Close at once; what has not been sent yet is said again on the next connection."""
        if self._transport is not None:
            self._transport.abort()

    def drop(self, reason: str) -> None:
        transport = self._transport
        if transport is None:
            return
        address = (transport.get_extra_info("peername") or ("?",))[0]
        log("connection dropped", peer=address, member=self.member or "-", reason=reason)
        self._door.known(self)
        if self._tls is not None and self._secure:
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
        self._flush()
        transport.close()


# ---- S3 --------------------------------------------------------------------------------------------------------------


class Mailboxes:
    """All mailboxes of a run in the object store. Methods block, and may be called from several threads.

    Reading and writing goes through signed requests as on the members' side, because the boto3 of older distributions
    knows no conditional writes.
    """

    def __init__(self, run: str, given: t.Mapping[str, t.Any]) -> None:
        self._run = run
        self._secret = bytes.fromhex(given["secret"])
        self._bucket, self._prefix = str(given["bucket"]), str(given["prefix"])
        self._where = given.get("region"), given.get("endpoint_url")
        self.pace = mailbox.Pace(**given.get("pace", {}))
        self._made: t.Any = None
        self._making = threading.Lock()
        self._threads = threading.local()

    def address(self, member: str) -> mailbox.Address:
        return mailbox.Address(self._run, member)

    def key(self, member: str) -> bytes:
        """The key of a member's letters."""
        return mailbox.member_key(self._secret, self.address(member))

    def etags(self, box: str) -> t.Dict[str, str]:
        """All boxes of a kind that were ever written, by member: one request a thousand."""
        prefix = mailbox.object_key(self._prefix, box)
        found = {}
        for page in self._client().get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix):
            for entry in page.get("Contents", ()):
                found[entry["Key"][len(prefix) :]] = entry["ETag"]
        return found

    def read(self, box: str, member: str) -> presigned.Answer:
        return self._store().get(self._sign("get_object", box, member, 900))

    def write(self, member: str, body: bytes, known: t.Optional[str]) -> presigned.Answer:
        """Write an inbox, if it is still the one with the ETag `known`."""
        return self._store().put(self._sign("put_object", IN, member, 900), body, known)

    def grants(self, member: str) -> mailbox.Grants:
        return {
            "get_in": self._sign("get_object", IN, member, mailbox.GRANT_TIME),
            "get_out": self._sign("get_object", OUT, member, mailbox.GRANT_TIME),
            "put_out": self._sign("put_object", OUT, member, mailbox.GRANT_TIME),
        }

    def _client(self) -> t.Any:
        with self._making:
            if self._made is None:
                self._made = s3_client(*self._where)
            return self._made

    def _sign(self, call: str, box: str, member: str, seconds: int) -> str:
        where = {"Bucket": self._bucket, "Key": mailbox.object_key(self._prefix, box, member)}
        return str(self._client().generate_presigned_url(call, Params=where, ExpiresIn=seconds))

    def _store(self) -> mailbox.Store:
        """This thread's connection."""
        if not hasattr(self._threads, "store"):
            self._threads.store = mailbox.Store()
        store: mailbox.Store = self._threads.store
        return store


class MailPeer:
    """One incarnation of a member that is reached through its mailbox."""

    def __init__(self, box: _Box, own: int, author: int, expected: float) -> None:
        self._box, self._expected = box, expected
        self.talk = mailbox.Conversation(own, author)
        self.member: t.Optional[str] = box.member
        #: Whether it has answered this rendezvous; until then its letter may be of long ago.
        self.answered = False
        self.heard_at = time.monotonic()
        #: Seconds from a letter to its answer, the last few; and when those letters went, by how much had been said.
        self.delays: t.Deque[float] = collections.deque(maxlen=8)
        self.went: t.Deque[t.Tuple[int, float]] = collections.deque()

    def send(self, line: bytes) -> None:
        self.say(json.loads(line.decode("utf-8")))

    def say(self, message: t.Any) -> None:
        if self._box.peer is self:
            if message["type"] == "prepare":
                # Each trial goes by its own letters: what an outage before it has held up says nothing of their pace.
                self.delays.clear()
                self.went.clear()
            self.talk.say(message)
            self._box.post()

    def drop(self, reason: str) -> None:
        """A letter to nobody tells it to begin anew."""
        if self._box.peer is self:
            log("conversation dropped", member=self._box.member, reason=reason)
            self._box.peer = None
            self._box.post()

    def abort(self) -> None:
        """Nothing to let go: the next rendezvous begins anew."""

    @property
    def round_trip_ns(self) -> int:
        """What a message and its answer may take."""
        return int(1e9 * max(self.delays, default=self._expected))


class _Box:
    """A member's two mailboxes."""

    def __init__(self, member: str, post: t.Callable[[_Box], None], known: t.Optional[str]) -> None:
        self.member = member
        self._post = post
        self.outbox: t.Optional[str] = None  # ETags of what was read and written last
        self.inbox = known
        #: Whether what stands in the inbox was looked at, or there was none.
        self.looked = known is None
        #: The latest incarnation that was seen.
        self.latest = 0
        self.peer: t.Optional[MailPeer] = None
        self.unread = self.unsaid = self.writing = False
        self.grants: t.Optional[mailbox.Grants] = None
        self.granted_at = 0.0

    def post(self) -> None:
        """Have a letter written."""
        self._post(self)


Peer = t.Union[TcpPeer, MailPeer]


class Post:
    """Reads all outboxes and writes the inboxes, as long as the rendezvous lives."""

    def __init__(self, desk: Rendezvous, boxes: Mailboxes, directory: str) -> None:
        self._desk, self._mail = desk, boxes
        self._hands = concurrent.futures.ThreadPoolExecutor(HANDS)
        self._tasks: t.Set[asyncio.Future[None]] = set()
        self._boxes: t.Dict[str, _Box] = {}
        self._inboxes: t.Dict[str, str] = {}
        self._haste_until = 0.0
        self._fenced = False
        self._hurry = asyncio.Event()
        last = int((read_record(directory, "mailbox.json") or {}).get("author", 0))
        self.author = max(time.time_ns(), last + 1)
        write_record(directory, "mailbox.json", {"author": self.author})

    async def serve(self) -> None:
        """Rounds without end: one list of the outboxes, and what has changed."""
        failures, listed, pace = 0, False, self._mail.pace
        while not self._fenced:
            try:
                if not listed:
                    self._inboxes = await self._do(self._mail.etags, IN)
                    listed = True
                found = await self._do(self._mail.etags, OUT)
                changed = [(member, etag) for member, etag in found.items() if self._is_news(member, etag)]
                await asyncio.gather(*(self._fetch(member, etag) for member, etag in changed))
            except Exception as error:  # boto3's are of many kinds
                failures += 1
                pause = min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0)  # noqa: S311
                if failures in (1, 10) or failures % 100 == 0:
                    log("mailboxes unreachable", reason=repr(error), attempts=failures, again_in=f"{pause:.1f}s")
                await asyncio.sleep(pause)
                continue
            now = time.monotonic()
            if failures:
                log("mailboxes reached again", attempts=failures)
                failures = 0
                for box in self._boxes.values():
                    if box.peer is not None:
                        box.peer.heard_at = now  # it was us who could not hear
            self._look_after(now)
            waiting = self._desk.haste() > 0 or now < self._haste_until
            self._hurry.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), pace.fast if waiting else pace.slow)
                await asyncio.sleep(pace.fast)

    def close(self) -> None:
        self._hands.shutdown(wait=False)

    async def _do(self, call: t.Callable[..., _T], *arguments: t.Any) -> _T:
        return await asyncio.get_event_loop().run_in_executor(self._hands, call, *arguments)

    def _is_news(self, member: str, etag: str) -> bool:
        box = self._boxes.get(member)
        return box is None or box.outbox != etag

    def _look_after(self, now: float) -> None:
        """Find out who is silent, and whose grants are old."""
        for box in self._boxes.values():
            peer = box.peer
            if peer is None:
                continue
            if now - peer.heard_at > SILENCE:
                box.peer = None
                self._lost(peer, f"no letter for {SILENCE:g} s")
            elif now - box.granted_at > mailbox.GRANT_RENEWAL:
                box.post()

    def _lost(self, peer: MailPeer, reason: str) -> None:
        if peer.answered:
            self._desk.peer_lost(peer, reason)

    # -- reading --

    async def _fetch(self, member: str, etag: str) -> None:
        """Read an outbox that has changed."""
        box = self._boxes.get(member)
        if box is None:
            try:
                wire.MEMBER(member, "member")
            except wire.WireError:
                return
            box = self._boxes[member] = _Box(member, self._post, self._inboxes.get(member))
        try:
            answer = await self._do(self._mail.read, OUT, member)
            if answer.status != 200:
                raise OSError(str(answer))
            await self._look(box)
        except Exception as error:  # boto3's are of many kinds
            # The store answers others, and this member has written: the next round reads it.
            if box.peer is not None:
                box.peer.heard_at = time.monotonic()
            if not box.unread:
                log("a letter could not be read", member=member, reason=repr(error))
            box.unread = True
            return
        box.unread = False
        try:
            letter = mailbox.unseal(self._mail.key(member), self._mail.address(member), OUT, answer.body)
            self._hear(box, letter)
        except MailError as error:
            log("a letter refused", member=member, reason=str(error))
        box.outbox = answer.etag or etag

    def _hear(self, box: _Box, letter: mailbox.Letter) -> None:
        """Take a letter that is sealed by the member."""
        if letter.author < box.latest:
            raise MailError("it is of an agent before the present one")
        now, came_ns = time.monotonic(), self._desk.time_ns()
        if letter.author > box.latest:
            box.latest = letter.author
            before, box.peer = box.peer, MailPeer(box, self.author, letter.author, 2 * self._mail.pace.fast)
            if before is not None:
                self._lost(before, "the member has begun anew")
            box.peer.say({"type": "welcome", "version": wire.VERSION})
        peer = box.peer
        if letter.hears != self.author or peer is None:
            # Its first, or of a conversation with somebody before us, or of one that is over: our letter will tell.
            box.post()
            return
        try:
            fresh = peer.talk.hear(letter)
            messages = [wire.check(message, wire.FROM_MEMBER) for message in fresh]
        except (MailError, wire.WireError) as error:
            peer.drop(str(error))
            self._lost(peer, str(error))
            return
        peer.heard_at = now
        while peer.went and peer.went[0][0] <= letter.received:
            delay = now - peer.went.popleft()[1]
            if self._desk.haste() > 0:
                peer.delays.append(delay)
        if fresh:
            self._haste_until = now + mailbox.LINGER
            if not box.unsaid:
                box.post()  # that they have come
        if not peer.answered:
            peer.answered = True
            self._desk.peer_up(peer)
        for message in messages:
            clock = message.get("clock")
            if clock is not None:
                # T has to be later than the slowest way there, whatever the best of some exchanges took.
                message["clock"] = dict(clock, rtt_ns=max(clock["rtt_ns"] or 0, peer.round_trip_ns))
            _take(self._desk, peer, message, came_ns)

    # -- writing --

    def _post(self, box: _Box) -> None:
        box.unsaid = True
        if not box.writing and not self._fenced:
            box.writing = True
            task = asyncio.ensure_future(self._write(box))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _write(self, box: _Box) -> None:
        """Write letters until nothing is unsaid."""
        failures = 0
        try:
            while box.unsaid and not self._fenced:
                try:
                    await self._look(box)
                    await self._write_letter(box)
                    failures = 0
                except Exception as error:  # boto3's are of many kinds
                    failures += 1
                    if failures in (1, 10) or failures % 100 == 0:
                        log("cannot write a letter", member=box.member, reason=repr(error), attempts=failures)
                    longest = min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** min(failures - 1, 10))
                    await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311
        finally:
            box.writing = False

    async def _write_letter(self, box: _Box) -> None:
        now = time.monotonic()
        if box.grants is None or now - box.granted_at > mailbox.GRANT_RENEWAL:
            box.grants = await self._do(self._mail.grants, box.member)
            box.granted_at = now
        box.unsaid = False
        peer, haste = box.peer, self._desk.haste()
        if peer is None:
            letter = mailbox.Letter(self.author)
        else:
            letter = peer.talk.letter(box.grants, haste)
            if letter.sent > (peer.went[-1][0] if peer.went else peer.talk.known):
                peer.went.append((letter.sent, now))
                self._haste_until = now + mailbox.LINGER
                self._hurry.set()
        body = mailbox.seal(self._mail.key(box.member), self._mail.address(box.member), IN, letter)
        try:
            if len(body) > mailbox.LIMIT:
                if peer is not None:
                    peer.drop("more is unsaid than one letter holds")
                    self._lost(peer, "more is unsaid than one letter holds")
                return
            answer = await self._do(self._mail.write, box.member, body, box.inbox)
        except BaseException:
            box.unsaid = True
            raise
        if answer.status == 200:
            box.inbox = answer.etag
            return
        box.unsaid = True
        if answer.taken:
            box.looked = False
        raise OSError(str(answer))

    async def _look(self, box: _Box) -> None:
        """See what stands in an inbox, if that is not known: who writes it, and whom it has heard."""
        if box.looked:
            return
        answer = await self._do(self._mail.read, IN, box.member)
        # 403 is what S3 says of an object that is not there to those who may not list the whole bucket.
        if answer.status not in (200, 403, 404):
            raise OSError(str(answer))
        box.inbox = answer.etag if answer.status == 200 else None
        box.looked = True
        if box.inbox is None:
            return
        try:
            letter = mailbox.unseal(self._mail.key(box.member), self._mail.address(box.member), IN, answer.body)
        except MailError as error:
            log("a stranger's letter in an inbox", member=box.member, reason=str(error))
            return
        if letter.author > self.author:
            self._fenced = True
            log("fenced", reason="another rendezvous of this run has begun after this one", author=letter.author)
        # An agent that was heard before cannot be replaced by one before it, not even across our own restart.
        box.latest = max(box.latest, letter.hears)


def open_post(desk: Rendezvous, path: str, directory: str) -> Post:
    """The post of the run, from the file that the controller has left."""
    with open(path, "rb") as stream:
        given = json.loads(stream.read().decode("utf-8"))
    os.makedirs(directory, 0o700, exist_ok=True)
    return Post(desk, Mailboxes(desk.run_id, given), directory)
