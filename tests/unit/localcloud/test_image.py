# SPDX-License-Identifier: GPL-3.0-or-later
"""An image is named by all that shapes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from localcloud import image

DEBIAN = {"ID": "debian", "VERSION_CODENAME": "bookworm"}
FILES = {"etc/apt/sources.list": b"deb http://mirror.example/debian bookworm main\n", "etc/hosts": b""}


def test_the_same_recipe_has_the_same_name() -> None:
    backwards = dict(reversed(FILES.items()))
    assert image.recipe(FILES, DEBIAN) == image.recipe(backwards, DEBIAN)
    assert len(image.recipe(FILES, DEBIAN)) == 16


@pytest.mark.parametrize(
    ("files", "distribution"),
    [
        ({**FILES, "etc/hosts": b"127.0.0.1 localhost\n"}, DEBIAN),
        ({**FILES, "etc/motd": b""}, DEBIAN),
        ({"etc/hosts": FILES["etc/apt/sources.list"], "etc/apt/sources.list": b""}, DEBIAN),
        (FILES, {**DEBIAN, "VERSION_CODENAME": "trixie"}),
    ],
)
def test_another_recipe_has_another_name(files: dict[str, bytes], distribution: dict[str, str]) -> None:
    assert image.recipe(files, distribution) != image.recipe(FILES, DEBIAN)


@pytest.mark.parametrize("name", ["PACKAGES", "_FINISH"])
def test_packages_and_steps_are_part_of_the_recipe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = image.recipe(FILES, DEBIAN)
    monkeypatch.setattr(image, name, ("other",))
    assert image.recipe(FILES, DEBIAN) != before


@pytest.mark.parametrize("netem", [True, False])
def test_the_api_shows_the_image_as_debian_s_once_for_each_kernel(
    netem: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(image, "IMAGES", tmp_path)
    monkeypatch.setattr(image.machine, "has_netem", lambda: netem)
    made = image.Image("0123456789abcdef", "debian-12-amd64-20261121-startline", "2026-11-21T09:00:00.000Z", 30.0)
    without = {ami["name"].partition("startline")[2] for ami in made.amis()}
    assert without == ({"", "-netem"} if netem else {""})
    kernel = made.root / "usr/bin/linux.uml"
    kernel.parent.mkdir(parents=True)
    kernel.touch()
    plain, uml, auto = made.amis()
    assert plain["ami_id"] == "ami-00123456789abcdef"
    assert {ami["owner_id"] for ami in (plain, uml, auto)} == {image.OWNER}
    kernels = [made.kernel(ami["ami_id"]) for ami in (plain, uml, auto)]
    assert kernels == [None, kernel, None if netem else kernel]
