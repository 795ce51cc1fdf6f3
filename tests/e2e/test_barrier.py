# SPDX-License-Identifier: GPL-3.0-or-later
"""The start barrier on real hosts, while something goes wrong. Each trial ends by its deadline, with the right verdict and
the right names, and no evidence that there is gets lost."""

from __future__ import annotations

import datetime
import ipaddress
import json
import pathlib
import re
import shlex
import subprocess
import time
import typing as t

import pytest

from ansible_collections.startline.lab.plugins.module_utils._agent import wire
from ansible_collections.startline.lab.plugins.plugin_utils import _experiment, _plan, _tls
from tests.support.commands import EXPERIMENTS, PROJECT, adhoc, playbook
from tests.support.lab import Json, Lab, until

#: Seconds that a deadline may be overrun by on a busy machine.
SLACK = 15.0


@pytest.fixture(scope="module")
def kept(cloud: None, ec2: t.Any) -> t.Iterator[Lab]:
    lab = Lab(EXPERIMENTS / "barrier.yml")
    lab.find(ec2)
    yield lab
    lab.close()


@pytest.fixture
def lab(kept: Lab) -> Lab:
    """The lab with everybody present, whatever the test before this one did."""
    until(lambda: kept.connected(*kept.members), 60, "all agents connected")
    return kept


def stored(lab: Lab, result: Json, member: str, name: str) -> bytes:
    """A member's file as it came to S3."""
    import boto3

    key = (
        f"{result['evidence']['prefix']}/trials/{result['epoch']['trial']}/{result['epoch']['attempt']}/{member}/{name}"
    )
    s3 = boto3.client(
        "s3",
        region_name="us-east-1",
        endpoint_url=result["evidence"]["endpoint_url"],
        aws_access_key_id="startline-local",
        aws_secret_access_key="local-cloud-of-this-machine",  # noqa: S106 the local cloud checks none
    )
    body: bytes = s3.get_object(Bucket=result["evidence"]["bucket"], Key=key)["Body"].read()
    return body


# ---- agents and rendezvous -------------------------------------------------------------------------------------------


def test_an_agent_killed_before_t_comes_back_and_takes_part(lab: Lab) -> None:
    # Held at the gate by a member that is made to come late, so that the kill is surely before T.
    lab.shell("node-3", "systemctl stop startline-agent")
    pending = lab.submit(lab.trial("echo here"))
    until(lambda: lab.member_state(pending, "node-2") == "armed", 20, "node-2 armed")
    lab.shell("node-2", "systemctl kill --kill-whom=main --signal=SIGKILL startline-agent")
    until(lambda: lab.connected("node-2"), 20, "node-2 connected again")
    lab.shell("node-3", "systemctl start startline-agent")
    result = pending.result()
    assert result["verdict"] == "valid", result["reasons"]
    assert result["skew"]["n"] == 4


def test_an_agent_killed_while_it_delivers_delivers_later(lab: Lab) -> None:
    pending = lab.submit(lab.trial("head -c 60000000 /dev/zero > big.log", collect=["*.log"], delivery_deadline=60.0))
    until(lambda: lab.member_state(pending, "node-2") in ("exited", "delivered"), 20, "node-2 exited")
    lab.shell("node-2", "systemctl kill --kill-whom=main --signal=SIGKILL startline-agent")
    result = pending.result()
    assert result["verdict"] == "valid", result["reasons"]
    assert len(stored(lab, result, "node-2", "big.log")) == 60000000


def test_an_agent_killed_under_the_command_is_no_loss(lab: Lab) -> None:
    pending = lab.submit(lab.trial("sleep 3; echo through"))
    lab.reach(pending, "running")
    until(lambda: lab.member_state(pending, "node-1") == "fired", 10, "node-1 fired")
    lab.shell("node-1", "systemctl kill --kill-whom=main --signal=SIGKILL startline-agent")
    result = pending.result()
    assert result["verdict"] == "valid", result["reasons"]
    assert stored(lab, result, "node-1", "stdout") == b"through\n"


