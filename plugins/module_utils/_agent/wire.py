# SPDX-License-Identifier: GPL-3.0-or-later
"""The protocol between the agents and the rendezvous: JSON, one message a line.

PRIVATE to the collection. The tables ``FROM_MEMBER`` and ``FROM_RENDEZVOUS`` are the protocol: what is not in them is
refused. Everything that comes from the network goes through `Lines` (framing, size) and `check` (shape, ranges); both raise
`WireError`, on which the connection is closed. Unknown *fields* are dropped, so that a newer peer may say more.

Messages, each of a trial carrying its epoch:

    member -> rendezvous                      rendezvous -> member
    hello    who I am, which run              welcome  accepted, by this version of the protocol
    ping     my time                          pong     my time when it came, my time when it went
    report   all I know of a trial            prepare  make ready, measure your clock, fork, say armed
    ask      may I upload these files         start    the instant T
    wait     at a named barrier               abort    let go (before T), stop the command (after T)
    passed   how punctual I went on           grants   signed requests, one a file
                                              settled  nothing more is wanted of this trial
                                              release  the instant at which waiters go on
                                              deny     why they wait in vain
                                              refuse   why not

A report is the whole state, never a difference: it may be lost, repeated or come after a reconnect without harm.
"""

from __future__ import annotations

import json
import re
import typing as t

VERSION = 1

#: Bytes of one line. A prepare carries hosts.config (16 bytes a host), a report the list of collected files.
LIMIT = 4 * 1024 * 1024

#: Seconds a command has between TERM and KILL. Both sides count on it.
STOP_GRACE = 5.0

#: States of a member in a trial, in the order they are reached.
STATES = ("absent", "connected", "prepared", "armed", "fired", "exited", "delivered")

Message = t.Dict[str, t.Any]
Check = t.Callable[[t.Any, str], t.Any]


class WireError(Exception):
    """What came is not a message of this protocol. The text says which field, and is safe to log."""


class Epoch(t.NamedTuple):
    """One attempt at one trial of one run: the fence around everything that is said."""

    run: str
    trial: str
    attempt: int

    def __str__(self) -> str:
        return f"{self.run}/{self.trial}/{self.attempt}"

    def to_json(self) -> t.Dict[str, t.Any]:
        return {"run": self.run, "trial": self.trial, "attempt": self.attempt}


def _is_unicode(value: str) -> bool:
    """Whether there is no lone surrogate in it."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# ---- checks: each takes a value and where it stands, and gives it back or raises -------------------------------------


def text(limit: int, pattern: str = "") -> Check:
    """A string of at most `limit` characters that matches `pattern` as a whole."""
    compiled = re.compile(pattern) if pattern else None

    def check_text(value: t.Any, where: str) -> str:
        if not isinstance(value, str):
            raise WireError(f"{where} is not a string")
        if len(value) > limit:
            raise WireError(f"{where} is longer than {limit} characters")
        if "\0" in value or not _is_unicode(value):
            raise WireError(f"{where} contains a character that is not text")
        if compiled and not compiled.fullmatch(value):
            raise WireError(f"{where} does not match {pattern}")
        return value

    return check_text


def integer(low: int, high: int) -> Check:
    """An integer in ``low..high``."""

    def check_integer(value: t.Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise WireError(f"{where} is not an integer")
        if not low <= value <= high:
            raise WireError(f"{where} is not in {low}..{high}")
        return value

    return check_integer


def number(low: float, high: float) -> Check:
    """A number in ``low..high``."""

    def check_number(value: t.Any, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise WireError(f"{where} is not a number")
        if not low <= value <= high:  # also false for NaN
            raise WireError(f"{where} is not in {low}..{high}")
        return float(value)

    return check_number


def flag(value: t.Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise WireError(f"{where} is not true or false")
    return value


def choice(*allowed: str) -> Check:
    def check_choice(value: t.Any, where: str) -> str:
        if value not in allowed:
            raise WireError("{} is not one of {}".format(where, ", ".join(allowed)))
        return str(value)

    return check_choice


def anything(value: t.Any, where: str) -> t.Any:
    """Any value; who takes it checks it."""
    return value


def maybe(inner: Check) -> Check:
    """`inner`, or null; a field that is left out is null."""

    def check_maybe(value: t.Any, where: str) -> t.Any:
        return None if value is None else inner(value, where)

    check_maybe.optional = True  # type: ignore[attr-defined]
    return check_maybe


def listing(of: Check, limit: int) -> Check:
    def check_listing(value: t.Any, where: str) -> t.List[t.Any]:
        if not isinstance(value, list):
            raise WireError(f"{where} is not a list")
        if len(value) > limit:
            raise WireError(f"{where} has more than {limit} entries")
        return [of(entry, f"{where}[{position}]") for position, entry in enumerate(value)]

    return check_listing


def mapping(key: Check, of: Check, limit: int) -> Check:
    def check_mapping(value: t.Any, where: str) -> t.Dict[str, t.Any]:
        if not isinstance(value, dict):
            raise WireError(f"{where} is not an object")
        if len(value) > limit:
            raise WireError(f"{where} has more than {limit} entries")
        return {key(k, f"a key of {where}"): of(v, f"{where}[{k!r}]") for k, v in value.items()}

    return check_mapping


def record(**fields: Check) -> Check:
    """An object with these fields. Those it does not know are dropped."""

    def check_record(value: t.Any, where: str) -> t.Dict[str, t.Any]:
        if not isinstance(value, dict):
            raise WireError(f"{where} is not an object")
        found = {}
        for name, inner in fields.items():
            if name not in value and not getattr(inner, "optional", False):
                raise WireError(f"{where} has no {name}")
            found[name] = inner(value.get(name), f"{where}.{name}")
        return found

    return check_record


def network_report(value: t.Any, where: str) -> t.Dict[str, t.Any]:
    """What was measured of a trial's network: an object of bounded size whose verdict and reasons matter here."""
    _VERDICT(value, where)
    if len(json.dumps(value)) > NETWORK_LIMIT:
        raise WireError(f"{where} is longer than {NETWORK_LIMIT} bytes")
    return dict(value)


