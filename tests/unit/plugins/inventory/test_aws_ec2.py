# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory of a world that may be asleep."""

from __future__ import annotations

import pathlib
import socket
import typing as t

import pytest
from ansible.errors import AnsibleParserError
from ansible.inventory.data import InventoryData
from ansible.parsing.dataloader import DataLoader

from ansible_collections.startline.lab.plugins.inventory import aws_ec2


@pytest.fixture
def source(tmp_path: pathlib.Path) -> t.Callable[[str], str]:
    def write(endpoint: str) -> str:
        path = tmp_path / "startline.aws_ec2.yml"
        path.write_text(f"plugin: startline.lab.aws_ec2\n{endpoint}\n")
        return str(path)

    return write


def parse(path: str) -> InventoryData:
    plugin, inventory = aws_ec2.InventoryModule(), InventoryData()
    plugin._load_name = plugin.NAME
    assert plugin.verify_file(path)
    plugin.parse(inventory, DataLoader(), path, cache=False)
    return inventory


def test_a_sleeping_world_has_no_hosts_and_is_no_error(source: t.Callable[[str], str]) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        path = source(f"endpoint_url: http://127.0.0.1:{taken.getsockname()[1]}")
        assert parse(path).hosts == {}


def test_an_address_that_is_not_ours_is_never_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: t.Any, **_kwargs: t.Any) -> t.NoReturn:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(aws_ec2.socket, "create_connection", refuse)
    assert not aws_ec2.listens("http://203.0.113.1:4566")


def test_what_listens_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert aws_ec2.listens(f"http://127.0.0.1:{server.getsockname()[1]}/")


def test_a_missing_endpoint_is_named(source: t.Callable[[str], str]) -> None:
    with pytest.raises(AnsibleParserError, match="endpoint_url is missing"):
        parse(source("regions: [us-east-1]"))
