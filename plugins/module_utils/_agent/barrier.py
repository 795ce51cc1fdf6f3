# SPDX-License-Identifier: GPL-3.0-or-later
"""The barrier of one trial: a state machine without I/O.

PRIVATE to the collection. Events go in, actions come out; the time is an argument. The same events at the same times
give the same actions, so a journal of them is all that a restarted rendezvous needs, and any transport can carry
them.

    gathering --policy met--> running --all ended, or too late--> ended --all delivered, or too late--> settled
        |                                                                                                 ^
        +------------------------ policy cannot be met, deadline, abort: aborted -------------------------+

What holds in any order of messages, losses, repetitions, reconnects and deaths:

* T is published once, and only when the policy's members are armed and connected; the members are a set of names.
* Nothing is published after an abort. An abort that is asked for between publication and T is decided at T: nobody
  can be called back for certain then, so all start and all are stopped.
* Every phase but the last has an end in time (`Barrier.wake_at`), and the result names every member's last state.
* After publication a member's state only goes forward.
"""

from __future__ import annotations

import typing as t

from .ports import describe
from .wire import STATES, STOP_GRACE, Epoch

#: Bounds of the time between deciding T and T. Below: what a message and a wake-up of the launcher need on a busy
#: machine.
LEAD_MIN_NS = 60 * 10**6
LEAD_MAX_NS = 5 * 10**9
#: Cost of sending T to one more member.
LEAD_PER_MEMBER_NS = 200 * 10**3
#: A member that learns of T later than this after T does not start any more.
LATE_LIMIT_NS = 10**9
#: Seconds past T + timeout + grace after which a member that has not said how its command ended is given up.
EXIT_SLACK = 10.0
#: Seconds past the deadline after which an agent that hears nothing lets go by itself.
PATIENCE = 30.0

_ORDER = {state: position for position, state in enumerate(STATES)}


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


Event = t.Union[Connected, Lost, Reported, Abort, Tick]

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


Action = t.Union[Prepare, Start, Stop, Settle, Refuse, Ended, Settled]

# ---- policy ----------------------------------------------------------------------------------------------------------


class Decision(t.NamedTuple):
    """What a policy says of those who are armed: go with these, or it cannot be met any more and why, or (neither)
    wait."""

    go: t.Optional[t.FrozenSet[str]] = None
    impossible: t.Optional[str] = None


class Standing(t.NamedTuple):
    """What a policy sees of one member."""

    state: str
    connected: bool
    failed: t.Optional[str]


def require_all(members: t.Mapping[str, Standing], final: bool) -> Decision:
    """Everyone or nobody."""
    failed = sorted(name for name, member in members.items() if member.failed)
    if failed:
        return Decision(impossible="; ".join(f"{name}: {members[name].failed}" for name in failed))
    missing = [name for name, member in members.items() if not (member.state == "armed" and member.connected)]
    if not missing:
        return Decision(go=frozenset(members))
    return Decision(impossible=_missing(missing, members)) if final else Decision()


#: A quorum, with spares or stragglers, is one more function here; `final` says that the deadline has passed.
POLICIES: t.Dict[str, t.Callable[[t.Mapping[str, Standing], bool], Decision]] = {"all": require_all}


def _missing(names: t.Iterable[str], members: t.Mapping[str, Standing]) -> str:
    """Each missing member with the state it was last seen in."""
    return "not armed: " + ", ".join(
        "{} ({}{})".format(
            name,
            members[name].state,
            "" if members[name].connected or members[name].state == "absent" else ", connection lost",
        )
        for name in names
    )


def lead_ns(round_trips: t.Iterable[int], members: int) -> int:
    """Time from deciding T to T (ns): the worst round trip measured four times over, and the cost of telling
    everybody."""
    worst = max(round_trips, default=0)
    return min(LEAD_MAX_NS, LEAD_MIN_NS + 4 * worst + LEAD_PER_MEMBER_NS * members)


# ---- the machine -----------------------------------------------------------------------------------------------------


class _Member:
    """What is known of one member."""

    __slots__ = ("armed_at", "connected", "failed", "name", "rank", "report", "state")

    def __init__(self, name: str, rank: int) -> None:
        self.name = name
        self.rank = rank
        self.state = "absent"
        self.connected = False
        self.failed: t.Optional[str] = None
        self.armed_at: t.Optional[int] = None
        self.report: t.Dict[str, t.Any] = {}

    @property
    def standing(self) -> Standing:
        return Standing(self.state, self.connected, self.failed)

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


