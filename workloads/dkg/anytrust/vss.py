# SPDX-License-Identifier: GPL-3.0-or-later
"""Verifiable secret sharing over the prime-order group of edwards25519.

A scalar is an ``int`` modulo `ORDER`; a point is its 32-byte encoding. Secrets are shared as Shamir (1979) does,
committed to as Pedersen (CRYPTO '91, hiding) or Feldman (FOCS '87, shows the public key) do.
The group's arithmetic is libsodium's, through the bindings that PyNaCl has had since 1.4.

Python's integers do not run in constant time: fit for an experiment, not for a wallet.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
import typing as t

from nacl.bindings import (
    crypto_core_ed25519_add,
    crypto_core_ed25519_is_valid_point,
    crypto_scalarmult_ed25519_base_noclamp,
    crypto_scalarmult_ed25519_noclamp,
)

ORDER = 2**252 + 27742317777372353535851937790883648493
Point = bytes
IDENTITY: Point = b"\x01" + bytes(31)


def is_point(value: bytes) -> bool:
    """Whether `value` encodes an element of the prime-order group other than the identity.

    libsodium up to 1.0.20 lets half of the points of order 2 * `ORDER` pass (CVE-2025-69277). A dealer who commits with
    one would look right to some parties and wrong to others, so the order is tested: ORDER * value is the identity.
    """
    return (
        len(value) == 32
        and crypto_core_ed25519_is_valid_point(value)
        and crypto_core_ed25519_add(multiply(ORDER - 1, value), value) == IDENTITY
    )


def add(*points: Point) -> Point:
    """The sum of `points`."""
    total = IDENTITY
    for point in points:
        total = crypto_core_ed25519_add(total, point)
    return total


def multiply(scalar: int, point: Point) -> Point:
    """`scalar` times `point`; libsodium refuses the cases whose result is the identity."""
    scalar %= ORDER
    if scalar == 0 or point == IDENTITY:
        return IDENTITY
    return crypto_scalarmult_ed25519_noclamp(scalar.to_bytes(32, "little"), point)


def base(scalar: int) -> Point:
    """`scalar` times the group's generator G."""
    scalar %= ORDER
    return crypto_scalarmult_ed25519_base_noclamp(scalar.to_bytes(32, "little")) if scalar else IDENTITY


def _second_generator() -> Point:
    """A generator H whose logarithm to the base G nobody knows: the first hash of a counter that is a group element."""
    candidates = (hashlib.sha256(b"startline dkg: second generator %d" % i).digest() for i in itertools.count())
    return next(candidate for candidate in candidates if is_point(candidate))


H = _second_generator()


class Share(t.NamedTuple):
    """What one party holds of one dealer's sharing: the secret polynomial's value and the blinding polynomial's."""

    value: int
    blinding: int


class Polynomial(tuple[int, ...]):
    """Coefficients, the constant first."""

    @classmethod
    def random(cls, degree: int) -> Polynomial:
        return cls(secrets.randbelow(ORDER) for _degree in range(degree + 1))

    def __call__(self, x: int) -> int:
        total = 0
        for coefficient in reversed(self):
            total = (total * x + coefficient) % ORDER
        return total


def pedersen(values: Polynomial, blindings: Polynomial) -> tuple[Point, ...]:
    """Commitments that hide `values` perfectly: a_k G + b_k H."""
    return tuple(add(base(a), multiply(b, H)) for a, b in zip(values, blindings))


def feldman(values: Polynomial) -> tuple[Point, ...]:
    """Commitments that show `values` in the exponent: a_k G. The first belongs to the shared secret."""
    return tuple(base(a) for a in values)


def evaluate(commitments: t.Sequence[Point], x: int) -> Point:
    """The commitment to the committed polynomial's value at `x` (Horner's rule in the exponent)."""
    total = IDENTITY
    for commitment in reversed(commitments):
        total = add(multiply(x, total), commitment)
    return total


def opens_pedersen(commitments: t.Sequence[Point], x: int, share: Share) -> bool:
    """Whether `share` is the one at `x` that the Pedersen `commitments` allow."""
    return add(base(share.value), multiply(share.blinding, H)) == evaluate(commitments, x)


def opens_feldman(commitments: t.Sequence[Point], x: int, value: int) -> bool:
    """Whether `value` is the one at `x` that the Feldman `commitments` allow."""
    return base(value) == evaluate(commitments, x)


def interpolate(values: t.Mapping[int, int]) -> Polynomial:
    """The polynomial of least degree through `values` (x -> y), by Lagrange; x distinct modulo `ORDER`."""
    coefficients = [0] * len(values)
    for x, y in values.items():
        numerator, denominator = [1], 1  # the product of (X - other), and its value at x
        for other in values:
            if other != x:
                shifted = [0, *numerator]
                for k, coefficient in enumerate(numerator):
                    shifted[k] = (shifted[k] - other * coefficient) % ORDER
                numerator, denominator = shifted, denominator * (x - other) % ORDER
        scale = y * pow(denominator, -1, ORDER)
        for k, coefficient in enumerate(numerator):
            coefficients[k] = (coefficients[k] + scale * coefficient) % ORDER
    return Polynomial(coefficients)


def reconstruct(values: t.Mapping[int, int]) -> int:
    """The shared secret, from the shares' values at t+1 (or more) places."""
    secret = 0
    for x, y in values.items():
        numerator = denominator = 1
        for other in values:
            if other != x:
                numerator = numerator * other % ORDER
                denominator = denominator * (other - x) % ORDER
        secret += y * numerator * pow(denominator, -1, ORDER)
    return secret % ORDER
