# SPDX-License-Identifier: GPL-3.0-or-later
"""One trial as one host sees it: a state machine without I/O, the counterpart of `barrier`.

PRIVATE to the collection. Events go in, actions come out. What it knows is a plain record that survives the agent: a
restarted agent goes on from it. The rule that no host fires twice is kept here: `Fire` comes once, after the record
that says so has been saved, and a restarted agent that finds it so never starts the command again.
"""

from __future__ import annotations

import typing as t

from .clock import Clock, Reading
from .wire import STATES, Epoch

# ---- events ----------------------------------------------------------------------------------------------------------

# Times are this host's CLOCK_MONOTONIC (ns), unless they say otherwise.


class Prepared(t.NamedTuple):
    """The working directory is there; `failed` says why not."""

    failed: t.Optional[str] = None


class Measured(t.NamedTuple):
    """How well the time is known at `now_ns`; None after a trial when it cannot be found out any more."""

    clock: t.Optional[Clock]
    now_ns: int


class Ready(t.NamedTuple):
    """The launcher waits for T, since `now_ns`."""

    now_ns: int


class Shaped(t.NamedTuple):
    """The rules of a phase of the network are in force since `now_ns`, in `words` by device; `failed` says why not."""

    phase: int
    now_ns: int
    words: t.Dict[str, t.List[str]]
    failed: t.Optional[str] = None


class PhaseDue(t.NamedTuple):
    """It is time for a phase of the network."""

    phase: int


class Cleared(t.NamedTuple):
    """The rules of the network are gone, or remove themselves later; `problem` says why, or what was wrong with them."""

    problem: t.Optional[str] = None
    gone: bool = True


class StartSaid(t.NamedTuple):
    """The rendezvous says T and the last moment for it, both on its own clock, at `now_ns`. When T was decided, that clock was
    `ahead_ns` ahead of its oscillator."""

    start_ns: int
    latest_ns: int
    now_ns: int
    ahead_ns: int = 0


class Fired(t.NamedTuple):
    """T was known at `noticed_ns`, the command started at `fired_ns`, and then the clocks stood as in `reading`."""

    noticed_ns: int
    fired_ns: int
    reading: Reading


class Exited(t.NamedTuple):
    """The command and all that it had started is over. `exit` has the shape of `wire.EXIT`, but for its time."""

    exit: t.Dict[str, t.Any]


class LauncherGone(t.NamedTuple):
    """The launcher is not there any more and has left no record of an end; `now_ns` is when that was seen, None where the host
    was restarted meanwhile. `remaining` and `ports`: what it has left, and could not be ended."""

    now_ns: t.Optional[int]
    why: t.Optional[str] = None
    remaining: t.Sequence[t.Dict[str, t.Any]] = ()
    ports: t.Sequence[t.Dict[str, t.Any]] = ()


class Collected(t.NamedTuple):
    """The files of the evidence, with size and checksum; None when that has failed and is to be tried again.

    `problem` says what could not be collected and never will be; the rest is delivered all the same.
    """

    files: t.Optional[t.List[t.Dict[str, t.Any]]]
    problem: t.Optional[str] = None


class Granted(t.NamedTuple):
    """The rendezvous has signed requests for the files."""

    grants: t.List[t.Dict[str, t.Any]]


class Uploaded(t.NamedTuple):
    """Every file is confirmed; `failed` says why not, and that it is to be tried again."""

    failed: t.Optional[str] = None


class AbortSaid(t.NamedTuple):
    """The rendezvous wants the trial to end here."""

    reason: str


class SettledSaid(t.NamedTuple):
    """Nothing more is wanted."""


class Unsaved(t.NamedTuple):
    """The record could not be written before the command was started."""

    reason: str


class LinkUp(t.NamedTuple):
    """The rendezvous can be reached (again)."""


class Superseded(t.NamedTuple):
    """The rendezvous has asked for another trial."""


class OutOfPatience(t.NamedTuple):
    """Nothing was heard for longer than the rendezvous had said."""


