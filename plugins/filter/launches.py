# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter: what EC2 is asked for."""

from __future__ import annotations

DOCUMENTATION = r"""
name: launches
short_description: What amazon.aws.ec2_instance needs for each group of a plan
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - One launch for each group that lacks hosts. With what M(startline.lab.fleet) counts as O(missing), a fleet that was
    half launched is completed, and a whole one is left as it is.
  - C(startline:index) and C(Name) are not among the tags; M(startline.lab.fleet) gives them to each host.
options:
  _input:
    description: The plan, as M(startline.lab.plan) returns it.
    type: dict
    required: true
  run_id:
    description: The run.
    type: str
    required: true
  expires:
    description: When the hosts power themselves off, UTC in ISO 8601.
    type: str
    required: true
  region:
    description: Region of the sites that name none.
    type: str
  missing:
    description: How many hosts each group lacks. Left out, all of them.
    type: dict
  image:
    description: Image of the groups that name none, C({owner, name}) or C({id}).
    type: dict
  netem_image:
    description:
      - Image of those among them whose hosts delay, lose, corrupt or duplicate packets in a network of the plan, and so need
        C(sch_netem) in their kernel. Left out, they have O(image) too.
    type: dict
"""

EXAMPLES = r"""
- name: Launch the groups
  amazon.aws.ec2_instance:
    count: "{{ item.count }}"
    tags: "{{ item.tags }}"
    instance_type: "{{ item.instance_type }}"
    image_id: ami-0123456789abcdef0
    region: "{{ item.region }}"
  loop: "{{ plan | startline.lab.launches(run_id=run_id, expires=expires, region='us-east-1', image=startline_image) }}"
  loop_control:
    label: "{{ item.count }} x {{ item.group }}"
"""

RETURN = r"""
_value:
  description: The launches, in the order of the groups.
  type: list
  elements: dict
  sample:
    - group: party
      site: default
      private: false
      region: us-east-1
      count: 8
      instance_type: t3a.medium
      volume_size: 8
      image:
        owner: "136693071363"
        name: debian-12-amd64-*
      tags:
        "startline:experiment": dkg
        "startline:run": dkg-20261121T093000Z-3fa9
        "startline:expires": "2026-11-21T11:30:00Z"
        "startline:group": party
        "startline:site": default
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.startline.lab.plugins.plugin_utils import _launch
from ansible_collections.startline.lab.plugins.plugin_utils._errors import StartlineError
from ansible_collections.startline.lab.plugins.plugin_utils._plan import check_format


def launches(
    plan: dict[str, t.Any],
    run_id: str,
    expires: str,
    region: str | None = None,
    image: dict[str, str] | None = None,
    missing: dict[str, int] | None = None,
    netem_image: dict[str, str] | None = None,
) -> list[dict[str, t.Any]]:
    """See DOCUMENTATION."""
    try:
        check_format(plan)
        return _launch.launches(
            plan,
            run_id,
            expires,
            missing=missing,
            default_region=region,
            default_image=image,
            netem_image=netem_image,
        )
    except StartlineError as exc:
        raise AnsibleFilterError(str(exc)) from exc


class FilterModule:
    """Ansible's registration."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"launches": launches}
