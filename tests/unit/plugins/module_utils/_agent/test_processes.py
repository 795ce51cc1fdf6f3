# SPDX-License-Identifier: GPL-3.0-or-later
"""The rendezvous and its agents as real processes on loopback, with real TLS and real commands."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import typing as t

import pytest

from ansible_collections.startline.lab.plugins.module_utils._agent import launcher
from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent.world import RUN, World, until

Make = t.Callable[..., World]


def living(marker: str) -> list[int]:
    """Processes whose command lines contain `marker`."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                line = pathlib.Path("/proc", entry, "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if marker in line:
                found.append(int(entry))
    return found


def test_a_port_that_stays_taken_degrades_the_trial_and_stops_the_next(make_world: Make) -> None:
    world = make_world(1)
    world.configure("party-0", shared=False)
    world.start_all()
    go = world.directory / "go"
    waiting = world.submit(world.trial(f"until [ -e {go} ]; do sleep 0.05; done"))
    until(lambda: world.state("party-0") == "fired", what="the start")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        go.touch()
        what = f"tcp port {listener.getsockname()[1]}, held by {own_name()} (pid {os.getpid()})"
        result = world.result(waiting)
        assert result["verdict"] == "degraded"
        assert f"party-0 left {what}" in result["reasons"], "and perhaps what others on this machine do meanwhile"
        refused = world.run(world.trial("true", "r2"))
        assert (refused["outcome"], refused["verdict"]) == ("aborted", "invalid")
        assert refused["reasons"][0].startswith("party-0: an earlier trial has left: ")
        assert what in refused["reasons"][0]
        freed = world.submit(world.trial("true", "r3"))
        until(lambda: world.state("party-0", "r3") == "connected", what="the wait for the port")
    assert what not in str(world.result(freed)["reasons"]), "it waits for a port that is about to be freed"


def own_name() -> str:
    return pathlib.Path("/proc/self/comm").read_text().strip()


def test_the_clock_is_measured_before_and_after(make_world: Make) -> None:
    world = make_world(1)
    world.start_all()
    result = world.run(world.trial("sleep 0.2"))
    row = result["members"]["party-0"]
    for clock in (row["clock"], row["clock_after"]):
        assert abs(clock["offset_s"]) <= clock["bound_s"] < 0.05
        assert (clock["stepped_s"], clock["drifted_s"], clock["note"]) == (0, 0, None)
    # All times are on the rendezvous' clock.
    assert result["start"] < row["fired_at"] < row["exited_at"] <= result["ended"]


#: A time daemon that has just been started: its bound is a second at first, and then better than any round trip.
CHRONYC = """#!/bin/sh
echo >> "$0.calls"
[ $(wc -l < "$0.calls") -gt 4 ] && dispersion=0.000000001 || dispersion=0.9
echo "50484330,PHC0,1,1767268800.1,0.0,0.0,0.0,0.0,0.0,0.0,0.0,$dispersion,1.0,Normal"
"""


def test_a_time_daemon_that_was_just_started_is_waited_for(make_world: Make) -> None:
    world = make_world(1)
    path = pathlib.Path(world.write("bin/chronyc", CHRONYC))
    path.chmod(0o700)
    world.extra_environment = {"PATH": f"{path.parent}:{os.environ['PATH']}"}
    world.start_all()
    row = world.run(world.trial("true", max_clock_error=10e-6))["members"]["party-0"]
    assert row["clock"]["source"] == "phc"
    assert row["clock"]["bound_s"] < 0.01


def test_nine_members_run_a_command(make_world: Make) -> None:
    world = make_world(9)
    world.start_all()
    command = 'cat hosts.config; echo "rank $STARTLINE_RANK" >&2; echo deep > deep.log; exit 0'
    result = world.run(world.trial(command))
    assert (result["outcome"], result["verdict"], result["reasons"]) == ("completed", "valid", [])
    assert sorted(result["members"]) == sorted(world.members)
    assert result["skew"]["n"] == 9
    assert result["skew"]["min_us"] > 0, "nobody starts before T"
    for rank, (name, row) in enumerate(result["members"].items()):
        assert (row["state"], row["exit_code"], row["rank"]) == ("delivered", 0, rank)
        assert [file["path"] for file in row["files"]] == ["stdout", "stderr", "deep.log", "meta.json"]
        spool = world.spool(name)
        assert (spool / "stdout").read_text() == "127.0.0.1\n" * 9
        assert (spool / "stderr").read_text() == f"rank {rank}\n"
        for file in row["files"]:
            where = spool / ("work" if file["path"].endswith(".log") else "") / file["path"]
            assert hashlib.sha256(where.read_bytes()).hexdigest() == file["sha256"]
        meta = json.loads((spool / "meta.json").read_text())
        assert meta["member"] == name
        assert [file["path"] for file in meta["files"]] == ["stdout", "stderr", "deep.log"]


