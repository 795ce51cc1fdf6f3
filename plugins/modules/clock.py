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
  - The start barrier reads the clock's error bound from chronyd. Nothing here waits for the clock to be synchronised, which
    takes about a second with a server on the same network; an agent that finds it too inexact asks again for some seconds,
    and the rendezvous measures the host's offset beside it.
  - A template with a handler does the same in five round trips to each host; this is one.
options:
  servers:
    description: NTP servers, best first.
    type: list
    elements: str
    required: true
  hardware_clock:
    description:
      - The PTP hardware clock of the host that chronyd follows before any server.
      - V(auto) takes that of EC2's network adapter, C(/dev/ptp_ena), if the host has one. The instance type has to support it
        and its driver to be loaded with C(phc_enable=1). No other device is taken by itself, for nobody knows whether it has
        the right time.
      - V(none) takes none; a path takes that device.
    type: str
    default: auto
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

RETURN = r"""
hardware_clock:
  description: The PTP hardware clock that chronyd follows.
  returned: always
  type: str
  sample: /dev/ptp_ena
"""

import glob
import ipaddress
import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.startline.lab.plugins.module_utils._files import read, write

FRAGMENT = """\
# Written by startline.lab.clock.
{sources}
# The bound that the start barrier reports grows by this much between two polls.
maxclockerror {max_error_ppm}
# A clock that is far off is set at once, but only right after the service has started: never in the middle of a trial.
makestep 0.1 3
"""


# What AWS gives for its PTP hardware clock: docs.aws.amazon.com/AWSEC2/latest/UserGuide/configure-ec2-ntp.html.
REFCLOCK = "refclock PHC {device} poll 0 delay 0.000010 prefer"


def poll(server):
    """Shortest and longest interval between two polls of a server, as powers of two of a second.

    AWS advises 16 s. A burst at the start keeps to the shortest one, or 2 s if that is longer, and chronyd takes nothing
    for the time before the third answer. A server on the link, as Amazon's, bears half a second: the clock is known within
    a second of the start, not five.
    """
    try:
        near = ipaddress.ip_address(server).is_link_local or server == "fd00:ec2::123"
    except ValueError:
        near = False
    return (-1, 4) if near else (4, 4)


def fragment(servers, max_error_ppm, device=None):
    """The text of the fragment."""
    sources = [REFCLOCK.format(device=device)] if device else []
    for server in servers:
        shortest, longest = poll(server)
        sources.append(f"server {server} prefer iburst minpoll {shortest} maxpoll {longest}")
    return FRAGMENT.format(sources="\n".join(sources), max_error_ppm=max_error_ppm)


def find_hardware_clock(root="/"):
    """The PTP hardware clock of EC2's network adapter, or None."""
    link = os.path.join(root, "dev/ptp_ena")
    if os.path.exists(link):
        return "/dev/ptp_ena"
    for path in sorted(glob.glob(os.path.join(root, "sys/class/ptp/ptp*/clock_name"))):
        if (read(path) or "").startswith("ena-ptp-"):  # an image without AWS' udev rule
            return "/dev/" + os.path.basename(os.path.dirname(path))
    return None


def main():
    module = AnsibleModule(
        argument_spec={
            "servers": {"type": "list", "elements": "str", "required": True},
            "hardware_clock": {"type": "str", "default": "auto"},
            "max_error_ppm": {"type": "int", "default": 50},
            "path": {"type": "path", "default": "/etc/chrony/conf.d/startline.conf"},
            "service": {"type": "str", "default": "chrony"},
        },
        supports_check_mode=True,
    )
    path, service = module.params["path"], module.params["service"]
    if not module.params["servers"]:
        module.fail_json(msg="servers is empty: name at least one NTP server")
    try:
        wanted = module.params["hardware_clock"]
        device = find_hardware_clock() if wanted == "auto" else None if wanted == "none" else wanted
        content = fragment(module.params["servers"], module.params["max_error_ppm"], device)
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
    module.exit_json(changed=changed, diff=difference, hardware_clock=device)


if __name__ == "__main__":
    main()
