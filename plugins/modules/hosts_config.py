#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Write hosts.config on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hosts_config
short_description: Write the addresses of a fleet on a host
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Writes a file with one address a line, in the order of the ranks, byte for byte as given.
  - M(ansible.builtin.copy) does the same in three round trips to each host; this is one.
options:
  content:
    description: The file, as P(startline.lab.hosts_config#filter) makes it.
    type: str
    required: true
  path:
    description: Where to write it. Its directory has to exist.
    type: path
    default: /etc/hosts.config
attributes:
  check_mode:
    support: full
    description: Can run in check mode and return changed status without modifying the host.
  diff_mode:
    support: full
    description: Shows the addresses before and after.
  idempotent:
    support: full
    description: A second run changes nothing.
"""

EXAMPLES = r"""
- name: Write the addresses of the fleet
  startline.lab.hosts_config:
    content: "{{ plan | startline.lab.hosts_config(hosts) }}"
  become: true
"""

RETURN = r""" # """

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.startline.lab.plugins.module_utils._files import read, write


def main():
    module = AnsibleModule(
        argument_spec={
            "content": {"type": "str", "required": True},
            "path": {"type": "path", "default": "/etc/hosts.config"},
        },
        supports_check_mode=True,
    )
    path, content = module.params["path"], module.params["content"]
    try:
        before = read(path)
        changed = before != content
        if changed and not module.check_mode:
            write(path, content, 0o644)
    except OSError as exc:
        module.fail_json(msg=f"{path}: {exc.strerror}: give a path in a directory that exists")
    difference = {"before": before, "after": content, "before_header": path, "after_header": path}
    module.exit_json(changed=changed, diff=difference)


if __name__ == "__main__":
    main()