def test_members_of_a_site_get_its_files_beside_those_of_all(make_world: Make) -> None:
    world = make_world(3)
    world.start_all()
    trial = world.trial(
        "cat hosts.config common",
        files={"hosts.config": "everywhere\n", "common": "shared\n"},
        site_files={"us": {"hosts.config": "seen from us\n"}, "eu": {"hosts.config": "seen from eu\n"}},
    )
    for member, site in zip(trial["members"], ("us", "eu", None), strict=True):
        member["site"] = site
    result = world.run(trial)
    assert result["verdict"] == "valid", result["reasons"]
    said = [(world.spool(name) / "stdout").read_text() for name in world.members]
    assert said == ["seen from us\nshared\n", "seen from eu\nshared\n", "everywhere\nshared\n"]


def test_trials_follow_each_other_at_once(make_world: Make) -> None:
    world = make_world(2)
    world.start_all()
    first = world.run(world.trial("true", "r1"), "--wait", "exited")
    second = world.run(world.trial("true", "r2"), "--wait", "exited")
    assert second["start"] - first["ended"] < 1.0


def test_a_slow_disk_of_the_rendezvous_makes_nobody_late(make_world: Make) -> None:
    world = make_world(2)
    slow = "import os, time\nsync = os.fdatasync\nos.fdatasync = lambda number: (time.sleep(0.2), sync(number))\n"
    world.write("slow/sitecustomize.py", slow)
    world.extra_environment = {"PYTHONPATH": f"{world.environment['PYTHONPATH']}:{world.directory}/slow"}
    world.start_all()
    result = world.run(world.trial("true"))
    assert (result["verdict"], result["reasons"]) == ("valid", [])
    assert result["lead_s"] >= 0.4, "twice what the disk takes"
    assert "T put off" in world.log("rendezvous")


def test_exit_codes_and_signals_are_told(make_world: Make) -> None:
    world = make_world(3)
    world.start_all()
    commands = {"party-1": "echo broken >&2; exit 7", "party-2": "kill -9 $$"}
    result = world.run(world.trial("true", commands=commands))
    assert result["verdict"] == "invalid"
    assert result["reasons"] == ["party-1 exited with code 7: broken", "party-2 was ended by signal 9"]
    assert result["members"]["party-0"]["exit_code"] == 0
    assert result["members"]["party-1"]["state"] == "delivered", "logs of the failed are kept"


def test_a_program_that_is_not_there_is_named(make_world: Make) -> None:
    world = make_world(1)
    world.start_all()
    result = world.run(world.trial("exec /no/such/program"))
    assert result["members"]["party-0"]["exit_code"] == 127
    assert "/no/such/program" in result["reasons"][0]


def test_missing_members_are_named_by_the_deadline(make_world: Make) -> None:
    world = make_world(3)
    world.start("rendezvous", "party-0", "party-2")
    begin = time.monotonic()
    result = world.run(world.trial("touch started", deadline=1.5))
    assert 1.4 < time.monotonic() - begin < 5
    assert (result["outcome"], result["verdict"]) == ("aborted", "invalid")
    assert result["reasons"] == ["after 1.5 s not armed: party-1 (absent)"]
    assert result["members"]["party-0"]["state"] == "armed"
    until(lambda: "released" in world.log("party-0"), what="the release")
    assert not list(world.directory.glob("*/state/trials/**/started"))
    # The next attempt is not held up by the last one.
    world.start("party-1")
    again = world.run({**world.trial("true"), "attempt": 2})
    assert again["verdict"] == "valid"