def test_the_rendezvous_killed_while_a_trial_is_queued_and_when_it_has_settled_loses_nothing(lab: Lab) -> None:
    first = lab.submit(lab.trial("sleep 3"))
    lab.reach(first, "running")
    second = lab.submit(lab.trial("echo through"))
    until(lambda: lab.phase(second) == "queued", 10, "the second in the queue")
    restart = "systemctl kill --kill-whom=main --signal=SIGKILL startline-rendezvous"
    lab.shell("node-0", restart)
    for pending in (first, second):
        result = pending.result()
        assert result["verdict"] == "valid", result["reasons"]
    lab.shell("node-0", restart)
    until(lambda: lab.connected(*lab.members), 30, "agents connected again")
    again = lab.submit(lab.trial("echo through", trial_id=second.epoch["trial"])).result()
    assert again["start_ns"] == result["start_ns"], "told, not run again"


@pytest.mark.parametrize("moment", ["gathering", "running", "ended"])
def test_the_rendezvous_killed_in_every_state_loses_nothing(lab: Lab, moment: str) -> None:
    if moment == "gathering":
        lab.shell("node-3", "systemctl stop startline-agent")
    # Large evidence takes its time: the trial has ended, and is being delivered.
    command = "head -c 60000000 /dev/zero > big.log" if moment == "ended" else "sleep 3; echo through > big.log"
    pending = lab.submit(lab.trial(command, collect=["*.log"], delivery_deadline=60.0))
    if moment == "gathering":
        until(lambda: lab.member_state(pending, "node-2") == "armed", 20, "node-2 armed")
    elif moment == "running":
        until(lambda: lab.member_state(pending, "node-2") == "fired", 20, "node-2 fired")
    else:
        until(lambda: lab.member_state(pending, "node-2") in ("exited", "delivered"), 20, "node-2 exited")
    lab.shell("node-0", "systemctl kill --kill-whom=main --signal=SIGKILL startline-rendezvous")
    if moment == "gathering":
        until(lambda: lab.connected("node-0", "node-1", "node-2"), 30, "agents connected again")
        lab.shell("node-3", "systemctl start startline-agent")
    result = pending.result()
    assert result["verdict"] == "valid", result["reasons"]
    assert result["skew"]["n"] == 4
    for member in lab.members:
        assert stored(lab, result, member, "big.log")


@pytest.mark.parametrize("run", ["of another run", "of this run, by another authority"])
def test_a_stale_agent_of_an_earlier_run_is_not_let_in(lab: Lab, tmp_path: pathlib.Path, run: str) -> None:
    """node-3 comes with whole and good certificates of a run that it was in before; or with those that somebody made who
    knows the names of this one."""
    other = _tls.Directory(tmp_path, "barrier-20260101T000000Z-0000" if run == "of another run" else lab.run_id)
    now = datetime.datetime.now(datetime.UTC)
    own = other.member("node-3", now, now + datetime.timedelta(hours=1))
    lab.shell("node-3", "systemctl stop startline-agent; cp -a /etc/startline /etc/startline.kept")
    config = json.loads(lab.shell("node-3", "cat /etc/startline/agent.json"))
    try:
        for path, text in ((config["certificate"], own.certificate), (config["key"], own.key)):
            lab.shell("node-3", f"cat > {path}", stdin=text)
        lab.shell("node-3", "systemctl start startline-agent")
        result = lab.run("echo here", deadline=6.0)
        assert result["outcome"] == "aborted"
        assert "node-3 (absent)" in result["reasons"][0]
        assert "node-2" not in result["reasons"][0]
        assert "TLS" in lab.shell("node-0", "journalctl -u startline-rendezvous -o cat --since -60s | grep dropped")
    finally:
        lab.shell(
            "node-3",
            "systemctl stop startline-agent; rm -rf /etc/startline; mv /etc/startline.kept /etc/startline; "
            "systemctl start startline-agent",
        )


