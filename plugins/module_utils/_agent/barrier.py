# SPDX-License-Identifier: GPL-3.0-or-later
"""The barrier of one trial: a state machine without I/O.

PRIVATE to the collection. Events go in, actions come out; the time is an argument. The same events at the same times
give the same actions, so a journal of them is all that a restarted rendezvous needs, and any transport can carry
them.

    gathering --seats filled--> running --all ended, or too late--> ended --all delivered, or too late--> settled
        |                                                                                                   ^
        +---------- seats cannot be filled, deadline, abort: aborted; other members than meant: reform -----+

Who is to start is said by seats: candidates in the order in which they are wanted, the spares last; how many of them
start; and how few may. Everyone or nobody is as many seats as candidates, and all of them needed.

What holds in any order of messages, losses, repetitions, reconnects and deaths:

* T is published once, to a roster that fills the seats, and only when all of the roster are armed and connected.
* Who is not of the roster never starts in this epoch, however it comes back.
* Nothing is published after an abort. An abort that is asked for between publication and T is decided at T: nobody
  can be called back for certain then, so all start and all are stopped.
* Every phase but the last has an end in time (`Barrier.wake_at`), and the result names every member's last state.
* After publication a member's state only goes forward.
"""

from __future__ import annotations

import collections
import typing as t

from .named import Deny, NamedBarriers, Passed, Release, Waits
from .ports import describe
from .wire import STATES, STOP_GRACE, Epoch

#: Bounds of the time between deciding T and T. Below: what a message and a wake-up of the launcher need on a busy
#: machine. Above: a mailbox in S3 that is slow, four times over.
LEAD_MIN_NS = 60 * 10**6
LEAD_MAX_NS = 30 * 10**9
#: Cost of sending T to one more member.
LEAD_PER_MEMBER_NS = 200 * 10**3
#: A member that learns of T later than this after T does not start any more.
LATE_LIMIT_NS = 10**9
#: Seconds past T + timeout + grace after which a member that has not said how its command ended is given up.
EXIT_SLACK = 10.0
#: Seconds past the deadline after which an agent that hears nothing lets go by itself.
PATIENCE = 30.0

_ORDER = {state: position for position, state in enumerate(STATES)}
#: What a report says that claims no start.
_NOT_STARTED = {"start_ns": None, "noticed_ns": None, "fired_ns": None, "exit": None}
#: What is said to those who are not to start.
_LET_GO = {
    "spare": "it is not needed: the seats are filled",
    "replaced": "it was not armed in time, and another has taken its place",
    "dropped": "it was not armed in time, and the others have started",
}
_TIME_IS_OVER = "the trial's time is over"


class Now(t.NamedTuple):
    """The time: `steady` (s) never jumps and decides deadlines; `wall_ns` is the clock of the rendezvous, in which T
    is said."""

    steady: float
    wall_ns: int


# ---- events ----------------------------------------------------------------------------------------------------------


class Connected(t.NamedTuple):
    """A member's agent can be reached (again)."""

    member: str


class Lost(t.NamedTuple):
    """A member's agent cannot be reached any more."""

    member: str


class Reported(t.NamedTuple):
    """A member says all it knows of a trial (`wire.FROM_MEMBER` report)."""

    member: str
    epoch: Epoch
    report: t.Dict[str, t.Any]


class Abort(t.NamedTuple):
    """Somebody wants the trial to end."""

    reason: str


class Tick(t.NamedTuple):
    """Time has passed."""


class Held(t.NamedTuple):
    """What is to say T was held up, by the disk or the processor, until it was nearly too late, and has told nobody."""


Event = t.Union[Connected, Lost, Reported, Abort, Tick, Held, Waits, Passed]

# ---- actions ---------------------------------------------------------------------------------------------------------


class Prepare(t.NamedTuple):
    """Ask a member to make ready; `patience` in seconds from now."""

    member: str
    patience: float


class Start(t.NamedTuple):
    """Tell a member the instant T. Saying it again is harmless."""

    member: str
    start_ns: int


class Stop(t.NamedTuple):
    """Tell a member to let go, or to stop its command."""

    member: str
    reason: str


class Settle(t.NamedTuple):
    """Tell a member that nothing more is wanted of it in this trial."""

    member: str


class Refuse(t.NamedTuple):
    """Tell a member why its message was not taken."""

    member: str
    reason: str


class Ended(t.NamedTuple):
    """Nobody of this trial is running, or is waited for, any more: the next one may start."""


class Settled(t.NamedTuple):
    """The result is as complete as it will be. Comes again if a member that was given up delivers after all."""


Action = t.Union[Prepare, Start, Stop, Settle, Refuse, Ended, Settled, Release, Deny]

# ---- who is to start -------------------------------------------------------------------------------------------------