def relative_path(value: t.Any, where: str) -> str:
    """A path that stays below the directory it is joined to."""
    path: str = text(1024)(value, where)
    if not path or path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
        raise WireError(f"{where} is not a plain relative path")
    return path


def _epoch(value: t.Any, where: str) -> Epoch:
    found = _EPOCH(value, where)
    return Epoch(found["run"], found["trial"], found["attempt"])


# ---- the vocabulary --------------------------------------------------------------------------------------------------

NANOSECONDS = integer(-(2**62), 2**62)
RUN = text(128, r"[A-Za-z0-9][A-Za-z0-9._-]*")
TRIAL = text(128, r"[A-Za-z0-9][A-Za-z0-9._-]*")
MEMBER = text(128, r"[A-Za-z0-9][A-Za-z0-9._-]*")
SITE = text(128, r"[A-Za-z0-9][A-Za-z0-9._-]*")
REASON = text(4000)
SHA256 = text(64, r"[0-9a-f]{64}")
VARIABLE = text(256, r"[A-Za-z_][A-Za-z0-9_]*")

#: A named barrier, and its how manyth use.
NAME = text(128, r"[A-Za-z0-9][A-Za-z0-9._:-]*")
GENERATION = integer(1, 10**6)

_EPOCH = record(run=RUN, trial=TRIAL, attempt=integer(1, 10**6))

CLOCK = record(
    source=text(64),
    offset_ns=NANOSECONDS,
    bound_ns=integer(0, 2**62),
    rtt_ns=maybe(integer(0, 2**62)),
    note=maybe(REASON),
    stepped_ns=NANOSECONDS,
    drifted_ns=NANOSECONDS,
)
#: A process is named by its id and its short name.
_PROCESS = {"pid": maybe(integer(1, 2**31)), "command": maybe(text(256))}
EXIT = record(
    code=maybe(integer(0, 255)),
    signal=maybe(integer(1, 255)),
    timed_out=flag,
    stopped=flag,
    at_ns=NANOSECONDS,
    duration_ns=integer(0, 2**62),
    #: Processes that the command had left running, and were ended.
    leftovers=integer(0, 10**9),
    #: Processes that could not be ended.
    remaining=maybe(listing(record(**_PROCESS), 10**4)),
    #: Ports that were not taken before the command, and are after all that it had started has ended.
    ports=maybe(listing(record(protocol=choice("tcp", "udp"), port=integer(1, 65535), **_PROCESS), 2 * 65536)),
    stepped_ns=NANOSECONDS,
    detail=maybe(REASON),
)
FILE = record(path=relative_path, size=integer(0, 2**53), sha256=SHA256)
#: So many that their grants, a kilobyte each, stay within one line.
MAX_FILES = 2000
FILES = listing(FILE, MAX_FILES)

#: What a host does with what it sends: from its getting ready, and from `at` seconds after T on. Whoever carries the
#: rules out checks them.
NETWORK = record(
    phases=listing(record(at=number(0, 10**8), rules=listing(anything, 10**5)), 1000),
    exempt=listing(anything, 1000),
)
#: What became of it. Phase 0 was in force before T; the others since `at_ns`. `cleared` is None until it was tried.
NETWORK_DONE = record(
    phases=listing(record(phase=integer(0, 1000), at_ns=maybe(NANOSECONDS)), 10**4),
    cleared=maybe(flag),
    problem=maybe(REASON),
)