IMPOSTOR = r"""
import json, socket, ssl, sys, time
config, stale = json.load(open("/etc/startline/agent.json")), json.loads(sys.argv[1])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); context.check_hostname = False
context.load_verify_locations(config["ca"]); context.load_cert_chain(config["certificate"], config["key"])
here = context.wrap_socket(socket.create_connection((config["rendezvous_address"], config["rendezvous_port"]), 10))
lines = here.makefile("rb")
def say(**message):
    here.sendall(json.dumps(message).encode() + b"\n")
def hear(kind):
    for line in lines:
        message = json.loads(line)
        if message["type"] == kind:
            return message
    raise SystemExit("closed while waiting for " + kind)
say(type="hello", version=int(sys.argv[2]), member=config["member"], run=config["run_id"])
hear("welcome")
epoch = hear("prepare")["epoch"]
names = "failed clock clock_after armed_ns start_ns noticed_ns fired_ns exit files network"
nothing = dict.fromkeys(names.split())
say(type="report", epoch=stale, state="armed", **nothing)
print(hear("refuse")["reason"], flush=True)
now = time.time_ns()
say(type="report", epoch=epoch, state="fired", **{**nothing, "start_ns": now, "noticed_ns": now, "fired_ns": now})
say(type="start", epoch=epoch, start_ns=now, latest_ns=now)
lines.read()  # to the end
print("closed", flush=True)
"""


def test_forged_and_replayed_messages_under_a_good_certificate_start_nobody(lab: Lab) -> None:
    """A host of the run that lies: of a trial that is over, of having started before T, and in the rendezvous' own words."""
    first = lab.run("echo once >> /var/tmp/starts")
    assert first["verdict"] == "valid", first["reasons"]
    lab.shell("node-3", "systemctl stop startline-agent; cat > /tmp/impostor.py", stdin=IMPOSTOR)
    try:
        stale = shlex.quote(json.dumps({**first["epoch"], "attempt": 7}))
        pending = lab.submit(lab.trial("echo once >> /var/tmp/starts", deadline=15.0))
        said = lab.shell("node-3", f"python3 /tmp/impostor.py {stale} {wire.VERSION}")
        result = pending.result()
    finally:
        lab.shell("node-3", "systemctl start startline-agent")
    assert said.splitlines() == ["no such trial here", "closed"]
    assert (result["outcome"], result["skew"]) == ("aborted", None)
    assert "node-3" in result["reasons"][0]
    assert "node-2" not in result["reasons"][0]
    for member in lab.members:
        assert lab.shell(member, "cat /var/tmp/starts; rm /var/tmp/starts") == "once\n"


GARBAGE = r"""
import os, socket, ssl, sys
host, port, silent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (silent + 64, silent + 64))
held = []
for number in range(silent):
    s = socket.socket(); s.connect((host, port)); held.append(s)
for text in (b"", b"\0" * 70000, b"GET / HTTP/1.0\r\n\r\n", os.urandom(4096)):
    s = socket.socket(); s.connect((host, port)); s.sendall(text); s.settimeout(20)
    try:
        s.recv(1)
    except OSError:
        pass
    s.close()
context = ssl.create_default_context(); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
try:
    s = context.wrap_socket(socket.create_connection((host, port)))  # a client without a certificate
    print("LET IN" if s.recv(1) else "refused")  # TLS 1.3 tells a client that it is refused when it reads
except OSError as error:
    print("refused", type(error).__name__)
print("held", len(held), flush=True)
sys.stdin.read()
"""