def test_a_link_that_leads_nowhere_stops_the_trial_before_it_starts(make_world: Make) -> None:
    world = make_world(2)
    world.start_all()
    begin = time.monotonic()
    result = world.run(world.trial("true", links={"program": "/no/such/thing"}))
    assert time.monotonic() - begin < 5, "no need to wait for the deadline"
    assert result["outcome"] == "aborted"
    assert "/no/such/thing" in result["reasons"][0]


def test_a_timeout_ends_the_whole_tree(make_world: Make) -> None:
    world = make_world(1)
    world.start_all()
    marker = str(70000 + os.getpid())
    # A grandchild that has left its session and its parent, and one that does not listen to TERM.
    command = f"(setsid sleep {marker} &) ; trap '' TERM; sleep {marker} & sleep {marker}; sleep {marker}"
    result = world.run(world.trial(command, timeout=0.5))
    row = result["members"]["party-0"]
    assert row["timed_out"]
    assert result["reasons"] == ["party-0 was still running after 0.5 s and was killed"]
    assert living(f"sleep {marker}") == []


def test_what_a_command_leaves_behind_is_ended_and_counted(make_world: Make) -> None:
    world = make_world(1)
    world.start_all()
    marker = str(80000 + os.getpid())
    result = world.run(world.trial(f"(setsid sleep {marker} >/dev/null 2>&1 &) ; exit 0"))
    assert result["members"]["party-0"]["leftovers"] >= 1
    assert living(f"sleep {marker}") == []


def test_an_agent_killed_under_a_trial_is_no_loss(make_world: Make) -> None:
    world = make_world(2)
    world.start_all()
    flag = world.directory / "go"
    waiting = world.submit(
        world.trial(f"echo begun >> ../../begun; until [ -e {flag} ]; do sleep 0.05; done; echo end")
    )
    until(lambda: world.state("party-0") == "fired" == world.state("party-1"), what="the start")
    world.kill("party-0")
    until(lambda: "party-0" not in world.status()["connected"], what="the loss")
    world.start("party-0")
    until(lambda: "party-0" in world.status()["connected"], what="the return")
    flag.touch()
    result = world.result(waiting)
    assert result["verdict"] == "valid"
    assert (world.spool("party-0") / "stdout").read_text() == "end\n"
    assert (world.spool("party-0").parent / "begun").read_text() == "begun\n"


def test_a_command_that_ends_while_its_agent_is_dead_is_reported(make_world: Make) -> None:
    world = make_world(1)
    world.start_all()
    flag = world.directory / "go"
    waiting = world.submit(world.trial(f"until [ -e {flag} ]; do sleep 0.05; done; exit 5"))
    until(lambda: world.state("party-0") == "fired", what="the start")
    world.kill("party-0")
    flag.touch()
    until((world.spool("party-0") / "exit.json").exists, what="the end of the command")
    world.start("party-0")
    result = world.result(waiting)
    assert result["members"]["party-0"]["exit_code"] == 5


#: Takes a port, says which, and has it for a minute.
SERVER = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); time.sleep(60)"


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("agent_too", [False, True])
def test_of_a_supervisor_that_was_killed_nothing_is_left(make_world: Make, agent_too: bool, hidden: bool) -> None:
    """As by somebody who kills whatever is called like the agent: the server of the trial would be in the way of the next.
    One that nothing leads to, for there is no cgroup here and it has thrown the environment away, is told by its port."""
    world = make_world(1)
    world.configure("party-0", shared=False)
    world.start_all()
    marker = f"of-{os.getpid()}"
    server = f'setsid {"env -i " if hidden else ""}{sys.executable} -c "{SERVER}" {marker}'
    waiting = world.submit(world.trial(f"{server} & wait"))
    until(lambda: world.state("party-0") == "fired", what="the start")
    port = int(until((world.spool("party-0") / "stdout").read_text, what="the server"))
    supervisor = launcher.supervisor_of(str(world.spool("party-0")))
    assert supervisor is not None
    if agent_too:
        world.kill("party-0")
    os.kill(supervisor, signal.SIGKILL)
    if agent_too:
        world.start("party-0")
    result = world.result(waiting)
    row = result["members"]["party-0"]
    found = living(marker)
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    assert len(found) == hidden
    assert "party-0 ended, nobody knows how: its launcher was killed" in result["reasons"]
    assert row["remaining"] == []
    # Among what others on this machine do meanwhile.
    assert [entry["pid"] for entry in row["ports"] if entry["port"] == port] == found
    assert (world.spool("party-0") / "stdout").read_text() == f"{port}\n"


