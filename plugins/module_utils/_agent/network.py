# SPDX-License-Identifier: GPL-3.0-or-later
"""The network of a trial on this host: its rules are in force before the host is armed, change on their timeline, and
are gone before the evidence is delivered.

PRIVATE to the collection. The work is done in forked children, because tc takes its time and the rules' modules memory,
which the agent does not have for that; and one after another, so that the rules of a trial are gone before those of the
next one come. If the agent dies and nobody takes up its trial, a timer of systemd removes the rules.
"""

from __future__ import annotations

import collections
import os
import typing as t

from .reactor import Reactor

Network = t.Mapping[str, t.Any]
Done = t.Callable[[t.Dict[str, t.Any]], None]

#: Seconds for one call of tc, ip or systemd-run.
COMMAND_LIMIT = 60.0
_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"


class Shaper:
    """Has rules put in force and removed, in the order in which it is asked."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._queue: t.Deque[t.Tuple[t.Callable[[], t.Dict[str, t.Any]], Done]] = collections.deque()
        self._busy = False

    def shape(self, network: Network, phase: int, revert_after: float, done: Done) -> None:
        """Have the rules of a phase in force, and none besides.

        `done` gets ``problem``, None if they are, and the rules in ``words`` by device. `revert_after` is in seconds.
        """
        self._add(lambda: _shape(network, phase, revert_after), done)

    def clear(self, network: Network, phase: t.Optional[int], done: Done) -> None:
        """Remove the rules, of which those of `phase` were the last. `done` gets ``problem``: what was wrong with them,
        or that they are still there; and ``gone`` if they are not."""
        self._add(lambda: _clear(network, phase), done)

    def _add(self, job: t.Callable[[], t.Dict[str, t.Any]], done: Done) -> None:
        self._queue.append((job, done))
        self._next()

    def _next(self) -> None:
        if self._busy or not self._queue:
            return
        self._busy = True
        job, done = self._queue.popleft()

        def ended(result: t.Optional[t.Dict[str, t.Any]]) -> None:
            self._busy = False
            done({"problem": "the process that sets the rules was killed"} if result is None else result)
            self._next()

        self._reactor.work(job, ended)


# ---- in a forked child -----------------------------------------------------------------------------------------------


def _shape(network: Network, phase: int, revert_after: float) -> t.Dict[str, t.Any]:
    from .. import _netem, _netem_host

    try:
        rules, later = _rules(network, phase)
        exempt = _netem.parse_exemptions(network["exempt"])
        words = _netem_host.Host(_run).ensure(rules, exempt, revert_after, later=later).words
    except (OSError, _netem.NetemError) as error:
        return {"problem": _plain(error)}
    return {"problem": None, "words": words}


def _clear(network: Network, phase: t.Optional[int]) -> t.Dict[str, t.Any]:
    from .. import _netem, _netem_host

    host = _netem_host.Host(_run)
    problems = []
    if phase is not None:
        try:
            rules, later = _rules(network, phase)
            if host.ensure(rules, _netem.parse_exemptions(network["exempt"]), dry=True, later=later).changed:
                problems.append("the rules that were in force were changed or removed by somebody else")
        except (OSError, _netem.NetemError) as error:
            problems.append(f"the rules could not be looked at: {_plain(error)}")
    gone = True
    try:
        host.ensure([])
    except (OSError, _netem.NetemError) as error:
        gone = False
        problems.append(f"rules are left until they remove themselves: {_plain(error)}")
    return {"problem": "; ".join(problems) or None, "gone": gone}


def _rules(network: Network, phase: int) -> t.Tuple[t.List[t.Any], t.List[t.Any]]:
    """The rules of a phase, and those that will follow."""
    from .. import _netem

    rules = [_netem.parse_rules(own["rules"]) for own in network["phases"][phase:]]
    return rules[0], [rule for own in rules[1:] for rule in own]


def _run(command: t.List[str], text: str) -> t.Tuple[int, str, str]:
    import subprocess

    from .. import _netem

    environment = {"PATH": _PATH, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            input=text,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            timeout=COMMAND_LIMIT,
            check=False,
        )
    except FileNotFoundError:
        raise _netem.NetemError(f"there is no {command[0]} here: install iproute2 (Amazon Linux: iproute-tc)") from None
    except subprocess.TimeoutExpired:
        raise _netem.NetemError("{}: no end within {:g} s".format(" ".join(command), COMMAND_LIMIT)) from None
    return done.returncode, done.stdout, done.stderr


def _plain(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    return "{}{}".format(error.strerror, f": {error.filename}" if error.filename else "") + (
        "; rules need root" if os.geteuid() else ""
    )
