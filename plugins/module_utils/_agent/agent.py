# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent: carries out what `member.Trial` decides.

PRIVATE to the collection. One process, one thread. On the disk, below the state directory:

    trials/<run>/<trial>/<attempt>/record.json   what a restarted agent needs to go on
                                   work/         the command's working directory
                                   stdout, stderr, meta.json, fired.json, exit.json, lock, events   see `launcher`
"""

from __future__ import annotations

import contextlib
import errno
import functools
import grp
import os
import pwd
import selectors
import time
import typing as t

from . import clock, launcher, member, ports, wire
from .config import Config
from .link import open_link
from .log import log
from .network import Shaper
from .reactor import Reactor, Timer
from .waiters import Place, Waiters
from .workers import Serve, Workers

#: Seconds a measurement of the clock may take before it goes on with what it has.
MEASURE_LIMIT = 3.0
#: Seconds between two measurements while a trial waits for others: by then the first has grown old.
MEASURE_AGAIN = 5.0
#: Seconds after which a measurement after the trial is given up, although there is a link.
ANSWER_LIMIT = 30.0
#: Seconds that a time daemon which has just been started is given to know the time as well as the trial asks for.
SETTLE_LIMIT, SETTLE_PAUSE = 10.0, 0.5
#: Seconds that what an earlier trial has left has to go away, and between two looks.
FREE_LIMIT, FREE_PAUSE = 5.0, 0.1
#: Seconds beyond the longest time of a trial after which its rules for the network remove themselves.
REVERT_SLACK = 15.0
#: Seconds between tries of a delivery that does not succeed: first, and at most.
RETRY_FIRST, RETRY_MOST = 2.0, 60.0

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class _Running:
    """A trial with what this process holds of it."""

    def __init__(self, trial: member.Trial, spool: str) -> None:
        self.trial = trial
        self.spool = spool
        self.handle: t.Optional[launcher.Handle] = None
        self.restarted = False  # the host, since the record was written
        self.events: t.Optional[int] = None
        self.patience: t.Optional[Timer] = None
        self.asked = False
        self.pause = RETRY_FIRST
        self.retry: t.Optional[Timer] = None


class _Measurement:
    """A measurement of the clock under way, shared by whoever needs one.

    An exchange that began before it and was answered after an outage says little: it is added to `late`, which is what
    the measurement that this one repeats has found, and is used if this one gets no answer of its own.
    """

    def __init__(
        self,
        bound_ns: t.Optional[int],
        ahead_ns: int,
        wanted_ns: float,
        settled_by: float,
        late: t.Optional[clock.Estimate] = None,
    ) -> None:
        self.bound_ns = bound_ns  # of the rendezvous' clock
        self.ahead_ns = ahead_ns
        self.wanted_ns = wanted_ns
        self.settled_by = settled_by
        self.estimate = clock.Estimate(clock.read())
        self.late = late
        self.own: t.Optional[clock.Clock] = None
        self.own_known = False
        self.daemon = False
        self.limit: t.Optional[Timer] = None


class Agent:
    """Everything that happens on one host."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._reactor = Reactor()
        self._link = open_link(config, self._reactor, self._on_up, self._on_message, self._on_down)
        self._trials: t.Dict[wire.Epoch, _Running] = {}
        # Of those that are settled, thousands in a long sweep: the newest attempt, and ends that may still hold something.
        self._past: t.Dict[str, int] = {}
        self._left: t.List[t.Mapping[str, t.Any]] = []
        self._waiting: t.Optional[wire.Message] = None  # a prepare that comes once the trial before it is over
        self._measurement: t.Optional[_Measurement] = None
        self._again: t.Optional[Timer] = None  # the next measurement of those who wait for others
        self._shaper = Shaper(self._reactor)
        self._couriers = Workers(self._reactor, self._courier)
        self._waiters = Waiters(config.wait_socket, self._reactor, self._place, self._instant, self._link.send)

    def run(self) -> None:
        """Until SIGTERM. Launchers that know T go on without us."""
        log("agent started", run=self._config.run_id, member=self._config.member, pid=os.getpid())
        os.makedirs(self._base, 0o755, exist_ok=True)
        self._resume()
        self._waiters.listen()
        self._link.connect()
        self._reactor.run()
        self._link.close()
        self._waiters.close()
        log("agent stopped")

    @property
    def _base(self) -> str:
        return os.path.join(self._config.state_directory, "trials", self._config.run_id)

    def _spool(self, epoch: wire.Epoch) -> str:
        return os.path.join(self._base, epoch.trial, str(epoch.attempt))

    def _resume(self) -> None:
        """Go on with what an agent before us has left."""
        for trial_id in sorted(os.listdir(self._base)):
            for attempt in sorted(os.listdir(os.path.join(self._base, trial_id))):
                spool = os.path.join(self._base, trial_id, attempt)
                try:
                    record = launcher.read_record(spool, "record.json") or {}
                    trial = member.Trial.from_json(record)
                except (KeyError, TypeError, ValueError, OSError) as error:
                    log("record unreadable", spool=spool, error=repr(error))
                    continue
                running = self._trials[trial.epoch] = _Running(trial, spool)
                running.restarted = record.get("boot") != clock.boot()
                if running.restarted:
                    trial.outlive_boot()
                log("resumed", epoch=trial.epoch, state=trial.state, committed=trial.committed)
                self._do(running, trial.resume())
                if trial.settled:
                    self._forget(running)
                elif trial.committed and not trial.over:
                    self._await_phases(running)
                    self._follow(running)
                    if launcher.supervisor_of(spool) is None:
                        self._look(running, gone=True)
                elif not trial.over:
                    self._be_patient(running)

    # -- the link --

    def _on_up(self) -> None:
        if self._measurement is not None:
            self._ping()
        for running in list(self._trials.values()):
            self._step(running, member.LinkUp())
        self._waiters.link_up()

    def _on_down(self) -> None:
        for running in self._trials.values():
            running.asked = False

    def _on_message(self, message: wire.Message) -> None:
        kind = message["type"]
        if kind == "prepare":
            self._prepare(message)
        elif kind == "pong":
            self._on_pong(message)
        elif kind == "refuse":
            log("refused", epoch=message["epoch"], reason=message["reason"])
            refused = self._trials.get(message["epoch"])
            if refused is not None and refused.trial.reached("exited"):
                refused.asked = False
                self._later(refused, message["reason"])
        elif kind in ("release", "deny"):
            self._waiters.decided(message)
        elif "epoch" in message:
            running = self._trials.get(message["epoch"])
            if running is None:
                self._unknown(message["epoch"], kind)
            elif kind == "start":
                self._start(running, message)
            elif kind == "abort":
                log("abort", epoch=message["epoch"], reason=message["reason"])
                self._step(running, member.AbortSaid(message["reason"]))
            elif kind == "grants":
                self._step(running, member.Granted(message["grants"]))
            elif kind == "settled":
                self._step(running, member.SettledSaid())

    def _unknown(self, epoch: wire.Epoch, kind: str) -> None:
        log("unknown trial", epoch=epoch, message=kind)
        if kind == "start" and epoch.run == self._config.run_id and epoch.attempt > self._past.get(epoch.trial, 0):
            trial = member.Trial(epoch, {})
            trial.failed = "knows nothing of this trial: the host was made anew, or its state was lost"
            self._link.send("report", **trial.report())

    # -- getting ready --

    def _prepare(self, message: wire.Message) -> None:
        epoch: wire.Epoch = message["epoch"]
        if epoch.run != self._config.run_id:
            log("refused a prepare", epoch=epoch, reason=f"this host belongs to {self._config.run_id}")
            return
        known = self._trials.get(epoch)
        if known is not None:
            self._link.send("report", **known.trial.report())
            return
        attempts = [other.attempt for other in self._trials if other.trial == epoch.trial]
        newest = max(self._past.get(epoch.trial, 0), *attempts, 0)
        if epoch.attempt <= newest:
            trial = member.Trial(epoch, {})
            trial.failed = f"attempt {newest} of this trial is known here already"
            self._link.send("report", **trial.report())
            return
        busy = [running for running in self._trials.values() if not running.trial.over]
        for running in busy:
            self._step(running, member.Superseded())
        if any(not running.trial.over for running in busy):
            self._waiting = message  # `_step` comes back to it
            return
        self._waiting = None
        duty = message["duty"]
        running = self._trials[epoch] = _Running(member.Trial(epoch, duty), self._spool(epoch))
        self._be_patient(running)
        try:
            _make_directory(running.spool, duty)
        except (OSError, KeyError) as error:
            self._step(running, member.Prepared(_plain(error)))
        else:
            self._await_free(running, time.monotonic() + FREE_LIMIT)

    def _be_patient(self, running: _Running) -> None:
        patience = running.trial.duty["patience"]
        running.patience = self._reactor.after(patience, lambda: self._step(running, member.OutOfPatience()))

    def _await_free(self, running: _Running, give_up: float) -> None:
        """Prepared once nothing holds what an earlier trial has left, for it would be in this one's way."""
        self._left = [end for end in self._left if _holds(end)]
        ends = self._left + [other.trial.exit for other in self._trials.values() if other.trial.exit is not None]
        held = [f"{entry['command']} (pid {entry['pid']})" for end in ends for entry in _remaining(end)]
        held += [ports.describe(entry) for end in ends for entry in ports.still_taken(end.get("ports") or ())]
        if running.trial.over:
            return
        if not held:
            self._step(running, member.Prepared())
        elif time.monotonic() >= give_up:
            self._step(running, member.Prepared("an earlier trial has left: {}".format("; ".join(sorted(set(held))))))
        else:
            self._reactor.after(FREE_PAUSE, lambda: self._await_free(running, give_up))

    def _marks(self, epoch: wire.Epoch) -> t.Dict[str, str]:
        """What is in the environment of this trial's processes, and of no other's."""
        return {
            "STARTLINE_RUN": epoch.run,
            "STARTLINE_TRIAL": epoch.trial,
            "STARTLINE_ATTEMPT": str(epoch.attempt),
            "STARTLINE_MEMBER": self._config.member,
            "STARTLINE_SOCKET": self._waiters.path,
        }

    def _arm(self, running: _Running) -> None:
        duty, epoch = running.trial.duty, running.trial.epoch
        account = pwd.getpwnam(duty["user"]) if duty["user"] else pwd.getpwuid(os.geteuid())
        environment = {
            "PATH": PATH,
            "LANG": "C.UTF-8",
            "HOME": account.pw_dir,
            "USER": account.pw_name,
            "LOGNAME": account.pw_name,
            "SHELL": "/bin/sh",
            "STARTLINE_RANK": str(duty["rank"]),
            **self._marks(epoch),
        }
        environment.update(duty["environment"])
        change = bool(duty["user"]) and account.pw_uid != os.geteuid()
        program = launcher.Program(
            command=duty["command"],
            directory=os.path.join(running.spool, "work"),
            environment=environment,
            timeout=duty["timeout"],
            uid=account.pw_uid if change else None,
            gid=account.pw_gid if change else None,
            groups=_groups(account) if change else (),
            alone=not self._config.shared,
        )
        running.handle = launcher.arm(running.spool, program)
        self._reactor.on_exit(running.handle.pid, lambda: self._look(running, gone=True))
        self._follow(running)

    def _follow(self, running: _Running) -> None:
        if running.events is None:
            running.events = launcher.follow(running.spool)
            self._reactor.watch(running.events, selectors.EVENT_READ, lambda: self._on_event(running))

    def _on_event(self, running: _Running) -> None:
        """The launcher has written something, or is gone."""
        if running.events is None:
            return
        try:
            data = os.read(running.events, 4096)
        except BlockingIOError:
            return
        if b"r" in data:
            self._step(running, member.Ready(time.monotonic_ns()))
        self._look(running, gone=not data)

    def _look(self, running: _Running, gone: bool) -> None:
        """Read what the launcher has left in the spool."""
        trial = running.trial
        if gone and running.events is not None:
            self._reactor.unwatch(running.events)
            os.close(running.events)
            running.events = None
        fired = launcher.read_record(running.spool, "fired.json")
        if fired is not None and not trial.reached("fired"):
            reading = clock.Reading(*fired["reading"])
            self._step(running, member.Fired(fired["noticed_ns"], fired["fired_ns"], reading))
        if not gone or trial.over:
            return
        end = launcher.read_record(running.spool, "exit.json") or {"unfit": None}
        if "unfit" in end:
            if running.handle is not None or trial.committed:
                if running.restarted:
                    self._step(running, member.LauncherGone(None, end["unfit"]))
                    return
                why = end["unfit"]
                if why is None and running.handle is None and launcher.started_nothing(running.spool):
                    why = "the command was not started: the agent was killed before it passed T on"
                left = launcher.end_orphans(running.spool, self._marks(trial.epoch))
                self._step(running, member.LauncherGone(time.monotonic_ns(), why, *left))
        else:
            self._step(running, member.Exited(end))

    # -- the network --

    def _shape(self, running: _Running, phase: int) -> None:
        duty = running.trial.duty

        def done(result: t.Dict[str, t.Any]) -> None:
            words, now_ns = result.get("words") or {}, time.monotonic_ns()
            self._step(running, member.Shaped(phase, now_ns, words, result["problem"]))

        revert_after = duty["patience"] + duty["timeout"] + wire.STOP_GRACE + REVERT_SLACK
        self._shaper.shape(duty["network"], phase, revert_after, done)

    def _unshape(self, running: _Running, phase: t.Optional[int]) -> None:
        def done(result: t.Dict[str, t.Any]) -> None:
            self._step(running, member.Cleared(result["problem"], result.get("gone", False)))

        self._shaper.clear(running.trial.duty["network"], phase, done)

    def _await_phases(self, running: _Running) -> None:
        """Have the network change at its times after T; what an agent before us has missed, at once."""
        network, start_s = running.trial.duty.get("network"), running.trial.steady_start_s
        if not network or start_s is None:
            return
        now = time.monotonic()
        due = [start_s + phase["at"] - now for phase in network["phases"]]
        passed = [phase for phase, left in enumerate(due) if left <= 0]
        if running.trial.reached("fired") and passed:
            self._step(running, member.PhaseDue(passed[-1]))
        for phase, left in enumerate(due):
            if phase and left > 0:
                self._reactor.after(left, functools.partial(self._step, running, member.PhaseDue(phase)))

    # -- the clock --

    def _measure(self, running: _Running) -> None:
        if self._measurement is None:
            duty = running.trial.duty
            reference = duty["reference"] or {"bound_ns": None, "ahead_ns": 0}
            settled_by = time.monotonic() + SETTLE_LIMIT
            self._begin(_Measurement(**reference, wanted_ns=duty["max_clock_error"] * 1e9, settled_by=settled_by))

    def _begin(self, measurement: _Measurement) -> None:
        self._measurement = measurement
        measurement.limit = self._reactor.after(MEASURE_LIMIT, lambda: self._measured(measurement))

        def tracked(output: bytes) -> None:
            text = output.decode("ascii", "replace")
            own = clock.parse_tracking(text)
            measurement.own = own and own._replace(**clock.read()._asdict())
            measurement.own_known, measurement.daemon = True, text.count(",") > 10
            self._maybe_measured(measurement)

        self._reactor.command(clock.CHRONY_COMMAND, tracked)
        self._ping()

    def _ping(self) -> None:
        self._link.send("ping", sent_ns=time.monotonic_ns())

    def _on_pong(self, message: wire.Message) -> None:
        back_ns = time.monotonic_ns()
        measurement = self._measurement
        if measurement is None:
            return
        measurement.bound_ns, measurement.ahead_ns = message["bound_ns"], message["ahead_ns"]
        for estimate in (measurement.estimate, measurement.late):
            if estimate is not None and message["sent_ns"] >= estimate.begin.steady_ns:
                times = message["sent_ns"], message["came_ns"], message["went_ns"], back_ns
                estimate.add(*times, ahead_ns=message["ahead_ns"])
                break
        if 0 < measurement.estimate.samples < clock.SAMPLES:
            self._ping()
        self._maybe_measured(measurement)

    def _maybe_measured(self, measurement: _Measurement) -> None:
        if measurement.own_known and measurement.estimate.samples >= clock.SAMPLES:
            self._measured(measurement)

    def _measured(self, measurement: _Measurement) -> None:
        if self._measurement is not measurement:
            return
        if measurement.limit is not None:
            measurement.limit.cancel()
        estimate, now = measurement.estimate, clock.read()
        if not estimate.samples and measurement.late is not None:
            estimate = measurement.late
        own = measurement.own and measurement.own._replace(ahead_ns=measurement.ahead_ns)
        found = clock.choose(own, measurement.bound_ns, estimate.clock(now))
        waiting = [running for running in self._trials.values() if running.trial.waits_for_clock]
        before = any(not running.trial.over for running in waiting)
        if found is None:
            # No answer from the rendezvous yet, and no clock of our own to trust.
            patient = time.monotonic() < measurement.settled_by + ANSWER_LIMIT - SETTLE_LIMIT
            try_again = before or patient or not self._link.up
        else:
            young = measurement.daemon and time.monotonic() < measurement.settled_by
            try_again = before and young and found.bound_ns > measurement.wanted_ns
        if try_again:
            again = _Measurement(
                measurement.bound_ns, measurement.ahead_ns, measurement.wanted_ns, measurement.settled_by, estimate
            )
            self._measurement = again
            again.limit = self._reactor.after(SETTLE_PAUSE, lambda: self._begin(again))
            return
        self._measurement = None
        waiting += [running for running in self._trials.values() if running.trial.waits_for_others]
        for running in waiting:
            self._step(running, member.Measured(found, time.monotonic_ns()))

    def _measure_again(self) -> None:
        self._again = None
        for running in list(self._trials.values()):
            if running.trial.waits_for_others:
                self._measure(running)

    def _start(self, running: _Running, message: wire.Message) -> None:
        said = message["start_ns"], message["latest_ns"], time.monotonic_ns(), message["ahead_ns"]
        self._step(running, member.StartSaid(*said))

    # -- named barriers: what `waiters` asks --

    def _place(self, epoch: wire.Epoch) -> t.Optional[Place]:
        running = self._trials.get(epoch)
        if running is None or not running.trial.committed or running.trial.over:
            return None
        return Place(running.spool, running.trial.duty["deadline"])

    def _instant(self, epoch: wire.Epoch, at_ns: int, ahead_ns: int) -> t.Tuple[int, int]:
        known = clock.Clock(**(self._trials[epoch].trial.clock or {})).told(ahead_ns)
        return known.to_steady(at_ns), known.bound_at(clock.read())

    # -- delivery --

    def _courier(self) -> Serve:
        # Imported where it is needed: in the child.
        from .delivery import Courier

        return Courier(self._config.runtime_directory, self._config.imds).serve

    def _collect(self, running: _Running) -> None:
        trial, config = running.trial, self._config
        meta = {
            "format": "startline-meta/1",
            "member": config.member,
            "epoch": trial.epoch.to_json(),
            "rank": trial.duty["rank"],
            "command": trial.duty["command"],
            "clock": trial.clock,
            "clock_after": trial.clock_after,
            "armed_ns": trial.armed_ns,
            "start_ns": trial.start_ns,
            "noticed_ns": trial.fired.get("noticed_ns"),
            "fired_ns": trial.fired.get("fired_ns"),
            "exit": trial.exit,
            "network": trial.network,
        }

        def done(found: t.Any) -> None:
            if found is None:
                self._later(running, "the files could not be collected")
                found = {"files": None, "problem": None}
            self._step(running, member.Collected(**found))

        self._couriers.do({"spool": running.spool, "patterns": trial.duty["collect"], "meta": meta}, done)

    def _ask(self, running: _Running) -> None:
        """Ask for grants, once on each connection: the answer may be lost with it, and both ends may remember the
        rest."""
        if running.asked or not self._link.up:
            return
        running.asked = True
        self._link.send("ask", epoch=running.trial.epoch, files=running.trial.files)

    def _upload(self, running: _Running, grants: t.List[t.Dict[str, t.Any]]) -> None:
        def done(result: t.Any) -> None:
            failed = "the upload was interrupted" if result is None else result["failed"]
            if failed is not None:
                running.asked = False
                self._later(running, failed)
            self._step(running, member.Uploaded(failed))

        self._couriers.do({"spool": running.spool, "files": running.trial.files or [], "grants": grants}, done)

    def _later(self, running: _Running, why: str) -> None:
        """Go on with a delivery after a pause."""
        log("delivery delayed", epoch=running.trial.epoch, reason=why, again_in=f"{running.pause:.0f}s")
        running.retry = self._reactor.after(running.pause, lambda: self._do(running, running.trial.retry()))
        running.pause = min(RETRY_MOST, running.pause * 2)

    # -- events to actions --

    def _step(self, running: _Running, event: member.Event) -> None:
        before = running.trial.state, running.trial.failed
        self._do(running, running.trial.step(event))
        after = running.trial.state, running.trial.failed
        if after != before:
            log("trial", epoch=running.trial.epoch, state=after[0], **({"failed": after[1]} if after[1] else {}))
        if running.trial.waits_for_others and self._again is None:
            # Whichever came last of what makes it armed, the measurement or something else.
            self._again = self._reactor.after(MEASURE_AGAIN, self._measure_again)
        if running.trial.settled:
            self._forget(running)
        if running.trial.over:
            self._waiters.over(running.trial.epoch)
        if running.trial.over and self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self._prepare(waiting)

    def _forget(self, running: _Running) -> None:
        """Keep of a settled trial what may matter to later ones."""
        epoch, end = running.trial.epoch, running.trial.exit
        if self._trials.pop(epoch, None) is None:
            return
        self._past[epoch.trial] = max(epoch.attempt, self._past.get(epoch.trial, 0))
        if running.patience is not None:
            running.patience.cancel()  # or it would keep all of it for as long
        if end is not None and _holds(end):
            self._left.append(end)

    def _do(self, running: _Running, actions: t.Iterable[member.Action]) -> None:
        trial = running.trial
        for action in actions:
            if isinstance(action, member.Save):
                if not self._save(running):
                    return
            elif isinstance(action, member.Say):
                self._link.send("report", **trial.report())
            elif isinstance(action, member.Arm):
                self._arm(running)
            elif isinstance(action, member.Measure):
                self._measure(running)
            elif isinstance(action, member.Fire):
                if running.handle is not None:
                    with contextlib.suppress(BrokenPipeError):  # its end is reported by its exit
                        launcher.fire(running.handle, action.start_ns)
                    running.handle = None
                self._await_phases(running)
            elif isinstance(action, member.Shape):
                self._shape(running, action.phase)
            elif isinstance(action, member.Unshape):
                self._unshape(running, action.phase)
            elif isinstance(action, member.Release):
                if running.handle is not None:
                    launcher.release(running.handle)
                    running.handle = None
                _remove(os.path.join(running.spool, "work"))
            elif isinstance(action, member.Kill):
                launcher.stop(running.spool)
            elif isinstance(action, member.Collect):
                self._collect(running)
            elif isinstance(action, member.Ask):
                self._ask(running)
            elif isinstance(action, member.Upload):
                self._upload(running, action.grants)
            elif isinstance(action, member.Discard):
                _remove(running.spool, but="record.json")

    def _save(self, running: _Running) -> bool:
        """Write the record. If that cannot be, a trial whose command has not been started ends here, and False is given; one
        that has goes on: this process knows what the record lacks, and the evidence of the trial is worth more."""
        trial = running.trial
        try:
            os.makedirs(running.spool, 0o711, exist_ok=True)
            record = dict(trial.to_json(), boot=clock.boot())
            launcher.write_record(running.spool, "record.json", record, spend=trial.over)
            if trial.settled or (trial.over and not trial.committed):
                launcher.give_back(running.spool)
        except OSError as error:
            log("record unwritable", epoch=trial.epoch, state=trial.state, error=error.strerror)
            if not trial.over and (not trial.committed or running.handle is not None):
                self._step(running, member.Unsaved(error.strerror or repr(error)))
                return False
        return True


