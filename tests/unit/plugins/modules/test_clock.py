# SPDX-License-Identifier: GPL-3.0-or-later
"""What chronyd is told."""

from __future__ import annotations

from ansible_collections.startline.lab.plugins.modules.clock import fragment


def test_the_servers_stand_in_their_order_and_poll_often() -> None:
    lines = fragment(["169.254.169.123", "ntp.example.org"], 50).splitlines()
    assert [line for line in lines if line.startswith("server ")] == [
        "server 169.254.169.123 prefer iburst minpoll 4 maxpoll 4",
        "server ntp.example.org prefer iburst minpoll 4 maxpoll 4",
    ]
    assert "maxclockerror 50" in lines
    assert "makestep 0.1 3" in lines
