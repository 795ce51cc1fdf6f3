# SPDX-License-Identifier: GPL-3.0-or-later
"""What time it is here compared with the rendezvous, and how well that is known.

PRIVATE to the collection. The error model in full: docs/clock.md.

T is an instant of the rendezvous' clock. A host waits for it on its own CLOCK_MONOTONIC, which nobody can step, so what
is measured is the distance between the two. Three sources:

* ``phc``, ``ntp``: chrony disciplines this host's clock, by a PTP hardware clock or over the network, and the
  rendezvous' too. The error of each is at most |offset| + root dispersion + root delay / 2 (RFC 5905, section 11.2: the
  root distance), that of the distance their sum.
* ``rendezvous``: four time stamps over the connection (RFC 5905, section 8). Of several exchanges the one that says
  most is kept; whatever the asymmetry of the path, its error is at most half of its round trip.

Both are always measured, since the second costs a few round trips and catches a clock that is wrong although its
daemon is content. When they contradict each other the second wins, and the note says so.
"""

from __future__ import annotations

import time
import typing as t

#: ``-c``: comma-separated values, ``-n``: no name lookups.
CHRONY_COMMAND = ("chronyc", "-n", "-c", "tracking")

#: Exchanges with the rendezvous in one measurement.
SAMPLES = 8
#: How fast two clocks that nobody steers may drift apart (s/s). Oscillators are specified to 100 ppm at worst.
DRIFT = 250e-6
#: How fast a clock is slewed at most (s/s): the kernel takes a tick that is 10 % off, and 500 ppm of frequency.
SLEW = 0.1005
#: Less than this between CLOCK_REALTIME and CLOCK_MONOTONIC is the reading of them, not a step.
STEP_NS = 10**6


class Reading(t.NamedTuple):
    """This host's clocks, read together.

    `wall_ns` (CLOCK_REALTIME) can be stepped; `steady_ns` (CLOCK_MONOTONIC) only slewed, and both are slewed alike;
    `raw_ns` (CLOCK_MONOTONIC_RAW) is the bare oscillator.
    """

    wall_ns: int
    steady_ns: int
    raw_ns: int


def boot() -> str:
    """What tells this boot of the kernel from others: CLOCK_MONOTONIC begins anew with it."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
        return stream.read().strip()


def read() -> Reading:
    """The clocks now. Of three readings the closest one, for a process may lose its CPU between two clocks."""

    def once() -> t.Tuple[int, Reading]:
        begin = time.monotonic_ns()
        wall, raw = time.time_ns(), time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        end = time.monotonic_ns()
        return end - begin, Reading(wall, (begin + end) // 2, raw)

    return min(once() for _try in range(3))[1]


def parted_ns(before: Reading, after: Reading) -> int:
    """By how much CLOCK_REALTIME has left CLOCK_MONOTONIC between two readings, the error of reading them included."""
    return (after.wall_ns - after.steady_ns) - (before.wall_ns - before.steady_ns)


def stepped_ns(before: Reading, after: Reading) -> int:
    """By how much the wall clock was stepped between two readings; slewing does not count, and a suspended host does."""
    step = parted_ns(before, after)
    return step if abs(step) > STEP_NS else 0


def slewed_ns(before: Reading, after: Reading) -> int:
    """By how much a time daemon has moved CLOCK_MONOTONIC between two readings."""
    return abs((after.steady_ns - before.steady_ns) - (after.raw_ns - before.raw_ns))


def wander_ns(before: Reading, after: Reading) -> int:
    """How far CLOCK_MONOTONIC may have drifted from another host's between two readings: the oscillator's worth, and what
    a time daemon has slewed."""
    return int(abs(after.raw_ns - before.raw_ns) * DRIFT) + slewed_ns(before, after)


class Clock(t.NamedTuple):
    """This host's clock. ``wall clock here = rendezvous + offset_ns``, give or take `bound_ns`, at the reading that
    `wall_ns`, `steady_ns` and `raw_ns` are, and by a rendezvous' clock that stood `ahead_ns` ahead of its own oscillator.
    """

    source: str
    offset_ns: int
    bound_ns: int
    rtt_ns: t.Optional[int] = None
    note: t.Optional[str] = None
    #: By how much the wall clock was stepped since the first measurement for this T, which does not move with it.
    stepped_ns: int = 0
    #: How far this clock has drifted since an earlier measurement beyond what both bounds explain.
    drifted_ns: int = 0
    wall_ns: int = 0
    steady_ns: int = 0
    raw_ns: int = 0
    #: The rendezvous says it. What it changes by, its clock was slewed by, which no clock here can tell.
    ahead_ns: int = 0

    @property
    def reading(self) -> Reading:
        return Reading(self.wall_ns, self.steady_ns, self.raw_ns)

    @property
    def steady_offset_ns(self) -> int:
        """CLOCK_MONOTONIC here less the rendezvous' clock."""
        return self.offset_ns - (self.wall_ns - self.steady_ns)

    def to_steady(self, rendezvous_ns: int) -> int:
        """An instant of the rendezvous' clock, on this host's CLOCK_MONOTONIC."""
        return rendezvous_ns + self.steady_offset_ns

    def to_rendezvous(self, steady_ns: int) -> int:
        """An instant of this host's CLOCK_MONOTONIC, on the rendezvous' clock."""
        return steady_ns - self.steady_offset_ns

    def bound_at(self, now: Reading) -> int:
        """The bound at a later reading."""
        return self.bound_ns + wander_ns(self.reading, now)

    def carried(self, now: Reading) -> Clock:
        """The same at a later reading: the distance of CLOCK_MONOTONIC stands, less well known by what it may have drifted."""
        offset_ns = self.steady_offset_ns + now.wall_ns - now.steady_ns
        stepped = self._stepped_by(now)
        return self._replace(offset_ns=offset_ns, bound_ns=self.bound_at(now), stepped_ns=stepped, **now._asdict())

    def told(self, ahead_ns: int) -> Clock:
        """The same by a rendezvous' clock that is `ahead_ns` ahead by now."""
        return self._replace(bound_ns=self.bound_ns + abs(ahead_ns - self.ahead_ns), ahead_ns=ahead_ns)

    def renewed(self, found: Clock) -> Clock:
        """The better of this measurement and a later one for the same T, at the later one's reading."""
        carried = self.carried(found.reading).told(found.ahead_ns)
        return found._replace(stepped_ns=carried.stepped_ns) if found.bound_ns <= carried.bound_ns else carried

    def _stepped_by(self, now: Reading) -> int:
        return self.stepped_ns + stepped_ns(self.reading, now)

    def since(self, before: Clock) -> Clock:
        """This measurement with what it says of the time since `before`."""
        moved = self.steady_offset_ns - before.steady_offset_ns
        slewed = abs(self.ahead_ns - before.ahead_ns)
        explained = before.bound_ns + self.bound_ns + wander_ns(before.reading, self.reading) + slewed
        return self._replace(drifted_ns=moved if abs(moved) > explained else 0)

    def to_json(self) -> t.Dict[str, t.Any]:
        return dict(self._asdict())


