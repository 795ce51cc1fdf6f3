# SPDX-License-Identifier: GPL-3.0-or-later
"""``startline-agent``: the agent, the rendezvous, questions to the rendezvous of this host, waiting for others, and
probing the network.

PRIVATE to the collection.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import typing as t

from . import config as configuration

if t.TYPE_CHECKING:
    import argparse


def main(arguments: t.Optional[t.Sequence[str]] = None) -> int:
    """Do what the command line says; the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[-1:] == ["run"] and given[:-2] in ([], ["--config"]):
            # The agent's own start, as the service manager does it: argparse would cost every host 1.5 MB.
            from .agent import Agent

            Agent(configuration.load(given[1] if given[1:-1] else configuration.PATH)).run()
            return 0
        options = _parse(given)
        # Whoever runs the command of a trial may not read the configuration.
        if options.command == "wait":
            return _wait(options.name, options.timeout)
        if options.command == "probe":
            return _probe(options.file)
        return _run(options, configuration.load(options.config))
    except configuration.ConfigError as error:
        return _complain(error, status=2)


def _parse(arguments: t.Sequence[str]) -> argparse.Namespace:
    """The command line."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="startline-agent", description="Starts trials at the same instant on all hosts."
    )
    parser.add_argument("--config", default=configuration.PATH, help="configuration (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.required = True
    commands.add_parser("run", help="be the agent of this host, until SIGTERM")
    commands.add_parser("rendezvous", help="be the rendezvous of the run, until SIGTERM")
    submit = commands.add_parser(
        "submit", help="submit the trial on stdin (JSON), wait for it, print its result (JSON)"
    )
    submit.add_argument("--wait", choices=("exited", "delivered"), default="delivered", help="default: %(default)s")
    submit.add_argument("--limit", type=float, help="seconds after which not to wait any longer (default: no limit)")
    for command in (
        submit,
        commands.add_parser("status", help="print who is connected and how the trials stand (JSON)"),
        commands.add_parser("abort", help="end a trial"),
    ):
        command.add_argument(
            "--patience",
            type=float,
            default=30.0,
            help="seconds to wait for a rendezvous that is away (default: %(default)g)",
        )
    wait = commands.add_parser("wait", help="inside a trial: wait until all its hosts have come to this point")
    wait.add_argument("name", help="name of the point; it may be used again and again")
    wait.add_argument("--timeout", type=float, help="seconds (default: the deadline of the start barrier)")
    probe = commands.add_parser("probe", help="as the command of a check: measure the network, print it (JSON)")
    probe.add_argument("file", help="what each member has to measure, and when (JSON)")
    abort = commands.choices["abort"]
    abort.add_argument("trial_id", nargs="?", help="the trial (default: the one under way)")
    abort.add_argument("--reason", default="aborted by the controller", help="what the result will say")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace, config: configuration.Config) -> int:
    # Imported by need: a question to the rendezvous is answered in a third of the time without the agent's modules.
    if options.command == "rendezvous":
        import asyncio

        from .rendezvous import Rendezvous

        asyncio.run(Rendezvous(config).serve())
        return 0
    from . import client

    give_up = None
    request: t.Dict[str, t.Any] = {"op": options.command}
    if options.command == "submit":
        try:
            request.update(trial=json.load(sys.stdin), wait=options.wait)
        except ValueError as error:
            return _complain(f"what stands on stdin is not JSON: {error}", status=2)
        give_up = None if options.limit is None else time.monotonic() + options.limit
    elif options.command == "abort":
        request.update(trial_id=options.trial_id, reason=options.reason)
    try:
        result = client.ask(config, request, options.patience, give_up)
    except client.ClientError as error:
        return _complain(error, status=1)
    json.dump(result, sys.stdout)
    sys.stdout.write("\n")
    return 0


def _wait(name: str, timeout: t.Optional[float]) -> int:
    import os

    from . import client

    try:
        report = client.wait(name, timeout, os.environ)
        with contextlib.suppress(OSError):  # an agent that has gone needs no report
            report()
        # The ordinary end of an interpreter takes milliseconds, more on one host than on another.
        os._exit(0)
    except client.ClientError as error:
        return _complain(error, status=1)


def _probe(path: str) -> int:
    import os

    from . import client, probe

    def meet(limit: float) -> None:
        report = client.wait("probes", limit, os.environ)
        with contextlib.suppress(OSError):  # an agent that has gone needs no report
            report()

    try:
        found = probe.run(path, os.environ.get("STARTLINE_MEMBER", ""), meet)
    except (probe.ProbeFault, client.ClientError) as error:
        return _complain(error, status=1)
    json.dump(found, sys.stdout)
    sys.stdout.write("\n")
    return 0


def _complain(problem: object, status: int) -> int:
    """Say on stderr what is wrong; the exit status."""
    sys.stderr.write(f"startline-agent: {problem}\n")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