class Seats(t.NamedTuple):
    """Places in a trial: `seats` of the candidates `members`, who stand in the order in which they are wanted; at
    `least` so many."""

    members: t.Tuple[str, ...]
    seats: int
    least: int

    @property
    def meant(self) -> t.Tuple[str, ...]:
        """Who starts when all goes well."""
        return self.members[: self.seats]


class Standing(t.NamedTuple):
    """What is known of one member."""

    state: str
    connected: bool
    failed: t.Optional[str]

    @property
    def ready(self) -> bool:
        """It would start if T was said to it now."""
        return self.state == "armed" and self.connected and self.failed is None

    def __str__(self) -> str:
        lost = not self.connected and self.state != "absent"
        return self.state + (f": {self.failed}" if self.failed is not None else ", connection lost" if lost else "")


class Choice(t.NamedTuple):
    """Who would start now: None while some seats are filled by too few. `best` says that nobody who is missing could
    take the place of anyone here."""

    roster: t.Optional[t.Tuple[str, ...]]
    best: bool


def seats_of(submission: t.Mapping[str, t.Any]) -> t.List[Seats]:
    """The seats of a submission; all its members, and all of them needed, where it gives none."""
    given = submission.get("seats")
    if not given:
        names = tuple(entry["name"] for entry in submission["members"])
        return [Seats(names, len(names), len(names))]
    return [Seats(tuple(entry["members"]), entry["seats"], entry["least"]) for entry in given]


def seats_problem(submission: t.Mapping[str, t.Any]) -> t.Optional[str]:
    """What is wrong with the members and seats of a submission."""
    names = [entry["name"] for entry in submission["members"]]
    if not names:
        return "members is empty"
    twice = _repeated(names)
    if twice:
        return f"members: the name {', '.join(twice)} is there more than once"
    networks = submission.get("networks") or {}
    for entry in submission["members"]:
        if entry.get("network") is not None and entry["network"] not in networks:
            return f"members: {entry['name']}: there is no network {entry['network']}"
    groups = seats_of(submission)
    seated = [name for group in groups for name in group.members]
    odd = sorted(set(seated) ^ set(names)) or _repeated(seated)
    if odd:
        return f"seats: {', '.join(odd)} has to be a candidate for one place, and a member"
    for position, group in enumerate(groups):
        if not 1 <= group.least <= min(group.seats, len(group.members)):
            return f"seats[{position}]: least has to be 1 to {min(group.seats, len(group.members))}, not {group.least}"
    return None


def _repeated(names: t.Sequence[str]) -> t.List[str]:
    counted = collections.Counter(names)
    return [name for name in counted if counted[name] > 1]


def choose(groups: t.Iterable[Seats], members: t.Mapping[str, Standing]) -> Choice:
    """The first of each group's candidates that are ready."""
    roster: t.List[str] = []
    enough = best = True
    for group in groups:
        hopeful = [name for name in group.members if members[name].failed is None]
        ready = [name for name in hopeful if members[name].ready]
        enough = enough and len(ready) >= group.least
        best = best and ready[: group.seats] == hopeful[: group.seats]
        roster += ready[: group.seats]
    return Choice(tuple(roster), best) if enough else Choice(None, False)


def shortage(groups: t.Iterable[Seats], members: t.Mapping[str, Standing], final: bool) -> t.List[str]:
    """Why the seats cannot be filled: of each group that is short the missing, with the state each was last seen in.
    Before the end (`final`) only those who have failed are missing."""
    found = []
    for group in groups:
        missing = [n for n in group.members if members[n].failed is not None or (final and not members[n].ready)]
        left = len(group.members) - len(missing)
        if left >= group.least:
            continue
        if final:
            named = "not armed: " + ", ".join(f"{name} ({members[name]})" for name in missing)
        else:
            named = "; ".join(f"{name}: {members[name].failed}" for name in missing)
        all_needed = group.least == len(group.members)
        found.append(named if all_needed else f"only {left} of the {group.least} needed are left; {named}")
    return found


def lead_ns(round_trips: t.Iterable[int], members: int) -> int:
    """Time from deciding T to T (ns): the worst round trip measured four times over, and the cost of telling
    everybody."""
    worst = max(round_trips, default=0)
    return min(LEAD_MAX_NS, LEAD_MIN_NS + 4 * worst + LEAD_PER_MEMBER_NS * members)


# ---- the machine -----------------------------------------------------------------------------------------------------


class _Member:
    """What is known of one member."""

    __slots__ = ("connected", "failed", "name", "rank", "ready_at", "report", "role", "seen", "state", "was")

    def __init__(self, name: str, rank: int) -> None:
        self.name = name
        self.rank = rank
        self.state = "absent"
        self.connected = False
        self.failed: t.Optional[str] = None
        #: When (wall, ns) it was last seen to come into a state, and to be ready.
        self.seen: t.Dict[str, int] = {}
        self.ready_at: t.Optional[int] = None
        self.report: t.Dict[str, t.Any] = {}
        #: Once the roster is known: starter, replaced, dropped, or spare; and how the member stood then.
        self.role: t.Optional[str] = None
        self.was: t.Optional[str] = None

    @property
    def standing(self) -> Standing:
        return Standing(self.state, self.connected, self.failed)

    def come(self, state: str, now: Now) -> None:
        if state != self.state:
            self.seen[state] = now.wall_ns
        self.state = state

    def reached(self, state: str) -> bool:
        return _ORDER[self.state] >= _ORDER[state]

    @property
    def ended(self) -> bool:
        """Nothing of it runs, as far as it says."""
        return self.failed is not None or self.reached("exited")

    @property
    def done(self) -> bool:
        """Nothing more is to be expected of it."""
        return self.failed is not None or self.reached("delivered")