def parse_tracking(text: str) -> t.Optional[Clock]:
    """The answer of `CHRONY_COMMAND`, or None when chrony is not there, or does not follow a reference.

    Fields: reference id, address or name of the reference, stratum, reference time, system time offset, last offset, RMS
    offset, frequency, residual frequency, skew, root delay, root dispersion, update interval, leap status; seconds
    throughout. The bound is against UTC.
    """
    fields = text.strip().split(",")
    if len(fields) < 14:
        return None
    reference, name, stratum, leap = fields[0], fields[1], fields[2], fields[-1].strip()
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
    # A reference clock has a name where a server has its address: PHC0, or what the configuration calls it.
    return Clock("phc" if name.startswith(("PHC", "PTP")) else "ntp", 0, int(bound * 1e9) + 1)


class _Sample(t.NamedTuple):
    """One exchange: what it says of the distance of the two clocks, when it was back, and how far the other was ahead."""

    round_trip_ns: int
    offset_ns: int
    error_ns: int
    back_ns: int
    ahead_ns: int


class Estimate:
    """The distance to the rendezvous by the exchange that says most. `begin`: the clocks before the first one."""

    def __init__(self, begin: Reading) -> None:
        self.begin = begin
        self.samples = 0
        self._kept: t.List[_Sample] = []

    def add(self, sent_ns: int, came_ns: int, went_ns: int, back_ns: int, ahead_ns: int) -> None:
        """One exchange: sent and back on this host's CLOCK_MONOTONIC, came and went on the rendezvous' clock, and how far
        that was ahead when it went."""
        # Of the rendezvous' clock only these two readings count, and it may have been slewed between them.
        slewed = int((went_ns - came_ns) * SLEW)
        round_trip = (back_ns - sent_ns) - (went_ns - came_ns)
        self.samples += 1
        if went_ns < came_ns or round_trip < -slewed - 1:
            return  # the rendezvous was restarted in the middle of it, or makes its times up
        round_trip = max(0, round_trip)
        offset = ((sent_ns - came_ns) + (back_ns - went_ns)) // 2
        error = round_trip // 2 + 1 + slewed
        self._kept.append(_Sample(round_trip, offset, error, back_ns, ahead_ns))

    def clock(self, now: Reading) -> t.Optional[Clock]:
        """What the exchanges say, as of `now`. They grow old, as in the clock filter of RFC 5905, section 10."""
        if not self._kept:
            return None

        slewed = slewed_ns(self.begin, now)

        def bound(sample: _Sample) -> int:
            return sample.error_ns + int(abs(now.steady_ns - sample.back_ns) * DRIFT) + slewed

        best = min(self._kept, key=bound)
        offset = best.offset_ns + now.wall_ns - now.steady_ns
        found = Clock("rendezvous", offset, bound(best), best.round_trip_ns, ahead_ns=best.ahead_ns)
        return found._replace(**now._asdict())


def choose(
    own: t.Optional[Clock], reference_bound_ns: t.Optional[int], estimate: t.Optional[Clock]
) -> t.Optional[Clock]:
    """The better of two ways to know the rendezvous' time, or None when there is none.

    `own` is this host's disciplined clock; `reference_bound_ns` the bound of the rendezvous' disciplined clock, None
    when it is not disciplined: T is said on that clock, so then only the measured offset helps.
    """
    if own is None or reference_bound_ns is None:
        return estimate
    together = own._replace(bound_ns=own.bound_ns + reference_bound_ns)
    if estimate is None:
        return together
    if abs(estimate.offset_ns) > together.bound_ns + estimate.bound_ns:
        claim, found = together.bound_ns / 1e9, estimate.offset_ns / 1e9
        note = f"{own.source} claims an error below {claim:.6f} s, but the rendezvous' clock is {found:.6f} s away"
        return estimate._replace(note=note)
    if estimate.bound_ns < together.bound_ns:
        return estimate  # a short path to the rendezvous tells more than a far reference clock
    return together._replace(rtt_ns=estimate.rtt_ns)
