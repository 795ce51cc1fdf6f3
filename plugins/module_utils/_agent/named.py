# SPDX-License-Identifier: GPL-3.0-or-later
"""Named barriers inside a trial: a state machine without I/O, part of `barrier.Barrier`.

PRIVATE to the collection. The members of a trial meet under a name; when the last has come, all are released at one
instant that is still to come, as at the start. A name may be used again: that is its next generation, counted by each
member for itself, so that a repeated message can never be taken for the next meeting.

A meeting ends by the earliest deadline of those who wait, or at once when somebody who is missing has ended. Whoever
comes to a meeting that has failed hears the same reason: generations never get out of step.
"""

from __future__ import annotations

import typing as t

if t.TYPE_CHECKING:
    from .barrier import Now

#: Meetings of one trial; each is kept for the result.
MAX_MEETINGS = 10000


class Waits(t.NamedTuple):
    """A member has come to a named barrier, and would wait `timeout` seconds for the others."""

    member: str
    name: str
    generation: int
    timeout: float


class Passed(t.NamedTuple):
    """A member's first waiter went on, `late_ns` after the instant, on the member's clock known to `bound_ns`."""

    member: str
    name: str
    generation: int
    late_ns: int
    bound_ns: int


class Release(t.NamedTuple):
    """Tell a member the instant at which its waiters go on. Saying it again is harmless."""

    member: str
    name: str
    generation: int
    at_ns: int


class Deny(t.NamedTuple):
    """Tell a member why its waiters wait in vain."""

    member: str
    name: str
    generation: int
    reason: str


Answer = t.Union[Release, Deny]


class _Meeting:
    """One generation of one name. `first` and `last` are who came first and last, and when (wall, ns)."""

    __slots__ = ("arrived", "at_ns", "deadline", "failed", "first", "last", "passed", "since", "title")

    def __init__(self, title: t.Tuple[str, int], now: Now) -> None:
        self.title = title
        self.since = now.steady
        self.deadline = float("inf")
        self.arrived: t.Set[str] = set()
        self.first = self.last = ("", now.wall_ns)
        self.at_ns: t.Optional[int] = None
        self.failed: t.Optional[str] = None
        self.passed: t.Dict[str, t.Tuple[int, int]] = {}

    def answer(self, member: str) -> Answer:
        if self.at_ns is not None:
            return Release(member, *self.title, self.at_ns)
        return Deny(member, *self.title, self.failed or "")


class NamedBarriers:
    """All meetings of one trial, of those who started."""

    def __init__(self, roster: t.Iterable[str]) -> None:
        self._roster = tuple(roster)
        self._meetings: t.Dict[t.Tuple[str, int], _Meeting] = {}
        self._open: t.Dict[t.Tuple[str, int], _Meeting] = {}

    @property
    def wake_at(self) -> float:
        """When (steady) the next of those who wait loses patience."""
        return min((meeting.deadline for meeting in self._open.values()), default=float("inf"))

    def arrive(self, event: Waits, now: Now, unable: t.Optional[str]) -> t.List[Answer]:
        """Take an arrival; the answer, if there is one already. `unable` says why the member cannot meet anybody."""
        title = (event.name, event.generation)
        meeting = self._meetings.get(title)
        if unable is not None and (meeting is None or title in self._open):
            return [Deny(event.member, *title, f"barrier {event.name}: {unable}")]
        if meeting is None:
            if len(self._meetings) >= MAX_MEETINGS:
                reason = f"a trial has {MAX_MEETINGS} meetings at named barriers at most"
                return [Deny(event.member, *title, reason)]
            meeting = self._meetings[title] = self._open[title] = _Meeting(title, now)
        if title not in self._open:
            return [meeting.answer(event.member)]
        if event.member not in meeting.arrived:
            meeting.arrived.add(event.member)
            meeting.deadline = min(meeting.deadline, now.steady + event.timeout)
            meeting.last = (event.member, now.wall_ns)
            if len(meeting.arrived) == 1:
                meeting.first = meeting.last
        return []

    def advance(
        self, now: Now, gone: t.Mapping[str, str], seen: t.Callable[[str], str], lead_ns: t.Callable[[], int]
    ) -> t.List[Answer]:
        """Decide what can be decided. `gone` are the members that will not come any more, and how they ended; `seen`
        tells the last state of a member, `lead_ns` the time that telling everybody takes."""
        answers: t.List[Answer] = []
        for title, meeting in list(self._open.items()):
            name = title[0]
            if len(meeting.arrived) == len(self._roster):
                meeting.at_ns = now.wall_ns + lead_ns()
            else:
                lost = [member for member in gone if member not in meeting.arrived]
                if lost:
                    ends = ", ".join(f"{member} ({gone[member]})" for member in sorted(lost))
                    meeting.failed = f"barrier {name}: will not come any more: {ends}"
                elif now.steady >= meeting.deadline:
                    missing = [member for member in self._roster if member not in meeting.arrived]
                    named = ", ".join(f"{member} ({seen(member)})" for member in missing)
                    meeting.failed = (
                        f"barrier {name}: after {round(meeting.deadline - meeting.since, 2):g} s missing: {named}"
                    )
                else:
                    continue
            del self._open[title]
            answers += [meeting.answer(member) for member in self._roster if member in meeting.arrived]
        return answers

    def close(self, reason: str) -> t.List[Answer]:
        """Nobody meets any more."""
        answers: t.List[Answer] = []
        for title, meeting in self._open.items():
            meeting.failed = f"barrier {title[0]}: {reason}"
            answers += [meeting.answer(member) for member in sorted(meeting.arrived)]
        self._open.clear()
        return answers

    def passed(self, event: Passed) -> None:
        """Note how punctual a member went on."""
        meeting = self._meetings.get((event.name, event.generation))
        if meeting is not None and meeting.at_ns is not None and event.member in meeting.arrived:
            meeting.passed.setdefault(event.member, (event.late_ns, event.bound_ns))

    def result(self, spread: t.Callable[[t.Mapping[str, int]], t.Dict[str, t.Any]]) -> t.List[t.Dict[str, t.Any]]:
        """What trial.json says of each meeting, in the order in which they began. `spread` sums up lateness."""
        return [
            {
                "name": meeting.title[0],
                "generation": meeting.title[1],
                "arrived": len(meeting.arrived),
                "first": {"member": meeting.first[0], "at": meeting.first[1] / 1e9},
                "last": {"member": meeting.last[0], "at": meeting.last[1] / 1e9},
                "released": None if meeting.at_ns is None else meeting.at_ns / 1e9,
                "reason": meeting.failed,
                "skew": {
                    **spread({member: late for member, (late, _bound) in meeting.passed.items()}),
                    "bound_us": max(bound for _late, bound in meeting.passed.values()) / 1e3,
                }
                if meeting.passed
                else None,
            }
            for meeting in self._meetings.values()
        ]
