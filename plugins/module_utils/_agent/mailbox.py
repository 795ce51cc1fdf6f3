# SPDX-License-Identifier: GPL-3.0-or-later
"""Two S3 objects in place of a connection, for a host that has no route to the rendezvous.

PRIVATE to the collection. ``<run's prefix>/barrier/out/<member>`` is written by the member's agent alone and read by
the rendezvous, ``.../barrier/in/<member>`` the other way round. Each is a letter that is written anew whenever there is
something to say, and holds every message that the other side is not known to have: so a letter may be overwritten
before it was read, and the messages still come once and in order, as on a connection.

* An *incarnation* is one life of a writer: a number greater than that of any life before. A letter says whose it is
  (`Letter.author`) and whom it answers (`Letter.hears`). A conversation is a pair of the two, so it is over when either
  side begins anew; nothing of an earlier one is taken for a part of it, be it late or replayed.
* Letters carry an HMAC of a key that only this member and the rendezvous have, over the run, the member, the direction
  and all they say. What has no right HMAC is no letter.
* They are written with If-Match or If-None-Match: a second agent of the same name, or a second rendezvous, cannot
  overwrite unseen; who meets a letter of a later life of itself keeps silent from then on.
"""

from __future__ import annotations

import hashlib
import hmac
import typing as t

from . import presigned, wire

#: Bytes of one letter.
LIMIT = 16 * 1024 * 1024
#: Seconds after the last message for which the next one is expected soon.
LINGER = 5.0
#: Seconds after which an agent that has had nothing to say says that it is there.
BEAT = 20.0
#: Seconds that a grant is signed for, and after which the rendezvous gives a new one. It signs with its role's
#: credentials, which are replaced some ten minutes before they end, and a grant ends with them: hence so often.
GRANT_TIME, GRANT_RENEWAL = 12 * 3600, 300.0

IN, OUT = "in", "out"
#: Where letters are below the run's prefix. They are no evidence: they change, and have signed requests in them.
PLACE = "barrier/"

#: Signed requests of a member: read its inbox, read and write its outbox.
GRANTS = wire.record(get_in=wire.text(8192), get_out=wire.text(8192), put_out=wire.text(8192))

Grants = t.Dict[str, str]

_NUMBER = wire.integer(0, 2**63 - 1)
_LETTER = wire.record(
    run=wire.RUN,
    member=wire.MEMBER,
    box=wire.choice(IN, OUT),
    author=wire.integer(1, 2**63 - 1),
    hears=_NUMBER,
    number=_NUMBER,
    sent=_NUMBER,
    received=_NUMBER,
    messages=wire.listing(wire.anything, 100000),
    grants=wire.maybe(GRANTS),
    haste=wire.number(0, 10**7),
)


class MailError(Exception):
    """A letter that is none of this conversation, or none at all. The text says why, and is safe to log."""


class Pace(t.NamedTuple):
    """Seconds between two looks: while something is about to happen, and otherwise. Each look costs a request."""

    fast: float = 0.5
    slow: float = 2.0


class Address(t.NamedTuple):
    """Whose mailbox."""

    run: str
    member: str


class Letter(t.NamedTuple):
    """What stands in a mailbox. `messages` are the last of the `sent` messages of this conversation; of the other side's
    `received` have come. `haste` is for how many seconds (from now) the reader is to look often."""

    author: int
    hears: int = 0
    number: int = 0
    sent: int = 0
    received: int = 0
    messages: t.Tuple[t.Any, ...] = ()
    grants: t.Optional[Grants] = None
    haste: float = 0.0


def object_key(prefix: str, box: str, member: str = "") -> str:
    """The S3 key of a mailbox; without a member, what the keys of all have in common."""
    return f"{prefix.strip('/')}/{PLACE}{box}/{member}"


def member_key(secret: bytes, address: Address) -> bytes:
    """The key of a member's letters, from the run's secret."""
    return hmac.new(
        secret, f"startline-mailbox {address.run} {address.member}".encode("ascii"), hashlib.sha256
    ).digest()