def test_an_agent_killed_while_armed_arms_again(make_world: Make) -> None:
    world = make_world(2)
    world.start("rendezvous", "party-0")
    waiting = world.submit(world.trial("echo once"))
    until(lambda: world.state("party-0") == "armed", what="arming")
    world.kill("party-0")
    world.start("party-0")
    until(lambda: "resumed" in world.log("party-0"), what="the resume")
    until(lambda: world.state("party-0") == "armed" and "party-0" in world.status()["connected"], what="arming again")
    world.start("party-1")
    result = world.result(waiting)
    assert result["verdict"] == "valid"
    assert (world.spool("party-0") / "stdout").read_text() == "once\n"


def test_an_agent_killed_between_its_record_of_t_and_the_start_says_that_nothing_was_started(make_world: Make) -> None:
    world = make_world(2)
    world.start("rendezvous", "party-0")
    waiting = world.submit(world.trial("echo here"))
    until(lambda: world.state("party-0") == "armed", what="arming")
    world.kill("party-0")
    path = world.spool("party-0") / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "start_ns": time.time_ns()}))
    world.start("party-0")
    why = until(lambda: json.loads(path.read_text())["failed"], what="the end of it")
    assert why == "the command was not started: the agent was killed before it passed T on"
    assert world.result(waiting)["outcome"] == "aborted", "for here no T was said to anybody"
    assert (world.spool("party-0") / "stdout").read_text() == ""


def test_an_agent_refuses_an_attempt_before_one_that_it_knows(make_world: Make) -> None:
    """Even when the rendezvous knows nothing of it any more."""
    world = make_world(1)
    world.start_all()
    command = "echo once >> ../../count"
    assert world.run(world.trial(command, attempt=2))["verdict"] == "valid"
    world.kill("rendezvous")
    for journal in (world.directory / "rendezvous" / "state").glob("rendezvous/*/*.journal"):
        journal.unlink()
    world.start("rendezvous")
    result = world.run(world.trial(command, attempt=1))
    assert (result["outcome"], result["published"]) == ("aborted", None)
    assert result["reasons"] == ["party-0: attempt 2 of this trial is known here already"]
    assert (world.spool("party-0", attempt=2).parent / "count").read_text() == "once\n"


def test_an_agent_forgets_a_trial_without_a_start_but_not_that_it_was(make_world: Make) -> None:
    """Once it was answered: it was dead when the trial ended, and comes back with what it had not told."""
    world = make_world(2)
    world.start("rendezvous", "party-0")
    trial = world.trial("echo here", attempt=2, deadline=3)
    waiting = world.submit(trial)
    until(lambda: world.state("party-0") == "armed", what="arming")
    world.kill("party-0")
    assert world.result(waiting)["outcome"] == "aborted"
    world.start("party-0")
    path = world.spool("party-0", attempt=2) / "record.json"
    record = until(lambda: (found := json.loads(path.read_text()))["settled"] and found, what="the answer")
    assert (record["duty"], record["start_ns"]) == ({}, None)
    assert record["failed"].startswith("released: ")
    world.kill("party-0")
    world.kill("rendezvous")
    for journal in (world.directory / "rendezvous" / "state").glob("rendezvous/*/*.journal"):
        journal.unlink()
    world.start("rendezvous", "party-0")
    result = world.run({**trial, "attempt": 1})
    assert "party-0: attempt 2 of this trial is known here already" in result["reasons"][0]
    assert "report refused" not in world.log("rendezvous"), "it says no more of the one before"


