# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter: what start_barrier is to be called with."""

from __future__ import annotations

DOCUMENTATION = r"""
name: trials
short_description: The trials that are still to be run, as start_barrier takes them
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Makes the arguments of C(startline.lab.start_barrier) for every trial of a plan that is not finished, in the order
    of the plan, with ranks, C(hosts.config), and every template rendered for its host.
options:
  _input:
    description: The plan, as M(startline.lab.plan) returns it.
    type: dict
    required: true
  hosts:
    description: The hosts by member name, as M(startline.lab.fleet) returns them. Only C(address) is used.
    type: dict
    required: true
  run_id:
    description: The run.
    type: str
    required: true
  bucket:
    description: Where the hosts deliver evidence. Without it, evidence stays on the hosts.
    type: str
  attempts:
    description: By trial id, the C(attempt) to make now (1 or more) and whether the trial is C(finished).
    type: dict
  region:
    description: Region of the bucket.
    type: str
  endpoint_url:
    description: Endpoint of S3 as the hosts see it. Without it, that of AWS.
    type: str
"""

EXAMPLES = r"""
- name: Run the trials
  startline.lab.start_barrier: "{{ item }}"
  loop: "{{ plan | startline.lab.trials(hosts=fleet.hosts, run_id=run_id, bucket=bucket, attempts=evidence.attempts) }}"
  loop_control:
    label: "{{ item.trial_id }}"
"""

RETURN = r"""
_value:
  description: Arguments of start_barrier, one dictionary a trial.
  type: list
  elements: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.startline.lab.plugins.plugin_utils._errors import StartlineError
from ansible_collections.startline.lab.plugins.plugin_utils._plan import check_format
from ansible_collections.startline.lab.plugins.plugin_utils._trial import compose_trials


def trials(
    plan: dict[str, t.Any],
    hosts: dict[str, dict[str, t.Any]],
    run_id: str,
    bucket: str | None = None,
    attempts: dict[str, dict[str, t.Any]] | None = None,
    region: str | None = None,
    endpoint_url: str | None = None,
) -> list[dict[str, t.Any]]:
    """See DOCUMENTATION."""
    try:
        check_format(plan)
        return compose_trials(
            plan, hosts, run_id=run_id, attempts=attempts, bucket=bucket, region=region, endpoint_url=endpoint_url
        )
    except StartlineError as exc:
        raise AnsibleFilterError(str(exc)) from exc


class FilterModule:
    """Ansible's registration."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"trials": trials}
