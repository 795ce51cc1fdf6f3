# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent waits with: file descriptors, timers and children, in one thread.

PRIVATE to the collection. Not asyncio, which costs every host 6 MB more.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import heapq
import json
import os
import selectors
import signal
import socket
import time
import typing as t

from .launcher import close_all_but
from .log import log

Callback = t.Callable[[], None]

_PR_SET_PDEATHSIG = 1


class Timer:
    """A callback that is due at a time of `time.monotonic`."""

    __slots__ = ("_callback", "due")

    def __init__(self, due: float, callback: Callback) -> None:
        self.due = due
        self._callback: t.Optional[Callback] = callback

    def __lt__(self, other: Timer) -> bool:
        return self.due < other.due

    def cancel(self) -> None:
        self._callback = None

    def run(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class Reactor:
    """Runs callbacks until `stop`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: t.List[Timer] = []
        self._children: t.Dict[int, Callback] = {}
        self._running = True
        # A signal writes its number here, so that it ends the wait; the handlers themselves do nothing.
        self._wake_read, self._wake_write = os.pipe()
        for descriptor in (self._wake_read, self._wake_write):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: None)
        self.watch(self._wake_read, selectors.EVENT_READ, self._on_signal)

    def watch(self, descriptor: int, events: int, callback: Callback) -> None:
        """Call `callback` whenever `descriptor` is ready for `events`; replaces an earlier watch of it."""
        try:
            self._selector.modify(descriptor, events, callback)
        except KeyError:
            self._selector.register(descriptor, events, callback)

    def unwatch(self, descriptor: int) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(descriptor)

    def after(self, seconds: float, callback: Callback) -> Timer:
        """Call `callback` once, in `seconds` from now."""
        timer = Timer(time.monotonic() + seconds, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def on_exit(self, pid: int, callback: Callback) -> None:
        """Call `callback` once the child `pid` has ended."""
        self._children[pid] = callback

    def run(self) -> None:
        # What is there by now stays. A child that collected garbage would write to all of it, and so copy it.
        gc.freeze()
        while self._running:
            timeout = max(0.0, self._timers[0].due - time.monotonic()) if self._timers else None
            for key, _events in self._selector.select(timeout):
                key.data()
            while self._timers and self._timers[0].due <= time.monotonic():
                heapq.heappop(self._timers).run()

    def stop(self) -> None:
        self._running = False

    def _on_signal(self) -> None:
        numbers = os.read(self._wake_read, 4096)
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self.stop()
        while True:
            try:
                pid, _status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._children.pop(pid, lambda: None)()

    # -- short-lived children --

    def work(self, job: t.Callable[[], t.Any], done: t.Callable[[t.Any], None]) -> None:
        """Run `job` in a forked child; `done` gets what it returned (JSON), or None when it failed.

        What is slow or heavy goes here, so that the agent itself stays small and always answers.
        """

        def run(out: int) -> None:
            result = json.dumps(job()).encode("ascii")
            while result:
                result = result[os.write(out, result) :]

        def finished(output: bytes) -> None:
            done(json.loads(output.decode("ascii")) if output else None)

        read, write = os.pipe()
        self._spawn(run, write)
        os.close(write)
        self._hear(read, finished)

    def command(self, arguments: t.Sequence[str], done: t.Callable[[bytes], None]) -> None:
        """Run a program; `done` gets what it wrote to stdout, nothing if it could not be run."""
        read, write = os.pipe()
        if hasattr(os, "posix_spawnp"):
            # Python 3.8. It copies nothing of this process, which would take as long as a small program does.
            nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0)  # novm
            streams = [nothing, (os.POSIX_SPAWN_DUP2, write, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]  # novm
            try:
                os.posix_spawnp(arguments[0], list(arguments), os.environ, file_actions=streams)  # novm
            except FileNotFoundError:
                pass  # it is not installed
            except OSError as error:
                log("cannot run", command=" ".join(arguments), error=error.strerror)
        else:
            self._spawn(lambda out: _become(arguments, out), write)
        os.close(write)
        self._hear(read, done)

    def companion(self, run: t.Callable[[socket.socket], None]) -> socket.socket:
        """Run `run` in a forked child that lives until the returned socket, whose other end it has, is closed.

        For what has to wait in ways that this loop cannot.
        """
        ours, theirs = socket.socketpair()
        self._spawn(lambda _descriptor: run(theirs), theirs.fileno())
        theirs.close()
        ours.setblocking(False)
        return ours

    def _spawn(self, run: t.Callable[[int], None], keep: int) -> None:
        """Fork a child that runs `run` with no descriptor but `keep`, and dies with us."""
        if not os.fork():
            status = 1
            try:
                signal.set_wakeup_fd(-1)
                for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, signal.SIG_DFL)
                with contextlib.suppress(AttributeError, OSError):
                    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
                close_all_but([keep])
                run(keep)
                status = 0
            except BaseException as error:
                log("worker failed", error=repr(error))
            finally:
                os._exit(status)

    def _hear(self, read: int, done: t.Callable[[bytes], None]) -> None:
        """`done` gets all that comes out of the pipe `read` until its end."""
        os.set_blocking(read, False)
        output = bytearray()

        def on_readable() -> None:
            try:
                more = os.read(read, 65536)
            except BlockingIOError:
                return
            if more:
                output.extend(more)
                return
            self.unwatch(read)
            os.close(read)
            done(bytes(output))

        self.watch(read, selectors.EVENT_READ, on_readable)


def _become(arguments: t.Sequence[str], out: int) -> None:
    """Be a program that writes to `out`."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for source, target in ((nothing, 0), (out, 1), (nothing, 2)):
        os.dup2(source, target)
    with contextlib.suppress(FileNotFoundError):  # it is not installed
        os.execvp(arguments[0], list(arguments))  # noqa: S606  no shell is wanted
