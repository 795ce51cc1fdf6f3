#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Delay, lose and slow down what a host sends."""

from __future__ import annotations

DOCUMENTATION = r"""
module: netem
short_description: Delay, lose and slow down what a host sends to others
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Has exactly the given rules in force on the host. Each says what happens to packets that go to some addresses - delay, jitter,
    loss, rate and so on. Devices are found by the routes to these addresses, so a host with several links has all of them shaped.
  - All rules come into force, or none; if one fails, those of before are put back.
  - Rules remove themselves when nobody has renewed them for O(revert_after); running the module again renews them.
  - Rules are HTB classes with netem below, reached by a hashed u32 table, so that thousands of addresses cost a packet no more than
    one. A root qdisc of somebody else is refused and stays.
requirements:
  - iproute2 on the host, and a kernel with HTB and u32; for anything but a rate, with netem
  - systemd on the host, unless O(revert_after=0)
options:
  state:
    description: V(absent) removes all rules of this module from the host.
    type: str
    choices: [present, absent]
    default: present
  rules:
    description: All rules of the host. An address that several networks hold follows the longest prefix. No rules remove all.
    type: list
    elements: dict
    default: []
    suboptions:
      to:
        description:
          - IPv4 addresses and networks. Addresses of the host itself are passed over.
          - A network is shaped on every device by which some part of it is reached, with the rate, if any, on each of them;
            V(0.0.0.0/0) on all that have a route. A rule that does nothing (O(rules[].delay=0ms)) takes its addresses out of a
            wider one.
        type: list
        elements: str
        required: true
      direction:
        description:
          - V(ingress) shapes what comes from the addresses, for peers that cannot shape what they send. It needs the kernel's ifb.
        type: str
        choices: [egress, ingress]
        default: egress
      delay:
        description: How long packets are held back, as in V(40ms). Units are us, ms and s.
        type: str
      jitter:
        description: Standard deviation of the delay, as in V(1ms). Packets stay in order unless O(rules[].reorder) is given.
        type: str
      distribution:
        description: How the delay varies. V(normal) if left out.
        type: str
        choices: [normal, uniform, pareto, paretonormal]
      loss:
        description: Share of the packets that are lost, as in V(0.1%).
        type: str
      loss_burst:
        description: Mean number of packets that are lost in a row. Each is lost on its own if left out.
        type: str
      rate:
        description:
          - What goes to all the addresses of the rule together, as in V(200mbit), Ethernet frames counted. Units are bit, kbit,
            mbit and gbit.
        type: str
      rate_group:
        description:
          - Rules with the same name here share their rate, which has to be the same in all of them - ways of different delay or
            loss behind one link. Each is sure of an equal part, and may have all that the others leave.
        type: str
      queue:
        description: How long packets may wait for the rate. Twice the delay if left out, 50ms at least.
        type: str
      corrupt:
        description: Share of the packets that have a bit turned over.
        type: str
      duplicate:
        description: Share of the packets that are sent twice.
        type: str
      reorder:
        description: Share of the packets that are not delayed.
        type: str
  exempt:
    description:
      - What no rule touches. An entry is an address, a port of a protocol (at either end), or both.
      - SSH, DNS, NTP and the instance metadata if left out. S3 is not among them, having no addresses of its own - a rule for
        V(0.0.0.0/0) holds for uploads too.
    type: list
    elements: dict
    default:
      - {protocol: tcp, port: 22}
      - {protocol: tcp, port: 53}
      - {protocol: udp, port: 53}
      - {protocol: udp, port: 123}
      - {address: 169.254.169.254}
    suboptions:
      address:
        description: IPv4 address or network.
        type: str
      protocol:
        description: Protocol of the port.
        type: str
        choices: [tcp, udp]
      port:
        description: Port.
        type: int
  revert_after:
    description: Seconds after which the rules remove themselves, unless they are renewed. V(0) is never.
    type: int
    default: 3600
attributes:
  check_mode:
    support: full
    description: Can run in check mode and return changed status without modifying the host.
  diff_mode:
    support: full
    description: Shows the rules in words, before and after.
  idempotent:
    support: full
    description: A second run changes nothing but the time at which the rules remove themselves.
"""