Event = t.Union[
    Prepared,
    Measured,
    Ready,
    Shaped,
    PhaseDue,
    Cleared,
    StartSaid,
    Fired,
    Exited,
    LauncherGone,
    Collected,
    Granted,
    Uploaded,
    AbortSaid,
    SettledSaid,
    Unsaved,
    LinkUp,
    Superseded,
    OutOfPatience,
]

# ---- actions ---------------------------------------------------------------------------------------------------------


class Save(t.NamedTuple):
    """Write the record to the disk before anything else is done."""


class Say(t.NamedTuple):
    """Send a report, if there is a link."""


class Measure(t.NamedTuple):
    """Measure the clock."""


class Arm(t.NamedTuple):
    """Fork the launcher."""


class Shape(t.NamedTuple):
    """Have the rules of a phase of the network in force."""

    phase: int


class Unshape(t.NamedTuple):
    """Remove the rules of the network; those of `phase` should be in force, if that is known."""

    phase: t.Optional[int]


class Fire(t.NamedTuple):
    """Give the launcher T (ns, this host's CLOCK_MONOTONIC)."""

    start_ns: int


class Release(t.NamedTuple):
    """Let the launcher go without T, and remove what was prepared."""


class Kill(t.NamedTuple):
    """Have the launcher end the command's tree."""


class Collect(t.NamedTuple):
    """Find and check-sum the evidence."""


class Ask(t.NamedTuple):
    """Ask for leave to upload."""


class Upload(t.NamedTuple):
    """Upload the files."""

    grants: t.List[t.Dict[str, t.Any]]


class Discard(t.NamedTuple):
    """Remove the trial's files; the record stays, so that the epoch is never run again."""


Action = t.Union[Save, Say, Measure, Arm, Shape, Unshape, Fire, Release, Kill, Collect, Ask, Upload, Discard]

_ORDER = {state: position for position, state in enumerate(STATES)}