class _Tally:
    """How many candidates of some seats are ready and have failed: so that not every message costs a look at all."""

    __slots__ = ("failed", "ready", "seats")

    def __init__(self, seats: Seats) -> None:
        self.seats = seats
        self.ready = self.failed = 0

    @property
    def hopeful(self) -> int:
        return len(self.seats.members) - self.failed

    @property
    def filled(self) -> bool:
        """As many are ready as could be wanted."""
        return self.ready >= max(self.seats.least, min(self.seats.seats, self.hopeful))


class Barrier:
    """One trial as the rendezvous sees it. `submission` has the shape of `wire.SUBMISSION`."""

    def __init__(self, submission: t.Mapping[str, t.Any], now: Now) -> None:
        self.submission = submission
        self.epoch = Epoch(submission["run_id"], submission["trial_id"], submission["attempt"])
        self.phase = "gathering"
        self.outcome: t.Optional[str] = None
        self.start_ns: t.Optional[int] = None
        self._seats = seats_of(submission)
        self._tallies = [_Tally(group) for group in self._seats]
        self._tally_of = {name: tally for tally in self._tallies for name in tally.seats.members}
        self._members = {entry["name"]: _Member(entry["name"], entry["rank"]) for entry in submission["members"]}
        #: Those who start, in the order of ranks: all candidates until it is decided.
        self._roster = list(self._members.values())
        self._unended = set(self._members)
        self._undone = set(self._members)
        self._gone: t.Dict[str, str] = {}
        self._named = NamedBarriers(())
        self._submitted = now
        self._published: t.Optional[Now] = None
        self._put_off = 0
        self._start_steady = 0.0
        self._ended: t.Optional[Now] = None
        #: What was measured of the network that this trial is to have.
        self._network: t.Mapping[str, t.Any] = submission.get("network_check") or {}
        self._refused = self._network.get("verdict") == "invalid"
        self._deadline: float = now.steady + (0.0 if self._refused else submission["deadline"])
        #: Since when (steady) the seats could be filled, if not by those who were meant.
        self._enough_since: t.Optional[float] = None
        self._stopped: t.Optional[str] = None
        self._stop_wanted: t.Optional[str] = None
        #: Whose early end stops the others.
        self._early: t.Optional[str] = None
        self._reasons: t.List[str] = []

    # -- what others ask --

    @property
    def awaited_until(self) -> float:
        """When (steady) members that wait for others, for T or at a named barrier, lose patience; 0 when nobody waits."""
        if self.phase == "gathering":
            return self._deadline
        return self._named.wake_at if self._named.open else 0.0

    @property
    def wake_at(self) -> t.Optional[float]:
        """When (steady) a `Tick` is due, whatever else happens. None once settled."""
        if self.phase == "settled":
            return None
        if self.phase == "gathering" and self._enough_since is not None:
            return min(self._deadline, self._enough_since + float(self.submission["grace"]))
        if self.phase == "running" and self._stop_wanted is not None and self._stopped is None:
            return min(self._deadline, self._start_steady)
        return min(self._deadline, self._named.wake_at)

    def held(self, now: Now) -> bool:
        """Whether so much of the time in which T has to be told is gone that it is to be put off, if nobody was told. What
        takes longer than any lead is not waited for."""
        if self.phase != "running" or self._published is None or self.start_ns is None:
            return False
        lead = self.start_ns - self._published.wall_ns
        return lead < LEAD_MAX_NS and self.start_ns - now.wall_ns < lead / 2

    @property
    def members(self) -> t.Dict[str, Standing]:
        return {name: member.standing for name, member in self._members.items()}

    # -- events --

    def step(self, event: Event, now: Now) -> t.List[Action]:
        """Take one event; say what is to be done."""
        if isinstance(event, Abort):
            actions = self._on_abort(event, now)
        elif isinstance(event, Held):
            actions = self._on_held(now)
        elif isinstance(event, Tick):
            actions = []
        else:
            member = self._members.get(event.member)
            if member is None:
                actions = self._on_stranger(event)
            else:
                before = member.standing
                if isinstance(event, Connected):
                    actions = self._on_connected(member, now)
                elif isinstance(event, Lost):
                    member.connected, actions = False, []
                elif isinstance(event, Reported):
                    actions = self._on_report(member, event, now)
                else:
                    actions = self._on_meeting(member, event, now)
                self._count(member, before, now)
        return actions + self._advance(now)

    def _on_stranger(self, event: t.Union[Connected, Lost, Reported, Waits, Passed]) -> t.List[Action]:
        if isinstance(event, (Connected, Lost)):
            return []
        return [Refuse(event.member, f"{event.member} is not a member of {self.epoch}")]

    def _count(self, member: _Member, before: Standing, now: Now) -> None:
        """Keep the sums that decisions are made of."""
        after = member.standing
        if self.phase == "gathering":
            tally = self._tally_of[member.name]
            tally.ready += after.ready - before.ready
            tally.failed += (after.failed is not None) - (before.failed is not None)
            if after.ready and not before.ready:
                member.ready_at = now.wall_ns
        elif member.role == "starter":
            (self._unended.discard if member.ended else self._unended.add)(member.name)
            (self._undone.discard if member.done else self._undone.add)(member.name)
            if member.ended and member.name not in self._gone:
                self._gone[member.name] = str(after)
                self._early_exit(member)

    def greet(self, member: str, now: Now) -> t.List[Action]:
        """What a member that is (again) connected has to be told. Changes nothing."""
        known = self._members.get(member)
        if known is None or known.done:
            return []
        unwanted = self._unwanted(known)
        if unwanted is not None:
            return [Stop(member, unwanted)]
        if self.phase == "gathering":
            return [Prepare(member, max(0.0, self._deadline - now.steady) + PATIENCE)]
        return [self._go_or_stop(member)]

    @property
    def _called_off(self) -> t.Optional[str]:
        """Why nobody is to start or to go on any more, if that is decided after T was published."""
        return self._stopped if self.phase == "running" else self._stopped or _TIME_IS_OVER

    def _go_or_stop(self, member: str) -> Action:
        """What a member of the roster has to know: T, or that it is too late for it. Never both, for it would start first."""
        return Start(member, self.start_ns or 0) if self._called_off is None else Stop(member, self._called_off)

    def _unwanted(self, member: _Member) -> t.Optional[str]:
        """Why a member is not to start, if that is decided."""
        if self.outcome in ("aborted", "reform"):
            return self._reasons[0]
        if self.phase == "gathering":
            return member.failed
        return None if member.role == "starter" else _LET_GO[member.role or "spare"]

    def _on_connected(self, member: _Member, now: Now) -> t.List[Action]:
        member.connected = True
        member.seen["connected"] = now.wall_ns
        if member.state == "absent":
            member.state = "connected"
        return []

    def _on_report(self, member: _Member, event: Reported, now: Now) -> t.List[Action]:
        if event.epoch != self.epoch:
            return [Refuse(event.member, f"this is {self.epoch}, not {event.epoch}")]
        report = event.report
        state, failed = report["state"], report["failed"]
        unwanted = self._unwanted(member)
        if unwanted is not None:
            # Also to who has failed: it may forget the trial then.
            return [Stop(event.member, unwanted)] if failed or _ORDER[state] >= _ORDER["prepared"] else []
        if self.phase == "gathering":
            if _ORDER[state] > _ORDER["armed"] or report["start_ns"] is not None:
                # The fence: no T was said in this epoch, so this is not its trial, whatever the message claims.
                failed, state = f"said {state} before T was published", "connected"
                report = dict(report, **_NOT_STARTED)
        elif report["start_ns"] not in (None, self.start_ns):
            failed, state = "says another T than was published", member.state
            report = dict(report, **_NOT_STARTED)
        elif _ORDER[state] < _ORDER[member.state]:
            # Overtaken by a newer report; or its agent has lost what it had come to, and says so.
            member.failed = member.failed or failed
            return []
        elif self.phase == "running" and state == "armed" and not failed and report["start_ns"] is None:
            return [self._go_or_stop(member.name)]  # it was lost on the way
        elif _ORDER[state] < _ORDER["armed"] and not failed:
            return []
        before = member.reached("delivered")
        member.report = report
        member.come(state, now)
        member.failed = self._unfit(report) if failed is None else failed
        actions: t.List[Action] = []
        if member.reached("delivered"):
            actions.append(Settle(member.name))
            if self.phase == "settled" and not before:
                actions.append(Settled())
        elif self.phase != "gathering" and self._called_off is not None and state in ("armed", "fired"):
            actions.append(Stop(member.name, self._called_off))
        elif self.phase == "running" and report["failed"] is not None and _ORDER[state] < _ORDER["fired"]:
            actions.append(Stop(member.name, report["failed"]))  # it may forget the trial then
        return actions

    def _on_meeting(self, member: _Member, event: t.Union[Waits, Passed], now: Now) -> t.List[Action]:
        if isinstance(event, Passed):
            self._named.passed(event)
            return []
        running = self.phase == "running" and member.role == "starter" and not member.ended
        return list(self._named.arrive(event, now, None if running else f"{member.name} does not run in {self.epoch}"))

    def _on_abort(self, event: Abort, now: Now) -> t.List[Action]:
        if self.phase == "gathering":
            return self._give_up("aborted", event.reason, now)
        if self.phase == "running" and self._stop_wanted is None:
            self._stop_wanted = event.reason
        return []

    def _on_held(self, now: Now) -> t.List[Action]:
        if self.phase != "running":
            return []
        self._put_off += 1
        return self._choose_start(now)

    # -- decisions --

    def _unfit(self, report: t.Mapping[str, t.Any]) -> t.Optional[str]:
        """Why a member that says it is armed may not take part: its clock is not known well enough."""
        if self.submission["on_clock_error"] != "refuse" or self.phase != "gathering":
            return None
        if report["state"] == "armed" and report["clock"] is None:
            return "says that it is armed, and nothing of its clock"
        return "; ".join(_clock_problems(report, self.submission["max_clock_error"])) or None

    def _advance(self, now: Now) -> t.List[Action]:
        """What follows from the present state and time."""
        actions: t.List[Action] = []
        if self.phase == "gathering":
            actions += self._gather(now)
        if self.phase == "running":
            actions += self._named.advance(now, self._gone, lambda name: str(self._members[name].standing), self._lead)
            if self._stop_wanted is not None and self._stopped is None and now.steady >= self._start_steady:
                self._stopped = self._stop_wanted
                self._deadline = min(self._deadline, now.steady + STOP_GRACE + EXIT_SLACK)
                actions += [Stop(member.name, self._stopped) for member in self._roster if not member.ended]
            if not self._unended:
                actions += self._end(now)
            elif now.steady >= self._deadline:
                actions += [Stop(member.name, _TIME_IS_OVER) for member in self._roster if not member.ended]
                actions += self._end(now)
        if self.phase == "ended" and (now.steady >= self._deadline or not self._undone):
            self.phase = "settled"
            actions.append(Settled())
        return actions

    def _gather(self, now: Now) -> t.List[Action]:
        """Start, give up, or wait: at once when nobody better can come, or nobody can come any more; else until the
        deadline, or until the grace is over that those who were meant have once others could start."""
        if self._refused:
            return self._give_up("aborted", "; ".join(_network_reasons(self._network)), now)
        over = now.steady >= self._deadline
        short = any(tally.hopeful < tally.seats.least for tally in self._tallies)
        if short or (over and any(tally.ready < tally.seats.least for tally in self._tallies)):
            reason = "; ".join(shortage(self._seats, self.members, final=over))
            if over:
                reason = "after {:g} s {}".format(self.submission["deadline"], reason)
            return self._give_up("aborted", reason, now)
        if any(tally.ready < tally.seats.least for tally in self._tallies):
            self._enough_since = None
            return []
        if self._enough_since is None:
            self._enough_since = now.steady
        over = over or now.steady >= self._enough_since + self.submission["grace"]
        if not (over or all(tally.filled for tally in self._tallies)):
            return []
        choice = choose(self._seats, self.members)
        if choice.roster is None or not (choice.best or over):
            return []
        changed = self._seat(set(choice.roster))
        if changed and self.submission["form"]:
            return self._give_up("reform", "forms anew: " + "; ".join(changed), now)
        return self._publish(now)

    def _seat(self, chosen: t.AbstractSet[str]) -> t.List[str]:
        """Give everybody a role; what has become of those who were meant to start and do not."""
        changed = []
        for group in self._seats:
            meant = set(group.meant)
            substitutes = iter([name for name in group.members if name in chosen and name not in meant])
            for name in group.members:
                member = self._members[name]
                member.was = str(member.standing)
                if name in chosen:
                    member.role = "starter"
                elif name not in meant:
                    member.role = "spare"
                else:
                    substitute = next(substitutes, None)
                    member.role = "replaced" if substitute else "dropped"
                    by = f" by {substitute}" if substitute else ""
                    changed.append(f"{name} ({member.was}) was {member.role}{by}")
        self._roster = sorted((self._members[name] for name in chosen), key=lambda member: member.rank)
        self._unended, self._undone = set(chosen), set(chosen)
        return changed

    def _early_exit(self, member: _Member) -> None:
        """A member has ended: see whether that is to stop the others."""
        policy = self.submission["on_early_exit"]
        if policy == "continue" or self._stop_wanted is not None:
            return
        problem = self._member_problem(member)
        if problem is not None or policy == "stop":
            self._early = member.name
            self._stop_wanted = f"{member.name} {problem or 'has ended'}"

    def _lead(self) -> int:
        """How long before an instant it has to be said (ns)."""
        return lead_ns([((m.report.get("clock") or {}).get("rtt_ns") or 0) for m in self._roster], len(self._roster))

    def _publish(self, now: Now) -> t.List[Action]:
        """The roster is armed: choose T and say it; let the others go. Happens once."""
        self.phase = "running"
        self._named = NamedBarriers(member.name for member in self._roster)
        others = [member for member in self._members.values() if member.role != "starter" and member.connected]
        return [*self._choose_start(now), *(Stop(member.name, _LET_GO[member.role or "spare"]) for member in others)]

    def _choose_start(self, now: Now) -> t.List[Action]:
        """Choose T: twice as far away each time that it was put off."""
        lead = min(LEAD_MAX_NS, self._lead() << self._put_off)
        self._published, self.start_ns = now, now.wall_ns + lead
        self._start_steady = now.steady + lead / 1e9
        self._deadline = self._start_steady + self.submission["timeout"] + STOP_GRACE + EXIT_SLACK
        return [Start(member.name, self.start_ns) for member in self._roster]

    def _give_up(self, outcome: str, reason: str, now: Now) -> t.List[Action]:
        """Nobody starts. Everyone who was getting ready is let go."""
        self.phase, self.outcome, self._ended = "settled", outcome, now
        self._reasons = [reason]
        stops: t.List[Action] = [Stop(m.name, reason) for m in self._members.values() if m.connected]
        return [*stops, Ended(), Settled()]

    def _end(self, now: Now) -> t.List[Action]:
        self.phase, self.outcome, self._ended = "ended", "completed", now
        self._deadline = now.steady + self.submission["delivery_deadline"]
        return [*self._named.close("the trial has ended"), Ended()]

    # -- the result --

    @property
    def complete(self) -> bool:
        """Whether no report can change the result any more."""
        return self.phase == "settled" and (
            self._published is None or all(member.reached("delivered") for member in self._roster)
        )

    def result(self) -> t.Dict[str, t.Any]:
        """trial.json, format startline-trial/1. Times are UNIX seconds on the rendezvous' clock unless they say _ns or _us.

        Before the trial has settled it is what is known so far; evidence that is on its way is then no fault.
        """
        verdict, reasons = self._judge()
        start, last_armed = self.start_ns, self._last_armed()
        return {
            "format": "startline-trial/1",
            "epoch": self.epoch.to_json(),
            "phase": self.phase,
            "outcome": self.outcome,
            "verdict": verdict,
            "reasons": reasons,
            "submitted": self._submitted.wall_ns / 1e9,
            "armed": last_armed and last_armed["at"],
            "published": self._published and self._published.wall_ns / 1e9,
            "start": None if start is None else start / 1e9,
            "start_ns": start,
            "ended": self._ended and self._ended.wall_ns / 1e9,
            "lead_s": None if start is None or self._published is None else (start - self._published.wall_ns) / 1e9,
            "last_armed": last_armed,
            "skew": self._skew(),
            "roster": None if not self._decided else [member.name for member in self._roster],
            "replaced": self._changed("replaced"),
            "dropped": self._changed("dropped"),
            "formed_from": self.submission["formed_from"] or [],
            "early_exit": self._early,
            "barriers": self._named.result(_spread),
            "network": self.submission.get("network_check"),
            "members": {name: self._row(member) for name, member in self._members.items()},
        }

    def _judge(self) -> t.Tuple[str, t.List[str]]:
        """The verdict and every reason for it, worst first."""
        if self.outcome in ("aborted", "reform"):
            return "invalid", list(self._reasons)
        invalid: t.List[str] = []
        degraded: t.List[str] = []
        if self._stopped is not None and self._early is None:
            invalid.append(f"stopped: {self._stopped}")
        if self._decided:
            for group in self._seats:
                filled = sum(self._members[name].role == "starter" for name in group.members)
                if filled < group.seats:
                    degraded.append(f"{filled} of {group.seats} seats filled ({_span(group.members)})")
            degraded += [f"{entry['member']} was dropped ({entry['was']})" for entry in self._changed("dropped")]
        if self._network.get("verdict", "valid") != "valid":
            degraded += _network_reasons(self._network)
        for member in self._roster:
            problem = self._member_problem(member)
            if problem is not None:
                invalid.append(f"{member.name} {problem}")
            limit = self.submission["max_clock_error"]
            problems = _clock_problems(member.report, limit)
            refused = self.submission["on_clock_error"] == "refuse"
            (invalid if refused else degraded).extend(f"{member.name}: {problem}" for problem in problems)
            degraded += [f"{member.name} {problem}" for problem in _lateness(member.report, limit)]
            degraded += [f"{member.name} left {what}" for what in _left_behind(member.report.get("exit"))]
            network = member.report.get("network")
            if network is not None and network["problem"] is not None:
                degraded.append(f"{member.name}: network: {network['problem']}")
        return ("invalid" if invalid else "degraded" if degraded else "valid"), invalid + degraded

    def _member_problem(self, member: _Member) -> t.Optional[str]:
        """What makes this member's part of the trial worthless."""
        end = member.report.get("exit")
        # Who was stopped because another had ended is no fault.
        excused = self._early not in (None, member.name) and end is not None and end["stopped"]
        if member.failed is not None:
            return f"failed after it was {member.state}: {member.failed}"
        if not member.reached("exited"):
            if self.phase in ("gathering", "running"):
                return None  # still under way
            return "did not say how its command ended (last state: {}{})".format(
                member.state,
                "" if member.connected else ", connection lost",
            )
        if excused:
            pass
        elif end is not None and end["timed_out"]:
            return "was still running after {:g} s and was killed".format(self.submission["timeout"])
        elif end is not None and end["signal"] is not None:
            return f"was ended by signal {end['signal']}"
        elif end is not None and end["code"]:
            return f"exited with code {end['code']}" + (f": {end['detail']}" if end["detail"] else "")
        elif end is None or (end["code"] is None and end["signal"] is None):
            return f"ended, nobody knows how: {(end and end['detail']) or 'no exit status'}"
        if self.phase == "settled" and not member.reached("delivered"):
            return "did not deliver its evidence within {:g} s".format(self.submission["delivery_deadline"])
        return None

    def _row(self, member: _Member) -> t.Dict[str, t.Any]:
        report = member.report
        clock, end = report.get("clock"), report.get("exit")
        late = _late_ns(report)
        return {
            "rank": member.rank,
            "role": member.role,
            "state": member.state,
            "connected": member.connected,
            "armed_at": member.seen["armed"] / 1e9 if "armed" in member.seen else None,
            "fired_at": None if late is None or self.start_ns is None else (self.start_ns + late) / 1e9,
            "late_us": None if late is None else late / 1e3,
            "bound_us": clock and clock["bound_ns"] / 1e3,
            "clock": _clock_row(clock),
            "clock_after": _clock_row(report.get("clock_after")),
            "exit_code": end and end["code"],
            "signal": end and end["signal"],
            "timed_out": bool(end and end["timed_out"]),
            "stopped": bool(end and end["stopped"]),
            "exited_at": end and end["at_ns"] / 1e9,
            "duration_s": end and end["duration_ns"] / 1e9,
            "leftovers": end and end["leftovers"],
            "clock_step_s": end and end["stepped_ns"] / 1e9,
            "remaining": (end and end.get("remaining")) or [],
            "ports": (end and end.get("ports")) or [],
            "reason": member.failed or (end and end["detail"]) or None,
            "files": report.get("files") or [],
            "network": self._network_row(report.get("network")),
        }

    def _network_row(self, network: t.Optional[t.Mapping[str, t.Any]]) -> t.Optional[t.Dict[str, t.Any]]:
        """When the rules of each phase of the network came into force (s after T; None: before it)."""
        if network is None:
            return None
        phases = [
            {"phase": e["phase"], "at_s": None if e["at_ns"] is None else (e["at_ns"] - (self.start_ns or 0)) / 1e9}
            for e in network["phases"]
        ]
        return {"phases": phases, "cleared": network["cleared"], "problem": network["problem"]}

    def _skew(self) -> t.Optional[t.Dict[str, t.Any]]:
        """How far apart the members really started: lateness after T, each on its own clock, and how well those are
        known."""
        late = {m.name: lateness for m in self._roster for lateness in [_late_ns(m.report)] if lateness is not None}
        if not late:
            return None
        spread = _spread(late)
        worst = self._members[spread["last"]]
        bounds = [m.report["clock"]["bound_ns"] / 1e3 for m in self._roster if m.report.get("clock")]
        why = _why(worst.report, spread["p50_us"])
        return {**spread, "bound_us": max(bounds, default=None), "why": why}

    @property
    def _decided(self) -> bool:
        """Whether it is known who is to start."""
        return self._published is not None or self.outcome == "reform"

    def _changed(self, role: str) -> t.List[t.Dict[str, t.Any]]:
        """Who was meant to start and did not, in this attempt and those that it was formed from."""
        earlier = [entry for attempt in self.submission["formed_from"] or [] for entry in attempt[role]]
        now = [{"member": m.name, "was": m.was} for m in self._members.values() if m.role == role]
        return earlier + now

    def _last_armed(self) -> t.Optional[t.Dict[str, t.Any]]:
        """Who was the last to be ready, how long after the one before, and when it came into each state."""
        if self._published is None:
            return None
        order = sorted(self._roster, key=lambda member: member.ready_at or 0)
        last, ready_at = order[-1], order[-1].ready_at or 0
        before = (order[-2].ready_at or 0) if len(order) > 1 else self._submitted.wall_ns
        return {
            "member": last.name,
            "at": ready_at / 1e9,
            "behind_s": (ready_at - before) / 1e9,
            "states": {state: last.seen[state] / 1e9 for state in STATES[1:4] if state in last.seen},
        }


