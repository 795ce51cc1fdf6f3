# SPDX-License-Identifier: GPL-3.0-or-later
"""The workloads are programs, not parts of the collection: their own directory is where they import from."""

from __future__ import annotations

import pathlib
import sys

WORKLOADS = pathlib.Path(__file__).parents[3] / "workloads"
sys.path[:0] = [str(WORKLOADS / "dkg"), str(WORKLOADS / "mesh")]
