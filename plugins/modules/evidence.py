#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action startline.lab.evidence."""

from __future__ import annotations

DOCUMENTATION = r"""
module: evidence
short_description: Bring a run's evidence home from S3, prove that none is missing, and judge the run
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Hosts upload the logs and figures of every trial to the run's prefix in S3. This action reads that prefix.
  - V(collected) waits for what is still on its way, keeps the same tree below O(results_dir), compares every file
    with the sha256 that its host recorded, and gives the verdict V(valid), V(degraded) or V(invalid), with reasons, for
    each trial and for the run. It writes C(manifest.json) and C(run.json) to both places.
  - Missing evidence makes a trial invalid and is named, host by host. It does not fail the task, because a run that is
    not valid is a result too; look at RV(verdict).
  - It works on the controller and needs no host.
options:
  state:
    description:
      - V(attempts) tells, for each trial of the plan, which attempt to make next and whether the trial is finished,
        so that a run that was broken off goes on where it was.
      - V(collected) brings the evidence home and judges it.
      - V(published) uploads O(files).
    type: str
    choices: [attempts, collected, published]
    default: collected
  bucket:
    description: The bucket.
    type: str
    required: true
  prefix:
    description: The run's prefix in the bucket, C(<experiment>/<run_id>).
    type: str
    required: true
  plan:
    description: The plan. Required for V(attempts) and V(collected).
    type: dict
  results_dir:
    description: Where results are kept on the controller, the run's at O(prefix) below. Required for V(collected).
    type: path
  wait:
    description: Seconds to wait at most for evidence that is still on its way.
    type: float
    default: 300
  attempts:
    description:
      - The attempt that was made last, by trial, as V(attempts) returned it before the trials were run, or as numbers.
      - The evidence of older attempts does not count.
    type: dict
    default: {}
  trials:
    description:
      - Trials that were submitted, whose evidence is waited for. A trial that was not run makes the run invalid.
      - All trials of the plan when left out.
    type: list
    elements: str
  project_dir:
    description: The project, whose git commit is recorded.
    type: path
  provenance:
    description: What else to record in C(run.json) about where the run comes from.
    type: dict
    default: {}
  files:
    description: Files to upload, by their names in the prefix. Required for V(published).
    type: dict
attributes:
  check_mode:
    support: partial
    details: Only V(attempts) does anything; it changes nothing.
    description: Can run in check mode and return the changes that it would make.
  diff_mode:
    support: none
    description: Returns what it changed.
  action_group:
    description: Shares the AWS options through C(module_defaults).
    support: full
    membership: [startline.lab.aws]
extends_documentation_fragment:
  - startline.lab.aws
"""

EXAMPLES = r"""
- name: See which trials are left
  startline.lab.evidence:
    state: attempts
    bucket: my-bucket
    prefix: dkg/dkg-20261121T093000Z-3fa9
    plan: "{{ plan }}"
  register: before

- name: Bring everything home
  startline.lab.evidence:
    bucket: my-bucket
    prefix: dkg/dkg-20261121T093000Z-3fa9
    plan: "{{ plan }}"
    attempts: "{{ before.attempts }}"
    results_dir: results
  register: evidence

- name: Publish the report
  startline.lab.evidence:
    state: published
    bucket: my-bucket
    prefix: dkg/dkg-20261121T093000Z-3fa9
    files:
      report.html: results/dkg/dkg-20261121T093000Z-3fa9/report.html
"""

RETURN = r"""
s3_uri:
  description: The run's prefix.
  returned: always
  type: str
  sample: s3://my-bucket/dkg/dkg-20261121T093000Z-3fa9
attempts:
  description: By trial, the attempt to make next, or the one that counts when the trial is finished.
  returned: O(state=attempts)
  type: dict
  sample:
    protocol-normal.r1: {attempt: 1, finished: true, verdict: valid}
    protocol-normal.r2: {attempt: 2, finished: false, verdict: invalid}
finished:
  description: The trials that need not be run again.
  returned: O(state=attempts)
  type: list
  elements: str
path:
  description: The run's local directory.
  returned: O(state=collected)
  type: str
  sample: results/dkg/dkg-20261121T093000Z-3fa9
verdict:
  description: Of the run.
  returned: O(state=collected)
  type: str
  sample: valid
reasons:
  description: Why the verdict is not V(valid), worst first.
  returned: O(state=collected)
  type: list
  elements: str
  sample: ["trial protocol-normal.r1: party-3 exited with code 1"]
figures:
  description: Trials by verdict, hosts, logs expected and delivered, lateness after T (us), durations per point (s).
  returned: O(state=collected)
  type: dict
late:
  description: Objects that were waited for in vain.
  returned: O(state=collected)
  type: list
  elements: str
uploaded:
  description: Files that were not there yet, or were others.
  returned: O(state=published)
  type: list
  elements: str
"""