def _remaining(end: t.Mapping[str, t.Any]) -> t.List[t.Dict[str, t.Any]]:
    """Processes of a trial that could not be ended and are still there."""
    return [entry for entry in end.get("remaining") or () if ports.name_of(entry["pid"]) == entry["command"]]


def _holds(end: t.Mapping[str, t.Any]) -> bool:
    """Whether something of a trial is still in the way of the next."""
    return bool(_remaining(end) or ports.still_taken(end.get("ports") or ()))


def _plain(error: Exception) -> str:
    """What went wrong while a trial was prepared, in words."""
    if isinstance(error, OSError):
        return "cannot prepare: {}{}".format(error.strerror, f": {error.filename}" if error.filename else "")
    return f"cannot prepare: {error.args[0] if error.args else error}"


def _groups(account: pwd.struct_passwd) -> t.List[int]:
    return sorted({account.pw_gid, *(group.gr_gid for group in grp.getgrall() if account.pw_name in group.gr_mem)})


def _make_directory(spool: str, duty: t.Mapping[str, t.Any]) -> None:
    """A clean working directory with the trial's files and links, owned by the user that the command runs as."""
    account = pwd.getpwnam(duty["user"]) if duty["user"] else None
    _remove(spool)
    work = os.path.join(spool, "work")
    if os.path.lexists(work):
        raise FileExistsError(errno.EEXIST, "an earlier working directory cannot be removed", work)
    os.makedirs(work, 0o755)
    made = [work]
    for path, text in duty["files"].items():
        made += _make_parents(work, path)
        with open(os.path.join(work, path), "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
        made.append(stream.name)
    launcher.reserve(spool, len(wire.dump(duty)))
    for path, target in duty["links"].items():
        if not os.path.exists(target):
            raise FileNotFoundError(2, f"the link {path} would lead nowhere", target)
        made += _make_parents(work, path)
        os.symlink(target, os.path.join(work, path))
    if account is not None:
        for path in made:
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def _make_parents(work: str, path: str) -> t.List[str]:
    """The directories between `work` and the file at `path`; those that were made."""
    made, here = [], work
    for part in path.split("/")[:-1]:
        here = os.path.join(here, part)
        with contextlib.suppress(FileExistsError):
            os.mkdir(here, 0o755)
            made.append(here)
    return made


def _remove(directory: str, but: str = "") -> None:
    """Remove what is below `directory`, following no link, and the directory itself unless something is to stay."""
    for root, directories, names in os.walk(directory, topdown=False):
        for name in names:
            if root != directory or name != but:
                _try(os.unlink, os.path.join(root, name))
        for name in directories:
            path = os.path.join(root, name)
            _try(os.unlink if os.path.islink(path) else os.rmdir, path)
    if not but:
        _try(os.rmdir, directory)


def _try(remove: t.Callable[[str], None], path: str) -> None:
    """Remove one thing. What cannot be removed is said and left: it is no reason to stop."""
    try:
        remove(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        log("cannot remove", path=path, error=error.strerror)
