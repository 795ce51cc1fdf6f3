#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action plugin startline.lab.trial."""

from __future__ import annotations

DOCUMENTATION = r"""
module: trial
short_description: Run one trial of a plan behind the start barrier
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Makes ranks, C(hosts.config), commands and environment for the hosts of a trial, and runs it as
    M(startline.lab.start_barrier) does.
  - When the experiment allows a quorum or has spares, and others can start than those that were meant, everything is made anew
    for those who can, and they start under the next attempt. Nobody ever starts with a C(hosts.config) that names a host which
    does not take part.
  - Runs against the host of the rendezvous, C(plan.rendezvous). The other hosts are not contacted by Ansible.
  - Saying the same trial again, also from another controller, or after this one was killed, attaches to it or gives its result.
attributes:
  check_mode:
    description: Makes everything for the trial as planned, and submits nothing.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  idempotent:
    description: A trial that has run under this O(attempt) is not run again; its result is returned.
    support: full
options:
  plan:
    description: The plan, as M(startline.lab.plan) returns it.
    type: dict
    required: true
  trial_id:
    description: Which of its trials.
    type: str
    required: true
  attempt:
    description: Number of the attempt. The result may be that of a later one.
    type: int
    default: 1
  run_id:
    description: The run.
    type: str
    required: true
  hosts:
    description: The hosts by member name, as M(startline.lab.fleet) returns them. Only C(address) is used.
    type: dict
    required: true
  bucket:
    description: Where the hosts deliver evidence. Without it, evidence stays on the hosts.
    type: str
  region:
    description: Region of the bucket.
    type: str
  endpoint_url:
    description: Endpoint of S3 as the hosts see it. Without it, that of AWS.
    type: str
  checks:
    description:
      - What M(startline.lab.network_check) has measured, by network. The trial's own goes into C(trial.json); a network that is
        off makes the trial degraded, or does not let it start, as the experiment says.
      - A trial whose network the plan wants to be checked and that is not here is told to be unchecked.
    type: dict
    default: {}
  wait:
    description:
      - Returns when all commands have ended (V(exited)), so that the next trial can start while evidence is on its way, or when
        the evidence is delivered as well (V(delivered)).
    type: str
    choices: [exited, delivered]
    default: delivered
seealso:
  - module: startline.lab.start_barrier
  - module: startline.lab.network_check
  - plugin: startline.lab.trials
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Run what is left of the plan
  startline.lab.trial:
    plan: "{{ plan }}"
    trial_id: "{{ item.trial_id }}"
    attempt: "{{ item.attempt }}"
    run_id: "{{ run_id }}"
    hosts: "{{ fleet_hosts }}"
    bucket: "{{ bucket }}"
    wait: exited
  delegate_to: "{{ plan.rendezvous }}"
  become: true
  loop: "{{ plan | startline.lab.trials(attempts=attempts) }}"
  loop_control:
    label: "{{ item.trial_id }}"
"""

RETURN = r"""
msg:
  description: One line on what happened. Of a failure, who and why.
  returned: always
  type: str
  sample: "r1: valid; 8 of 8 started within 0.2 ms (p50 0.1 ms, clocks known to 0.3 ms), the last was party-1"
format:
  description: Version of what follows, which is the content of trial.json. M(startline.lab.start_barrier) describes it.
  returned: when the rendezvous has answered
  type: str
  sample: startline-trial/1
epoch:
  description: Run, trial, and the attempt that came to this result.
  returned: when the rendezvous has answered
  type: dict
  sample: {run: dkg-20260101T120000Z-1a2b, trial: r1, attempt: 2}
"""
