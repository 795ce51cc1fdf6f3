#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action startline.lab.artifact_upload."""

from __future__ import annotations

DOCUMENTATION = r"""
module: artifact_upload
short_description: Store a run's artifacts in S3, once, under their sha256
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Packs each file or directory reproducibly, uploads it below the run's prefix unless it is there, and returns an
    address that M(startline.lab.artifact) can fetch it from without credentials, for an hour.
  - C(.git), C(__pycache__) and the caches of Python's tools are never part of an artifact.
options:
  artifacts:
    description: The plan's artifacts.
    type: list
    elements: dict
    required: true
    suboptions:
      src:
        description: File or directory on the controller, absolute or below O(project_dir).
        type: path
        required: true
      dest:
        description: Name that it has in a trial's working directory.
        type: str
        required: true
      groups:
        description: Groups whose hosts need it. All of them when left out.
        type: list
        elements: str
  project_dir:
    description: What relative O(artifacts[].src) are relative to.
    type: path
    required: true
  bucket:
    description: The bucket.
    type: str
    required: true
  prefix:
    description: The run's prefix in the bucket.
    type: str
    required: true
extends_documentation_fragment:
  - startline.lab.aws
"""

EXAMPLES = r"""
- name: Store the program
  startline.lab.artifact_upload:
    artifacts:
      - {src: workloads/dkg, dest: dkg}
    project_dir: "{{ playbook_dir }}"
    bucket: startline-123456789012-us-east-1
    prefix: dkg/dkg-20261121t091500z-1a2b
    region: us-east-1
  register: stored
  no_log: true # the addresses open the objects for an hour
"""

RETURN = r"""
artifacts:
  description: The artifacts, ready for M(startline.lab.artifact).
  returned: success
  type: list
  elements: dict
  sample:
    - dest: dkg
      groups:
      kind: directory
      sha256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
      size: 9120
      url: https://...
"""
