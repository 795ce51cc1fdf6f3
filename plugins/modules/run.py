#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action startline.lab.run."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run
short_description: Note that a run is finished
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Marks the record that M(startline.lab.plan) made of a run. A finished run is not gone on with; the same command
    starts a new one.
  - It works on the controller and needs no host.
options:
  run_id:
    description: The run.
    type: str
    required: true
  state:
    description: Nothing is left to do for the run.
    type: str
    choices: [finished]
    default: finished
  private_dir:
    description: The controller's private directory, where runs are recorded.
    type: path
    required: true
attributes:
  check_mode:
    support: full
    description: Tells whether the record would change.
  diff_mode:
    support: none
    description: Shows what differs.
"""

EXAMPLES = r"""
- name: Note that nothing is left to do
  startline.lab.run:
    run_id: dkg-20261121T093000Z-3fa9
    private_dir: "{{ playbook_dir }}/.startline"
"""

RETURN = r"""
# Nothing but what every task returns.
"""
