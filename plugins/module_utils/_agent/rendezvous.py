# SPDX-License-Identifier: GPL-3.0-or-later
"""The rendezvous: carries out what `barrier.Barrier` decides.

PRIVATE to the collection. One asyncio process on the coordinator host: agents come over mutual TLS or leave letters in
S3 (`peers`), the controller comes through a control socket that only root can open. One trial gathers and runs at a
time, the next ones queue; the evidence of earlier ones is delivered meanwhile.

Every event of a trial is written to its journal before anybody is told what follows from it; a restarted rendezvous
replays the journals and goes on. What a journal misses (it is synced only when something is decided) the agents say
again. Of a trial that is over nothing stays but its result, in its journal's place on the disk: a sweep has thousands.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import functools
import hashlib
import json
import os
import signal
import time
import typing as t

from . import barrier, clock, launcher, named, wire
from .config import Config
from .evidence import Store
from .log import log
from .peers import Door, Peer, Traffic, open_post, server_context

#: Bytes of a request on the control socket: a trial with all its members.
REQUEST_LIMIT = 256 * 1024 * 1024
#: Seconds between tries to store a result.
STORE_AGAIN = 15.0
#: Seconds after which the time daemon is asked anew when a member measures its clock.
COMPARE_AGAIN = 1.0
#: Bytes of a journal that are put aside for each member of a trial, `launcher.BALLAST` times, and seconds between tries to.
MEMBER_ROOM, ROOM_AGAIN = 2048, 5.0

_EVENTS = {
    kind.__name__: kind
    for kind in (
        barrier.Connected,
        barrier.Lost,
        barrier.Reported,
        barrier.Abort,
        barrier.Tick,
        barrier.Held,
        named.Waits,
        named.Passed,
    )
}


class RequestError(Exception):
    """A controller's request cannot be met; the text says why."""


class _Trial:
    """One submission: its barrier once it is its turn, its journal, and who waits for it.

    Once `kept`, its journal holds what is known of it, and its result; it has no submission and no barrier any more.
    """

    def __init__(self, submission: t.Dict[str, t.Any], journal: str) -> None:
        self.submission = submission
        self.epoch = wire.Epoch(submission["run_id"], submission["trial_id"], submission["attempt"])
        self.digest = _digest(submission)
        self.form = bool(submission["form"])
        self.kept = False
        self.states: t.Dict[str, str] = {}
        self.journal = journal
        self.file: t.Optional[t.BinaryIO] = None
        self.barrier: t.Optional[barrier.Barrier] = None
        self.names = {entry["name"]: entry for entry in submission["members"]}
        self._shared: t.Dict[t.Optional[str], bytes] = {}
        self.ended = asyncio.Event()
        self.settled = asyncio.Event()
        self.timer: t.Optional[asyncio.TimerHandle] = None
        self.decided: t.List[barrier.Action] = []
        #: Whether somebody may know T.
        self.told = False
        #: How far our clock was ahead when T was decided, and each instant of a named barrier: every member is told the same.
        self.ahead_ns: t.Optional[int] = None
        self.ahead_at: t.Dict[t.Tuple[str, int], int] = {}
        self.storing: t.Optional[asyncio.Task[None]] = None

    def shared(self, site: t.Optional[str]) -> bytes:
        """What the duties of a site's members have in common, as it is sent: above all the files, a hosts.config of all."""
        if site not in self._shared:
            submission = self.submission
            self._shared[site] = wire.dump(
                {
                    "files": dict(submission["files"], **(submission["site_files"] or {}).get(site, {})),
                    "collect": submission["collect"],
                    "user": submission["user"],
                    "timeout": submission["timeout"],
                    "deadline": submission["deadline"],
                    "upload": submission["evidence"] is not None,
                    "max_clock_error": submission["max_clock_error"],
                }
            )
        return self._shared[site]

    def step(self, event: barrier.Event, now: barrier.Now, ahead_ns: int) -> t.List[barrier.Action]:
        """Have its barrier take an event; our clock was `ahead_ns` ahead then."""
        if self.barrier is None:
            return []
        actions = self.barrier.step(event, now)
        if self.barrier.start_ns is not None and (self.ahead_ns is None or isinstance(event, barrier.Held)):
            self.ahead_ns = ahead_ns
        for action in actions:
            if isinstance(action, named.Release):
                self.ahead_at.setdefault((action.name, action.generation), ahead_ns)
        return actions

    @property
    def started(self) -> bool:
        """Whether T is chosen."""
        return self.barrier is not None and self.barrier.start_ns is not None

    def keep(self) -> None:
        """Write what is left of a trial that is over in its journal's place, whole or not at all, and forget the rest."""
        standing = self.barrier.members if self.barrier is not None else {}
        self.states = {name: member.state for name, member in standing.items()}
        known = {"epoch": self.epoch.to_json(), "digest": self.digest, "form": self.form, "states": self.states}
        part = self.journal + ".new"
        with open(part, "wb") as stream:
            stream.write(wire.dump({"kept": known}))
            stream.write(wire.dump({"result": self.result()}))
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(part, self.journal)
        self._forget()

    @classmethod
    def from_kept(cls, known: t.Mapping[str, t.Any], journal: str) -> _Trial:
        """What `keep` has left."""
        epoch = known["epoch"]
        names = {"run_id": epoch["run"], "trial_id": epoch["trial"], "attempt": epoch["attempt"]}
        trial = cls({**names, "form": known["form"], "members": []}, journal)
        trial.digest, trial.states = known["digest"], known["states"]
        trial.ended.set()
        trial.settled.set()
        trial._forget()
        return trial

    def _forget(self) -> None:
        self.kept = True
        self.barrier, self.submission, self.names = None, {}, {}
        self._shared.clear()

    def result(self) -> t.Dict[str, t.Any]:
        if self.kept:
            with open(self.journal, "rb") as stream:
                stream.readline()
                found: t.Dict[str, t.Any] = json.loads(stream.readline())["result"]
            return found
        if self.barrier is None:
            return {"format": "startline-trial/1", "epoch": self.epoch.to_json(), "phase": "queued"}
        return dict(self.barrier.result(), evidence=self.submission["evidence"])