@pytest.mark.parametrize("moment", ["prepared", "fired", "settled"])
def test_a_rendezvous_killed_and_restarted_loses_nothing(make_world: Make, moment: str) -> None:
    world = make_world(2)
    flag = world.directory / "go"
    trial = world.trial(f"until [ -e {flag} ]; do sleep 0.05; done; echo done")
    world.start("rendezvous", "party-0")
    if moment == "prepared":
        waiting = world.submit(trial)
        until(lambda: world.state("party-0") == "armed", what="arming")
    else:
        world.start("party-1")
        waiting = world.submit(trial)
        until(lambda: world.state("party-0") == "fired" == world.state("party-1"), what="the start")
    if moment == "settled":
        flag.touch()
        before = world.result(waiting)
        waiting = None
    world.kill("rendezvous")
    world.start("rendezvous")
    if moment == "prepared":
        world.start("party-1")
    flag.touch()
    result = world.result(waiting) if waiting is not None else world.run(trial)
    assert result["verdict"] == "valid", result["reasons"]
    if moment == "settled":
        assert {**result, "members": None} == {**before, "members": None}
    assert (world.spool("party-1") / "stdout").read_text() == "done\n"


def test_the_same_submission_attaches_and_another_is_refused(make_world: Make) -> None:
    world = make_world(1)
    world.start_all()
    trial = world.trial("echo x >> ../../count; sleep 0.3")
    first, second = world.submit(trial), world.submit(trial)
    one, two = world.result(first), world.result(second)
    assert one["start_ns"] == two["start_ns"] == world.run(trial)["start_ns"]
    assert (world.spool("party-0").parent / "count").read_text() == "x\n"
    other = world.submit(world.trial("something else"))
    _output, errors = other.communicate(timeout=20)
    assert other.returncode == 1
    assert "was submitted before with other arguments" in errors
    assert world.run({**trial, "attempt": 3})["verdict"] == "valid"
    stale = world.submit({**trial, "attempt": 2})
    assert "is stale" in stale.communicate(timeout=20)[1]


def test_an_abort_stops_a_running_trial(make_world: Make) -> None:
    world = make_world(2)
    world.start_all()
    waiting = world.submit(world.trial("sleep 600", timeout=700))
    until(lambda: world.state("party-0") == "fired" == world.state("party-1"), what="the start")
    subprocess.run(
        world.command("rendezvous", "abort", "--reason", "no longer wanted"),
        env=world.environment,
        check=True,
        capture_output=True,
    )
    result = world.result(waiting)
    assert result["reasons"][0] == "stopped: no longer wanted"
    assert {row["signal"] for row in result["members"].values()} == {15}


# ---- the port --------------------------------------------------------------------------------------------------------


def client_context(world: World, certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(str(world.directory / "ca.crt"))
    context.load_cert_chain(certificate, key)
    return context


def talk(world: World, context: ssl.SSLContext, *lines: bytes) -> bytes:
    """What the rendezvous answers before it closes the connection."""
    answer = b""
    with (
        socket.create_connection(("127.0.0.1", world.port), 10) as raw,
        context.wrap_socket(raw) as connection,
    ):
        with contextlib.suppress(ConnectionError, ssl.SSLError):  # it may close before it has heard all
            for line in lines:
                connection.sendall(line)
        while True:
            try:
                more = connection.recv(65536)
            except (ConnectionError, ssl.SSLError):
                break
            if not more:
                break
            answer += more
    return answer


def hello(member: str, run: str = RUN, version: int = 1) -> bytes:
    return json.dumps({"type": "hello", "version": version, "run": run, "member": member}).encode() + b"\n"


@pytest.fixture
def served(make_world: Make) -> World:
    world = make_world(2)
    world.start("rendezvous", "party-0")
    until(lambda: world.status()["connected"] == ["party-0"], what="the connection")
    return world


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([b"GET / HTTP/1.1\r\n\r\n"], "not our protocol"),
        ([b"\xff\xfe\n"], "not our protocol"),
        ([b'{"type":"report"}\n'], "not our protocol"),
        ([b"[" * 100000 + b"\n"], "not our protocol"),
        ([b"x" * (5 * 1024 * 1024)], "longer than"),
        ([hello("party-0")], "the certificate is not that of party-0"),
        ([hello("party-1", run="other")], "not of other"),
        ([hello("party-1", version=99)], "protocol 1 is spoken here"),
        ([hello("party-1"), b'{"type":"ask","epoch":{"run":"a","trial":"b","attempt":true},"files":[]}\n'], "attempt"),
        ([hello("party-1"), b'{"type":"ping","sent_ns":1e999}\n'], "sent_ns"),
    ],
)
def test_garbage_closes_its_connection_and_nothing_else(served: World, lines: list[bytes], reason: str) -> None:
    context = client_context(
        served, str(served.directory / "party-1/member.crt"), str(served.directory / "party-1/member.key")
    )
    talk(served, context, *lines)
    until(lambda: reason in served.log("rendezvous"), what=f"a log line with {reason!r}")
    assert served.status()["connected"] == ["party-0"]
    assert "Traceback" not in served.log("rendezvous")


