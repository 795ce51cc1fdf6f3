# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules on a real kernel that has netem: what is in force, what is left, and what packets then meet."""

from __future__ import annotations

import json
import re
import typing as t

import pytest

from ansible_collections.startline.lab.tests.support import uml

pytestmark = pytest.mark.skipif(bool(uml.missing()), reason=uml.missing())

#: Runs on the host of its own. Timers are kept here instead of by systemd, and fire when the program says so.
PROGRAM = r"""
import json, os, re, statistics, threading
from ansible_collections.startline.lab.plugins.module_utils._netem import DEFAULT_EXEMPT, NetemError, parse_exemptions, parse_rules
from ansible_collections.startline.lab.plugins.module_utils._netem_host import Host

timers, broken, results = {}, [], {}

def run(command, text):
    if command[0] == "systemd-run":
        timers[command[command.index("--unit") + 1]] = command[command.index("/bin/sh"):]
        return 0, "", ""
    if command[0] == "systemctl":
        timers.pop(command[2][:-len(".timer")], None)
        return 0, "", ""
    if broken and "-batch" in command and command[0] == broken[0]:
        lines = text.split("\n")
        at = next((i for i, line in enumerate(lines) if broken[1] in line), None)
        if at is not None:
            lines[at] = broken[2]
            text = "\n".join(lines)
    p = subprocess.run(command, input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return p.returncode, p.stdout, p.stderr

host = Host(run)

def ensure(*rules, after=0, dry=False):
    outcome = host.ensure(parse_rules(rules), parse_exemptions(DEFAULT_EXEMPT), after, dry=dry)
    return outcome.changed

def tc():
    return re.sub("direct_packets_stat [0-9]+", "", sh("tc qdisc show dev va; tc class show dev va; tc filter show dev va"))

def ping(count=60, interval=5):
    words = subprocess.run(f"fping -C {count} -p {interval} -t 900 -q 10.9.0.2", shell=True, stderr=subprocess.PIPE, text=True)
    times = [float(word) for word in words.stderr.split(":")[1].split() if word != "-"]
    return {"received": len(times), "median": statistics.median(times) if times else None}

def refused(*rules, **kwargs):
    try:
        ensure(*rules, **kwargs)
    except NetemError as exc:
        return str(exc)

clean = tc()
SLOW = {"to": ["10.9.0.2"], "delay": "20ms"}
LOSSY = {"to": ["10.9.0.2"], "delay": "5ms", "loss": "1%"}

results["bare"] = ping()
results["check"] = [ensure(SLOW, dry=True), tc() == clean]
results["apply"] = [ensure(SLOW), ensure(SLOW), ping()]
in_force = tc()
sh("tc qdisc change dev va parent 57a1:1 handle 1: netem delay 1ms")
results["drift"] = [ensure(SLOW, dry=True), ensure(SLOW), tc() == in_force]
sh("tc qdisc del dev va root")
results["flushed"] = [ensure(SLOW), tc() == in_force]

NO_PARENT = "qdisc add dev va parent 57a1:99 bfifo"
broken[:] = ["tc", "qdisc add dev va parent 57a1:1", NO_PARENT]
message = refused(LOSSY)
# The rules of before pass the broken tc too, so that putting them back fails: nothing is left.
results["rollback impossible"] = [message, tc() == clean]
broken[:] = []
ensure(SLOW)
broken[:] = ["tc", "loss 1%", NO_PARENT]
results["rollback"] = [refused(LOSSY), tc() == in_force, ping()]
broken[2] = "qdisc add dev va parent 57a1:1 nonsense"
results["no netem"] = refused(LOSSY)
broken[:] = []
results["after rollback"] = [ensure(SLOW), ensure(LOSSY)]

segments = lambda: int(re.search(r"gso_max_segs (\d+)", sh("ip -d link show dev va"))[1])
results["segments"] = [segments(), ensure(SLOW), segments(), ensure(), segments()]
results["absent"] = [tc() == clean, ensure(), os.listdir("/run/startline/netem")]

ensure(SLOW, after=60)
first = dict(timers)
results["timers"] = [len(timers), ensure(SLOW, after=60), len(timers), list(timers) != list(first)]
for command in first.values():
    subprocess.run(command, check=True)
results["old timer"] = tc() == in_force
for command in timers.values():
    subprocess.run(command, check=True)
results["revert"] = [tc() == clean, segments(), sorted(os.listdir("/run/startline/netem"))]
ensure(LOSSY, after=60)
(command,) = [command for token, command in timers.items() if token not in first][-1:]
subprocess.run(command, check=True)
results["revert lossy"] = [tc() == clean, segments()]

sh("tc qdisc add dev va root netem delay 1ms")
foreign = tc()
results["foreign"] = [refused(SLOW), ensure(), tc() == foreign]
sh("tc qdisc del dev va root")

IN = {"to": ["10.9.0.2"], "direction": "ingress", "delay": "20ms"}
results["ingress"] = [ensure(IN), ensure(IN), ping(), tc().count("netem"), ensure({**SLOW, "delay": "10ms"}, IN), ping(), ensure()]
results["ingress absent"] = [tc() == clean, "sl-ifb" in sh("ip link")]
sh("tc qdisc add dev va ingress")
results["foreign ingress"] = [refused(IN), ensure(SLOW), ensure(), "ingress" in tc()]
sh("tc qdisc del dev va ingress")

ensure(SLOW)
os.unlink("/run/startline/netem/state.json")
results["state lost"] = [ensure(SLOW), tc() == in_force, os.unlink("/run/startline/netem/state.json"), ensure(), tc() == clean]

sh("ip link add vc type veth peer name vd; ip link set vd up; ip addr add 10.8.0.1/24 dev vc; ip link set vc up")
results["two devices"] = [
    ensure({"to": ["10.9.0.2", "10.8.0.2", "10.9.0.1"], "delay": "1ms"}),
    sorted(set(re.findall(r"netem .*dev (\S+)", sh("tc qdisc show")))),
    ensure(SLOW),
    sorted(set(re.findall(r"netem .*dev (\S+)", sh("tc qdisc show")))),
    ensure(),
]
shaped = lambda: sorted(set(re.findall(r"^qdisc htb 57a1: dev (\S+)", sh("tc qdisc show"), re.M)))
NEAR, WIDE = {"to": ["10.9.0.0/24"], "delay": "20ms"}, {"to": ["10.8.0.0/15"], "delay": "20ms"}
results["network"] = [ensure(NEAR), shaped(), ping()]
results["network of two devices"] = [ensure(WIDE), shaped(), ensure(WIDE), ping()]
results["own network alone"] = [ensure({"to": ["10.9.0.0/31"], "delay": "1ms"}), shaped()]
NOTHING = {"to": ["10.9.0.2"], "delay": "0ms"}
results["all but one"] = [ensure(WIDE, NOTHING), ping(), ensure(NOTHING), shaped()]
sh("ip route add 10.9.0.128/25 dev vc; ip route add unreachable 10.9.0.64/26")
sh("ip route add 10.9.1.0/24 nexthop dev va nexthop dev vc")
results["routes"] = [
    (network, ensure({"to": [network], "delay": "1ms"}), shaped(), ensure())
    for network in ("10.9.0.0/24", "10.9.0.128/25", "10.9.0.192/26", "10.9.1.0/24", "0.0.0.0/0")
]
results["no route inside"] = [refused({"to": [network], "delay": "1ms"}) for network in ("10.9.0.64/27", "192.0.2.0/24")]
sh("ip route del 10.9.0.128/25; ip route del unreachable 10.9.0.64/26; ip route del 10.9.1.0/24")

LATER = parse_rules([LOSSY, {"to": ["10.8.0.2"], "delay": "1ms", "loss": "1%"}])
size_of = lambda name: int(re.search(r"gso_max_segs (\d+)", sh("ip -d link show dev " + name))[1])
both = lambda: [size_of("va"), size_of("vc"), shaped()]
outcome = host.ensure(parse_rules([SLOW]), (), later=LATER)
results["later"] = [sorted(outcome.words), both(), host.ensure(parse_rules([SLOW]), (), later=LATER).changed]
results["later"] += [host.ensure(LATER, ()).changed, both(), ensure(), both()]

class Killed(BaseException):
    pass
def killed(command, text):
    if command[:2] == ["tc", "-batch"]:
        raise Killed
    return run(command, text)
try:
    Host(killed).ensure(parse_rules([LOSSY]))
except Killed:
    results["killed"] = [segments(), ensure(), segments()]
ensure(SLOW)
broken[:] = ["tc", "loss 1%", NO_PARENT]
before = set(timers)
files = lambda: sorted(os.listdir("/run/startline/netem"))
results["failed with a timer"] = [refused(LOSSY, after=1000000) is not None, set(timers) == before, files()]
ensure(SLOW, after=60)
results["failed with another timer"] = [refused(LOSSY, after=60) is not None, len(set(timers) - before)]
kept = set(timers) - before
results["failed without a timer"] = [refused(LOSSY) is not None, kept <= set(timers), "timer" in files()]
broken[:] = []
results["no timer any more"] = [ensure(SLOW), kept & set(timers) == set(), files()]

hung = []
def hangs(command, text):
    if command[0] == "tc" and ("-batch" in command or hung):
        hung.append(run(command, text) if not hung else None)  # it has done what it was told, and is killed for its silence
        return 1, "", "killed after 60 s"
    return run(command, text)
try:
    Host(hangs).ensure(parse_rules([LOSSY]), parse_exemptions(DEFAULT_EXEMPT), 60)
except NetemError as exc:
    results["hung"] = [str(exc), "timer" in files(), segments(), ensure(), segments(), tc() == clean, files()]

ensure(IN)
sh("tc filter del dev va parent ffff:")
results["hook"] = [ensure(IN, dry=True), ensure(IN), ping()]
sh("tc qdisc del dev va ingress")
ensure(IN, after=60)
subprocess.run(timers[list(timers)[-1]], check=True)
results["hook reverted"] = [tc() == clean, "sl-ifb" in sh("ip link")]
ensure(SLOW)
sh("ip link set dev va gso_max_segs 100")
results["size"] = [ensure(SLOW), segments(), ensure()]

os.mkdir("/run/net")
for name in os.listdir("/sys/class/net"):
    os.symlink("/sys/class/net/" + name, "/run/net/" + name)
open("/run/net/bonding_masters", "w").close()
bonded = Host(run, sys_net="/run/net")
results["bonding"] = [bonded.ensure(parse_rules([SLOW])).changed, bonded.ensure([]).changed, tc() == clean]

results["duplicate"] = refused({"to": ["10.9.0.2"], "duplicate": "1%"}, {"to": ["10.9.0.3"], "delay": "1ms"})
ensure()
results["fast"] = [refused({**SLOW, "rate": "20gbit"}), tc() == clean]
results["no route"] = refused({"to": ["10.9.0.2", "192.0.2.1", "192.0.2.2"], "delay": "1ms"})

ensure({**SLOW, "delay": "200ms"})
LISTEN = "import socket, time; s = [socket.create_server(('10.9.0.2', p)) for p in (22, 80)]; print(flush=True); time.sleep(60)"
server = subprocess.Popen(["ip", "netns", "exec", "b", sys.executable, "-c", LISTEN], stdout=subprocess.PIPE)
server.stdout.readline()
def connect(port):
    import socket, time
    start = time.monotonic()
    socket.create_connection(("10.9.0.2", port), 5).close()
    return time.monotonic() - start
results["exempt"] = [connect(22), connect(80)]
server.kill()
ensure()

def class_bytes():
    return int(re.search(r"Sent (\d+) bytes", sh("tc -s class show dev va classid 57a1:1"))[1])

def shapes_of(shape):
    return tuple({"to": [to], **own} for to, own in zip(("10.9.0.2", "10.9.0.3"), shape))

PLAIN, FAST = {"delay": "20ms"}, {"rate": "8mbit"}
SHAPES = [
    [{"delay": "20ms"}, FAST],
    [{"delay": "5ms", "loss": "1%"}, {"rate": "4mbit"}],
    [{"delay": "5ms", "jitter": "1ms"}, {"rate": "4mbit", "delay": "1ms"}],
    [{"delay": "5ms", "jitter": "1ms", "distribution": "pareto"}, FAST],
    [{"loss": "2%", "loss_burst": "3"}, {"rate": "2mbit", "corrupt": "1%"}],
]
fresh = []
for shape in SHAPES:
    ensure(); ensure(*shapes_of(shape))
    fresh.append((tc(), segments()))
ping(3)
results["in place"] = []
# Each of them after each: 0 1 0 2 0 3 0 4 1 2 1 3 ...
for at in [i for one in range(len(SHAPES)) for other in range(one + 1, len(SHAPES)) for i in (one, other)]:
    before = class_bytes()
    ensure(*shapes_of(SHAPES[at]))
    results["in place"].append([(tc(), segments()) == fresh[at], class_bytes() >= before > 0])
ensure({"to": ["10.9.0.2"], "delay": "500ms"})
under_way = subprocess.Popen("fping -C 1 -t 3000 -q 10.9.0.2", shell=True, stderr=subprocess.PIPE, text=True)
for _attempt in range(100):
    if re.search("netem.*\n.*\n backlog [1-9]", sh("tc -s qdisc show dev va")):
        break
results["under way"] = [ensure({"to": ["10.9.0.2"], "delay": "1ms"}), float(under_way.communicate()[1].split(":")[1])]
ensure()

# More than 10 Mbit/s to each of the addresses.
FLOOD = '''
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    while True:
        for address in sys.argv[1:]:
            for _packet in range(5):
                sender.sendto(bytes(1400), (address, 9))
        time.sleep(0.005)
'''
# When each packet arrived by the kernel's clock, in nanoseconds, for each address, over four seconds. A reader that is late changes
# nothing.
ARRIVALS = '''
import json, select, socket, struct, sys
SO_RCVBUFFORCE, SO_TIMESTAMPNS = 33, 35
sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _address in sys.argv[1:]]
for own, address in zip(sockets, sys.argv[1:]):
    own.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    own.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
    own.bind((address, 9))
print(flush=True)
arrivals = [[] for _own in sockets]
first = last = None
while first is None or last < first + 4_000_000_000:
    for own in select.select(sockets, [], [], 10)[0] or sys.exit("nothing arrives"):
        seconds, nanoseconds = struct.unpack("qq", own.recvmsg(2048, 64)[1][0][2])
        last = seconds * 1_000_000_000 + nanoseconds
        first = first or last
        arrivals[sockets.index(own)].append(last)
print(json.dumps(arrivals))
'''
sh("ip -n b addr add 10.9.0.3/24 dev vb")

def flood(*addresses):
    # Mbit/s that arrive, with the 42 bytes of headers, and the share of each address, in three seconds of more than the link takes.
    # The first second fills the queues.
    reader = subprocess.Popen(["ip", "netns", "exec", "b", sys.executable, "-c", ARRIVALS, *addresses], stdout=subprocess.PIPE)
    reader.stdout.readline()
    sender = subprocess.Popen([sys.executable, "-c", FLOOD, *addresses])
    arrivals = json.loads(reader.communicate()[0])
    sender.kill()
    sender.wait()
    for _attempt in range(1000):
        if not re.search("backlog [1-9]", sh("tc -s qdisc show dev va")):
            break
    start = min(moment for own in arrivals for moment in own) + 1_000_000_000
    counted = [[moment for moment in own if moment > start] for own in arrivals]
    packets = sum(map(len, counted))
    took = max(own[-1] for own in counted) - start
    return packets * 1442 * 8 / took * 1000, [len(own) / packets for own in counted]

def uplink(rate):
    group = {"rate": rate, "rate_group": "uplink"}
    return [{"to": ["10.9.0.2"], "delay": "5ms", **group}, {"to": ["10.9.0.3"], "delay": "40ms", **group}]

def fastest(address):
    # The least of some round trips in milliseconds.
    shown = subprocess.run(["fping", "-C", "20", "-p", "5", "-t", "900", "-q", address], stderr=subprocess.PIPE, text=True).stderr
    return min(float(word) for word in shown.split(":")[1].split() if word != "-")

results["rate group"] = [ensure(*uplink("8mbit")), ensure(*uplink("8mbit")), fastest("10.9.0.2"), fastest("10.9.0.3")]
results["rate group sends"] = [flood("10.9.0.2", "10.9.0.3"), flood("10.9.0.2"), flood("10.9.0.3")]
ensure(*uplink("4mbit"))
results["rate group changed"] = flood("10.9.0.2", "10.9.0.3")
ensure()
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results() -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", json.loads(uml.run(PROGRAM, timeout=600).splitlines()[-1]))


def test_check_mode_changes_nothing(results: dict[str, t.Any]) -> None:
    assert results["check"] == [True, True]


def test_packets_are_late_and_a_second_run_changes_nothing(results: dict[str, t.Any]) -> None:
    first, second, ping = results["apply"]
    assert (first, second) == (True, False)
    assert results["bare"]["median"] < 2
    assert 20 <= ping["median"] < 22


def test_what_anybody_changed_is_noticed_and_put_right(results: dict[str, t.Any]) -> None:
    assert results["drift"] == [True, True, True]
    assert results["flushed"] == [True, True]


def test_tc_that_fails_in_the_middle_leaves_what_there_was(results: dict[str, t.Any]) -> None:
    message, unchanged, ping = results["rollback"]
    assert message.startswith("tc qdisc add dev va parent 57a1:1 handle 1: netem ")
    assert message.endswith("The rules of before are in force")
    assert unchanged
    assert 20 <= ping["median"] < 22
    assert results["after rollback"] == [False, True]


def test_a_kernel_without_netem_has_a_remedy(results: dict[str, t.Any]) -> None:
    assert re.match(r"the kernel of this host \(6\.\S+\) has no netem", results["no netem"])
    assert "linux-modules-extra" in results["no netem"]
    assert results["no netem"].endswith("The rules of before are in force")


def test_rules_that_cannot_be_put_back_leave_nothing_and_say_so(results: dict[str, t.Any]) -> None:
    message, clean = results["rollback impossible"]
    assert "Nor could the rules of before be put back" in message
    assert clean


def test_segmentation_offload_is_off_while_packets_are_lost(results: dict[str, t.Any]) -> None:
    lossy, _changed, slow, _removed, clean = results["segments"]
    assert (lossy, slow, clean) == (1, 65535, 65535)


def test_nothing_is_left(results: dict[str, t.Any]) -> None:
    assert results["absent"] == [True, False, ["lock"]]


def test_rules_that_nobody_renews_remove_themselves(results: dict[str, t.Any]) -> None:
    assert results["timers"] == [1, False, 1, True]
    assert results["old timer"] is True
    assert results["revert"] == [True, 65535, ["lock"]]
    assert results["revert lossy"] == [True, 65535]


def test_rules_of_somebody_else_stay(results: dict[str, t.Any]) -> None:
    message, changed, unchanged = results["foreign"]
    assert "va has a root qdisc of somebody else (8" in message
    assert "tc qdisc del dev va root" in message
    assert (changed, unchanged) == (False, True)
    message, *rest = results["foreign ingress"]
    assert "va has an ingress qdisc of somebody else" in message
    assert rest == [True, True, True]


def test_what_comes_in_can_be_shaped(results: dict[str, t.Any]) -> None:
    first, second, ping, on_va, both, ping_both, removed = results["ingress"]
    assert (first, second, on_va, both, removed) == (True, False, 0, True, True)
    assert 20 <= ping["median"] < 22
    assert 30 <= ping_both["median"] < 32
    assert results["ingress absent"] == [True, False]


def test_rules_are_recognised_without_any_memory(results: dict[str, t.Any]) -> None:
    assert results["state lost"] == [True, True, None, True, True]


def test_every_link_of_a_host_is_shaped(results: dict[str, t.Any]) -> None:
    assert results["two devices"] == [True, ["va", "vc"], True, ["va"], True]


def test_a_network_is_shaped_by_whatever_device_its_parts_are_reached(results: dict[str, t.Any]) -> None:
    """The first address of 10.9.0.0/24 is the host's own, and 10.8.0.0/15 holds the networks of both devices."""
    changed, devices, ping = results["network"]
    assert (changed, devices) == (True, ["va"])
    assert 20 <= ping["median"] < 22
    changed, devices, again, ping = results["network of two devices"]
    assert (changed, devices, again) == (True, ["va", "vc"], False)
    assert 20 <= ping["median"] < 22
    assert results["own network alone"] == [True, ["va"]]
    assert [(network, devices) for network, _changed, devices, _removed in results["routes"]] == [
        ("10.9.0.0/24", ["va", "vc"]),
        ("10.9.0.128/25", ["vc"]),
        ("10.9.0.192/26", ["vc"]),
        ("10.9.1.0/24", ["va", "vc"]),
        ("0.0.0.0/0", ["va", "vc"]),
    ]
    assert results["no route inside"] == ["this host has no route to 10.9.0.65", "this host has no route to 192.0.2.1"]


