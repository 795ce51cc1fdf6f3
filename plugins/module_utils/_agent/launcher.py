# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts one command at an absolute instant and sees it to its end.

PRIVATE to the collection. Two processes, both made long before T:

* the *child* is the shell of the command, loaded and waiting: all that is between its waking and the command is one read;
* the *supervisor* above it reads T from a pipe, sleeps to it on CLOCK_MONOTONIC, which a step of the wall clock does not
  move, notes the time, and wakes the shell. It lives in a session of its own and outlives the agent. It collects orphans
  (PR_SET_CHILD_SUBREAPER), ends the whole tree when time is over, when the command has ended but left something
  running, or on SIGTERM, and writes what happened into the spool, each file whole or not at all.

How the agent, or the next agent, follows it, without polling and without being its parent:

    go      pipe, the agent writes T once; closed without T, nothing is ever started
    lock    held (flock) by the supervisor as long as it lives; it holds its process id, nothing if it ended without a start
    events  FIFO kept open by the supervisor: a byte or the end of it means: read the spool again
    fired.json, exit.json

Nothing is started twice: a supervisor reads one T, and makes one child.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import struct
import time
import typing as t

from . import clock, ports
from .log import log
from .wire import STOP_GRACE

#: The supervisor does nothing for so long after T: on a small machine its wake-up would delay other hosts' commands.
QUIET = 0.3
#: Seconds that the kill of a tree is repeated before what is left is reported.
KILL_LIMIT = 10.0
#: Seconds for which an agent kills what a supervisor that was itself killed has left.
ORPHAN_LIMIT = 2.0
#: Bytes of stderr that a failed command may tell the controller at once.
DETAIL = 300
#: What a write that lacks room fails with.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
#: How many files of the spool hold room for the last records, and the least bytes of one.
BALLAST, _LEAST_BALLAST = 4, 65536

_PR_SET_PDEATHSIG, _PR_SET_TIMERSLACK, _PR_SET_CHILD_SUBREAPER = 1, 29, 36
_TIMER_ABSTIME = 1

#: What the command is written for.
SHELL = "/bin/sh"
# The child starts with these open: what wakes it, stdout, stderr, what it tells, and the input of the command.
_WAITING = """echo >&3; read -r _ || exit; exec <&4 3>&- 4<&-
"""
# What the child tells the supervisor: that it waits, by the line above; or this and why it cannot.
_WRONG = b"!"


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Program(t.NamedTuple):
    """What is to be run. User and groups are None to stay who we are."""

    command: str
    directory: str
    environment: t.Dict[str, str]
    timeout: float
    uid: t.Optional[int] = None
    gid: t.Optional[int] = None
    groups: t.Sequence[int] = ()
    #: Nothing but the command takes ports on this host meanwhile.
    alone: bool = True


class Handle(t.NamedTuple):
    """A launcher that this agent has forked: the supervisor's process id, and the pipe that T goes into."""

    pid: int
    go: int


def arm(spool: str, program: Program) -> Handle:
    """Fork a launcher for `program` whose spool is the directory `spool`. Its first event says that it is ready."""
    # A new FIFO: the end of an earlier launcher is not to be taken for the end of this one.
    events = os.path.join(spool, "events")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(events)
    os.mkfifo(events, 0o600)
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(go_read)
        return Handle(pid, go_write)
    status = 1
    try:
        _supervise(spool, program, go_read)
        status = 0
    except BaseException as error:  # a forked copy of the agent must never return into the agent's code
        log("launcher failed", spool=spool, error=repr(error))
    finally:
        os._exit(status)


def fire(handle: Handle, start_ns: int) -> None:
    """Give T (ns, this host's CLOCK_MONOTONIC) to a launcher. From here on it needs nobody."""
    try:
        os.write(handle.go, struct.pack("!q", start_ns))
    finally:
        os.close(handle.go)


def release(handle: Handle) -> None:
    """Let a launcher go without T: it ends and has started nothing."""
    os.close(handle.go)


