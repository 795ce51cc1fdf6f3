# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""amazon.aws.aws_ec2 for a world that may be asleep."""

from __future__ import annotations

DOCUMENTATION = r"""
name: aws_ec2
short_description: EC2 inventory source that is empty while the local cloud is down
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Hands the inventory file to P(amazon.aws.aws_ec2#inventory) as it is, when something on this machine listens at
    O(endpoint_url).
  - When nothing listens there, the inventory has no hosts. The local cloud is started by the first play that
    needs it, which comes after Ansible has read its inventories; an error would stand above every first run.
notes:
  - Every option of P(amazon.aws.aws_ec2#inventory) can stand in the file.
options:
  plugin:
    description: Token that makes the file one of this plugin's.
    required: true
    choices: ['startline.lab.aws_ec2']
  endpoint_url:
    description: The endpoint of the local cloud.
    required: true
    type: str
"""

EXAMPLES = r"""
# inventories/local/startline.aws_ec2.yml
plugin: startline.lab.aws_ec2
endpoint_url: http://198.18.0.1:4566
regions: [us-east-1]
hostnames: ["tag:Name"]
"""

import socket
import typing as t
import urllib.parse

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin
from ansible.plugins.loader import inventory_loader


def listens(url: str, timeout: float = 1.0) -> bool:
    """Whether something on this machine listens at the host and port of `url`.

    An address that is not this machine's is never tried: while the local cloud is down its address belongs to
    nobody here, and a connection would leave the machine.
    """
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.socket() as probe:
            probe.bind((host, 0))
        with socket.create_connection((host, port), timeout):
            return True
    except OSError:
        return False


class InventoryModule(BaseInventoryPlugin):
    """See DOCUMENTATION."""

    NAME = "startline.lab.aws_ec2"

    def verify_file(self, path: str) -> bool:
        """Whether `path` is named like an aws_ec2 inventory, which is what people and AWX know."""
        return super().verify_file(path) and path.endswith(("aws_ec2.yml", "aws_ec2.yaml"))

    def parse(self, inventory: t.Any, loader: t.Any, path: str, cache: bool = True) -> None:
        """Fill `inventory` from the endpoint named in the file at `path`, or leave it alone while nothing listens."""
        super().parse(inventory, loader, path, cache=cache)
        endpoint = loader.load_from_file(path, cache="none").get("endpoint_url")
        if not isinstance(endpoint, str):
            raise AnsibleParserError(f"{path}: endpoint_url is missing: name the endpoint of the local cloud")
        if not listens(endpoint):
            self.display.vvv(f"{path}: nothing listens at {endpoint}, so there are no hosts")
            return
        amazon = inventory_loader.get("amazon.aws.aws_ec2")
        if amazon is None:
            raise AnsibleParserError(
                "the collection amazon.aws is missing: pip install ansible, or ansible-galaxy collection install amazon.aws"
            )
        # The file names this plugin; the one that reads it next has to answer to that name.
        amazon._redirected_names = [self.NAME]
        amazon.parse(inventory, loader, path, cache=cache)