def test_plain_text_on_the_port_is_dropped_with_a_reason(served: World) -> None:
    with socket.create_connection(("127.0.0.1", served.port), 10) as raw:
        raw.sendall(b"hello?\n" * 10)
        assert raw.recv(100)[:1] in (b"", b"\x15")  # a TLS alert at most
    until(lambda: "TLS:" in served.log("rendezvous"), what="a log line")
    assert "Traceback" not in served.log("rendezvous")


def test_a_certificate_of_another_run_is_refused(served: World, make_world: Make) -> None:
    stranger = make_world(2)
    served.configure(
        "party-1",
        certificate=str(stranger.directory / "party-1/member.crt"),
        key=str(stranger.directory / "party-1/member.key"),
    )
    served.start("party-1")
    until(lambda: "TLS:" in served.log("rendezvous"), what="the refusal")
    until(lambda: "link down" in served.log("party-1"), what="the agent's own message")
    assert served.status()["connected"] == ["party-0"]


def test_an_agent_does_not_talk_to_a_rendezvous_of_another_run_or_to_a_member(served: World, make_world: Make) -> None:
    # A member's certificate is signed by the right authority, but it may not serve.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(served.directory / "party-1/member.crt", served.directory / "party-1/member.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        served.configure("party-1", rendezvous_port=listener.getsockname()[1])
        served.start("party-1")
        raw, _address = listener.accept()
        raw.settimeout(10)
        said = b""
        with contextlib.suppress(OSError), context.wrap_socket(raw, server_side=True) as connection:
            said = connection.recv(100)
        assert said == b"", "it said hello to somebody who is not the rendezvous"
    until(lambda: "link down" in served.log("party-1"), what="the agent's message")


# ---- evidence --------------------------------------------------------------------------------------------------------