def _network_reasons(network: t.Mapping[str, t.Any]) -> t.List[str]:
    """What the check of the network has against it."""
    return [f"network: {reason}" for reason in network["reasons"]] or ["network: it is not the one asked for"]


def _clock_problems(report: t.Mapping[str, t.Any], limit: float) -> t.List[str]:
    """What is known of a member's clock that `limit` (s) does not allow, before T and after."""
    before, after, end = report.get("clock"), report.get("clock_after"), report.get("exit")
    limit_ns = limit * 1e9
    found: t.List[str] = []
    for clock, when in ((before, ""), (after, " after the trial")):
        if clock is None:
            continue
        if clock["bound_ns"] > limit_ns:
            found.append(
                "clock known to {:.3f} s only ({}){}, more than {:.3f} s".format(
                    clock["bound_ns"] / 1e9, clock["source"], when, limit
                )
            )
        if clock["note"] is not None and abs(clock["offset_ns"]) > limit_ns:
            found.append(clock["note"])
    if before is not None and abs(before["stepped_ns"]) > limit_ns:
        found.append("clock was stepped by {:+.3f} s before T".format(before["stepped_ns"] / 1e9))
    if end is not None and abs(end["stepped_ns"]) > limit_ns:
        found.append("clock was stepped by {:+.3f} s during the trial".format(end["stepped_ns"] / 1e9))
    if after is not None and abs(after["drifted_ns"]) > limit_ns:
        found.append(
            "clock drifted by {:+.3f} s during the trial, more than both measurements explain".format(
                after["drifted_ns"] / 1e9
            )
        )
    if after is None and report.get("state") == "delivered":
        found.append("clock could not be measured again after the trial")
    return found


