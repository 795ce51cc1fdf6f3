# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections that say nothing: few here, ten thousand in tests/soak."""

from __future__ import annotations

import typing as t

from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent.silence import check_silence
from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent.world import World


def test_connections_that_say_nothing_are_closed_and_hurt_nobody(make_world: t.Callable[..., World]) -> None:
    check_silence(make_world(2), 300)