EXAMPLES = r"""
- name: Put 80 ms between this host and two others, for ten minutes
  startline.lab.netem:
    rules:
      - to: [10.77.0.5, 10.77.0.6]
        delay: 40ms # the others delay by as much on their side
        jitter: 1ms
        loss: 0.1%
        rate: 200mbit
    revert_after: 600
  become: true

- name: Reach a near and a far host by one link of 50 Mbit/s
  startline.lab.netem:
    rules:
      - {to: [10.77.0.5], delay: 5ms, rate: 50mbit, rate_group: uplink}
      - {to: [10.77.0.6], delay: 60ms, rate: 50mbit, rate_group: uplink}
  become: true

- name: Lose bursts of packets to a network
  startline.lab.netem:
    rules:
      - to: [10.78.0.0/16]
        loss: 2%
        loss_burst: "4"
  become: true

- name: Slow down what comes from a server that is not ours
  startline.lab.netem:
    rules:
      - to: [192.0.2.10]
        direction: ingress
        rate: 5mbit
  become: true

- name: Remove all rules
  startline.lab.netem:
    state: absent
  become: true
"""

RETURN = r"""
devices:
  description: The rules of each device in words.
  returned: success
  type: dict
  sample:
    ens5:
      - "to 10.77.0.5-10.77.0.6: delay 40ms +- 1ms (normal), loss 0.1%, rate 200mbit"
commands:
  description: The commands that are, or would be, in force on each device; for the record.
  returned: success
  type: dict
  sample:
    ens5:
      - "tc qdisc add dev ens5 root handle 57a1: htb default 0"
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.startline.lab.plugins.module_utils._netem import (
    DEFAULT_EXEMPT,
    DISTRIBUTIONS,
    NetemError,
    parse_exemptions,
    parse_rules,
)
from ansible_collections.startline.lab.plugins.module_utils._netem_host import Host

TEXTS = ("delay", "jitter", "loss", "loss_burst", "rate", "rate_group", "queue", "corrupt", "duplicate", "reorder")


def in_words(rules):
    """Rules by device as a diff shows them."""
    return "".join(f"{device} {line}\n" for device, lines in rules.items() for line in lines)


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "rules": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "to": {"type": "list", "elements": "str", "required": True},
                    "direction": {"type": "str", "choices": ["egress", "ingress"], "default": "egress"},
                    "distribution": {"type": "str", "choices": list(DISTRIBUTIONS)},
                    **{name: {"type": "str"} for name in TEXTS},
                },
            },
            "exempt": {
                "type": "list",
                "elements": "dict",
                "default": [dict(entry) for entry in DEFAULT_EXEMPT],
                "options": {
                    "address": {"type": "str"},
                    "protocol": {"type": "str", "choices": ["tcp", "udp"]},
                    "port": {"type": "int"},
                },
            },
            "revert_after": {"type": "int", "default": 3600},
        },
        supports_check_mode=True,
    )
    if module.params["revert_after"] < 0:
        module.fail_json(msg="revert_after is negative: give seconds, or 0 for rules that stay")

    def run(command, text):
        if not module.get_bin_path(command[0], opt_dirs=["/usr/sbin", "/sbin"]):
            raise NetemError(f"there is no {command[0]} here: install iproute2 (Amazon Linux: iproute-tc)")
        return module.run_command(command, data=text, environ_update={"LC_ALL": "C"})

    try:
        outcome = Host(run).ensure(
            parse_rules(module.params["rules"] if module.params["state"] == "present" else []),
            parse_exemptions(module.params["exempt"]),
            module.params["revert_after"],
            dry=module.check_mode,
        )
    except NetemError as exc:
        module.fail_json(msg=str(exc))
    except OSError as exc:
        module.fail_json(msg=f"{exc.filename}: {exc.strerror}: rules need root (become: true)")
    diff = {"before": in_words(outcome.before), "after": in_words(outcome.words)}
    module.exit_json(changed=outcome.changed, devices=outcome.words, commands=outcome.commands, diff=diff)


if __name__ == "__main__":
    main()