class Trial:
    """What this host knows and does of one trial. Its times are on the rendezvous' clock."""

    def __init__(self, epoch: Epoch, duty: t.Dict[str, t.Any]) -> None:
        self.epoch = epoch
        self.duty = duty
        self.state = "connected"
        self.failed: t.Optional[str] = None
        self.clock: t.Optional[t.Dict[str, t.Any]] = None
        self.armed_ns: t.Optional[int] = None
        self.clock_after: t.Optional[t.Dict[str, t.Any]] = None
        self.start_ns: t.Optional[int] = None  # T, once it was accepted
        self.fired: t.Dict[str, int] = {}
        self.exit: t.Optional[t.Dict[str, t.Any]] = None
        self.files: t.Optional[t.List[t.Dict[str, t.Any]]] = None
        #: What was done to the network: None until its first rules were asked for.
        self.network: t.Optional[t.Dict[str, t.Any]] = None
        self.settled = False
        self._ready = False
        self._shaping = False  # rules are being put in force
        self._clearing = False
        self._busy = False  # collecting or uploading
        self._compared = False  # the clock was measured again after the command's end, or cannot be
        self._dismissed = False  # the rendezvous has heard how it ended here, and wants no more of it

    # -- the record --

    def to_json(self) -> t.Dict[str, t.Any]:
        return {
            "epoch": self.epoch.to_json(),
            "duty": self.duty,
            "state": self.state,
            "failed": self.failed,
            "clock": self.clock,
            "clock_after": self.clock_after,
            "armed_ns": self.armed_ns,
            "start_ns": self.start_ns,
            "fired": self.fired,
            "exit": self.exit,
            "files": self.files,
            "network": self.network,
            "settled": self.settled,
        }

    @classmethod
    def from_json(cls, record: t.Mapping[str, t.Any]) -> Trial:
        """The trial as an agent before this one has left it."""
        trial = cls(Epoch(**record["epoch"]), record["duty"])
        for name in (
            "state",
            "failed",
            "clock",
            "clock_after",
            "armed_ns",
            "start_ns",
            "fired",
            "exit",
            "files",
            "network",
            "settled",
        ):
            setattr(trial, name, record[name])
        trial._compared = trial.settled or trial.files is not None or trial.clock_after is not None
        return trial

    def report(self) -> t.Dict[str, t.Any]:
        """The fields of a report."""
        return {
            "epoch": self.epoch,
            "state": self.state,
            "failed": self.failed,
            "clock": self.clock,
            "clock_after": self.clock_after,
            "armed_ns": self.armed_ns,
            "start_ns": self.start_ns,
            "noticed_ns": self.fired.get("noticed_ns"),
            "fired_ns": self.fired.get("fired_ns"),
            "exit": self.exit,
            "files": self.files,
            "network": self.network,
        }

    def reached(self, state: str) -> bool:
        return _ORDER[self.state] >= _ORDER[state]

    @property
    def committed(self) -> bool:
        """T was accepted: from here on only the launcher decides."""
        return self.start_ns is not None

    @property
    def over(self) -> bool:
        """Nothing of the command runs, and none will."""
        return self.failed is not None or self.reached("exited")

    @property
    def steady_start_s(self) -> t.Optional[float]:
        """T in seconds of this host's CLOCK_MONOTONIC, once it was accepted."""
        return None if self.start_ns is None else self._known.to_steady(self.start_ns) / 1e9

    @property
    def waits_for_clock(self) -> bool:
        """A measurement of the clock is awaited: before T, or after the end."""
        return not self._compared if self.reached("exited") else self.clock is None and not self.over

    @property
    def waits_for_others(self) -> bool:
        """Armed, and T is not said yet: the measured clock grows old."""
        return self.state == "armed" and not self.committed and not self.over

    @property
    def _rules_stand(self) -> bool:
        """Rules were asked for, and nobody has tried yet to remove them."""
        return self.network is not None and self.network["cleared"] is None

    @property
    def _known(self) -> Clock:
        """The clock as it was measured for T; one that agrees with the rendezvous' if it never was."""
        return Clock(**self.clock) if self.clock is not None else Clock("none", 0, 0)

    # -- events --

    def resume(self) -> t.List[Action]:
        """What a restarted agent does first. A launcher that still lives, or has ended, is reported as an event after
        this."""
        if self.settled or (self.failed is not None and not self.reached("exited")):
            return self._clear()
        if self.committed and not self.reached("exited"):
            return []  # the launcher goes on, or its record says how it ended
        if self.reached("exited"):
            return self._deliver()
        # Nothing was started, and the launcher has gone with the agent that held its pipe: make ready anew.
        self.state, self.armed_ns, self.clock = "prepared", None, None
        actions = self._make_ready()
        return [Save(), *actions]

    def outlive_boot(self) -> None:
        """The host was restarted since, and its monotonic clock with it: what was measured before T cannot be compared."""
        self._compared = True

    def step(self, event: Event) -> t.List[Action]:
        """Take one event; say what is to be done, in this order."""
        handler: t.Callable[[t.Any], t.List[Action]] = getattr(self, "_on_" + type(event).__name__)
        return handler(event)

    def _fail(self, reason: str) -> t.List[Action]:
        self.failed = reason
        return [Save(), Say(), *self._clear()]

    def _on_Prepared(self, event: Prepared) -> t.List[Action]:
        if event.failed is not None:
            return self._fail(event.failed)
        self.state = "prepared"
        actions = self._make_ready()
        return [Save(), Say(), *actions]

    def _make_ready(self) -> t.List[Action]:
        self._ready = False
        if not self.duty.get("network"):
            return [Arm(), Measure()]
        self.network = {"phases": [], "cleared": None, "problem": None}
        self._shaping = True
        return [Arm(), Measure(), Shape(0)]

    def _on_Measured(self, event: Measured) -> t.List[Action]:
        found = event.clock
        if self.reached("exited"):
            if self._compared:
                return []
            self._compared = True
            if found is not None:
                self.clock_after = found.since(self._known).to_json()
            return [Save(), Say(), *self._deliver()]
        if found is None or self.over or self.committed:
            return []
        if self.clock is None:
            self.clock = found.to_json()
            return self._maybe_armed(event.now_ns)
        # A wait for others is a long time for a clock: what it has become may decide whether this host can start.
        before, self.clock = self.clock, self._known.renewed(found).to_json()
        if not self.waits_for_others:
            return self._maybe_armed(event.now_ns)
        return [Save(), Say()] if self._says_more(before, self.clock) else []

    def _says_more(self, before: t.Mapping[str, t.Any], after: t.Mapping[str, t.Any]) -> bool:
        """Whether a new measurement changes what the rendezvous decides by: the limit of the trial, and the time to tell T."""
        limit_ns = self.duty["max_clock_error"] * 1e9
        for name in ("bound_ns", "stepped_ns", "offset_ns"):
            if (abs(before[name]) > limit_ns) != (abs(after[name]) > limit_ns):
                return True
        return (after["rtt_ns"] or 0) > 2 * (before["rtt_ns"] or 0)

    def _on_Ready(self, event: Ready) -> t.List[Action]:
        self._ready = True
        return self._maybe_armed(event.now_ns)

    def _on_Shaped(self, event: Shaped) -> t.List[Action]:
        if self.network is None:
            return []
        self._shaping = False
        if event.failed is not None:
            if not (self.committed or self.over):
                return [*self._fail(f"network: {event.failed}"), Release()]
            self.network["problem"] = self.network["problem"] or f"phase {event.phase}: {event.failed}"
            return [Save(), Say()]
        at_ns = self._known.to_rendezvous(event.now_ns) if self.committed else None  # the clock may not be known yet
        if [entry["phase"] for entry in self.network["phases"][-1:]] != [event.phase]:
            self.network["phases"].append({"phase": event.phase, "at_ns": at_ns, "words": event.words})
        return [Save()] if self.committed or self.over else self._maybe_armed(event.now_ns)

    def _on_PhaseDue(self, event: PhaseDue) -> t.List[Action]:
        if self.network is None or not self.committed or self.over:
            return []
        self._shaping = True
        return [Shape(event.phase)]

    def _clear(self) -> t.List[Action]:
        """Remove the rules, if there may be any."""
        if self.network is None or self._clearing or not self._rules_stand:
            return []
        self._clearing = True
        phases = self.network["phases"]
        return [Unshape(phases[-1]["phase"] if phases and not self._shaping else None)]

    def _on_Cleared(self, event: Cleared) -> t.List[Action]:
        if self.network is None:
            return []
        self._clearing = False
        self.network["cleared"] = event.gone
        self.network["problem"] = self.network["problem"] or event.problem
        return [Save(), Say(), *self._deliver(), *self._forget()]

    def _maybe_armed(self, now_ns: int) -> t.List[Action]:
        if not self._ready or self.clock is None or self.state != "prepared" or self.over:
            return []
        if self.network is not None and not self.network["phases"]:
            return []
        self.state, self.armed_ns = "armed", self._known.to_rendezvous(now_ns)
        return [Save(), Say()]

    def _on_StartSaid(self, event: StartSaid) -> t.List[Action]:
        if self.committed or self.over:
            return [Say()]
        if self.state != "armed":
            return []  # arms anew after a restart: T is said again once it has, and may then be too late
        late_ns = self._known.to_rendezvous(event.now_ns) - event.start_ns
        if late_ns > event.latest_ns - event.start_ns:
            return [*self._fail(f"T had passed by {late_ns / 1e9:.3f} s when it was heard"), Release()]
        self.start_ns, self.clock = event.start_ns, self._known.told(event.ahead_ns).to_json()
        return [Save(), Fire(self._known.to_steady(event.start_ns))]

    def _on_Fired(self, event: Fired) -> t.List[Action]:
        if self.reached("fired"):
            return []
        self.state = "fired"
        known = self._known
        self.fired = {
            "noticed_ns": known.to_rendezvous(event.noticed_ns),
            "fired_ns": known.to_rendezvous(event.fired_ns),
        }
        self.clock = known.carried(event.reading).to_json()
        return [Save(), Say()]

    def _on_Exited(self, event: Exited) -> t.List[Action]:
        if self.reached("exited"):
            return []
        return self._ended(dict(event.exit, at_ns=self._known.to_rendezvous(event.exit["at_ns"])))

    def _ended(self, exit: t.Dict[str, t.Any]) -> t.List[Action]:
        """`exit` as in a report: its time is the rendezvous'."""
        self.state, self.exit = "exited", exit
        return [Save(), Say(), *self._deliver()]

    def _on_LauncherGone(self, event: LauncherGone) -> t.List[Action]:
        if self.over:
            return []
        if not self.committed or (event.why is not None and not self.reached("fired")):
            return self._fail(event.why or "the launcher was killed")
        # T had come, or was about to: what the command has written is evidence, although nobody knows how it ended.
        if event.now_ns is None:
            at_ns, why = self.fired.get("fired_ns") or self.start_ns, "the host was restarted"
        else:
            at_ns, why = self._known.to_rendezvous(event.now_ns), "its launcher was killed"
        end = {
            "code": None,
            "signal": None,
            "timed_out": False,
            "stopped": False,
            "at_ns": at_ns,
            "duration_ns": 0,
            "leftovers": 0,
            "remaining": list(event.remaining),
            "ports": list(event.ports),
            "stepped_ns": 0,
            "detail": event.why or why,
        }
        return self._ended(end)

    def _deliver(self) -> t.List[Action]:
        """The next step of the delivery, from wherever it stands."""
        if self.settled or self._busy or not self.reached("exited"):
            return []
        if self._rules_stand:
            return self._clear()
        if not self._compared:
            return [Measure()]  # now, while it still says something of the trial
        if self.files is None:
            self._busy = True
            return [Collect()]
        if self.reached("delivered"):
            return []
        if not self.duty["upload"]:
            # Nowhere to upload to: the files stay on the host, and that is all that was asked for.
            self.state = "delivered"
            return [Save(), Say()]
        return [Ask()]

    def _on_Collected(self, event: Collected) -> t.List[Action]:
        self._busy = False
        if event.files is None:
            return []  # `retry` comes back to it
        self.files = event.files
        self.failed = event.problem
        return [Save(), *self._deliver()]

    def _on_Granted(self, event: Granted) -> t.List[Action]:
        if self._busy or self.files is None or self.reached("delivered"):
            return []
        self._busy = True
        return [Upload(event.grants)]

    def _on_Uploaded(self, event: Uploaded) -> t.List[Action]:
        self._busy = False
        if event.failed is not None:
            return []  # still spooled; `retry` comes back to it
        self.state = "delivered"
        return [Save(), Say()]

    def retry(self) -> t.List[Action]:
        """Go on, after a pause, with a delivery that did not succeed."""
        return self._deliver()

    def _on_AbortSaid(self, event: AbortSaid) -> t.List[Action]:
        if self.over:
            self._dismissed = not self.reached("exited")
            return self._forget()
        return self._let_go(event.reason)

    def _let_go(self, reason: str) -> t.List[Action]:
        if self.committed:
            return [Kill()]
        self.failed = f"released: {reason}"
        return [Release(), Save(), Say(), *self._clear()]  # who was to start is waited for until it says so

    def _forget(self) -> t.List[Action]:
        """An agent may see thousands of trials, and of one that is over nobody asks what was to be done."""
        if self.settled or not self._dismissed or self._rules_stand:
            return []
        self.settled, self.duty, self.network = True, {}, None
        return [Save()]

    def _on_SettledSaid(self, event: SettledSaid) -> t.List[Action]:
        if self.settled or not self.reached("delivered"):
            return []
        uploaded, self._dismissed = bool(self.duty["upload"]), True
        return [*self._forget(), Discard()] if uploaded else self._forget()

    def _on_LinkUp(self, event: LinkUp) -> t.List[Action]:
        if self.settled:
            return []
        return [Say(), *self._deliver()]

    def _on_Unsaved(self, event: Unsaved) -> t.List[Action]:
        """An agent after us would not know of T, nor that this epoch was run: so it is not run."""
        if self.over:
            return []
        self.start_ns = None
        self.failed = f"cannot write its record: {event.reason}"
        return [Release(), Say(), *self._clear()]

    def _on_Superseded(self, event: Superseded) -> t.List[Action]:
        return [] if self.over else self._let_go("another trial was asked for")

    def _on_OutOfPatience(self, event: OutOfPatience) -> t.List[Action]:
        if self.committed or self.over:
            return []
        return [*self._fail("the rendezvous was not heard of in time"), Release()]
