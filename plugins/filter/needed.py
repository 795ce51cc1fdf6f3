# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter: whether a run can do without some of its hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
name: needed
short_description: The missing hosts that a plan cannot do without
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Of the hosts that are missing, those of groups that are too few without them for some trial, by the experiment's quorum and
    spares; and the host of the rendezvous. None of them, when every trial can start all the same.
options:
  _input:
    description: The plan, as M(startline.lab.plan) returns it.
    type: dict
    required: true
  missing:
    description: Names of the members that are missing.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Go on with those who are ready, if they are enough
  ansible.builtin.assert:
    that: plan | startline.lab.needed(missing) | length == 0
"""

RETURN = r"""
_value:
  description: Names of members, in the order of the plan.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.startline.lab.plugins.plugin_utils._errors import StartlineError
from ansible_collections.startline.lab.plugins.plugin_utils._plan import check_format
from ansible_collections.startline.lab.plugins.plugin_utils._trial import needed as _needed


def needed(plan: dict[str, t.Any], missing: list[str]) -> list[str]:
    """See DOCUMENTATION."""
    try:
        check_format(plan)
        return _needed(plan, missing)
    except StartlineError as exc:
        raise AnsibleFilterError(str(exc)) from exc


class FilterModule:
    """Ansible's registration."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"needed": needed}
