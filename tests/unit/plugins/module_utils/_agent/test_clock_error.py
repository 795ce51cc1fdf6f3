# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts whose clocks are wrong start right, and the reported bound is true: benchmarks/clock_error.py, shortened."""

from __future__ import annotations

import pathlib

from benchmarks import clock_error


def test_the_true_start_is_within_the_reported_bound(tmp_path: pathlib.Path) -> None:
    found = clock_error.measure(members=3, trials=5, seed=4, directory=tmp_path)
    assert clock_error.violations(found) == []
    rows = [row for trial, _skew, _allowed in found for row in trial]
    assert len(rows) == 15
    assert max(abs(row.wall) for row in rows) > 10 * max(row.bound for row in rows), "the clocks were wrong"
