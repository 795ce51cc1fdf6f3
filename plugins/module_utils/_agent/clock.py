# SPDX-License-Identifier: GPL-3.0-or-later
"""What time it is here compared with the rendezvous, and how well that is known.

PRIVATE to the collection. Two sources; a PTP hardware clock would be a third one beside them:

* ``chrony``: the host's clock is disciplined. Its error is at most |offset| + root dispersion + root delay / 2 (RFC
  5905, section 11.2: the root distance). Offset to the rendezvous is taken as zero, if the rendezvous' clock is
  disciplined too.
* ``rendezvous``: four time stamps over the connection (RFC 5905, section 8). Of several exchanges the one with the
  smallest round trip is kept; whatever the asymmetry of the path, the error is at most half of that round trip.

Both are always measured, since the second costs a few round trips and catches a clock that is wrong although its
daemon is content. When they contradict each other the second wins, and the note says so.
"""

from __future__ import annotations

import typing as t

#: ``-c``: comma-separated values, ``-n``: no name lookups.
CHRONY_COMMAND = ("chronyc", "-n", "-c", "tracking")

#: Exchanges with the rendezvous before a trial.
SAMPLES = 8


class Clock(t.NamedTuple):
    """This host's clock. ``here = rendezvous + offset_ns``, give or take `bound_ns`."""

    source: str
    offset_ns: int
    bound_ns: int
    rtt_ns: t.Optional[int] = None
    note: t.Optional[str] = None

    def to_local(self, rendezvous_ns: int) -> int:
        """An instant said in the rendezvous' time, on this host's clock."""
        return rendezvous_ns + self.offset_ns

    def to_json(self) -> t.Dict[str, t.Any]:
        return dict(self._asdict())


def parse_tracking(text: str) -> t.Optional[Clock]:
    """The answer of `CHRONY_COMMAND`, or None when chrony is not there, or does not follow a reference.

    Fields: reference id, address, stratum, reference time, system time offset, last offset, RMS offset, frequency,
    residual frequency, skew, root delay, root dispersion, update interval, leap status; seconds throughout.
    """
    fields = text.strip().split(",")
    if len(fields) < 14:
        return None
    reference, stratum, leap = fields[0], fields[2], fields[-1].strip()
    if leap == "Not synchronised" or reference in ("", "00000000") or stratum == "0":
        return None
    if reference == "7F7F0101":  # chrony's "local": it follows its own clock, which proves nothing
        return None
    try:
        offset, root_delay, root_dispersion = (float(fields[i]) for i in (4, 10, 11))
    except ValueError:
        return None
    bound = abs(offset) + abs(root_dispersion) + abs(root_delay) / 2
    if not bound < 1e9:  # also catches NaN
        return None
    return Clock("chrony", 0, int(bound * 1e9) + 1)


class Estimate:
    """The offset to the rendezvous by the exchange with the smallest round trip."""

    def __init__(self) -> None:
        self.samples = 0
        self._best: t.Optional[t.Tuple[int, int]] = None

    def add(self, sent_ns: int, came_ns: int, went_ns: int, back_ns: int) -> None:
        """One exchange: sent and back on this host's clock, came and went on the rendezvous'."""
        round_trip = (back_ns - sent_ns) - (went_ns - came_ns)
        self.samples += 1
        if round_trip < 0 or went_ns < came_ns:
            return  # a clock was stepped in the middle of it
        offset = ((sent_ns - came_ns) + (back_ns - went_ns)) // 2
        if self._best is None or round_trip < self._best[0]:
            self._best = (round_trip, offset)

    @property
    def clock(self) -> t.Optional[Clock]:
        if self._best is None:
            return None
        round_trip, offset = self._best
        return Clock("rendezvous", offset, round_trip // 2 + 1, round_trip)


def choose(
    own: t.Optional[Clock], reference_bound_ns: t.Optional[int], estimate: t.Optional[Clock]
) -> t.Optional[Clock]:
    """The better of two ways to know the time, or None when there is none.

    `own` is this host's disciplined clock; `reference_bound_ns` the bound of the rendezvous' disciplined clock, None
    when it is not disciplined: T is said on that clock, so then only the measured offset helps.
    """
    if own is None or reference_bound_ns is None:
        return estimate
    if estimate is None:
        return own
    allowed = own.bound_ns + reference_bound_ns + estimate.bound_ns
    if abs(estimate.offset_ns) > allowed:
        claim, found = own.bound_ns / 1e9, estimate.offset_ns / 1e9
        note = f"{own.source} claims an error below {claim:.6f} s, but the rendezvous' clock is {found:.6f} s away"
        return estimate._replace(note=note)
    if estimate.bound_ns < own.bound_ns:
        return estimate  # a short path to the rendezvous tells more than a far reference clock
    return own._replace(rtt_ns=estimate.rtt_ns)
