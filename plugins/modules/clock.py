#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Discipline a host's clock with chrony."""

from __future__ import annotations

DOCUMENTATION = r"""
module: clock
short_description: Discipline a host's clock with chrony
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Writes a fragment of chronyd's configuration and restarts the service when it has changed or is not running.
  - The start barrier reads the clock's error bound from chronyd. It does not wait for the clock to be synchronised; until it
    is, the rendezvous measures the host's offset itself.
  - A template with a handler does the same in five round trips to each host; this is one.
options:
  servers:
    description: NTP servers, best first.
    type: list
    elements: str
    required: true
  max_error_ppm:
    description: Assumed drift between two polls, in parts per million. chronyd's own 1 is optimistic; ClockBound advises 50.
    type: int
    default: 50
  path:
    description: The fragment. Its directory has to be one that chronyd reads.
    type: path
    default: /etc/chrony/conf.d/startline.conf
  service:
    description: Name of the systemd service.
    type: str
    default: chrony
attributes:
  check_mode:
    support: full
    description: Can run in check mode and return changed status without modifying the host.
  diff_mode:
    support: full
    description: Shows the fragment before and after.
  idempotent:
    support: full
    description: A second run changes nothing.
"""

EXAMPLES = r"""
- name: Follow Amazon Time Sync
  startline.lab.clock:
    servers: [169.254.169.123]
  become: true
"""

RETURN = r""" # """

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.startline.lab.plugins.module_utils._files import read, write

FRAGMENT = """\
# Written by startline.lab.clock.
{servers}
# The bound that the start barrier reports grows by this much between two polls.
maxclockerror {max_error_ppm}
# A clock that is far off is set at once, but only right after the service has started: never in the middle of a trial.
makestep 0.1 3
"""


def fragment(servers, max_error_ppm):
    """The text of the fragment. Polls every 16 s, as AWS advises for its own servers; a burst at the start."""
    lines = "\n".join(f"server {server} prefer iburst minpoll 4 maxpoll 4" for server in servers)
    return FRAGMENT.format(servers=lines, max_error_ppm=max_error_ppm)


def main():
    module = AnsibleModule(
        argument_spec={
            "servers": {"type": "list", "elements": "str", "required": True},
            "max_error_ppm": {"type": "int", "default": 50},
            "path": {"type": "path", "default": "/etc/chrony/conf.d/startline.conf"},
            "service": {"type": "str", "default": "chrony"},
        },
        supports_check_mode=True,
    )
    path, service = module.params["path"], module.params["service"]
    if not module.params["servers"]:
        module.fail_json(msg="servers is empty: name at least one NTP server")
    content = fragment(module.params["servers"], module.params["max_error_ppm"])
    try:
        before = read(path)
        running = module.run_command(["systemctl", "is-active", "--quiet", service])[0] == 0
        changed = before != content or not running
        if changed and not module.check_mode:
            write(path, content, 0o644)
            command = ["restart", service] if running else ["enable", "--quiet", "--now", service]
            code, _out, err = module.run_command(["systemctl", *command])
            if code:
                module.fail_json(msg=f"systemctl {' '.join(command)}: {err.strip()}")
    except OSError as exc:
        module.fail_json(msg=f"{path}: {exc.strerror}: is chrony installed, and does it read this directory?")
    difference = {"before": before, "after": content, "before_header": path, "after_header": path}
    module.exit_json(changed=changed, diff=difference)


if __name__ == "__main__":
    main()
