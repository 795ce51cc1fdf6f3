# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter: what to ask EC2 about images."""

from __future__ import annotations

DOCUMENTATION = r"""
name: image_queries
short_description: What amazon.aws.ec2_ami_info has to be asked for a plan's launches
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Each question once, however many groups share an image.
options:
  _input:
    description: The launches, as P(startline.lab.launches#filter) makes them.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Find the images
  amazon.aws.ec2_ami_info:
    image_ids: "{{ item.image_ids | default(omit) }}"
    owners: "{{ item.owners | default(omit) }}"
    filters: "{{ item.filters | default(omit) }}"
    region: "{{ item.region }}"
  loop: "{{ launches | startline.lab.image_queries }}"
  register: images
"""

RETURN = r"""
_value:
  description: Arguments of amazon.aws.ec2_ami_info, and a label.
  type: list
  elements: dict
  sample:
    - label: debian-12-amd64-* of 136693071363
      region: us-east-1
      owners: ["136693071363"]
      filters: {name: debian-12-amd64-*, state: available}
"""

import typing as t

from ansible_collections.startline.lab.plugins.plugin_utils import _image


def image_queries(launches: list[dict[str, t.Any]]) -> list[dict[str, t.Any]]:
    """See DOCUMENTATION."""
    return _image.image_queries(launches)


class FilterModule:
    """Ansible's registration."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"image_queries": image_queries}
