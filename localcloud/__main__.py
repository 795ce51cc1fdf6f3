# SPDX-License-Identifier: GPL-3.0-or-later
"""python -m localcloud up | down | status | image"""

from __future__ import annotations

import argparse
import json
import sys
import typing as t

from localcloud import daemon, machine
from localcloud.machine import CloudError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m localcloud", description="One Linux machine answers as AWS, with real hosts."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("up", help="start the local cloud, or do nothing when it is up")
    commands.add_parser("down", help="end all hosts and leave nothing behind, also after a killed daemon")
    status = commands.add_parser("status", help="say what runs, and what a killed daemon left")
    status.add_argument("--json", action="store_true", help="for programs")
    make = commands.add_parser("image", help="make the image that hosts start from, and print where it is")
    make.add_argument("--rebuild", action="store_true", help="make it again, with today's packages")
    commands.add_parser("daemon")
    return parser


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_status(status: dict[str, t.Any]) -> None:
    if not status["up"]:
        print("local cloud is down")
        for line in status["leftovers"]:
            print(f"  left by a killed daemon: {line}")
        if status["leftovers"]:
            print("`python -m localcloud down` removes it")
        return
    print(f"local cloud is up: {status['endpoint']}\nimage {status['image']}, logs {status['logs']}")
    print(f"{len(status['hosts'])} hosts")
    for host in status["hosts"]:
        public, name = host["public"] or "-", host["name"] or ""
        print(f"  {host['id']}  {host['state']:<13}  {host['private']:<15}  {public:<15}  {name}".rstrip())


def main() -> int:
    arguments = _parser().parse_args()
    try:
        if arguments.command == "status":
            status = daemon.status()
            print(json.dumps(status, indent=2)) if arguments.json else _print_status(status)
            return 0
        machine.require_tools()
        machine.become_root()
        if arguments.command == "up":
            daemon.up(print)
        elif arguments.command == "down":
            daemon.down(print)
        elif arguments.command == "image":
            print(daemon.make_image(arguments.rebuild, _say))
        else:
            daemon.serve()
    except CloudError as problem:
        _say(f"localcloud: {problem}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
