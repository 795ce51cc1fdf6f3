# SPDX-License-Identifier: GPL-3.0-or-later
"""The arithmetic of the DKG workload."""

from __future__ import annotations

import pytest
from anytrust import vss
from anytrust.vss import IDENTITY, ORDER, Polynomial, Share
from hypothesis import given, settings
from hypothesis import strategies as st

scalars = st.one_of(st.integers(0, 3), st.integers(0, ORDER - 1), st.integers(ORDER - 3, ORDER - 1))
polynomials = st.lists(scalars, min_size=1, max_size=6).map(Polynomial)
places = st.integers(1, 300)


@given(polynomials, st.data())
def test_enough_shares_reconstruct_the_secret(polynomial: Polynomial, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(places, min_size=len(polynomial), max_size=len(polynomial) + 3, unique=True))
    shares = {x: polynomial(x) for x in chosen}
    assert vss.reconstruct(shares) == polynomial[0]
    interpolated = vss.interpolate(shares)
    assert interpolated[: len(polynomial)] == tuple(polynomial)
    assert not any(interpolated[len(polynomial) :])


@given(st.lists(scalars, min_size=2, max_size=6).map(Polynomial), scalars, st.data())
def test_too_few_shares_fit_every_secret(polynomial: Polynomial, other: int, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(places, min_size=len(polynomial) - 1, max_size=len(polynomial) - 1, unique=True))
    fitting = vss.interpolate({0: other, **{x: polynomial(x) for x in chosen}})
    assert fitting(0) == other
    assert all(fitting(x) == polynomial(x) for x in chosen)


@settings(max_examples=40)
@given(st.lists(st.tuples(scalars, scalars), min_size=1, max_size=4), places, st.integers(1, ORDER - 1))
def test_a_wrong_share_is_detected(pairs: list[tuple[int, int]], x: int, error: int) -> None:
    values, blindings = (Polynomial(column) for column in zip(*pairs, strict=True))
    hiding, showing = vss.pedersen(values, blindings), vss.feldman(values)
    share = Share(values(x), blindings(x))
    assert vss.opens_pedersen(hiding, x, share)
    assert vss.opens_feldman(showing, x, share.value)
    wrong = (share.value + error) % ORDER
    assert not vss.opens_pedersen(hiding, x, share._replace(value=wrong))
    assert not vss.opens_pedersen(hiding, x, share._replace(blinding=(share.blinding + error) % ORDER))
    assert not vss.opens_feldman(showing, x, wrong)


@settings(max_examples=40)
@given(scalars, scalars)
def test_multiplication_distributes(a: int, b: int) -> None:
    for point in (vss.base(1), vss.H, IDENTITY):
        assert vss.add(vss.multiply(a, point), vss.multiply(b, point)) == vss.multiply(a + b, point)
    assert vss.base(a) == vss.multiply(a, vss.base(1))


def test_the_second_generator_is_the_same_with_every_libsodium() -> None:
    assert bytes.fromhex("ccc10c342465a4c0919ef856e61ec6fd87cf6624b8c25462622aefdc114c0b9c") == vss.H
    assert vss.is_point(vss.H)
    assert vss.base(1) != vss.H


@pytest.mark.parametrize(
    "value",
    [
        b"",
        bytes(31),
        bytes(33),
        bytes(32),  # order 4
        IDENTITY,
        (2**255 - 20).to_bytes(32, "little"),  # y = -1: order 2
        bytes([2]) + bytes(31),  # not on the curve
        b"\xff" * 32,  # not canonical
        # order 2 * ORDER: passes libsodium 1.0.18
        bytes.fromhex("3f8d219cc51b80977ba36e34f48e42ef8c393f260313db6cc5de609adde0920e"),
    ],
)
def test_what_is_not_in_the_prime_order_group_is_no_point(value: bytes) -> None:
    assert not vss.is_point(value)
