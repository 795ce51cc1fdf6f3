# SPDX-License-Identifier: GPL-3.0-or-later
"""What chronyd is told."""

from __future__ import annotations

import pathlib

import pytest

from ansible_collections.startline.lab.plugins.modules.clock import find_hardware_clock, fragment


def test_the_servers_stand_in_their_order() -> None:
    lines = fragment(["169.254.169.123", "ntp.example.org", "192.0.2.1"], 50).splitlines()
    assert [line for line in lines if line.startswith(("server ", "refclock "))] == [
        "server 169.254.169.123 prefer iburst minpoll -1 maxpoll 4",
        "server ntp.example.org prefer iburst minpoll 4 maxpoll 4",
        "server 192.0.2.1 prefer iburst minpoll 4 maxpoll 4",
    ]
    assert "maxclockerror 50" in lines
    assert "makestep 0.1 3" in lines


def test_a_hardware_clock_comes_first() -> None:
    lines = fragment(["169.254.169.123"], 50, "/dev/ptp_ena").splitlines()
    assert lines[1:3] == [
        "refclock PHC /dev/ptp_ena poll 0 delay 0.000010 prefer",
        "server 169.254.169.123 prefer iburst minpoll -1 maxpoll 4",
    ]


@pytest.mark.parametrize(
    ("names", "link", "found"),
    [
        ([], False, None),
        (["KVM virtual PTP"], False, None),
        (["KVM virtual PTP", "ena-ptp-05"], False, "/dev/ptp1"),
        (["ena-ptp-05"], True, "/dev/ptp_ena"),
    ],
)
def test_only_the_network_adapters_clock_is_taken(
    tmp_path: pathlib.Path, names: list[str], link: bool, found: str | None
) -> None:
    (tmp_path / "dev").mkdir()
    for number, name in enumerate(names):
        clock = tmp_path / f"sys/class/ptp/ptp{number}"
        clock.mkdir(parents=True)
        (clock / "clock_name").write_text(name + "\n")
        (tmp_path / f"dev/ptp{number}").touch()
    if link:
        (tmp_path / "dev/ptp_ena").symlink_to("ptp0")
    assert find_hardware_clock(str(tmp_path)) == found