def test_a_rule_that_does_nothing_takes_its_addresses_out_of_a_wider_one(results: dict[str, t.Any]) -> None:
    first, ping, second, devices = results["all but one"]
    assert (first, second, devices) == (True, True, [])
    assert ping["median"] < 5


def test_packets_are_small_before_the_rules_that_need_it(results: dict[str, t.Any]) -> None:
    """A connection keeps the size of packet that its device had when it was opened."""
    words, first, again, changed, then, removed, after = results["later"]
    assert (words, first) == (["va"], [1, 1, ["va"]])
    assert (again, changed, removed) == (False, True, True)
    assert then == [1, 1, ["va", "vc"]]
    assert after == [65535, 65535, []]


def test_whoever_comes_after_a_killed_change_knows_what_was_before(results: dict[str, t.Any]) -> None:
    assert results["killed"] == [1, True, 65535]


def test_rules_that_were_to_stay_stay_when_others_with_an_end_fail(results: dict[str, t.Any]) -> None:
    assert results["failed with a timer"] == [True, True, ["lock", "state.json"]]
    assert results["failed with another timer"] == [True, 1]


def test_rules_with_an_end_keep_it_when_others_without_one_fail(results: dict[str, t.Any]) -> None:
    assert results["failed without a timer"] == [True, True, True]
    assert results["no timer any more"] == [False, True, ["lock", "state.json"]]