def test_garbage_and_thousands_that_say_nothing_do_not_disturb_a_trial(lab: Lab) -> None:
    port = json.loads(lab.shell("node-0", "cat /etc/startline/agent.json"))["rendezvous_port"]
    lab.shell("node-1", "cat > /tmp/garbage.py", stdin=GARBAGE)
    command = f"exec python3 /tmp/garbage.py {lab.private_addresses['node-0']} {port} 10000"
    attacker = subprocess.Popen(
        lab.ssh_command("node-1", command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert attacker.stdout
        assert attacker.stdout.readline().startswith("refused")
        assert attacker.stdout.readline() == "held 10000\n"
        result = lab.run("echo here")
        assert result["verdict"] == "valid", result["reasons"]
        # They are not kept: no connection may say nothing for long.
        count = f"ss -Htn state established '( sport = :{port} )' | wc -l"
        until(lambda: int(lab.shell("node-0", count)) <= len(lab.members), 40, "silent connections dropped")
    finally:
        attacker.communicate("")
    assert lab.connected(*lab.members)


def test_a_replayed_message_of_an_earlier_attempt_starts_nobody(lab: Lab) -> None:
    trial = lab.trial("echo once >> /var/tmp/starts")
    first = lab.submit(trial).result()
    assert first["verdict"] == "valid", first["reasons"]
    # The same submission again attaches to what is over; it runs nothing.
    again = lab.submit(trial).result()
    assert again["start_ns"] == first["start_ns"]
    newer = lab.submit({**trial, "attempt": 2}).result()
    assert newer["verdict"] == "valid", newer["reasons"]
    late = lab.submit({**trial, "attempt": 1}).result()
    assert late["start_ns"] == first["start_ns"]
    for member in lab.members:
        assert lab.shell(member, "wc -l < /var/tmp/starts").strip() == "2"
        lab.shell(member, "rm /var/tmp/starts")


# ---- who starts, and when it ends -----------------------------------------------------------------------------------


def formed(lab: Lab, experiment: Json, directory: pathlib.Path) -> Json:
    """What the action `trial` returns of an experiment's only trial, on the lab's hosts."""
    given = {
        "command": "cat hosts.config; echo {{ rank }} of {{ size }}; echo once >> /var/tmp/starts",
        "timeout": 20,
        "barrier": {"deadline": 20, "grace": 1},
    }
    text = json.dumps({**given, **experiment, "barrier": {**given["barrier"], **experiment.get("barrier", {})}})
    plan = _plan.expand(_experiment.load_experiment(text, "barrier.yml"))
    plan["trials"][0]["trial_id"] = lab.new_trial_id()
    kept = directory / "plan.json"
    kept.write_text(json.dumps(plan))
    arguments = {
        # Read by a lookup, because Ansible takes what stands in arguments for templates of its own.
        "plan": f"{{{{ lookup('ansible.builtin.file', '{kept}') | from_json }}}}",
        "trial_id": plan["trials"][0]["trial_id"],
        "run_id": lab.run_id,
        "hosts": {name: {"address": address} for name, address in lab.private_addresses.items()},
        "bucket": "startline-local",
        "region": "us-east-1",
        "endpoint_url": "http://198.18.0.1:4566",
    }
    words = ["--become", "-m", "startline.lab.trial", "-a", json.dumps(arguments)]
    done = adhoc(f"node-0.{lab.run_id}", *words, ANSIBLE_CALLBACK_RESULT_FORMAT="json")
    assert done.returncode == 0, done.output[-4000:]
    found: Json = json.JSONDecoder().raw_decode(done.output[done.output.index("{\n") :])[0]
    return found


@pytest.mark.parametrize(
    ("experiment", "absent", "verdict", "change"),
    [
        ({"groups": {"node": {"count": 3, "spares": 1}}}, "node-1", "valid", "replaced"),
        ({"groups": {"node": {"count": 4}}, "barrier": {"quorum": "75%"}}, "node-2", "degraded", "dropped"),
    ],
    ids=["a spare steps in", "a quorum starts"],
)
def test_others_start_in_place_of_one_that_is_missing(
    lab: Lab, tmp_path: pathlib.Path, experiment: Json, absent: str, verdict: str, change: str
) -> None:
    lab.shell(absent, "systemctl stop startline-agent")
    try:
        result = formed(lab, experiment, tmp_path)
    finally:
        lab.shell(absent, "systemctl start startline-agent")
    starters = [name for name in lab.members if name != absent]
    assert result["verdict"] == verdict, result["reasons"]
    assert sorted(result["roster"]) == starters
    assert [entry["member"] for entry in result[change]] == [absent]
    assert result[change][0]["was"].startswith(("absent", "connected"))
    # Nobody started with files that name who is missing: they were made anew for those who start.
    assert [attempt["attempt"] for attempt in result["formed_from"]] == [1]
    addresses = sorted((lab.private_addresses[name] for name in starters), key=ipaddress.ip_address)
    for name in starters:
        rank = addresses.index(lab.private_addresses[name])
        assert stored(lab, result, name, "stdout").decode().splitlines() == [*addresses, f"{rank} of 3"]
        assert lab.shell(name, "wc -l < /var/tmp/starts; rm /var/tmp/starts").strip() == "1"
    # It comes again, and does not start any more.
    until(lambda: lab.connected(absent), 30, f"{absent} connected")
    lab.shell(absent, "test ! -e /var/tmp/starts")


def test_the_examples_of_the_documentation_run(lab: Lab, tmp_path: pathlib.Path) -> None:
    shown = subprocess.run(
        ["ansible-doc", "--json", "startline.lab.start_barrier"],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
    )
    examples = json.loads(shown.stdout)["startline.lab.start_barrier"]["examples"]
    play = tmp_path / "example.yml"
    (tmp_path / "group_vars").symlink_to(
        PROJECT / "group_vars"
    )  # as beside a project's playbooks: how hosts are reached
    # With the names of the hosts that there are.
    play.write_text(examples.replace("hosts: party-0", f"hosts: node-0.{lab.run_id}").replace("party-", "node-"))
    done = playbook(str(play), "-e", f"run_id={lab.run_id}", "-e", f"startline_project_dir={PROJECT}")
    assert done.returncode == 0, done.output[-4000:]
    assert re.search(r"msg: '?[0-9.]+ us; clocks known to [0-9.]+ us", done.output), done.output[-4000:]


@pytest.mark.parametrize(("policy", "code", "verdict"), [("stop_on_failure", 3, "invalid"), ("stop", 0, "valid")])
def test_an_early_exit_stops_the_others(lab: Lab, policy: str, code: int, verdict: str) -> None:
    command = f"echo here; test $STARTLINE_MEMBER = node-2 && exit {code}; exec sleep 300"
    result = lab.run(command, on_early_exit=policy, timeout=300.0)
    assert result["verdict"] == verdict, result["reasons"]
    assert result["early_exit"] == "node-2"
    assert result["reasons"] == ([f"node-2 exited with code {code}"] if code else [])
    stopped = [name for name, row in result["members"].items() if row["stopped"]]
    assert stopped == ["node-0", "node-1", "node-3"]
    for member in lab.members:
        assert stored(lab, result, member, "stdout") == b"here\n"


#: Takes a port, and leaves the session of the command with what nobody may end politely.
STUBBORN = """
cat > stubborn.py <<'X'
import os, signal, socket, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
taken = socket.create_server(("", 7999))
if not os.fork():
    os.setsid()
    if not os.fork():
        print("listening", flush=True)
time.sleep(300)
X
trap '' TERM
python3 stubborn.py & python3 -c 'import time; time.sleep(300)' & wait; wait
"""


def test_a_timeout_ends_a_tree_of_processes_that_ignores_sigterm(lab: Lab) -> None:
    began = time.monotonic()
    result = lab.run(STUBBORN, timeout=2.0)
    assert time.monotonic() - began < 2 + 5 + 10 + SLACK
    assert result["verdict"] == "invalid"
    assert result["reasons"] == [f"{member} was still running after 2 s and was killed" for member in lab.members]
    for member, row in result["members"].items():
        assert (row["timed_out"], row["remaining"], row["ports"]) == (True, [], [])
        assert stored(lab, result, member, "stdout") == b"listening\n"
        assert not lab.shell(member, "pgrep --full '[s]tubborn.py|[t]ime.sleep'", check=False)
    # The port is free for the next trial.
    take = 'import socket; socket.create_server(("", 7999)); print("taken")'
    after = lab.run(f"python3 -c '{take}'")
    assert after["verdict"] == "valid", after["reasons"]


# ---- networks --------------------------------------------------------------------------------------------------------


def test_a_link_cut_before_t_is_named_by_the_deadline(lab: Lab) -> None:
    began = time.monotonic()
    with lab.cut("node-2"):
        result = lab.run("echo here", deadline=8.0)
    assert time.monotonic() - began < 8.0 + SLACK
    assert result["outcome"] == "aborted"
    assert "node-2" in result["reasons"][0]
    assert "node-1" not in result["reasons"][0]


def test_a_link_cut_while_its_host_is_armed_holds_up_t(lab: Lab) -> None:
    """What it said before the cut is not enough: nobody is told T, and it is named."""
    lab.shell("node-3", "systemctl stop startline-agent")  # holds T up until the cut is noticed
    pending = lab.submit(lab.trial("echo here", deadline=25.0))
    until(lambda: lab.member_state(pending, "node-2") == "armed", 20, "node-2 armed")
    with lab.cut("node-2"):
        until(lambda: not lab.connected("node-2"), 20, "node-2 lost")
        lab.shell("node-3", "systemctl start startline-agent")
        result = pending.result()
    assert (result["outcome"], result["published"]) == ("aborted", None)
    assert "node-2" in result["reasons"][0]
    assert "node-1" not in result["reasons"][0]
    assert "node-3" not in result["reasons"][0]


def test_a_link_cut_during_the_trial_and_healed_later_loses_no_evidence(lab: Lab) -> None:
    pending = lab.submit(lab.trial("sleep 4; echo through", delivery_deadline=90.0))
    until(lambda: lab.member_state(pending, "node-2") == "fired", 20, "node-2 fired")
    with lab.cut("node-2"):
        # Long enough for the commands to end, and for the rendezvous to find that the member does not answer.
        until(lambda: lab.member_state(pending, "node-1") == "delivered", 30, "node-1 delivered")
        until(lambda: not lab.connected("node-2"), 60, "node-2 lost")
    result = pending.result(180)
    assert result["verdict"] == "valid", result["reasons"]
    assert stored(lab, result, "node-2", "stdout") == b"through\n"


def test_rules_of_a_host_whose_agent_stays_dead_remove_themselves(lab: Lab) -> None:
    """A rate, which the machine's own kernel can. Nobody is left to take it away but the timer of systemd."""
    trial = lab.trial("sleep 2", members=["node-0", "node-1"], deadline=5.0, timeout=5.0, delivery_deadline=2.0)
    port = json.loads(lab.shell("node-0", "cat /etc/startline/agent.json"))["rendezvous_port"]
    rules = [{"to": [lab.private_addresses["node-0"]], "rate": "10mbit"}]
    trial["networks"] = {
        "n1": {
            "phases": [{"at": 0, "rules": rules}],
            "exempt": [{"protocol": "tcp", "port": 22}, {"protocol": "tcp", "port": port}],
        }
    }
    trial["members"][1].update(network="n1", addresses=[])
    pending = lab.submit(trial)
    until(lambda: lab.member_state(pending, "node-1") == "fired", 20, "node-1 fired")
    assert "htb 57a1:" in lab.shell("node-1", "tc qdisc show")
    lab.shell("node-1", "systemctl mask --runtime startline-agent; systemctl kill --signal=SIGKILL startline-agent")
    try:
        result = pending.result()
        assert result["verdict"] == "invalid"
        assert all("node-1" in reason for reason in result["reasons"]), result["reasons"]
        until(lambda: "htb" not in lab.shell("node-1", "tc qdisc show"), 90, "the rules gone")
        assert lab.shell("node-1", "ls /run/startline/netem").split() == ["lock"]
    finally:
        lab.shell("node-1", "systemctl unmask --runtime startline-agent; systemctl start startline-agent")


# ---- hosts that are gone ---------------------------------------------------------------------------------------------


@pytest.fixture
def doomed(cloud: None, ec2: t.Any) -> t.Iterator[Lab]:
    """A lab of one's own, for a test that destroys a host."""
    lab = Lab(EXPERIMENTS / "barrier.yml", "-e", "set=groups.node.count=4")
    lab.find(ec2)
    until(lambda: lab.connected(*lab.members), 60, "all agents connected")
    yield lab
    lab.close()


def test_hosts_powered_off_before_and_after_t_are_named(doomed: Lab) -> None:
    lab = doomed
    # Armed: the others wait for it until the deadline, and nobody is told T.
    lab.shell("node-1", "systemctl stop startline-agent")
    began = time.monotonic()
    pending = lab.submit(lab.trial("echo here", deadline=25.0))
    until(lambda: lab.member_state(pending, "node-3") == "armed", 20, "node-3 armed")
    lab.power_off("node-3")
    until(lambda: not lab.connected("node-3"), 20, "node-3 lost")
    lab.shell("node-1", "systemctl start startline-agent")
    result = pending.result(180)
    assert time.monotonic() - began < 25 + SLACK
    assert (result["outcome"], result["published"]) == ("aborted", None)
    assert re.findall(r"node-\d", result["reasons"][0]) == ["node-3"]
    three = ["node-0", "node-1", "node-2"]
    # After T: the others go on, and what they have is kept.
    pending = lab.submit(lab.trial("sleep 6; echo through", members=three, timeout=8.0, delivery_deadline=10.0))
    until(lambda: lab.member_state(pending, "node-2") == "fired", 20, "node-2 fired")
    lab.power_off("node-2")
    began = time.monotonic()
    result = pending.result(180)
    assert time.monotonic() - began < 8 + 5 + 10 + 10 + SLACK
    assert result["verdict"] == "invalid"
    assert [reason for reason in result["reasons"] if "node-2" in reason]
    assert not [reason for reason in result["reasons"] if "node-1" in reason]
    assert stored(lab, result, "node-1", "stdout") == b"through\n"
    # Before T: nobody starts, and it is said who is missing.
    began = time.monotonic()
    result = lab.run("echo here", members=three, deadline=6.0)
    assert time.monotonic() - began < 6.0 + SLACK
    assert result["outcome"] == "aborted"
    assert "node-2" in result["reasons"][0]
    assert "node-1" not in result["reasons"][0]
    # At T: it is armed and told, and dies at the instant, or within a few ms of it. It may have started or not.
    pending = lab.submit(
        lab.trial("sleep 2; echo through", members=["node-0", "node-1"], timeout=8.0, delivery_deadline=10.0)
    )
    print(f"killed {lab.kill_at_start('node-1', pending) * 1e3:.2f} ms after T")
    began = time.monotonic()
    result = pending.result(180)
    assert time.monotonic() - began < 8 + 5 + 10 + 10 + SLACK
    assert (result["outcome"], result["verdict"]) == ("completed", "invalid")
    assert [reason for reason in result["reasons"] if reason.startswith("node-1 did not say how its command ended")]
    assert not [reason for reason in result["reasons"] if "node-0" in reason]
    assert result["members"]["node-1"]["state"] in ("armed", "fired")
    assert stored(lab, result, "node-0", "stdout") == b"through\n"


# ---- clocks ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clocks(cloud: None, ec2: t.Any) -> t.Iterator[Lab]:
    """own-0 and own-1 have a kernel, and so a clock, of their own."""
    lab = Lab(EXPERIMENTS / "own_kernel.yml", "-e", "startline_fleet_deadline=300")
    lab.find(ec2)
    # Their daemon would set right what the tests set wrong.
    for member in ("own-0", "own-1"):
        lab.shell(member, "systemctl stop chrony")
    yield lab
    lab.close()


def step(lab: Lab, member: str, seconds: float) -> None:
    """Set a host's wall clock forward or back, at once."""
    lab.shell(member, f"python3 -c 'import time; time.clock_settime(0, time.time() + {seconds})'")


def test_a_host_whose_clock_is_wrong_starts_with_the_others(clocks: Lab) -> None:
    step(clocks, "own-1", 2.0)
    try:
        result = clocks.run("date +%s.%N", deadline=60.0)
    finally:
        step(clocks, "own-1", -2.0)
    assert result["verdict"] == "valid", result["reasons"]
    here, wrong_by_two = (float(stored(clocks, result, member, "stdout")) for member in ("own-0", "own-1"))
    assert wrong_by_two - here == pytest.approx(2.0, abs=0.5), (
        "they started at the same time, and not by the same clock"
    )
    wrong = result["members"]["own-1"]["clock"]
    assert wrong["offset_s"] - result["members"]["own-0"]["clock"]["offset_s"] == pytest.approx(2.0, abs=0.5)
    assert wrong["bound_s"] < 0.5
    assert abs(result["members"]["own-1"]["late_us"]) < 0.5e6


@pytest.mark.parametrize(("on_clock_error", "verdict"), [("mark", "degraded"), ("refuse", "invalid")])
def test_a_clock_stepped_in_the_trial_is_named_with_its_step(clocks: Lab, on_clock_error: str, verdict: str) -> None:
    pending = clocks.submit(clocks.trial("sleep 6", deadline=60.0, on_clock_error=on_clock_error))
    until(lambda: clocks.member_state(pending, "own-0") == "fired", 60, "own-0 fired")
    step(clocks, "own-0", -2.0)
    result = pending.result(180)
    step(clocks, "own-0", 2.0)
    assert result["verdict"] == verdict
    assert [reason for reason in result["reasons"] if "own-0: clock was stepped by -2.0" in reason], result["reasons"]
    assert not [reason for reason in result["reasons"] if "own-1" in reason]


def test_a_clock_stepped_before_t_does_not_move_the_start(clocks: Lab) -> None:
    clocks.shell("node-0", "systemctl stop startline-agent")  # holds T up
    pending = clocks.submit(clocks.trial("echo here", deadline=90.0))
    until(lambda: clocks.member_state(pending, "own-0") == "armed", 60, "own-0 armed")
    step(clocks, "own-0", 2.0)
    clocks.shell("node-0", "systemctl start startline-agent")
    result = pending.result(180)
    step(clocks, "own-0", -2.0)
    assert (result["outcome"], result["verdict"]) == ("completed", "degraded")
    assert [re.sub(r"\d{3} s", "xxx s", reason) for reason in result["reasons"]] in (
        ["own-0: clock was stepped by +2.xxx s before T"],
        ["own-0: clock was stepped by +1.xxx s before T"],
    )
    assert abs(result["members"]["own-0"]["late_us"]) < 0.5e6
    assert result["members"]["own-0"]["clock"]["stepped_s"] == pytest.approx(2.0, abs=0.5)


# ---- the controller --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["gathering", "running"])
def test_the_controller_killed_in_a_trial_is_attached_again(lab: Lab, moment: str) -> None:
    if moment == "gathering":
        lab.shell("node-3", "systemctl stop startline-agent")
    trial = lab.trial("sleep 4; echo once >> /var/tmp/starts; echo through")
    pending = lab.submit(trial)
    if moment == "gathering":
        until(lambda: lab.member_state(pending, "node-2") == "armed", 20, "node-2 armed")
    else:
        until(lambda: lab.member_state(pending, "node-2") == "fired", 20, "node-2 fired")
    pending.process.kill()
    pending.process.wait()
    if moment == "gathering":
        lab.shell("node-3", "systemctl start startline-agent")
    result = lab.submit(trial).result()
    assert result["verdict"] == "valid", result["reasons"]
    for member in lab.members:
        assert lab.shell(member, "wc -l < /var/tmp/starts").strip() == "1"
        lab.shell(member, "rm /var/tmp/starts")
