# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter: what is left of a plan."""

from __future__ import annotations

DOCUMENTATION = r"""
name: trials
short_description: The trials that are still to be run
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Tells which trials of a plan are not finished, and under which attempt each is to be run, in the order of the plan.
options:
  _input:
    description: The plan, as M(startline.lab.plan) returns it.
    type: dict
    required: true
  attempts:
    description: By trial id, the C(attempt) to make now (1 or more) and whether the trial is C(finished).
    type: dict
seealso:
  - module: startline.lab.trial
"""

EXAMPLES = r"""
- name: Run the trials
  startline.lab.trial:
    plan: "{{ plan }}"
    run_id: "{{ run_id }}"
    hosts: "{{ fleet.hosts }}"
    trial_id: "{{ item.trial_id }}"
    attempt: "{{ item.attempt }}"
  loop: "{{ plan | startline.lab.trials(attempts=evidence.attempts) }}"
  loop_control:
    label: "{{ item.trial_id }}"
"""

RETURN = r"""
_value:
  description: Trial id and attempt of each.
  type: list
  elements: dict
  sample: [{trial_id: protocol-normal.r1, attempt: 1}]
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.startline.lab.plugins.plugin_utils._errors import StartlineError
from ansible_collections.startline.lab.plugins.plugin_utils._plan import check_format
from ansible_collections.startline.lab.plugins.plugin_utils._trial import left


def trials(plan: dict[str, t.Any], attempts: dict[str, dict[str, t.Any]] | None = None) -> list[dict[str, t.Any]]:
    """See DOCUMENTATION."""
    try:
        check_format(plan)
        return left(plan, attempts)
    except StartlineError as exc:
        raise AnsibleFilterError(str(exc)) from exc


class FilterModule:
    """Ansible's registration."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"trials": trials}