def test_what_may_be_left_after_a_tc_that_hangs_is_known_to_whoever_comes_next(results: dict[str, t.Any]) -> None:
    message, timer, lossy, *rest = results["hung"]
    assert (
        "Nor could all that is in force be removed; state: absent tries again, and so does a timer (revert_after). va: "
        in message
    )
    assert (timer, lossy) == (True, 1)
    assert rest == [True, 65535, True, ["lock"]]


def test_the_hook_of_what_comes_in_and_the_packet_size_are_looked_at_too(results: dict[str, t.Any]) -> None:
    would, did, ping = results["hook"]
    assert (would, did) == (True, True)
    assert 20 <= ping["median"] < 22
    assert results["hook reverted"] == [True, False]
    assert results["size"] == [True, 65535, True]


def test_what_stands_beside_the_devices_is_none(results: dict[str, t.Any]) -> None:
    assert results["bonding"] == [True, True, True]


def test_an_address_without_a_route_is_named(results: dict[str, t.Any]) -> None:
    assert results["no route"] == "this host has no route to 192.0.2.1, 192.0.2.2"


def test_rules_of_a_rate_group_share_their_rate_and_nothing_else(results: dict[str, t.Any]) -> None:
    first, second, near, far = results["rate group"]
    assert (first, second) == (True, False)
    assert 5 <= near < 7
    assert 40 <= far < 44
    (together, parts), *alone = results["rate group sends"]
    assert 7.84 <= together <= 8.16
    assert all(0.45 <= part <= 0.55 for part in parts), parts
    # What one does not want the other has.
    assert all(7.84 <= rate <= 8.16 for rate, _parts in alone), alone
    changed, parts = results["rate group changed"]
    assert 3.92 <= changed <= 4.08
    assert all(0.45 <= part <= 0.55 for part in parts), parts


def test_a_rate_that_the_device_does_not_have_is_refused(results: dict[str, t.Any]) -> None:
    """A veth pair says 10 Gbit/s."""
    assert results["fast"] == ["the rate 20gbit is more than the 10gbit of va", True]


def test_the_way_in_stays_fast(results: dict[str, t.Any]) -> None:
    ssh, web = results["exempt"]
    assert ssh < 0.1
    assert 0.2 <= web < 0.4


def test_a_change_of_shape_is_made_in_place_and_comes_to_the_same(results: dict[str, t.Any]) -> None:
    assert results["in place"] == [[True, True]] * 20


def test_a_packet_that_is_under_way_arrives_when_the_delay_changes(results: dict[str, t.Any]) -> None:
    changed, took = results["under way"]
    assert changed
    assert took >= 500
