#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action startline.lab.plan."""

from __future__ import annotations

DOCUMENTATION = r"""
module: plan
short_description: Make the plan of an experiment and open its run
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Reads and checks an experiment file, applies overrides, and expands it to a plan. The plan is a pure function of the
    file, O(set) and O(seed); it touches nothing and costs nothing, and every later stage reads it.
  - When something is wrong it fails with one message that has every problem, each with file, line, key and remedy.
  - Then it chooses the run. The same command again goes on with the newest run of the same plan and the same content
    of artifacts that was started from the same O(private_dir), is not finished, and whose controller is gone;
    otherwise a new run begins. In AWX the run is derived from the job.
  - It works on the controller and needs no host.
options:
  exp:
    description:
      - Name of an experiment in C(experiments/) of O(project_dir), or the path of an experiment file.
      - May be left out when O(run) is given; the plan is then the one that the run was made of.
    type: str
  set:
    description:
      - Overrides of any key of the experiment, C(path=value) with YAML values, between commas or on lines of their own.
      - 'For example C(groups.party.count=16,parameters.protocol=[normal,corrupted]).'
    type: str
    default: ''
  seed:
    description: Seed of the random order, in place of the experiment's.
    type: int
  project_dir:
    description: The project, which holds C(experiments/).
    type: path
    required: true
  private_dir:
    description:
      - The controller's private directory, where runs are recorded (mode 0700).
      - C(.startline) in O(project_dir) by default.
    type: path
  validate_only:
    description:
      - Make the plan only; choose no run and write nothing. Check mode does the same.
      - With O(run), tells what is recorded of that run, also while another process leads it.
    type: bool
    default: false
  run:
    description: The run to go on with.
    type: str
  awx_job_id:
    description: The AWX job that runs this, if one does.
    type: str
  awx_workflow_job_id:
    description: The AWX workflow job that it is part of, if it is. All jobs of a workflow share a run.
    type: str
requirements:
  - jinja2
  - pydantic >= 2.8, unless only O(run) is given
attributes:
  check_mode:
    support: full
    description: Makes the plan, and opens no run.
  diff_mode:
    support: none
    description: Shows what differs.
"""

EXAMPLES = r"""
- name: Check an experiment
  startline.lab.plan:
    exp: dkg
    set: groups.party.count=4,repeats=1
    project_dir: "{{ playbook_dir }}"
    validate_only: true
  register: checked

- name: Show the plan
  ansible.builtin.debug:
    msg: "{{ checked.summary.split('\n') }}"

- name: Plan the experiment and open its run
  startline.lab.plan:
    exp: dkg
    project_dir: "{{ playbook_dir }}"
    awx_job_id: "{{ awx_job_id | default(omit) }}"
    awx_workflow_job_id: "{{ awx_workflow_job_id | default(omit) }}"
  register: planned
"""

RETURN = r"""
plan:
  description: The plan. C(docs/experiment.md) tells its form.
  returned: success
  type: dict
summary:
  description: The plan for people, several lines.
  returned: success
  type: str
experiment:
  description: Name of the experiment.
  returned: success
  type: str
  sample: dkg
run_id:
  description: The run.
  returned: success, unless only the plan is made and no run is named
  type: str
  sample: dkg-20261121T093000Z-3fa9
resumed:
  description: Whether the run goes on from where it was broken off.
  returned: success, unless only the plan is made and no run is named
  type: bool
created:
  description: When the run began, UTC.
  returned: success, unless only the plan is made and no run is named
  type: str
  sample: "2026-11-21T09:30:00Z"
expires:
  description: When the hosts of the run power themselves off, UTC.
  returned: success, unless only the plan is made and no run is named
  type: str
  sample: "2026-11-21T11:18:00Z"
run_dir:
  description: The controller's private directory of the run; it holds C(run.json) and C(plan.json), and later its keys.
  returned: success, unless only the plan is made and no run is named
  type: str
problems:
  description: What is wrong with the experiment, for programs; C(msg) has the same for people.
  returned: when the experiment has problems
  type: list
  elements: dict
  sample:
    - file: experiments/dkg.yml
      line: 12
      path: groups.party.count
      message: must be at least 1, not 0
      remedy: A group has one host at least; remove the group if it is not wanted.
"""