def follow(spool: str) -> int:
    """The reading end of the events of the launcher in `spool`."""
    return os.open(os.path.join(spool, "events"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def supervisor_of(spool: str) -> t.Optional[int]:
    """The process id of the supervisor if it lives."""
    try:
        lock = os.open(os.path.join(spool, "lock"), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        written = os.read(lock, 20).strip()
        return int(written) if written.isdigit() else None
    finally:
        os.close(lock)
    return None


def stop(spool: str) -> bool:
    """Ask the supervisor, if it lives, to end the tree of its command: TERM, grace, KILL. Says whether it lived."""
    pid = supervisor_of(spool)
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    return True


def started_nothing(spool: str) -> bool:
    """Whether a supervisor that is gone said that it ended without a start. In the boot that it ended in: this is not made
    safe on the disk."""
    try:
        return os.path.getsize(os.path.join(spool, "lock")) == 0
    except FileNotFoundError:
        return False


class Left(t.NamedTuple):
    """Of a command whose supervisor was killed: what could not be ended, as exit.json has it."""

    remaining: t.List[t.Dict[str, t.Any]]
    ports: t.List[t.Dict[str, t.Any]]


def end_orphans(spool: str, environment: t.Mapping[str, str]) -> Left:
    """Kill what a supervisor that was killed has left of its command: its cgroup, and whatever has this environment, for
    not every host has cgroups."""
    try:
        with open(os.path.join(spool, "lock"), encoding="ascii") as stream:
            group = _Cgroup.of(f"trial-{int(stream.read())}")
    except (FileNotFoundError, ValueError):
        return Left([], [])  # it has not come so far as to start something
    marks = {f"{name}={value}".encode("utf-8") for name, value in environment.items()}
    # Known once the start is recorded; None also where ports are not judged.
    taken = (read_record(spool, "fired.json") or {}).get("taken")
    before = None if taken is None else frozenset(t.cast(ports.Key, tuple(key)) for key in taken)
    give_up = time.monotonic() + ORPHAN_LIMIT
    while True:
        left = sorted({*group.processes(), *_with_environment(marks)})
        # Also for the ports: a process that is ending has no environment any more while it still has its sockets.
        held = [] if before is None else ports.new_since(before)
        if not (left or held) or time.monotonic() >= give_up:
            group.remove()
            return Left(_described(left), held)
        group.kill()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _with_environment(marks: t.AbstractSet[bytes]) -> t.List[int]:
    """Processes that were started with all of these variables, and have not ended."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                with open(f"/proc/{entry}/environ", "rb") as stream:
                    if marks <= set(stream.read().split(b"\0")):
                        found.append(int(entry))
    return found


def _described(pids: t.Iterable[int]) -> t.List[t.Dict[str, t.Any]]:
    return [{"pid": pid, "command": ports.name_of(pid)} for pid in pids]


def read_record(spool: str, name: str) -> t.Optional[t.Dict[str, t.Any]]:
    """A JSON object of the spool, or None when it was not written."""
    try:
        with open(os.path.join(spool, name), "rb") as stream:
            found: t.Dict[str, t.Any] = json.loads(stream.read().decode("utf-8"))
    except FileNotFoundError:
        return None
    return found


def write_record(spool: str, name: str, record: t.Mapping[str, t.Any], spend: bool = True) -> None:
    """Write a JSON object of the spool, whole or not at all, and on the disk before this returns.

    On a full disk what `reserve` has put aside is spent for it, unless `spend` says that the object is worth less than those
    to come.
    """
    path = os.path.join(spool, name)
    content = json.dumps(record).encode("ascii")
    while True:
        try:
            with open(path + ".new", "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            break
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(path + ".new")
            if not (spend and make_room(spool, error)):
                raise
    os.rename(path + ".new", path)
    directory = os.open(spool, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)  # or the name could be lost with the power
    finally:
        os.close(directory)


def reserve(spool: str, size: int) -> None:
    """Put room aside for the last records of a trial, whose command may fill the disk. What is there already stays."""
    for path in _ballast(spool):
        # Where the file system cannot, the C library does it by reading and writing.
        ballast = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(ballast, 0, max(size, _LEAST_BALLAST))
        finally:
            os.close(ballast)


def give_back(spool: str, pieces: int = BALLAST) -> int:
    """Free at most so many pieces of what `reserve` has put aside; how many were left to free."""
    left = [path for path in _ballast(spool) if os.path.exists(path)][:pieces]
    for path in left:
        os.unlink(path)
    return len(left)


def make_room(spool: str, error: OSError) -> bool:
    """Free a piece of what `reserve` has put aside, if it was room that a write lacked; whether to try again."""
    return error.errno in NO_ROOM and give_back(spool, 1) > 0


def _ballast(spool: str) -> t.List[str]:
    return [os.path.join(spool, f"ballast.{number}") for number in range(BALLAST)]


# ---- in the forked processes -----------------------------------------------------------------------------------------


def close_all_but(keep: t.Iterable[int]) -> None:
    """Close every file descriptor of this process but `keep` and the standard three."""
    last = 2
    for descriptor in sorted(set(keep)):
        os.closerange(last + 1, descriptor)
        last = max(last, descriptor)
    os.closerange(last + 1, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 65536 else 65536)


def sleep_until(start_ns: int) -> None:
    """Sleep until CLOCK_MONOTONIC reads `start_ns`."""
    spec = _Timespec(start_ns // 10**9, start_ns % 10**9)
    while True:
        try:
            failed = _LIBC.clock_nanosleep(time.CLOCK_MONOTONIC, _TIMER_ABSTIME, ctypes.byref(spec), None)
        except AttributeError:  # a C library without it
            time.sleep(max(0, start_ns - time.monotonic_ns()) / 1e9)
            return
        if failed != errno.EINTR:
            return


_LIBC = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(AttributeError):
        _LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def _supervise(spool: str, program: Program, go: int) -> None:
    """The life of the supervisor."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    # Blocked before anything is forked: they are taken by sigtimedwait, one by one, and none is lost.
    watched = {signal.SIGCHLD, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_SETMASK, watched)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    lock = os.open(os.path.join(spool, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    close_all_but([go, lock])
    fcntl.flock(lock, fcntl.LOCK_EX)  # a launcher before us, released or orphaned without T, is about to end
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode("ascii"), 0)
    # Read and write: opening never blocks, and writing never raises, whether or not an agent listens.
    events = os.open(os.path.join(spool, "events"), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    taken = frozenset(ports.taken()) if program.alone else None
    group = _Cgroup.create(f"trial-{os.getpid()}")
    (told, tell), (hear, wake) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        _be_child(spool, program, hear, tell, group)
    os.close(tell)
    os.close(hear)
    try:
        start = _start(spool, go, told, wake, events)
        if start is None:
            _end_tree(group, 0.0)
            os.ftruncate(lock, 0)
        else:
            _watch(spool, program, child, start, events, group, taken)
    finally:
        group.remove()


def _be_child(spool: str, program: Program, hear: int, tell: int, group: _Cgroup) -> t.NoReturn:
    """The life of the child until it is the shell. Whatever fails is told through `tell`."""
    try:
        os.setsid()
        group.enter()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        out = os.open(os.path.join(spool, "stdout"), flags, 0o644)
        err = os.open(os.path.join(spool, "stderr"), flags, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        # By way of numbers that none of them has.
        streams = [fcntl.fcntl(stream, fcntl.F_DUPFD_CLOEXEC, 10) for stream in (hear, out, err, tell, null)]
        for target, source in enumerate(streams):
            os.dup2(source, target)
        tell = streams[3]
        with contextlib.suppress(OSError):
            # The agent may be protected from the kernel's memory shortage; a command is not.
            with open("/proc/self/oom_score_adj", "w", encoding="ascii") as stream:
                stream.write("0")
        if program.gid is not None:
            os.setgroups(list(program.groups))
            os.setgid(program.gid)
        if program.uid is not None:
            os.setuid(program.uid)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # after setuid, which resets it
        os.chdir(program.directory)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        arguments = [SHELL, "-c", _WAITING + program.command]
        os.execve(arguments[0], arguments, program.environment)  # noqa: S606  the shell is what we start
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(tell, _WRONG + str(error).encode("utf-8", "replace")[:1000])
    finally:
        os._exit(127)


class _Start(t.NamedTuple):
    """Of one start, ns of CLOCK_MONOTONIC: T, when it was read, and when the shell was woken."""

    start_ns: int
    noticed_ns: int
    fired_ns: int


def _start(spool: str, go: int, told: int, wake: int, events: int) -> t.Optional[_Start]:
    """Wait for the child, for T, and until T; wake the child then. None where it is not to start, or cannot."""

    def unfit(why: str) -> t.Optional[_Start]:
        write_record(spool, "exit.json", {"unfit": why})
        return None

    # Linux wakes a sleeper up to 50 us late on purpose, to save power. Not this one.
    _prctl(_PR_SET_TIMERSLACK, 1)
    sleep_until(1)  # loads and warms what T will need
    signal.sigpending()
    poll = select.poll()
    for descriptor in (told, go):
        poll.register(descriptor, select.POLLIN)
    waits, packed, noticed_ns = False, b"", 0
    while not (waits and packed):
        ready = dict(poll.poll())
        if told in ready:
            words = os.read(told, 2000)
            if words != b"\n":
                why = words[len(_WRONG) :].decode("utf-8", "replace") or "its shell has ended"
                return unfit(f"cannot make the command ready: {why}")
            waits = True
            os.write(events, b"r")
        if go in ready:
            packed, noticed_ns = os.read(go, 8), time.monotonic_ns()
            if len(packed) < 8:
                return None  # released without T
            poll.unregister(go)
    start_ns = struct.unpack("!q", packed)[0]
    sleep_until(start_ns)
    # A stop has waited for T, too: to be interrupted by it, and sleep as exactly, would take a second waking before T.
    stopped = signal.SIGTERM in signal.sigpending()
    fired_ns = time.monotonic_ns()
    if stopped:
        return unfit("cannot start the command: stopped before T")
    try:
        os.write(wake, b"\n")
    except BrokenPipeError:
        return unfit("cannot start the command: its shell has ended before T")
    return _Start(start_ns, noticed_ns, fired_ns)


def _watch(
    spool: str,
    program: Program,
    child: int,
    start: _Start,
    events: int,
    group: _Cgroup,
    taken: t.Optional[t.FrozenSet[ports.Key]],
) -> None:
    """From T to the end of everything that the command has started. `taken`: the ports that were taken before, None if
    that says nothing."""
    stopped = _wait_until(start.start_ns + int(QUIET * 1e9))
    # How the clocks stand tells later whether one was stepped before T, or under the command.
    begin = clock.read()
    # SIGCHLD may be taken already: look before anything slow, for the end's time is when it is seen.
    seen = _ended(child)
    fired = {
        "noticed_ns": start.noticed_ns,
        "fired_ns": start.fired_ns,
        "reading": begin,
        "taken": None if taken is None else sorted(taken),  # for who has to end the command in our place
    }
    write_record(spool, "fired.json", fired)
    os.write(events, b"f")
    started = start.fired_ns / 1e9
    status, ended, timed_out, stopped = _wait_for(child, started + program.timeout, stopped, group)
    ended = seen or ended
    stepped_ns = clock.stepped_ns(begin, clock.read())
    leftovers = _end_tree(group, STOP_GRACE)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    write_record(
        spool,
        "exit.json",
        {
            "code": code,
            "signal": number,
            "timed_out": timed_out,
            "stopped": stopped,
            "at_ns": int(ended * 1e9),
            "duration_ns": max(0, int((ended - started) * 1e9)),
            "leftovers": 0 if timed_out or stopped else leftovers,
            "remaining": _described(_tree(group)),
            "ports": [] if taken is None else ports.new_since(taken),
            "stepped_ns": stepped_ns,
            "detail": _last_words(spool) if code or number else None,
        },
    )


def _ended(child: int) -> t.Optional[float]:
    """Now (monotonic) if `child` has ended, which it is left to be collected for."""
    return time.monotonic() if os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG) else None


def _wait_until(steady_ns: int) -> bool:
    """Wait until `steady_ns` on CLOCK_MONOTONIC, or the child's end. True if SIGTERM came."""
    left = (steady_ns - time.monotonic_ns()) / 1e9
    caught = signal.sigtimedwait({signal.SIGTERM, signal.SIGCHLD}, left) if left > 0 else None
    return caught is not None and caught.si_signo == signal.SIGTERM


def _wait_for(child: int, until: float, stopped: bool, group: _Cgroup) -> t.Tuple[int, float, bool, bool]:
    """Wait for `child`, ending it and its tree at `until` (monotonic) or on SIGTERM: status, when, timed out,
    stopped."""
    timed_out = False
    kill_at: t.Optional[float] = None
    if stopped:
        _signal_tree(signal.SIGTERM, group)
        kill_at = time.monotonic() + STOP_GRACE
    while True:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == child:
                return status, time.monotonic(), timed_out, stopped
            if not pid:
                break
        now = time.monotonic()
        if kill_at is not None and now >= kill_at:
            _signal_tree(signal.SIGKILL, group)
            kill_at = now + 0.1
        elif kill_at is None and now >= until:
            timed_out = True
            _signal_tree(signal.SIGTERM, group)
            kill_at = now + STOP_GRACE
        wake = kill_at if kill_at is not None else until
        caught = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, max(0.0, min(wake - now, 3600.0)))
        if caught is not None and caught.si_signo == signal.SIGTERM and kill_at is None:
            stopped = True
            _signal_tree(signal.SIGTERM, group)
            kill_at = time.monotonic() + STOP_GRACE


def _end_tree(group: _Cgroup, grace: float) -> int:
    """End whatever is below this process: TERM, `grace` seconds, KILL. Says how many processes there were."""
    if _reaped_all() and not group.processes():
        return 0  # orphans come to a subreaper: having no child proves that there is none
    found = len(_tree(group))
    _signal_tree(signal.SIGTERM if grace else signal.SIGKILL, group)
    kill_at = time.monotonic() + grace
    give_up = kill_at + KILL_LIMIT
    while not (_reaped_all() and not group.processes()) and time.monotonic() < give_up:
        if time.monotonic() >= kill_at:
            _signal_tree(signal.SIGKILL, group)
        # The end of a child wakes this at once. The pause is for a process that the last signal came too early for.
        signal.sigtimedwait({signal.SIGCHLD}, 0.05)
    return found


def _reaped_all() -> bool:
    """Collect children that have ended; whether none is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def _signal_tree(number: int, group: _Cgroup) -> None:
    """Send a signal to every process below this one."""
    if number == signal.SIGKILL:
        group.kill()
    for pid in _tree(group):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _tree(group: _Cgroup) -> t.List[int]:
    """Processes below this one, parents first, so that a shell is ended by a signal and not by the end of its child.

    All descendants, for orphans come back to a subreaper, and what is in the cgroup.
    """
    children: t.Dict[int, t.List[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{entry}/stat", "rb") as stream:
                    # The name may contain anything but ends at the last parenthesis: state and parent follow it.
                    state, parent = stream.read().rpartition(b")")[2].split()[:2]
                if state not in (b"Z", b"X"):
                    children.setdefault(int(parent), []).append(int(entry))
    found = [os.getpid()]
    for pid in found:  # grows while it is walked
        found += children.get(pid, [])
    return found[1:] + [pid for pid in group.processes() if pid not in found]


def _last_words(spool: str) -> t.Optional[str]:
    """The last line that a failed command wrote to stderr."""
    with contextlib.suppress(OSError):
        with open(os.path.join(spool, "stderr"), "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - 4 * DETAIL))
            lines = stream.read().decode("utf-8", "replace").replace("\0", "").strip().splitlines()
            return lines[-1][-DETAIL:] if lines else None
    return None


class _Cgroup:
    """A cgroup for one trial's tree below our own, where the service manager has delegated that (Delegate=yes)."""

    def __init__(self, path: t.Optional[str]) -> None:
        self._path = path

    @classmethod
    def create(cls, name: str) -> _Cgroup:
        """Make one; or do without, where that cannot be."""
        group = cls.of(name)
        try:
            if group._path is not None:
                os.mkdir(group._path)
        except OSError:
            return cls(None)
        return group

    @classmethod
    def of(cls, name: str) -> _Cgroup:
        """The one of this name; none where there is no cgroup of version 2 that is ours to divide."""
        try:
            with open("/proc/self/cgroup", encoding="ascii") as stream:
                own = next(line.strip()[3:] for line in stream if line.startswith("0::"))
            # Below a unit of ours only: any other cgroup is somebody else's.
            if "/startline-agent.service" not in own:
                return cls(None)
            # Hosts with both hierarchies have the second version's one level below.
            root = "/sys/fs/cgroup/unified" if os.path.isdir("/sys/fs/cgroup/unified") else "/sys/fs/cgroup"
            return cls(f"{root}{own}/{name}")
        except (OSError, StopIteration):
            return cls(None)

    def enter(self) -> None:
        """Put this process into it, before it has children. Where that fails, being a subreaper has to do."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                with open(self._path + "/cgroup.procs", "w", encoding="ascii") as stream:
                    stream.write("0")

    def processes(self) -> t.List[int]:
        if self._path is None:
            return []
        try:
            with open(self._path + "/cgroup.procs", encoding="ascii") as stream:
                return [int(line) for line in stream]
        except (OSError, ValueError):
            return []

    def kill(self) -> None:
        """SIGKILL to all of it at once, where the kernel can (Linux 5.14)."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                with open(self._path + "/cgroup.kill", "w", encoding="ascii") as stream:
                    stream.write("1")

    def remove(self) -> None:
        if self._path is not None:
            with contextlib.suppress(OSError):
                os.rmdir(self._path)
