# SPDX-License-Identifier: GPL-3.0-or-later
"""An agent whose disk is full: by the command, and before it; and a rendezvous."""

from __future__ import annotations

import os
import pathlib
import subprocess
import typing as t

import pytest

from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent.world import RUN, World, until

Make = t.Callable[..., World]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> t.Iterator[t.Callable[[World, str], pathlib.Path]]:
    """Gives a member of a world a disk of 1 MiB for its state."""
    mounted: list[pathlib.Path] = []

    def mount(world: World, member: str) -> pathlib.Path:
        directory = world.directory / member / "state"
        directory.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)], check=True)
        mounted.append(directory)
        return directory

    yield mount
    for directory in mounted:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(path: pathlib.Path) -> None:
    """Take all that the disk has left."""
    with path.open("wb", buffering=0) as stream:
        for size in (65536, 4096):
            try:
                while stream.write(b"x" * size):
                    pass
            except OSError:
                continue


@pytest.mark.parametrize("killed", [False, True])
def test_what_a_command_did_that_has_filled_the_disk_is_told(make_world: Make, small_disk: t.Any, killed: bool) -> None:
    """Even by an agent that was killed meanwhile; and the next trial finds room again."""
    world = make_world(1)
    small_disk(world, "party-0")
    world.start_all()
    flag = world.directory / "go"
    full = "echo begun; cat /dev/zero > rest; echo lost >> other"
    waiting = world.submit(world.trial(f"{full}; until [ -e {flag} ]; do sleep 0.05; done; exit 7"))
    until(lambda: world.state("party-0") == "fired", what="the start")
    until((world.spool("party-0") / "work" / "other").exists, what="the full disk")
    if killed:
        world.kill("party-0")
        world.start("party-0")
        until(lambda: "resumed" in world.log("party-0"), what="the resume")
    flag.touch()
    result = world.result(waiting)
    row = result["members"]["party-0"]
    assert row["exit_code"] == 7
    assert [file["path"] for file in row["files"]] == ["stdout", "stderr", "meta.json"]
    assert row["files"][0]["size"] == len("begun\n")
    assert "Traceback" not in world.log("party-0")
    (world.spool("party-0") / "work" / "rest").unlink()
    assert world.run(world.trial("true", "r2"))["verdict"] == "valid"
    assert not list((world.directory / "party-0" / "state").glob("trials/*/*/*/ballast.*")), (
        "nothing is put aside any more"
    )


@pytest.mark.parametrize("moment", ["before it is prepared", "while it waits for others"])
def test_a_host_whose_disk_is_full_before_t_does_not_start(make_world: Make, small_disk: t.Any, moment: str) -> None:
    """It would not know any more that it has started, were it killed."""
    world = make_world(2)
    directory = small_disk(world, "party-0")
    early = moment == "before it is prepared"
    if early:
        (directory / "trials" / RUN).mkdir(parents=True)
        fill(directory / "rest")
    world.start("rendezvous", "party-0")
    waiting = world.submit(world.trial("echo once"))
    if not early:
        until(lambda: world.state("party-0") == "armed", what="arming")
        fill(directory / "rest")
    world.start("party-1")
    result = world.result(waiting)
    row = result["members"]["party-0"]
    what = "cannot prepare" if early else "cannot write its record"
    assert row["reason"].startswith(f"{what}: No space left on device")
    assert any("party-0" in reason for reason in result["reasons"])
    assert row["fired_at"] is None
    assert result["verdict"] in ("invalid", "aborted")
    assert "Traceback" not in world.log("party-0")
    (directory / "rest").unlink()
    assert world.run(world.trial("true", "r2"))["verdict"] == "valid"


@pytest.mark.parametrize("killed", [False, True])
def test_a_rendezvous_whose_disk_is_full_ends_its_trial_properly(
    make_world: Make, small_disk: t.Any, killed: bool
) -> None:
    """Even one that was killed meanwhile: what lets go of the room is that it goes on. The next trial waits for room."""
    world = make_world(2)
    directory = small_disk(world, "rendezvous")
    world.start_all()
    flag = world.directory / "go"
    waiting = world.submit(world.trial(f"until [ -e {flag} ]; do sleep 0.05; done; exit 7"))
    until(lambda: world.state("party-0") == world.state("party-1") == "fired", what="the start")
    fill(directory / "rest")
    if killed:
        world.kill("rendezvous")
        world.start("rendezvous")
        until(lambda: "restored" in world.log("rendezvous"), what="the restart")
        waiting = world.submit(world.trial(f"until [ -e {flag} ]; do sleep 0.05; done; exit 7"))
    flag.touch()
    result = world.result(waiting)
    assert [row["exit_code"] for row in result["members"].values()] == [7, 7]
    assert result["outcome"] == "completed"
    assert {row["state"] for row in result["members"].values()} == {"delivered"}
    assert "journal unwritable" not in world.log("rendezvous")
    assert "Traceback" not in world.log("rendezvous")
    fill(directory / "more")
    refused = world.submit(world.trial("true", "r2"))
    refused.wait(20)
    assert refused.returncode != 0
    for name in ("rest", "more"):
        (directory / name).unlink()
    assert world.run(world.trial("true", "r2"))["verdict"] == "valid"


def test_a_trial_waits_until_there_is_room_for_its_journal(make_world: Make, small_disk: t.Any) -> None:
    world = make_world(1)
    directory = small_disk(world, "rendezvous")
    world.start_all()
    until(lambda: world.status()["connected"], what="the connection")
    fill(directory / "rest")
    os.truncate(directory / "rest", (directory / "rest").stat().st_size - 65536)
    waiting = world.submit(world.trial())
    until(lambda: "no room for a journal" in world.log("rendezvous"), what="the wait for room")
    assert world.status()["trials"][0]["phase"] == "queued"
    (directory / "rest").unlink()
    assert world.result(waiting)["verdict"] == "valid"