class Barrier:
    """One trial as the rendezvous sees it. `submission` has the shape of `wire.SUBMISSION`."""

    def __init__(self, submission: t.Mapping[str, t.Any], now: Now) -> None:
        self.submission = submission
        self.epoch = Epoch(submission["run_id"], submission["trial_id"], submission["attempt"])
        self.phase = "gathering"
        self.outcome: t.Optional[str] = None
        self.start_ns: t.Optional[int] = None
        self._policy = POLICIES[submission["policy"]]
        self._members = {entry["name"]: _Member(entry["name"], entry["rank"]) for entry in submission["members"]}
        self._submitted = now
        self._armed: t.Optional[Now] = None
        self._published: t.Optional[Now] = None
        self._start_steady = 0.0
        self._ended: t.Optional[Now] = None
        self._deadline: float = now.steady + submission["deadline"]
        self._stopped: t.Optional[str] = None
        self._stop_wanted: t.Optional[str] = None
        self._reasons: t.List[str] = []

    # -- what others ask --

    @property
    def wake_at(self) -> t.Optional[float]:
        """When (steady) a `Tick` is due, whatever else happens. None once settled."""
        if self.phase == "settled":
            return None
        if self.phase == "running" and self._stop_wanted is not None and self._stopped is None:
            return min(self._deadline, self._start_steady)
        return self._deadline

    @property
    def members(self) -> t.Dict[str, Standing]:
        return {name: member.standing for name, member in self._members.items()}

    # -- events --

    def step(self, event: Event, now: Now) -> t.List[Action]:
        """Take one event; say what is to be done."""
        if isinstance(event, Connected):
            actions = self._on_connected(event)
        elif isinstance(event, Lost):
            actions = self._on_lost(event)
        elif isinstance(event, Reported):
            actions = self._on_report(event, now)
        elif isinstance(event, Abort):
            actions = self._on_abort(event, now)
        else:
            actions = []
        return actions + self._advance(now)

    def greet(self, member: str, now: Now) -> t.List[Action]:
        """What a member that is (again) connected has to be told. Changes nothing."""
        known = self._members.get(member)
        if known is None or known.done:
            return []
        if self.phase == "gathering":
            return [Prepare(member, max(0.0, self._deadline - now.steady) + PATIENCE)]
        if self.outcome == "aborted":
            return [Stop(member, self._reasons[0])]
        actions: t.List[Action] = [Start(member, self.start_ns or 0)]
        if self._stopped is not None:
            actions.append(Stop(member, self._stopped))
        return actions

    def _on_connected(self, event: Connected) -> t.List[Action]:
        member = self._members.get(event.member)
        if member is None:
            return []
        member.connected = True
        if member.state == "absent":
            member.state = "connected"
        return []

    def _on_lost(self, event: Lost) -> t.List[Action]:
        member = self._members.get(event.member)
        if member is not None:
            member.connected = False
        return []

    def _on_report(self, event: Reported, now: Now) -> t.List[Action]:
        if event.epoch != self.epoch:
            return [Refuse(event.member, f"this is {self.epoch}, not {event.epoch}")]
        member = self._members.get(event.member)
        if member is None:
            return [Refuse(event.member, f"{event.member} is not a member of {self.epoch}")]
        state, failed = event.report["state"], event.report["failed"]
        if self.outcome == "aborted":
            return [] if failed or _ORDER[state] < _ORDER["prepared"] else [Stop(event.member, self._reasons[0])]
        if self.phase == "gathering":
            if _ORDER[state] > _ORDER["armed"]:
                # The fence: no T was said in this epoch, so this is not its trial, whatever the message claims.
                failed, state = f"said {state} before T was published", "connected"
        elif _ORDER[state] < _ORDER[member.state]:
            return []  # overtaken by a newer report
        elif self.phase == "running" and state == "armed" and not failed and event.report["start_ns"] is None:
            return [Start(member.name, self.start_ns or 0)]  # T was lost on the way
        elif _ORDER[state] < _ORDER["armed"] and not failed:
            return []
        before = member.reached("delivered")
        member.report = event.report
        member.state = state
        member.failed = self._unfit(event.report) if failed is None else failed
        if state == "armed" and member.armed_at is None:
            member.armed_at = now.wall_ns
        actions: t.List[Action] = []
        if member.reached("delivered"):
            actions.append(Settle(member.name))
            if self.phase == "settled" and not before:
                actions.append(Settled())
        elif self._stopped is not None and state in ("armed", "fired"):
            actions.append(Stop(member.name, self._stopped))
        return actions

    def _on_abort(self, event: Abort, now: Now) -> t.List[Action]:
        if self.phase == "gathering":
            return self._give_up(event.reason, now)
        if self.phase == "running" and self._stop_wanted is None:
            self._stop_wanted = event.reason
        return []

    # -- decisions --

    def _unfit(self, report: t.Mapping[str, t.Any]) -> t.Optional[str]:
        """Why a member that says it is armed may not take part: its clock is not known well enough."""
        if self.submission["on_clock_error"] != "refuse" or self.phase != "gathering":
            return None
        return "; ".join(_clock_problems(report, self.submission["max_clock_error"])) or None

    def _advance(self, now: Now) -> t.List[Action]:
        """What follows from the present state and time."""
        actions: t.List[Action] = []
        if self.phase == "gathering":
            decision = self._policy(self.members, now.steady >= self._deadline)
            if decision.go is not None:
                actions += self._publish(now)
            elif decision.impossible is not None:
                reason = decision.impossible
                if now.steady >= self._deadline:
                    reason = "after {:g} s {}".format(self.submission["deadline"], reason)
                actions += self._give_up(reason, now)
        if self.phase == "running":
            if self._stop_wanted is not None and self._stopped is None and now.steady >= self._start_steady:
                self._stopped = self._stop_wanted
                self._deadline = min(self._deadline, now.steady + STOP_GRACE + EXIT_SLACK)
                actions += [Stop(member.name, self._stopped) for member in self._members.values() if not member.ended]
            if all(member.ended for member in self._members.values()):
                actions += self._end(now)
            elif now.steady >= self._deadline:
                late = "the trial's time is over"
                actions += [Stop(member.name, late) for member in self._members.values() if not member.ended]
                actions += self._end(now)
        if self.phase == "ended" and (
            now.steady >= self._deadline or all(member.done for member in self._members.values())
        ):
            self.phase = "settled"
            actions.append(Settled())
        return actions

    def _publish(self, now: Now) -> t.List[Action]:
        """Everybody is armed: choose T and say it. Happens once."""
        round_trips = [((m.report.get("clock") or {}).get("rtt_ns") or 0) for m in self._members.values()]
        lead = lead_ns(round_trips, len(self._members))
        self.phase, self._published, self.start_ns = "running", now, now.wall_ns + lead
        self._armed = self._armed or now
        self._start_steady = now.steady + lead / 1e9
        self._deadline = self._start_steady + self.submission["timeout"] + STOP_GRACE + EXIT_SLACK
        return [Start(name, self.start_ns) for name in self._members]

    def _give_up(self, reason: str, now: Now) -> t.List[Action]:
        """Nobody starts. Everyone who was getting ready is let go."""
        self.phase, self.outcome, self._ended = "settled", "aborted", now
        self._reasons = [reason]
        stops: t.List[Action] = [Stop(m.name, reason) for m in self._members.values() if m.connected]
        return [*stops, Ended(), Settled()]

    def _end(self, now: Now) -> t.List[Action]:
        self.phase, self.outcome, self._ended = "ended", "completed", now
        self._deadline = now.steady + self.submission["delivery_deadline"]
        return [Ended()]

    # -- the result --

    def result(self) -> t.Dict[str, t.Any]:
        """trial.json, format startline-trial/1. Times are UNIX seconds on the rendezvous' clock unless they say _ns or _us.

        Before the trial has settled it is what is known so far; evidence that is on its way is then no fault.
        """
        verdict, reasons = self._judge()
        start = self.start_ns
        return {
            "format": "startline-trial/1",
            "epoch": self.epoch.to_json(),
            "phase": self.phase,
            "outcome": self.outcome,
            "verdict": verdict,
            "reasons": reasons,
            "policy": self.submission["policy"],
            "submitted": self._submitted.wall_ns / 1e9,
            "armed": self._armed and self._armed.wall_ns / 1e9,
            "published": self._published and self._published.wall_ns / 1e9,
            "start": None if start is None else start / 1e9,
            "start_ns": start,
            "ended": self._ended and self._ended.wall_ns / 1e9,
            "lead_s": None if start is None or self._published is None else (start - self._published.wall_ns) / 1e9,
            "skew": self._skew(),
            "members": {name: self._row(member) for name, member in self._members.items()},
        }

    def _judge(self) -> t.Tuple[str, t.List[str]]:
        """The verdict and every reason for it, worst first."""
        if self.outcome == "aborted":
            return "invalid", list(self._reasons)
        invalid: t.List[str] = []
        degraded: t.List[str] = []
        if self._stopped is not None:
            invalid.append(f"stopped: {self._stopped}")
        for member in self._members.values():
            problem = self._member_problem(member)
            if problem is not None:
                invalid.append(f"{member.name} {problem}")
            problems = _clock_problems(member.report, self.submission["max_clock_error"])
            refused = self.submission["on_clock_error"] == "refuse"
            (invalid if refused else degraded).extend(f"{member.name}: {problem}" for problem in problems)
            degraded += [f"{member.name} left {what}" for what in _left_behind(member.report.get("exit"))]
        return ("invalid" if invalid else "degraded" if degraded else "valid"), invalid + degraded

    def _member_problem(self, member: _Member) -> t.Optional[str]:
        """What makes this member's part of the trial worthless."""
        end = member.report.get("exit")
        if member.failed is not None:
            return f"failed after it was {member.state}: {member.failed}"
        if not member.reached("exited"):
            if self.phase in ("gathering", "running"):
                return None  # still under way
            return "did not say how its command ended (last state: {}{})".format(
                member.state,
                "" if member.connected else ", connection lost",
            )
        if end is not None and end["timed_out"]:
            return "was still running after {:g} s and was killed".format(self.submission["timeout"])
        if end is not None and end["signal"] is not None:
            return f"was ended by signal {end['signal']}"
        if end is not None and end["code"]:
            return f"exited with code {end['code']}" + (f": {end['detail']}" if end["detail"] else "")
        if end is None or (end["code"] is None and end["signal"] is None):
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
            "state": member.state,
            "connected": member.connected,
            "armed_at": None if member.armed_at is None else member.armed_at / 1e9,
            "fired_at": None if late is None or self.start_ns is None else (self.start_ns + late) / 1e9,
            "late_us": None if late is None else late / 1e3,
            "bound_us": clock and clock["bound_ns"] / 1e3,
            "clock": _clock_row(clock),
            "clock_after": _clock_row(report.get("clock_after")),
            "exit_code": end and end["code"],
            "signal": end and end["signal"],
            "timed_out": bool(end and end["timed_out"]),
            "exited_at": end and end["at_ns"] / 1e9,
            "duration_s": end and end["duration_ns"] / 1e9,
            "leftovers": end and end["leftovers"],
            "clock_step_s": end and end["stepped_ns"] / 1e9,
            "remaining": (end and end.get("remaining")) or [],
            "ports": (end and end.get("ports")) or [],
            "reason": member.failed or (end and end["detail"]) or None,
            "files": report.get("files") or [],
        }

    def _skew(self) -> t.Optional[t.Dict[str, t.Any]]:
        """How far apart the members really started: lateness after T, each on its own clock, and how well those are
        known."""
        late = sorted(
            (lateness, member.name)
            for member in self._members.values()
            for lateness in [_late_ns(member.report)]
            if lateness is not None
        )
        if not late:
            return None
        values = [lateness / 1e3 for lateness, _name in late]
        worst = self._members[late[-1][1]]
        bounds = [m.report["clock"]["bound_ns"] / 1e3 for m in self._members.values() if m.report.get("clock")]
        return {
            "n": len(values),
            "min_us": values[0],
            "p50_us": percentile(values, 50),
            "p99_us": percentile(values, 99),
            "max_us": values[-1],
            "bound_us": max(bounds, default=None),
            "last": worst.name,
            "why": _why(worst.report, percentile(values, 50)),
        }


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


def _late_ns(report: t.Mapping[str, t.Any]) -> t.Optional[int]:
    """How long after T the command was started (ns), as the member's monotonic clock has it."""
    fired, start = report.get("fired_ns"), report.get("start_ns")
    return None if fired is None or start is None else int(fired - start)


def _why(report: t.Mapping[str, t.Any], median_us: float) -> str:
    """Why the last member was the last one."""
    late = (_late_ns(report) or 0) / 1e3
    noticed, start = report.get("noticed_ns"), report.get("start_ns")
    if noticed is not None and start is not None and noticed > start:
        return f"T reached it {(noticed - start) / 1e3:.0f} us after T"
    if late <= max(2 * median_us, 200.0):
        return "ordinary wake-up"
    return f"woken {late:.0f} us late, half of the members within {median_us:.0f} us: its CPU was busy"


def percentile(values: t.Sequence[float], percent: float) -> float:
    """The smallest of the sorted `values` that `percent` of them do not exceed (nearest rank)."""
    return values[max(0, -(-len(values) * int(percent * 100) // 10000) - 1)]
