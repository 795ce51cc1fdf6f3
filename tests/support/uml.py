# SPDX-License-Identifier: GPL-3.0-or-later
"""A Linux kernel of its own for a test, with what this machine's kernel may lack: netem. User-mode Linux, booted in a
second or two with the machine's own files, which it cannot change.

It has two hosts, namespaces `a` and `b`, joined by a veth pair: `va` has 10.9.0.1/24 in `a`, `vb` 10.9.0.2/24 in `b`. The
program runs in `a`.
"""

from __future__ import annotations

import contextlib
import glob
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap

from localcloud.uml import environment

PROJECT = pathlib.Path(__file__).resolve().parents[2]
#: Where a program finds what it imports.
PATH = [str(PROJECT), str(PROJECT / "collections")]
MODULES = ("sch_netem", "sch_htb", "sch_ingress", "cls_u32", "act_mirred", "veth", "ifb")

#: What runs as init: modules, namespaces, the test's program, and power off.
_INIT = """\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin TMPDIR=/run
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /run
mount -t hostfs none /mnt -o {shared}
{{ {python} /mnt/prepare.py && ip netns exec a {python} /mnt/main.py; }} > /mnt/out 2>&1
echo $? > /mnt/rc
halt -f -p
"""

_PREPARE = """\
import ctypes, os, subprocess
for module in {modules!r}:
    with open(module) as file:
        assert ctypes.CDLL(None, use_errno=True).syscall(313, file.fileno(), b"", 0) == 0, os.strerror(ctypes.get_errno())
subprocess.run(
    '''
    mkdir -p /run/netns; ip link set lo up; ip netns add a; ip netns add b
    ip link add va netns a type veth peer name vb netns b
    ip -n a addr add 10.9.0.1/24 dev va; ip -n b addr add 10.9.0.2/24 dev vb
    for n in a b; do ip -n $n link set lo up; ip -n $n link set v$n up; done
    ''', shell=True, check=True)
"""

_PROLOGUE = """\
import subprocess, sys
sys.path[:0] = {path!r}

def sh(command, **kwargs):
    return subprocess.run(command, shell=True, check=True, text=True, stdout=subprocess.PIPE, **kwargs).stdout
"""


def missing() -> str:
    """What this machine lacks for it, as a reason to skip; empty when nothing."""
    lacking = [
        tool
        for tool in ("linux.uml", "tc", "ip", "fping", "iperf3")
        if not shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin")
    ]
    return f"needs {', '.join(lacking)} (Debian: user-mode-linux, iproute2, fping, iperf3)" if lacking else ""


def run(program: str, *, timeout: float = 120, memory: str = "256M") -> str:
    """Run a Python program in a kernel with netem, and return what it printed. `sh` in it runs a shell command.

    Raises:
        AssertionError: it failed; with what it printed.
    """
    modules = [glob.glob(f"/usr/lib/uml/modules/*/kernel/**/{name}.ko", recursive=True)[0] for name in MODULES]
    with (
        tempfile.TemporaryDirectory(prefix="startline-uml-") as shared,
        tempfile.TemporaryDirectory(dir="/dev/shm") as memory_dir,
    ):
        base = pathlib.Path(shared)
        (base / "prepare.py").write_text(_PREPARE.format(modules=modules))
        (base / "main.py").write_text(_PROLOGUE.format(path=PATH) + textwrap.dedent(program))
        init = base / "init"
        init.write_text(_INIT.format(shared=shared, python=os.path.realpath(sys.executable)))
        init.chmod(0o755)
        arguments = ["linux.uml", f"mem={memory}", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"]
        arguments += [f"init={init}", "con=null", "con0=null,fd:1", "selinux=0", "quiet"]
        # It dies with us, however we die: a kernel that goes on by itself takes a processor.
        kernel = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *arguments],
            env={**os.environ, "TMPDIR": memory_dir, "HOME": shared, **environment(pathlib.Path(shared))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            console, _nothing = kernel.communicate(timeout=timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(kernel.pid, signal.SIGKILL)
            kernel.wait()
        out = (base / "out").read_text() if (base / "out").exists() else console
        code = (base / "rc").read_text().strip() if (base / "rc").exists() else "none"
        assert code == "0", f"exit {code} in user-mode Linux:\n{out}"
        return out