def _lateness(report: t.Mapping[str, t.Any], limit: float) -> t.List[str]:
    """That a member did not wait for T, because it heard of it too late: by more than `limit` (s), which instants may differ by."""
    noticed, start = report.get("noticed_ns"), report.get("start_ns")
    if noticed is None or start is None or noticed - start <= limit * 1e9:
        return []
    late = ((_late_ns(report) or 0) / 1e9, (noticed - start) / 1e9)
    return ["started {:.3f} s late: T reached it {:.3f} s after T".format(*late)]


def _left_behind(end: t.Optional[t.Mapping[str, t.Any]]) -> t.List[str]:
    """What is still there after everything that a command has started was ended."""
    if end is None:
        return []
    processes = [
        "{} (pid {}) running, which cannot be ended".format(e["command"], e["pid"]) for e in end.get("remaining") or ()
    ]
    return processes + [describe(entry) for entry in end.get("ports") or ()]


def _clock_row(clock: t.Optional[t.Mapping[str, t.Any]]) -> t.Optional[t.Dict[str, t.Any]]:
    """A measurement of a member's clock as the result shows it."""
    if clock is None:
        return None
    return {
        "source": clock["source"],
        "offset_s": clock["offset_ns"] / 1e9,
        "bound_s": clock["bound_ns"] / 1e9,
        "rtt_s": None if clock["rtt_ns"] is None else clock["rtt_ns"] / 1e9,
        "stepped_s": clock["stepped_ns"] / 1e9,
        "drifted_s": clock["drifted_ns"] / 1e9,
        "note": clock["note"],
    }


