# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the long tests: those of the agent's."""

from __future__ import annotations

from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent.conftest import make_world

__all__ = ["make_world"]
