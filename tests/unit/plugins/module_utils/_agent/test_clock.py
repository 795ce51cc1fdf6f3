# SPDX-License-Identifier: GPL-3.0-or-later
"""What time it is, and how well that is known."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ansible_collections.startline.lab.plugins.module_utils._agent.clock import (
    Clock,
    Estimate,
    Reading,
    choose,
    parse_tracking,
    read,
    stepped_ns,
    wander_ns,
)

TRACKING = (
    "A9FEA97B,169.254.169.123,4,1767268800.123456789,0.000010000,-0.000002000,0.000012000,"
    "-8.123,0.001,0.050,0.000400000,0.000030000,16.3,Normal\n"
)


def test_the_bound_is_offset_and_dispersion_and_half_the_delay() -> None:
    clock = parse_tracking(TRACKING)
    assert clock is not None
    assert (clock.source, clock.offset_ns) == ("ntp", 0)
    assert clock.bound_ns == pytest.approx(10_000 + 30_000 + 200_000, abs=2)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "506 Cannot talk to daemon\n",
        TRACKING.replace("Normal", "Not synchronised"),
        TRACKING.replace("A9FEA97B", "00000000"),
        TRACKING.replace("A9FEA97B", "7F7F0101"),
        TRACKING.replace(",4,", ",0,"),
        TRACKING.replace("0.000400000", "soon"),
        TRACKING.replace("0.000400000", "nan"),
    ],
)
def test_a_clock_that_follows_nothing_is_no_source(text: str) -> None:
    assert parse_tracking(text) is None


@given(
    offset=st.integers(-(10**10), 10**10),
    trips=st.lists(
        st.tuples(st.integers(0, 10**8), st.integers(0, 10**8), st.integers(0, 10**7)), min_size=1, max_size=9
    ),
)
def test_the_true_offset_is_always_within_the_bound(offset: int, trips: list[tuple[int, int, int]]) -> None:
    """However long a message takes in each direction."""
    estimate, now = Estimate(Reading(0, offset, offset)), 10**18
    for there, back, held in trips:
        sent, came = now + offset, now + there
        went = came + held
        estimate.add(sent, came, went, went + back + offset, 0)
        now = went + back + 1000
    clock = estimate.clock(Reading(*[now + offset] * 3))
    assert clock is not None
    assert abs(clock.offset_ns - offset) <= clock.bound_ns
    assert clock.rtt_ns in {there + back for there, back, _held in trips}


@pytest.mark.parametrize(("name", "source"), [("PHC0", "phc"), ("PTP", "phc"), ("GPS", "ntp"), ("10.0.0.1", "ntp")])
def test_a_hardware_clock_is_known_by_its_name(name: str, source: str) -> None:
    clock = parse_tracking(TRACKING.replace("A9FEA97B,169.254.169.123,4", f"50484330,{name},1"))
    assert clock is not None
    assert clock.source == source


def test_an_old_exchange_is_worth_less_than_a_new_one() -> None:
    estimate = Estimate(Reading(0, 0, 0))
    estimate.add(0, 0, 0, 2000, 0)
    estimate.add(10**9, 10**9, 10**9, 10**9 + 4000, 0)
    clock = estimate.clock(Reading(0, 10**9 + 4000, 10**9 + 4000))
    assert clock is not None
    assert (clock.rtt_ns, clock.bound_ns) == (4000, 2001)
    slewed = estimate.clock(Reading(0, 10**9 + 4000, 10**9 + 3000))
    assert slewed is not None
    assert slewed.bound_ns == 3001


def test_an_exchange_over_a_stepped_clock_is_not_used() -> None:
    estimate = Estimate(Reading(0, 0, 0))
    estimate.add(1000, 5000, 6000, 500, 0)
    estimate.add(1000, 6000, 5000, 2000, 0)
    assert estimate.clock(Reading(0, 0, 0)) is None
    assert estimate.samples == 2


OWN = Clock("ntp", 0, 1_000_000)


def near(offset: int, bound: int) -> Clock:
    return Clock("rendezvous", offset, bound, 2 * bound)


def test_a_disciplined_clock_is_taken_when_both_are_and_they_agree() -> None:
    assert choose(OWN, 1_000_000, near(500_000, 40_000_000)) == OWN._replace(bound_ns=2_000_000, rtt_ns=80_000_000), (
        "T is said on the rendezvous' clock: its error counts too"
    )


def test_a_short_path_tells_more_than_a_far_reference() -> None:
    assert choose(OWN, 1_000_000, near(2_000, 50_000)) == near(2_000, 50_000)


def test_without_discipline_at_the_rendezvous_only_the_measured_offset_helps() -> None:
    estimate = near(2_000_000_000, 50_000)
    assert choose(OWN, None, estimate) == estimate
    assert choose(None, 1_000, estimate) == estimate


def test_a_clock_that_is_wrong_although_its_daemon_is_content() -> None:
    found = choose(OWN, 1_000_000, near(2_000_000_000, 3_000_000))
    assert found is not None
    assert (found.source, found.offset_ns) == ("rendezvous", 2_000_000_000)
    assert found.note is not None
    assert "2.000000 s away" in found.note


def test_nothing_is_known() -> None:
    assert choose(None, None, None) is None
    assert choose(OWN, 5, None) == OWN._replace(bound_ns=1_000_005)


def test_an_instant_is_moved_by_the_offset() -> None:
    clock = near(-7, 1)._replace(wall_ns=10_000, steady_ns=500)
    assert clock.to_steady(10_007) == 500, "at the reading the wall clock says 10,000, and the rendezvous 7 more"
    assert clock.to_rendezvous(500) == 10_007


BEFORE = near(0, 1000)._replace(wall_ns=10**18, steady_ns=10**12, raw_ns=10**12)


def after(seconds: float, step: int = 0, slew: int = 0) -> Reading:
    """The clocks later; the wall clock was stepped, and both were slewed."""
    passed = int(seconds * 1e9)
    return Reading(10**18 + passed + slew + step, 10**12 + passed + slew, 10**12 + passed)


def test_a_step_before_t_moves_neither_t_nor_the_bound_and_is_told() -> None:
    stepped, plain = BEFORE.carried(after(2, step=-(2 * 10**9))), BEFORE.carried(after(2))
    assert stepped.stepped_ns == -2 * 10**9
    assert (stepped.bound_ns, stepped.steady_offset_ns) == (plain.bound_ns, plain.steady_offset_ns)
    assert stepped.offset_ns == plain.offset_ns - 2 * 10**9, "of its wall clock"
    assert stepped.to_steady(5) == BEFORE.to_steady(5)
    assert plain.bound_ns == 1000 + 500_000, "two seconds of what oscillators may differ by"


def test_a_new_measurement_does_not_hide_a_step() -> None:
    later = after(5, step=10**9)
    renewed = BEFORE.renewed(near(0, 900)._replace(**later._asdict()))
    assert (renewed.bound_ns, renewed.stepped_ns) == (900, 10**9)
    assert renewed.carried(after(6, step=3 * 10**9)).stepped_ns == 3 * 10**9
    worse = near(0, 10**9)._replace(**later._asdict())
    kept = BEFORE.renewed(worse)
    assert (kept.stepped_ns, kept.steady_offset_ns) == (10**9, BEFORE.steady_offset_ns), (
        "of the first, and the step is seen"
    )
    assert kept.bound_ns == BEFORE.bound_at(later)
    assert kept.carried(after(6, step=3 * 10**9)).stepped_ns == 3 * 10**9


def test_what_a_daemon_slews_is_no_step_but_widens_the_bound() -> None:
    found = BEFORE.carried(after(1, slew=80_000_000))
    assert found.stepped_ns == 0
    assert found.bound_ns == 1000 + 250_000 + 80_000_000


def test_drift_that_both_measurements_explain_is_none() -> None:
    later = after(10)
    for moved, told in ((2_400_000, 0), (2_600_000, 2_600_000), (-2_600_000, -2_600_000)):
        measured = near(moved, 1000)._replace(**later._asdict())
        assert measured.since(BEFORE).drifted_ns == told


def test_what_the_rendezvous_clock_was_slewed_by_widens_the_bound() -> None:
    measured = BEFORE._replace(ahead_ns=5_000_000)
    for ahead in (2_000_000, 8_000_000):
        told = measured.told(ahead)
        assert (told.bound_ns, told.ahead_ns) == (1000 + 3_000_000, ahead)
        assert told.told(ahead) == told
    later = after(5)
    found = near(-3_000_000, 900_000)._replace(ahead_ns=8_000_000, **later._asdict())
    assert measured.renewed(found) == found, "the old one alone would be known to 1 us and the drift"
    worse = measured.renewed(found._replace(bound_ns=10**9))
    assert (worse.bound_ns, worse.ahead_ns) == (BEFORE.bound_at(later) + 3_000_000, 8_000_000)
    assert found.since(measured).drifted_ns == 0
    assert found._replace(ahead_ns=measured.ahead_ns).since(measured).drifted_ns == -3_000_000


@example(rates=[0.0625] * 20, trips=[(0, 16, 0, 0)], passed=0)  # no round trip, less than none by a slewed clock
@given(
    rates=st.lists(st.floats(-0.1, 0.1), min_size=20, max_size=20),
    trips=st.lists(st.tuples(*[st.integers(0, 10**8)] * 4), min_size=1, max_size=9),
    passed=st.integers(0, 10**9),
)
def test_the_bound_holds_while_the_rendezvous_clock_is_slewed(
    rates: list[float], trips: list[tuple[int, int, int, int]], passed: int
) -> None:
    """At any time, at another rate every 100 ms: also within an exchange, between several, and until T is decided."""

    def slewed(at: int) -> int:
        return sum(int(rate * min(max(at - begin * 10**8, 0), 10**8)) for begin, rate in enumerate(rates))

    estimate, now = Estimate(Reading(0, 0, 0)), 0
    for there, held, back, pause in trips:
        came, went = now + there, now + there + held
        estimate.add(now, came + slewed(came), went + slewed(went), went + back, slewed(went))
        now = went + back + pause
    clock = estimate.clock(Reading(now, now, now))
    assert clock is not None
    decided = now + passed
    told = clock.carried(Reading(decided, decided, decided)).told(slewed(decided))
    assert abs(told.steady_offset_ns + slewed(decided)) <= told.bound_ns


def test_the_clocks_are_read_together() -> None:
    assert stepped_ns(read(), read()) == 0
    assert wander_ns(read(), read()) < 10**6