#: Bytes of the report on a trial's network.
NETWORK_LIMIT = 1024 * 1024
_VERDICT = record(verdict=choice("valid", "degraded", "invalid"), reasons=listing(REASON, 1000))

#: What one host is asked to do.
DUTY = record(
    rank=integer(0, 10**6),
    command=text(1024 * 1024),
    environment=mapping(VARIABLE, text(128 * 1024), 1000),
    files=mapping(relative_path, text(LIMIT), 1000),
    links=mapping(relative_path, text(4096), 1000),
    collect=listing(text(1024), 1000),
    user=maybe(text(64, r"[A-Za-z_][A-Za-z0-9_.-]*\$?")),
    timeout=number(0.001, 10**8),
    #: Seconds after which an agent that has heard nothing more lets go by itself.
    patience=number(0, 10**8),
    #: How long a wait at a named barrier lasts unless it says something else.
    deadline=number(0.001, 10**6),
    #: Whether there is somewhere to upload to; without it the files stay on the host.
    upload=flag,
    #: How well the rendezvous knew the time when it said this: null when its clock is not disciplined.
    reference=maybe(record(bound_ns=integer(0, 2**62), ahead_ns=NANOSECONDS)),
    #: How well the clock has to be known: worth waiting for a time daemon that has just been started.
    max_clock_error=number(0, 10**6),
    network=maybe(NETWORK),
)

FROM_MEMBER: t.Dict[str, Check] = {
    "hello": record(version=integer(0, 2**31), run=RUN, member=MEMBER),
    "ping": record(sent_ns=NANOSECONDS),
    "report": record(
        epoch=_epoch,
        state=choice(*STATES[1:]),
        failed=maybe(REASON),
        clock=maybe(CLOCK),
        clock_after=maybe(CLOCK),
        armed_ns=maybe(NANOSECONDS),
        start_ns=maybe(NANOSECONDS),
        noticed_ns=maybe(NANOSECONDS),
        fired_ns=maybe(NANOSECONDS),
        exit=maybe(EXIT),
        files=maybe(FILES),
        network=maybe(NETWORK_DONE),
    ),
    "ask": record(epoch=_epoch, files=FILES),
    "wait": record(epoch=_epoch, name=NAME, generation=GENERATION, timeout=number(0, 10**8)),
    "passed": record(epoch=_epoch, name=NAME, generation=GENERATION, late_ns=NANOSECONDS, bound_ns=integer(0, 2**62)),
}

FROM_RENDEZVOUS: t.Dict[str, Check] = {
    "welcome": record(version=integer(0, 2**31)),
    "pong": record(
        sent_ns=NANOSECONDS,
        came_ns=NANOSECONDS,
        went_ns=NANOSECONDS,
        #: How well the rendezvous knows the time: null when its clock is not disciplined.
        bound_ns=maybe(integer(0, 2**62)),
        #: How far its clock was ahead of its bare oscillator when this went.
        ahead_ns=NANOSECONDS,
    ),
    "prepare": record(epoch=_epoch, duty=DUTY),
    #: `ahead_ns` as in a pong, when T was decided.
    "start": record(epoch=_epoch, start_ns=NANOSECONDS, latest_ns=NANOSECONDS, ahead_ns=NANOSECONDS),
    "abort": record(epoch=_epoch, reason=REASON),
    "grants": record(
        epoch=_epoch,
        grants=listing(
            record(path=relative_path, url=text(8192), headers=mapping(text(256), text(4096), 100)),
            MAX_FILES,
        ),
    ),
    "settled": record(epoch=_epoch),
    #: `ahead_ns` as in a pong, when the instant was decided.
    "release": record(epoch=_epoch, name=NAME, generation=GENERATION, at_ns=NANOSECONDS, ahead_ns=NANOSECONDS),
    "deny": record(epoch=_epoch, name=NAME, generation=GENERATION, reason=REASON),
    "refuse": record(epoch=maybe(_epoch), reason=REASON),
}

_LEFT = listing(record(member=MEMBER, was=REASON), 100000)

