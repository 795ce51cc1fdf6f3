# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter: launches and their images."""

from __future__ import annotations

DOCUMENTATION = r"""
name: with_images
short_description: Give each launch the newest image that matches
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Adds C(image_id) and C(root_device). Fails when a group has no image, and names it.
options:
  _input:
    description: The launches, as P(startline.lab.launches#filter) makes them.
    type: list
    elements: dict
    required: true
  answers:
    description: The results of a task that looped over P(startline.lab.image_queries#filter).
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Show which image each group gets
  ansible.builtin.debug:
    msg: "{{ launches | startline.lab.with_images(images.results) | map(attribute='image_id') }}"
"""

RETURN = r"""
_value:
  description: The launches, with image_id and root_device.
  type: list
  elements: dict
  sample:
    - group: party
      image_id: ami-0123456789abcdef0
      root_device: /dev/xvda
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.startline.lab.plugins.plugin_utils import _image
from ansible_collections.startline.lab.plugins.plugin_utils._errors import StartlineError


def with_images(launches: list[dict[str, t.Any]], answers: list[dict[str, t.Any]]) -> list[dict[str, t.Any]]:
    """See DOCUMENTATION."""
    try:
        return _image.with_images(launches, answers)
    except StartlineError as exc:
        raise AnsibleFilterError(str(exc)) from exc


class FilterModule:
    """Ansible's registration."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"with_images": with_images}