def seal(key: bytes, address: Address, box: str, letter: Letter) -> bytes:
    """The letter as the object's content: its HMAC on a line, and JSON."""
    content = wire.dump(dict(letter._asdict(), run=address.run, member=address.member, box=box))
    return _mac(key, content) + b"\n" + content


def unseal(key: bytes, address: Address, box: str, body: bytes) -> Letter:
    """The letter in an object's content, or `MailError`."""
    mac, _end, content = body.partition(b"\n")
    if not hmac.compare_digest(mac, _mac(key, content)):
        raise MailError("it is not sealed with the key of this member")
    try:
        found = wire.checked(wire.decode(content), _LETTER, "a letter")
    except wire.WireError as error:
        raise MailError(str(error)) from None
    if (found.pop("run"), found.pop("member"), found.pop("box")) != (address.run, address.member, box):
        raise MailError("it is of another run, member or box")
    return Letter(**dict(found, messages=tuple(found["messages"])))


def _mac(key: bytes, content: bytes) -> bytes:
    return hmac.new(key, content, hashlib.sha256).hexdigest().encode("ascii")


class Conversation:
    """One side of two incarnations' exchange: messages come out once and in order, whatever letters are lost,
    overwritten, read twice or replayed. Pure."""

    def __init__(self, own: int, other: int = 0) -> None:
        self.own = own
        #: Who is heard; 0 as long as nobody is.
        self.other = other
        self.number = self.sent = self.received = 0
        #: How many of our messages the other side has.
        self.known = 0
        self._heard = -1
        self._unknown: t.List[t.Any] = []

    def say(self, message: t.Any) -> None:
        """Have a message in the next letter, and in all after it until it is known to have come."""
        self.sent += 1
        self._unknown.append(message)

    def letter(self, grants: t.Optional[Grants] = None, haste: float = 0.0) -> Letter:
        """The next letter."""
        self.number += 1
        return Letter(self.own, self.other, self.number, self.sent, self.received, tuple(self._unknown), grants, haste)

    def hear(self, letter: Letter) -> t.List[t.Any]:
        """The messages of a letter of `other` to `own` that are new. A letter that was overtaken has none."""
        if letter.number <= self._heard:
            return []
        first = letter.sent - len(letter.messages) + 1
        if first > self.received + 1 or not self.known <= letter.received <= self.sent:
            raise MailError("it does not go on where this conversation stands")
        self._heard = letter.number
        del self._unknown[: letter.received - self.known]
        self.known = letter.received
        fresh = list(letter.messages[self.received + 1 - first :])
        self.received = max(self.received, letter.sent)
        return fresh


# ---- the object store ------------------------------------------------------------------------------------------------


class Store:
    """Signed requests for letters. Blocks; for one thread."""

    #: Seconds without progress after which a request is given up.
    TIMEOUT = 10.0

    def __init__(self) -> None:
        self._client = presigned.Client(self.TIMEOUT, LIMIT)

    def get(self, url: str, known: t.Optional[str] = None) -> presigned.Answer:
        """An object's content; status 304 if it is still the one with the ETag `known`."""
        return self._request("GET", url, {"If-None-Match": known} if known else {})

    def put(self, url: str, body: bytes, known: t.Optional[str]) -> presigned.Answer:
        """Write an object, if it is still the one with the ETag `known`, or (None) if there is none. Should a repeated request
        have come before, then its condition tells."""
        return self._request("PUT", url, {"If-Match": known} if known else {"If-None-Match": "*"}, body)

    def _request(
        self, method: str, url: str, headers: t.Mapping[str, str], body: t.Optional[bytes] = None
    ) -> presigned.Answer:
        """One request; `OSError` when there is no answer, `MailError` when it is too large for a letter."""
        try:
            return self._client.request(method, url, headers, body)
        except ValueError as error:
            raise MailError(str(error)) from error


def checked_grants(value: t.Any) -> Grants:
    """`value` as grants, or `WireError`."""
    found: Grants = GRANTS(value, "grants")
    return found