class FakeStore(http.server.ThreadingHTTPServer):
    """Takes PUTs as S3 does: 400 BadDigest for a wrong checksum, and what else a test wants to go wrong first."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.objects: dict[str, bytes] = {}
        self.faults: list[int] = []
        self.connections = 0
        self.open = threading.Event()
        self.open.set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class FakeHandler(http.server.BaseHTTPRequestHandler):
    server: FakeStore
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        self.server.connections += 1
        super().setup()

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.open.wait(30)
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        status, code = 200, ""
        if self.server.faults:
            status, code = self.server.faults.pop(0), "SlowDown"
        elif self.headers.get("x-amz-checksum-sha256") not in (None, digest):
            status, code = 400, "BadDigest"
        else:
            self.server.objects[self.path.partition("?")[0]] = body
        answer = f"<Error><Code>{code}</Code></Error>".encode() if code else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_arguments: t.Any) -> None:
        """Nothing."""


@pytest.fixture
def store() -> t.Iterator[FakeStore]:
    fake = FakeStore()
    yield fake
    fake.shutdown()
    fake.server_close()


def with_store(world: World, store: FakeStore) -> dict[str, t.Any]:
    world.extra_environment = {"AWS_ACCESS_KEY_ID": "key-of-a-test", "AWS_SECRET_ACCESS_KEY": "secret-of-a-test"}
    return {"bucket": "lab", "prefix": f"dkg/{RUN}", "region": "us-east-1", "endpoint_url": store.url}


def test_evidence_is_uploaded_confirmed_and_then_removed(make_world: Make, store: FakeStore) -> None:
    world = make_world(2)
    evidence = with_store(world, store)
    world.start_all()
    store.faults = [503, 500]
    result = world.run(world.trial("echo out; echo log > a.log", evidence=evidence))
    assert result["verdict"] == "valid"
    base = f"/lab/dkg/{RUN}/trials/r1/1"
    expected = {f"{base}/party-{i}/{name}" for i in range(2) for name in ("stdout", "stderr", "a.log", "meta.json")}
    assert set(store.objects) == expected | {f"{base}/trial.json"}
    stored = json.loads(store.objects[f"{base}/trial.json"])
    assert stored == result
    for name, row in stored["members"].items():
        for file in row["files"]:
            assert hashlib.sha256(store.objects[f"{base}/{name}/{file['path']}"]).hexdigest() == file["sha256"]
    spool = world.spool("party-0")
    until(lambda: [entry.name for entry in spool.iterdir()] == ["record.json"], what="the spool's clearing")
    logs = world.log("rendezvous") + world.log("party-0")
    assert "secret-of-a-test" not in logs
    assert "X-Amz-Signature" not in logs


def test_the_next_trial_does_not_wait_for_an_upload(make_world: Make, store: FakeStore) -> None:
    world = make_world(1)
    evidence = with_store(world, store)
    world.start_all()
    store.open.clear()
    first = world.run(world.trial("true", "r1", evidence=evidence), "--wait", "exited")
    assert first["phase"] == "ended"
    second = world.run(world.trial("true", "r2", evidence=evidence), "--wait", "exited")
    assert second["start"] > first["ended"], "while nothing can be uploaded"
    store.open.set()
    final = world.run(world.trial("true", "r1", evidence=evidence))
    assert (final["phase"], final["verdict"], final["reasons"]) == ("settled", "valid", [])


def test_a_delivery_goes_behind_what_runs_and_keeps_its_connection(make_world: Make, store: FakeStore) -> None:
    world = make_world(1)
    evidence = with_store(world, store)
    world.start_all()
    store.faults = [503] * 4  # it waits between tries, long enough to be looked at
    world.run(world.trial("true", evidence=evidence), "--wait", "exited")
    agent = world.pid("party-0")
    assert os.getpriority(os.PRIO_PROCESS, agent) == 0
    until(lambda: any(steps_back(pid) for pid in children(agent)), what="the upload")
    assert world.run(world.trial("true", evidence=evidence))["verdict"] == "valid"
    assert store.connections == 2, "the agent's for all its files and all its tries, and the rendezvous' for trial.json"


def test_an_agent_killed_while_it_delivers_delivers_later(make_world: Make, store: FakeStore) -> None:
    world = make_world(1)
    evidence = with_store(world, store)
    world.start_all()
    store.faults = [503] * 1000
    trial = world.trial("echo kept", evidence=evidence)
    world.run(trial, "--wait", "exited")
    until(lambda: len(store.faults) < 1000, what="the first try")
    world.kill("party-0")
    store.faults = []
    world.start("party-0")
    assert world.run(trial)["verdict"] == "valid"
    assert store.objects[f"/lab/dkg/{RUN}/trials/r1/1/party-0/stdout"] == b"kept\n"


def test_an_agent_that_stands_by_costs_little(make_world: Make) -> None:
    world = make_world(1, python="/usr/bin/python3" if os.path.exists("/usr/bin/python3") else "python3")
    world.start_all()
    assert world.run(world.trial("true"))["verdict"] == "valid"
    pid = world.pid("party-0")
    before, at = cpu(pid), time.monotonic()
    time.sleep(2)  # what is measured is that nothing happens
    assert (cpu(pid) - before) / (time.monotonic() - at) < 0.005
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    resident = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))
    assert resident < 24 * 1024


def children(pid: int) -> list[int]:
    return [int(word) for word in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def steps_back(pid: int) -> bool:
    """Whether a process lets others go first, in a group of its own for the scheduler."""
    try:
        return os.getpriority(os.PRIO_PROCESS, pid) == 10 and os.getsid(pid) == pid
    except ProcessLookupError:
        return False


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has had."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_sigterm_ends_an_agent_at_once(make_world: Make) -> None:
    world = make_world(1)
    world.start_all()
    until(lambda: world.status()["connected"], what="the connection")
    begin = time.monotonic()
    world.kill("party-0", signal.SIGTERM)
    assert time.monotonic() - begin < 1
    assert "agent stopped" in world.log("party-0")