#: What a controller may submit: arguments of start_barrier.
SUBMISSION = record(
    run_id=RUN,
    trial_id=TRIAL,
    attempt=integer(1, 10**6),
    members=listing(
        record(
            name=MEMBER,
            rank=integer(0, 10**6),
            command=text(1024 * 1024),
            environment=mapping(VARIABLE, text(128 * 1024), 1000),
            links=maybe(mapping(relative_path, text(4096), 1000)),
            #: Which of the networks its rules are in, and its own addresses, to which they do not apply.
            network=maybe(text(64)),
            addresses=maybe(listing(text(64), 100)),
            site=maybe(SITE),
        ),
        100000,
    ),
    #: Many hosts of a trial do the same with what they send.
    networks=maybe(mapping(text(64), NETWORK, 10**5)),
    files=mapping(relative_path, text(LIMIT), 1000),
    #: Files of the members of a site, beside `files`.
    site_files=maybe(mapping(SITE, mapping(relative_path, text(LIMIT), 1000), 1000)),
    links=mapping(relative_path, text(4096), 1000),
    deadline=number(0.001, 10**6),
    timeout=number(0.001, 10**8),
    delivery_deadline=number(0, 10**6),
    #: Who may start: see `barrier.Seats`. Without it all members, and all are needed.
    seats=maybe(
        listing(
            record(members=listing(MEMBER, 100000), seats=integer(1, 100000), least=integer(1, 100000)),
            100000,
        )
    ),
    #: Seconds that those who were meant to start have once the seats could be filled by others.
    grace=number(0, 10**6),
    #: End with the roster, instead of starting, when others than those who were meant have to start.
    form=flag,
    formed_from=maybe(
        listing(
            record(attempt=integer(1, 10**6), roster=listing(MEMBER, 100000), replaced=_LEFT, dropped=_LEFT),
            100000,
        )
    ),
    on_early_exit=choice("continue", "stop_on_failure", "stop"),
    max_clock_error=number(0, 10**6),
    on_clock_error=choice("mark", "refuse"),
    collect=listing(text(1024), 1000),
    user=maybe(text(64, r"[A-Za-z_][A-Za-z0-9_.-]*\$?")),
    evidence=maybe(
        record(bucket=text(255), prefix=text(512), region=maybe(text(64)), endpoint_url=maybe(text(1024))),
    ),
    #: What was measured of the network before. Degraded marks the trial, invalid does not let it start.
    network_check=maybe(network_report),
)


def check(message: t.Any, table: t.Mapping[str, Check]) -> Message:
    """The message as `table` knows it, or `WireError`."""
    if not isinstance(message, dict):
        raise WireError("a message is not an object")
    kind = message.get("type")
    if not isinstance(kind, str) or kind not in table:
        raise WireError("a message of unknown type")
    found: Message = table[kind](message, kind)
    found["type"] = kind
    return found


def checked(value: t.Any, inner: Check, where: str) -> t.Dict[str, t.Any]:
    """`value` if it has the shape of `inner`, typed for callers that know it is a record."""
    found: t.Dict[str, t.Any] = inner(value, where)
    return found


# ---- names in certificates -------------------------------------------------------------------------------------------


def member_uri(run: str, member: str) -> str:
    """The subject alternative name of a member's certificate."""
    return f"startline://{run}/member/{member}"


def rendezvous_uri(run: str) -> str:
    """The subject alternative name of the rendezvous' certificate."""
    return f"startline://{run}/rendezvous"


def peer_uris(certificate: t.Optional[t.Mapping[str, t.Any]]) -> t.List[str]:
    """The URIs in a peer's certificate, as `ssl.SSLSocket.getpeercert` gives it."""
    return [value for kind, value in (certificate or {}).get("subjectAltName", ()) if kind == "URI"]


# ---- framing ---------------------------------------------------------------------------------------------------------


def _no_constant(name: str) -> t.Any:
    raise ValueError(f"{name} is not JSON")


def decode(line: bytes) -> t.Any:
    """The JSON value of one line, or `WireError`."""
    try:
        return json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise WireError(f"a line is not JSON ({type(error).__name__})") from None


def encode(kind: str, **fields: t.Any) -> bytes:
    """One message as a line. Epochs are written as objects."""
    fields["type"] = kind
    return dump({name: value.to_json() if isinstance(value, Epoch) else value for name, value in fields.items()})


def dump(value: t.Any) -> bytes:
    """A JSON value as one line."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def merge(*lines: bytes) -> bytes:
    """One object of several that were dumped, each with fields of its own: what is the same for many need not be dumped
    for each."""
    return b"{" + b",".join(line[1:-2] for line in lines) + b"}\n"


class Lines:
    """Cuts a stream into lines; refuses a line over the limit before it is complete, so that memory stays bounded."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> t.List[bytes]:
        """The lines that `data` completes, without their ends."""
        searched = len(self._rest)
        self._rest += data
        if self._rest.find(b"\n", searched) < 0:
            if len(self._rest) > self._limit:
                raise WireError(f"a line is longer than {self._limit} bytes")
            return []
        *lines, rest = bytes(self._rest).split(b"\n")
        if len(rest) > self._limit or any(len(line) > self._limit for line in lines):
            raise WireError(f"a line is longer than {self._limit} bytes")
        self._rest = bytearray(rest)
        return lines
