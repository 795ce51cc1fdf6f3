# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter: the artifacts of a group."""

from __future__ import annotations

DOCUMENTATION = r"""
name: for_group
short_description: The artifacts that the hosts of a group need
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - An artifact that names no groups is for all of them.
options:
  _input:
    description: Artifacts, as M(startline.lab.artifact_upload) returns them.
    type: list
    elements: dict
    required: true
  group:
    description: The group.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Fetch what this host needs
  startline.lab.artifact:
    artifacts: "{{ stored.artifacts | startline.lab.for_group('party') }}"
"""

RETURN = r"""
_value:
  description: The artifacts of the group, in their order.
  type: list
  elements: dict
  sample: []
"""

import typing as t


def for_group(artifacts: list[dict[str, t.Any]], group: str) -> list[dict[str, t.Any]]:
    """See DOCUMENTATION."""
    return [artifact for artifact in artifacts if not artifact.get("groups") or group in artifact["groups"]]


class FilterModule:
    """Ansible's registration."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"for_group": for_group}