class Rendezvous:
    """All trials of the run and all its agents."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.run_id = config.run_id
        self._directory = os.path.join(config.state_directory, "rendezvous", config.run_id)
        self._peers: t.Dict[str, Peer] = {}
        self._trials: t.Dict[wire.Epoch, _Trial] = {}
        self._undone: t.List[_Trial] = []
        self._duties: t.Deque[t.Tuple[_Trial, barrier.Prepare]] = collections.deque()
        self.traffic = Traffic()
        self._steady_base = 0.0
        self._anchor = clock.read()  # `_restore` may find an earlier one
        self._reference: t.Optional[clock.Clock] = None
        self._turn: t.Optional[asyncio.TimerHandle] = None
        self._compared = 0.0
        self._stores: t.Dict[t.Tuple[t.Any, ...], Store] = {}
        # One thread: signing is quick, and boto3 need not be thread-safe then.
        self._store_thread = concurrent.futures.ThreadPoolExecutor(1)
        self._tasks: t.Set[asyncio.Future[t.Any]] = set()

    # -- life --

    async def serve(self) -> None:
        """Until SIGTERM."""
        loop = asyncio.get_event_loop()
        done = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, done.set)
        os.makedirs(self._directory, 0o700, exist_ok=True)
        os.makedirs(self.config.runtime_directory, 0o755, exist_ok=True)
        await self._compare_clock()
        self._restore()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.config.socket)
        mask = os.umask(0o177)
        try:
            control = await asyncio.start_unix_server(self._control, self.config.socket, limit=REQUEST_LIMIT)
        finally:
            os.umask(mask)
        server = await loop.create_server(
            Door(self, server_context(self.config)),
            self.config.listen_address,
            self.config.rendezvous_port,
            backlog=4096,
        )
        log("rendezvous started", run=self.config.run_id, port=self.config.rendezvous_port, pid=os.getpid())
        post = open_post(self, self.config.mailboxes, self._directory) if self.config.mailboxes else None
        if post is not None:
            self._spawn(post.serve())
        self._next_turn()
        await done.wait()
        server.close()
        control.close()
        if post is not None:
            post.close()
        for peer in list(self._peers.values()):
            peer.abort()
        await asyncio.sleep(0)  # lets the transports see that they are closed, before the loop is
        log("rendezvous stopped")

    def _now(self) -> barrier.Now:
        return barrier.Now(self._steady_base + time.monotonic(), self.time_ns())

    def time_ns(self) -> int:
        """The rendezvous' clock, which all times of its trials are said in: a step of the wall clock does not move it."""
        return self._anchor.wall_ns - self._anchor.steady_ns + time.monotonic_ns()

    def _ahead_ns(self, now: clock.Reading) -> int:
        """How far our clock is ahead of the bare oscillator: it changes by what the clock is slewed by, and after a restart of the
        host it is another altogether."""
        return self._anchor.wall_ns - self._anchor.steady_ns + now.steady_ns - now.raw_ns

    def _restore(self) -> None:
        """Read the journals of a rendezvous before us, and go on with its clock."""
        # Steady time goes on from the wall clock, or in the same boot as it was: a step of the wall clock is no reason for a
        # deadline to have passed.
        newest = time.time()
        kept = self._kept_clock()
        if kept is not None:
            self._anchor, steady_base = kept
            newest = steady_base + time.monotonic()
        names = [name for name in os.listdir(self._directory) if name.endswith(".journal")]
        replayed = [self._replay(os.path.join(self._directory, name)) for name in names]
        found = [entry for entry in replayed if entry is not None]
        for _order, last, trial in sorted(found, key=lambda entry: entry[:2]):
            self._trials[trial.epoch] = trial
            trial.told = trial.started  # as far as we know
            newest = max(newest, last)
        # But never back behind what the journals have seen.
        self._steady_base = newest - time.monotonic()
        self._keep_clock()
        for trial in list(self._trials.values()):
            if trial.barrier is None:
                continue
            for member in trial.names:
                self._event(trial, barrier.Lost(member))  # until they come again
            self._arrange(trial)
            if trial.barrier.phase in ("ended", "settled"):
                trial.ended.set()
            if trial.barrier.phase == "settled":
                self._settle(trial)
            log("restored", epoch=trial.epoch, phase=trial.barrier.phase)

    def _replay(self, path: str) -> t.Optional[t.Tuple[float, float, _Trial]]:
        """One trial from its journal: when it was submitted, when (steady) its last event was, and the trial."""
        trial: t.Optional[_Trial] = None
        submitted = last = 0.0
        whole = 0
        try:
            with open(path, "rb") as stream:
                for line in stream:
                    if not line.endswith(b"\n"):
                        # The last line of a rendezvous that was killed while it wrote. What comes next begins a new one.
                        os.truncate(path, whole)
                        break
                    whole += len(line)
                    entry = json.loads(line.decode("utf-8"))
                    if "kept" in entry:
                        return (0.0, 0.0, _Trial.from_kept(entry["kept"], path))
                    if "submission" in entry:
                        trial = _Trial(entry["submission"], path)
                        submitted = entry["at"]
                    elif trial is not None:
                        now = barrier.Now(*entry["now"])
                        last = now.steady
                        if entry["event"] == "Turn":
                            trial.barrier = barrier.Barrier(trial.submission, now)
                        else:
                            trial.step(_event_from_json(entry["event"], entry["with"]), now, entry["ahead_ns"])
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            log("journal unreadable", path=path, error=repr(error))
            return None
        return (submitted, last, trial) if trial is not None else None

    def _write(self, trial: _Trial, entry: t.Mapping[str, t.Any], spend: bool = True) -> None:
        """Add a line to a journal, whole or not at all. On a full disk the room that was put aside is spent for it, unless
        `spend` says that those to come are worth more."""
        if trial.file is None:
            trial.file = open(trial.journal, "ab", buffering=0)  # noqa: SIM115  closed when the trial has settled
        end = trial.file.seek(0, os.SEEK_END)
        left = line = wire.dump(entry)
        while left:
            try:
                left = left[trial.file.write(left) :]
            except OSError as error:
                trial.file.truncate(end)
                if not (spend and launcher.make_room(self._directory, error)):
                    raise
                left = line

    def _give_up(self, trial: _Trial, error: OSError) -> t.NoReturn:
        """End at once: what the disk does not have may neither be decided nor told. The service manager starts us again, we go
        on from the journals, and the agents say again what is missing."""
        log("journal unwritable", path=trial.journal, error=error.strerror)
        os._exit(1)

    def _spawn(self, coroutine: t.Coroutine[t.Any, t.Any, None]) -> asyncio.Task[None]:
        """Run something beside; asyncio itself does not hold on to it."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- the own clock --

    @property
    def _clock_file(self) -> str:
        return os.path.join(self._directory, "clock.json")

    def _kept_clock(self) -> t.Optional[t.Tuple[clock.Reading, float]]:
        """Where the clock of a rendezvous before us stood, in this boot, and its steady time: members have measured theirs by
        it, and may know T."""
        try:
            with open(self._clock_file, "rb") as stream:
                kept = json.loads(stream.read())
            if kept["boot"] != clock.boot():
                return None
            return clock.Reading(*kept["reading"]), float(kept["steady_base"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log("clock unreadable", path=self._clock_file, error=repr(error))
            return None

    def _follow_wall_clock(self) -> None:
        """Have our clock agree with the wall clock from this trial on, if that was stepped; but not while members of an earlier
        trial may still measure theirs, or each of them would seem to have drifted."""
        now = clock.read()
        measured = all(t.barrier is None or t.barrier.phase == "settled" for t in self._trials.values())
        if measured and clock.stepped_ns(self._anchor, now):
            self._anchor = now
        self._keep_clock()

    def _keep_clock(self) -> None:
        part = self._clock_file + ".new"
        kept = {"boot": clock.boot(), "reading": self._anchor, "steady_base": self._steady_base}
        try:
            with open(part, "wb") as stream:
                stream.write(wire.dump(kept))
            os.rename(part, self._clock_file)  # no fdatasync: it is of no use after another boot
        except OSError as error:
            log("clock not kept", path=self._clock_file, error=error.strerror)

    async def _compare_clock(self) -> None:
        """Ask chrony how well this host knows the time."""
        try:
            process = await asyncio.create_subprocess_exec(
                *clock.CHRONY_COMMAND, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
            )
            output, _nothing = await asyncio.wait_for(process.communicate(), 5)
        except (OSError, asyncio.TimeoutError):
            output = b""
        found = clock.parse_tracking(output.decode("ascii", "replace"))
        self._reference = found and found._replace(**clock.read()._asdict())

    def _bound_ns(self, now: clock.Reading) -> t.Optional[int]:
        """How well the rendezvous' clock agrees with UTC, as far as is known without asking."""
        if self._reference is None:
            return None
        # What chrony says is of the wall clock as it was then, which our clock need not have followed, small steps least of all.
        return self._reference.bound_at(now) + abs(clock.parted_ns(self._anchor, self._reference.reading))

    def standing(self) -> t.Dict[str, t.Any]:
        """Our clock as a pong tells it, all at one reading; and the time daemon is asked anew for the next time."""
        now = clock.read()
        if now.steady_ns / 1e9 - self._compared > COMPARE_AGAIN:
            self._compared = now.steady_ns / 1e9  # already here: a thousand may ask before the task has begun
            self._spawn(self._compare_clock())
        ahead_ns = self._ahead_ns(now)
        return {"went_ns": now.raw_ns + ahead_ns, "ahead_ns": ahead_ns, "bound_ns": self._bound_ns(now)}

    # -- agents --

    def peer_up(self, peer: Peer) -> None:
        member = peer.member or ""
        before = self._peers.get(member)
        self._peers[member] = peer
        if before is not None:
            before.member = None  # its end is no loss: the member is here
            before.drop("the member has come again")
        log("member up", member=member)
        for trial in list(self._trials.values()):
            if member in trial.names and trial.barrier is not None:
                self._event(trial, barrier.Connected(member))
                self._tell(trial, trial.barrier.greet(member, self._now()))

    def peer_lost(self, peer: Peer, reason: str) -> None:
        member = peer.member or ""
        if self._peers.get(member) is not peer:
            return
        del self._peers[member]
        log("member lost", member=member, reason=reason)
        for trial in list(self._trials.values()):
            if member in trial.names and trial.barrier is not None:
                self._event(trial, barrier.Lost(member))

    def haste(self) -> float:
        """For how many seconds (from now) members wait for others, before T or at a named barrier."""
        until = [trial.barrier.awaited_until for trial in self._trials.values() if trial.barrier is not None]
        return max(0.0, max(until, default=0.0) - self._now().steady)

    def reported(self, peer: Peer, message: wire.Message) -> None:
        member, epoch = peer.member or "", message["epoch"]
        trial = self._trials.get(epoch)
        if trial is not None and trial.kept:
            # It was not told, or has told us before it was: nobody who takes part in it has anything left to say.
            delivered = message["state"] == "delivered"
            over = {} if delivered else {"reason": "this trial is over"}
            peer.send(wire.encode("settled" if delivered else "abort", epoch=epoch, **over))
            return
        if trial is None or trial.barrier is None:
            peer.send(wire.encode("refuse", epoch=epoch, reason="no such trial here"))
            log("report refused", member=member, epoch=epoch, reason="no such trial")
            return
        self._event(trial, barrier.Reported(member, epoch, message))

    def met(self, peer: Peer, message: wire.Message) -> None:
        """A member has come to a named barrier, or has gone on from it."""
        member, epoch = peer.member or "", message["epoch"]
        trial = self._trials.get(epoch)
        where = {"name": message["name"], "generation": message["generation"]}
        if message["type"] == "passed":
            if trial is not None:
                late = {"late_ns": message["late_ns"], "bound_ns": message["bound_ns"]}
                self._event(trial, named.Passed(member, **where, **late))
        elif trial is None or trial.barrier is None or trial.barrier.phase == "settled":
            peer.send(wire.encode("deny", epoch=epoch, reason="this trial is not under way", **where))
        else:
            self._event(trial, named.Waits(member, **where, timeout=message["timeout"]))

    def asked(self, peer: Peer, message: wire.Message) -> None:
        """A member wants to upload: exactly its own files, below its own prefix."""
        member, epoch = peer.member or "", message["epoch"]
        trial = self._trials.get(epoch)
        if trial is None or member not in trial.names or trial.submission["evidence"] is None:
            peer.send(wire.encode("refuse", epoch=epoch, reason="nothing is to be uploaded for this trial"))
            return
        self._spawn(self._grant(peer, member, trial, message["files"]))

    async def _grant(self, peer: Peer, member: str, trial: _Trial, files: t.List[t.Dict[str, t.Any]]) -> None:
        try:
            store = self._store(trial)
            grants = await asyncio.get_event_loop().run_in_executor(
                self._store_thread, functools.partial(store.grants, trial.epoch, member, files)
            )
        except Exception as error:
            log("cannot sign", member=member, epoch=trial.epoch, error=repr(error))
            reason = f"the rendezvous cannot sign uploads: {error}"
            peer.send(wire.encode("refuse", epoch=trial.epoch, reason=reason[:4000]))
        else:
            peer.send(wire.encode("grants", epoch=trial.epoch, grants=grants))

    def _store(self, trial: _Trial) -> Store:
        where = trial.submission["evidence"]
        key = tuple(sorted(where.items()))
        if key not in self._stores:
            self._stores[key] = Store(**where)
        return self._stores[key]

    # -- the machine --

    def _event(self, trial: _Trial, event: barrier.Event) -> None:
        """Journal an event, take it, and do what follows."""
        if trial.barrier is None:
            return
        now = self._now()
        if trial.barrier.phase == "settled" and not isinstance(event, barrier.Reported):
            return
        ahead_ns = self._ahead_ns(clock.read())
        entry = {"now": now, "ahead_ns": ahead_ns, "event": type(event).__name__, "with": _event_to_json(event)}
        try:
            self._write(trial, entry)
        except OSError as error:
            self._give_up(trial, error)
        self._tell(trial, trial.step(event, now, ahead_ns))
        self._arrange(trial)

    def _tell(self, trial: _Trial, actions: t.Iterable[barrier.Action]) -> None:
        """Do what was decided once it is on the disk: it must be known after a crash before anybody acts on it.

        Everything that came in the same turn of the loop is made safe at once, so that a thousand reports cost one
        wait for the disk.
        """
        trial.decided.extend(actions)
        if trial.decided and trial not in self._undone:
            if not self._undone:
                asyncio.get_event_loop().call_soon(self._commit)
            self._undone.append(trial)

    def _commit(self) -> None:
        undone, self._undone = self._undone, []
        for trial in undone:
            actions, trial.decided = trial.decided, []
            if trial.file is not None and any(not isinstance(a, (barrier.Prepare, barrier.Refuse)) for a in actions):
                try:
                    os.fdatasync(trial.file.fileno())
                except OSError as error:
                    self._give_up(trial, error)
            if trial.barrier is not None and not trial.told and trial.barrier.held(self._now()):
                # Neither we nor the journal have told anybody, so another T is as good, and can be heard in time.
                log("T put off", epoch=trial.epoch)
                trial.decided = [action for action in actions if not isinstance(action, barrier.Start)]
                self._event(trial, barrier.Held())
                continue
            self._perform(trial, actions)

    def _arrange(self, trial: _Trial) -> None:
        """Set the alarm for the trial's next deadline."""
        if trial.timer is not None:
            trial.timer.cancel()
            trial.timer = None
        wake_at = trial.barrier.wake_at if trial.barrier is not None else None
        if wake_at is not None:
            pause = max(0.0, wake_at - self._now().steady)
            trial.timer = asyncio.get_event_loop().call_later(pause, self._event, trial, barrier.Tick())

    def _perform(self, trial: _Trial, actions: t.Iterable[barrier.Action]) -> None:
        start: t.Optional[bytes] = None
        for action in actions:
            if isinstance(action, barrier.Ended):
                log("trial ended", epoch=trial.epoch, outcome=trial.barrier and trial.barrier.outcome)
                trial.ended.set()
                asyncio.get_event_loop().call_soon(self._next_turn)
            elif isinstance(action, barrier.Settled):
                self._settle(trial)
            else:
                peer = self._peers.get(action.member)
                if isinstance(action, barrier.Start):
                    trial.told = True
                    if start is None:
                        latest = action.start_ns + barrier.LATE_LIMIT_NS
                        when = {"start_ns": action.start_ns, "latest_ns": latest, "ahead_ns": trial.ahead_ns}
                        start = wire.encode("start", epoch=trial.epoch, **when)
                    line = start
                elif isinstance(action, barrier.Prepare):
                    self._hand_out(trial, action)
                    continue
                elif isinstance(action, barrier.Stop):
                    line = wire.encode("abort", epoch=trial.epoch, reason=action.reason[:4000])
                elif isinstance(action, named.Release):
                    where = {"name": action.name, "generation": action.generation}
                    when = {"at_ns": action.at_ns, "ahead_ns": trial.ahead_at[action.name, action.generation]}
                    line = wire.encode("release", epoch=trial.epoch, **when, **where)
                elif isinstance(action, named.Deny):
                    where = {"name": action.name, "generation": action.generation}
                    line = wire.encode("deny", epoch=trial.epoch, reason=action.reason[:4000], **where)
                elif isinstance(action, barrier.Settle):
                    line = wire.encode("settled", epoch=trial.epoch)
                else:
                    log("report refused", member=action.member, epoch=trial.epoch, reason=action.reason)
                    line = wire.encode("refuse", epoch=trial.epoch, reason=action.reason)
                if peer is not None:
                    peer.send(line)

    def _hand_out(self, trial: _Trial, action: barrier.Prepare) -> None:
        """Send a member its duty, after those that are waiting to be sent."""
        self._duties.append((trial, action))
        if len(self._duties) == 1:
            self._spawn(self._hand_out_all())

    async def _hand_out_all(self) -> None:
        """Send all duties, with some members under way at a time: each has a whole hosts.config in it, and for thousands
        of members there is no memory."""
        while self._duties:
            await self.traffic.clear()
            trial, action = self._duties[0]
            peer = self._peers.get(action.member)
            try:
                if peer is not None and trial.barrier is not None and trial.barrier.phase == "gathering":
                    peer.send(self._prepare(trial, action))
            except Exception as error:  # of one member: the others are to have theirs
                log("cannot hand out", member=action.member, epoch=trial.epoch, error=repr(error))
            finally:
                self._duties.popleft()

    def _prepare(self, trial: _Trial, action: barrier.Prepare) -> bytes:
        """The message with a member's duty (`wire.DUTY`)."""
        entry, submission, now = trial.names[action.member], trial.submission, clock.read()
        bound_ns = self._bound_ns(now)
        duty = wire.dump(
            {
                "rank": entry["rank"],
                "command": entry["command"],
                "environment": entry["environment"],
                "links": dict(submission["links"], **(entry["links"] or {})),
                "patience": action.patience,
                "reference": None if bound_ns is None else {"bound_ns": bound_ns, "ahead_ns": self._ahead_ns(now)},
                "network": _network(submission, entry),
            }
        )
        head = wire.encode("prepare", epoch=trial.epoch)
        return wire.merge(head, b'{"duty":' + wire.merge(duty, trial.shared(entry["site"]))[:-1] + b"}\n")

    def _begin(self, trial: _Trial, now: barrier.Now) -> barrier.Barrier:
        try:
            self._write(trial, {"now": now, "event": "Turn"})
        except OSError as error:
            self._give_up(trial, error)
        trial.barrier = barrier.Barrier(trial.submission, now)
        return trial.barrier

    def _next_turn(self) -> None:
        """Begin with the oldest trial that waits, when none is under way."""
        for trial in self._trials.values():
            if trial.barrier is not None and not trial.ended.is_set():
                return
            if trial.barrier is None and not trial.kept:
                if not self._has_room(trial):
                    return
                self._follow_wall_clock()
                now = self._now()
                begun = self._begin(trial, now)
                log("trial begins", epoch=trial.epoch, members=len(trial.names))
                for member in list(trial.names):
                    if member in self._peers:
                        self._event(trial, barrier.Connected(member))
                        self._tell(trial, begun.greet(member, self._now()))
                self._arrange(trial)
                self._spawn(self._compare_clock())
                if trial.submission["evidence"] is not None:
                    # Load boto3 and find credentials while the trial runs, not when the first member asks.
                    self._store_thread.submit(self._store(trial).warm)
                return

    def _has_room(self, trial: _Trial) -> bool:
        """Put room for its journal aside: evidence may fill this disk, and goes only as long as we can write. Without that its
        turn is later, so that the evidence of those before can go."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        try:
            launcher.reserve(self._directory, MEMBER_ROOM * len(trial.names))
        except OSError as error:
            if error.errno not in launcher.NO_ROOM:
                log("room for a journal cannot be put aside", epoch=trial.epoch, error=error.strerror)
                return True
            log("no room for a journal", epoch=trial.epoch, error=error.strerror, again_in=f"{ROOM_AGAIN:g}s")
            self._turn = asyncio.get_event_loop().call_later(ROOM_AGAIN, self._next_turn)
            return False
        return True

    # -- results --

    def _settle(self, trial: _Trial) -> None:
        """The result is complete (again): store it, then tell who waits for it."""
        if trial.storing is not None:
            trial.storing.cancel()
        trial.storing = self._spawn(self._store_result(trial))

    async def _store_result(self, trial: _Trial) -> None:
        # What has formed anew is told by the trial.json of the attempt that came of it.
        evidence = trial.submission["evidence"]
        if evidence is not None and trial.result()["outcome"] != "reform":
            store = self._store(trial)
            while True:
                body = json.dumps(trial.result(), indent=1, sort_keys=True).encode("ascii") + b"\n"
                try:
                    await asyncio.get_event_loop().run_in_executor(
                        self._store_thread, functools.partial(store.put_result, trial.epoch, body)
                    )
                    break
                except Exception as error:
                    log("cannot store the result", epoch=trial.epoch, error=repr(error), again_in=f"{STORE_AGAIN:g}s")
                await asyncio.sleep(STORE_AGAIN)
        log("trial settled", epoch=trial.epoch, verdict=trial.result()["verdict"])
        trial.settled.set()
        if trial.file is not None:
            trial.file.close()
            trial.file = None
        if trial.barrier is not None and trial.barrier.complete:
            try:
                trial.keep()
            except OSError as error:
                log("journal not shortened", path=trial.journal, error=error.strerror)

    # -- the controller --

    async def _control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            request = wire.decode(line)
            try:
                answer: t.Dict[str, t.Any] = {"ok": True, "result": await self._request(request)}
            except (RequestError, wire.WireError) as error:
                answer = {"ok": False, "error": str(error)}
            writer.write(wire.dump(answer))
            await writer.drain()
        except (OSError, ValueError, wire.WireError) as error:
            log("control request failed", error=repr(error))
        finally:
            writer.close()

    async def _request(self, request: t.Any) -> t.Any:
        if not isinstance(request, dict):
            raise RequestError("a request is an object")
        operation = request.get("op")
        if operation == "submit":
            trial = self.submit(request.get("trial"))
            wait = request.get("wait", "delivered")
            if wait not in ("exited", "delivered"):
                raise RequestError("wait is not one of exited, delivered")
            await (trial.ended if wait == "exited" else trial.settled).wait()
            return trial.result()
        if operation == "status":
            return self.status()
        if operation == "abort":
            return self.abort(request)
        raise RequestError("unknown operation")

    def submit(self, given: t.Any) -> _Trial:
        """Take a trial, or find it if it was submitted before."""
        submission = wire.checked(given, wire.SUBMISSION, "trial")
        epoch = wire.Epoch(submission["run_id"], submission["trial_id"], submission["attempt"])
        if epoch.run != self.config.run_id:
            raise RequestError(f"this is the rendezvous of {self.config.run_id}, not of {epoch.run}")
        known = self._trials.get(epoch)
        if known is not None:
            # The members of a trial that forms anew are what became of the attempt before: its epoch says all.
            if known.digest != _digest(submission) and not (known.form and submission["form"]):
                raise RequestError(
                    f"{epoch} was submitted before with other arguments: a new attempt needs a new number"
                )
            log("attached", epoch=epoch)
            return known
        problem = barrier.seats_problem(submission)
        if problem is not None:
            raise RequestError(problem)
        newest = max((other.attempt for other in self._trials if other.trial == epoch.trial), default=0)
        if epoch.attempt < newest:
            raise RequestError(f"attempt {newest} of {epoch.trial} is known already: {epoch} is stale")
        journal = os.path.join(self._directory, f"{epoch.trial}.{epoch.attempt}.journal")
        trial = _Trial(submission, journal)
        try:
            self._write(trial, {"submission": submission, "at": time.time()}, spend=False)
            if trial.file is not None:
                os.fdatasync(trial.file.fileno())
        except OSError as error:
            raise RequestError(f"the rendezvous cannot write {journal}: {error.strerror}") from error
        self._trials[epoch] = trial
        log("submitted", epoch=epoch, members=len(trial.names))
        self._next_turn()
        return trial

    def status(self) -> t.Dict[str, t.Any]:
        """Who is here, and how every trial stands."""
        trials = []
        for trial in self._trials.values():
            found = {
                "epoch": trial.epoch.to_json(),
                "phase": "settled" if trial.kept else "queued",
                "members": trial.states,
            }
            if trial.barrier is not None:
                standing = trial.barrier.members
                found["phase"] = trial.barrier.phase
                found["members"] = {name: member.state for name, member in standing.items()}
            trials.append(found)
        return {"run": self.config.run_id, "connected": sorted(self._peers), "trials": trials}

    def abort(self, request: t.Mapping[str, t.Any]) -> t.Dict[str, t.Any]:
        """End a trial: the named one, or the one under way."""
        reason = request.get("reason") or "aborted by the controller"
        wanted = request.get("trial_id")
        for trial in self._trials.values():
            if trial.ended.is_set() or (wanted is not None and trial.epoch.trial != wanted):
                continue
            if trial.barrier is None:
                now = self._now()
                self._begin(trial, now)
            self._event(trial, barrier.Abort(str(reason)[:1000]))
            return trial.result()
        raise RequestError("no such trial is under way")


def _digest(submission: t.Mapping[str, t.Any]) -> str:
    """What tells two submissions apart."""
    return hashlib.sha256(json.dumps(submission, sort_keys=True).encode("ascii")).hexdigest()


def _event_to_json(event: barrier.Event) -> t.List[t.Any]:
    fields = list(event)
    if isinstance(event, barrier.Reported):
        report = {name: value for name, value in event.report.items() if name != "epoch"}
        return [event.member, event.epoch.to_json(), report]
    return fields


def _event_from_json(kind: str, fields: t.List[t.Any]) -> barrier.Event:
    if kind == "Reported":
        return barrier.Reported(fields[0], wire.Epoch(**fields[1]), fields[2])
    return _EVENTS[kind](*fields)


def _network(submission: t.Mapping[str, t.Any], member: t.Mapping[str, t.Any]) -> t.Optional[t.Dict[str, t.Any]]:
    """What a member does with what it sends; what it sends to itself is left alone."""
    found = (submission["networks"] or {}).get(member["network"])
    own = [{"address": address} for address in member["addresses"] or ()]
    return found and dict(found, exempt=[*found["exempt"], *own])
