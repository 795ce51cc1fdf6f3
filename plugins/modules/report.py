#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action startline.lab.report."""

from __future__ import annotations

DOCUMENTATION = r"""
module: report
short_description: Draw the report page of a run
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Writes C(report.html) into the run's results, one page that needs no network and no other file. The verdict and its
    reasons come first, then facts, trials and figures, each with its n.
  - Reads nothing but the results, so it works offline, and the same results give the same page, byte for byte.
  - It works on the controller and needs no host.
options:
  path:
    description: The run's results, which M(startline.lab.evidence) brought home.
    type: path
    required: true
  s3_uri:
    description: Where the results are kept in S3, for RV(summary).
    type: str
requirements:
  - jinja2
  - matplotlib >= 3.9
attributes:
  check_mode:
    support: full
    description: Can run in check mode and return the changes that it would make.
  diff_mode:
    support: none
    description: Returns what it changed.
"""

EXAMPLES = r"""
- name: Draw the report
  startline.lab.report:
    path: results/dkg/dkg-20261121T093000Z-3fa9
  register: report

- name: Show the main figures
  ansible.builtin.debug:
    msg: "{{ report.summary.splitlines() }}"
"""

RETURN = r"""
report:
  description: The page.
  returned: always
  type: str
  sample: results/dkg/dkg-20261121T093000Z-3fa9/report.html
summary:
  description: Verdict, main figures and where the report is, in a few lines for a terminal.
  returned: always
  type: str
verdict:
  description: Of the run.
  returned: always
  type: str
  sample: valid
"""