def _spread(late_ns: t.Mapping[str, int]) -> t.Dict[str, t.Any]:
    """The distribution of lateness, and who was last."""
    order = sorted((lateness, name) for name, lateness in late_ns.items())
    values = [lateness / 1e3 for lateness, _name in order]
    return {
        "n": len(values),
        "min_us": values[0],
        "p50_us": percentile(values, 50),
        "p99_us": percentile(values, 99),
        "max_us": values[-1],
        "last": order[-1][1],
    }


def _span(names: t.Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"


def _late_ns(report: t.Mapping[str, t.Any]) -> t.Optional[int]:
    """How long after T the command was started (ns), as the member's monotonic clock has it."""
    fired, start = report.get("fired_ns"), report.get("start_ns")
    return None if fired is None or start is None else int(fired - start)


def _why(report: t.Mapping[str, t.Any], median_us: float) -> str:
    """Why the last member was the last one: armed late, CPU, clock; or nothing but an ordinary wake-up."""
    late = (_late_ns(report) or 0) / 1e3
    noticed, start = report.get("noticed_ns"), report.get("start_ns")
    if noticed is not None and start is not None and noticed > start:
        return f"armed late: T reached it {(noticed - start) / 1e3:.0f} us after T"
    if late > max(2 * median_us, 200.0):
        return f"CPU: woken {late:.0f} us late, half of the members within {median_us:.0f} us"
    bound = ((report.get("clock") or {}).get("bound_ns") or 0) / 1e3
    if bound > late:
        return f"clock: woken {late:.0f} us late, but its clock is known to {bound:.0f} us only"
    return "ordinary wake-up"


def percentile(values: t.Sequence[float], percent: float) -> float:
    """The smallest of the sorted `values` that `percent` of them do not exceed (nearest rank)."""
    return values[max(0, -(-len(values) * int(percent * 100) // 10000) - 1)]
