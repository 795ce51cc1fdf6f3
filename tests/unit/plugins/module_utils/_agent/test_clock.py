# SPDX-License-Identifier: GPL-3.0-or-later
"""What time it is, and how well that is known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.startline.lab.plugins.module_utils._agent.clock import (
    Clock,
    Estimate,
    choose,
    parse_tracking,
)

TRACKING = (
    "A9FEA97B,169.254.169.123,4,1767268800.123456789,0.000010000,-0.000002000,0.000012000,"
    "-8.123,0.001,0.050,0.000400000,0.000030000,16.3,Normal\n"
)


def test_the_bound_is_offset_and_dispersion_and_half_the_delay() -> None:
    clock = parse_tracking(TRACKING)
    assert clock is not None
    assert (clock.source, clock.offset_ns) == ("chrony", 0)
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
    estimate, now = Estimate(), 10**18
    for there, back, held in trips:
        sent, came = now + offset, now + there
        went = came + held
        estimate.add(sent, came, went, went + back + offset)
        now = went + back + 1000
    clock = estimate.clock
    assert clock is not None
    assert abs(clock.offset_ns - offset) <= clock.bound_ns
    assert clock.rtt_ns == min(there + back for there, back, _held in trips)


def test_an_exchange_over_a_stepped_clock_is_not_used() -> None:
    estimate = Estimate()
    estimate.add(1000, 5000, 6000, 500)
    estimate.add(1000, 6000, 5000, 2000)
    assert estimate.clock is None
    assert estimate.samples == 2


OWN = Clock("chrony", 0, 1_000_000)


def near(offset: int, bound: int) -> Clock:
    return Clock("rendezvous", offset, bound, 2 * bound)


def test_a_disciplined_clock_is_taken_when_both_are_and_they_agree() -> None:
    assert choose(OWN, 1_000_000, near(500_000, 40_000_000)) == OWN._replace(rtt_ns=80_000_000)


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
    assert choose(OWN, 5, None) == OWN


def test_an_instant_is_moved_by_the_offset() -> None:
    assert near(-7, 1).to_local(100) == 93
