# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules on a host: in force as a whole or not at all, and gone when nobody renews them.

What is in force is remembered below /run, which a reboot empties as it empties the kernel: the commands, and a digest
of what ``tc`` shows after them. Rules are right when both are what they should be, so that anybody's change is noticed.

A root qdisc with the handle 57a1: is ours; one with the handle 0: is the kernel's own; any other belongs to somebody
else and is refused, not replaced. This util is PRIVATE to the collection.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import ipaddress
import json
import os
import re
import time
import typing as t

from . import _files, _netem
from ._netem import Device, Exemption, NetemError, Rule

STATE_DIR = "/run/startline/netem"
UNIT = "startline-netem-revert"
#: What a route is, where ip says so in front of it (ip-route(8)); a route without a word is to a neighbour or a router.
_ROUTE_KINDS = "unicast|local|broadcast|multicast|anycast|throw|unreachable|prohibit|blackhole|nat"
#: The parts of the kernel that rules need, and what they do.
_PARTS = {
    "netem": "so there is no delay and no loss",
    "mirred": "so incoming traffic cannot be shaped",
    "ifb": "so incoming traffic cannot be shaped",
    "u32": "so packets cannot be told apart",
    "htb": "so there is no rate, and no links beside each other",
}
#: Name of the device behind which incoming traffic is shaped; the index of the real one follows.
IFB = "sl-ifb"

#: Runs a program with a standard input: exit code, output, errors.
Run = t.Callable[[t.List[str], str], t.Tuple[int, str, str]]
#: (tool, lines of its -batch)
Step = t.Tuple[str, t.List[str]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was, or would be, done. `words` and `commands` by device."""

    changed: bool
    before: t.Dict[str, t.List[str]]
    words: t.Dict[str, t.List[str]]
    commands: t.Dict[str, t.List[str]]


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What one device is to have. Without rules for it, only the packet size that later ones need."""

    steps: t.List[Step]
    words: t.List[str]
    ingress: bool


@dataclasses.dataclass(frozen=True)
class _Route:
    """A line of the host's routing tables. `devices` are those by which packets leave the host: none, or several."""

    to: ipaddress.IPv4Network
    devices: t.FrozenSet[str]


class Host:
    """The rules of the host that this runs on."""

    def __init__(self, run: Run, state_dir: str = STATE_DIR, sys_net: str = "/sys/class/net") -> None:
        self._run = run
        self._dir = state_dir
        self._sys_net = sys_net

    def ensure(
        self,
        rules: t.Sequence[Rule],
        exemptions: t.Sequence[Exemption] = (),
        revert_after: float = 0,
        dry: bool = False,
        later: t.Sequence[Rule] = (),
    ) -> Outcome:
        """Have these rules in force, and no other ones of ours.

        Args:
            rules: all of them; none removes what there is.
            exemptions: what they leave alone.
            revert_after: seconds after which the rules remove themselves, unless this is called again; 0 is never.
            dry: change nothing.
            later: rules that will replace these. A connection keeps the packet size that its device had when it was
                opened, so the size is already what these need.

        Raises:
            NetemError: it cannot be done; the rules of before are in force.
        """
        if dry:
            return self._ensure(rules, exemptions, revert_after, dry, later)
        os.makedirs(self._dir, mode=0o755, exist_ok=True)
        with open(os.path.join(self._dir, "lock"), "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return self._ensure(rules, exemptions, revert_after, dry, later)

    def _ensure(
        self,
        rules: t.Sequence[Rule],
        exemptions: t.Sequence[Exemption],
        revert_after: float,
        dry: bool,
        later: t.Sequence[Rule],
    ) -> Outcome:
        state = self._read_state()
        roots = self._roots()
        wanted = self._wanted(rules, exemptions, later)
        for name in wanted:
            self._refuse_foreign(name, wanted[name], roots)
        changed = [
            name
            for name in sorted(self._ours(roots) | set(state) | set(wanted))
            if name not in wanted
            or [list(step) for step in wanted[name].steps] != state.get(name, {}).get("steps")
            or self._snapshot(name) != state[name]["snapshot"]
        ]
        outcome = Outcome(
            bool(changed),
            {name: values["words"] for name, values in sorted(state.items())},
            {name: values.words for name, values in sorted(wanted.items()) if values.words},
            {name: [" ".join((tool, line)) for tool, lines in v.steps for line in lines] for name, v in wanted.items()},
        )
        if dry:
            return outcome
        # The timer outlives the rules at both ends: started before the first of them, stopped after the last.
        armed = _files.read(os.path.join(self._dir, "timer"))
        if wanted and revert_after:
            self._arm(revert_after, sorted(set(wanted) | set(state)), state)
        if changed:
            try:
                self._change(changed, wanted, state)
            except NetemError:
                if not armed and all(values["snapshot"] for values in state.values()):  # what was in force was to stay
                    self._arm(0, (), {})
                    self._forget("timer", "revert")
                raise
        if not (wanted and revert_after):
            self._arm(0, (), {})
            self._forget(*(() if wanted else ("state.json",)), "timer", "revert")
        return outcome

    # --- what there is ------------------------------------------------------------------------------------------------

    def _read_state(self) -> t.Dict[str, t.Dict[str, t.Any]]:
        text = _files.read(os.path.join(self._dir, "state.json"))
        return dict(json.loads(text)) if text else {}

    def _write_state(self, state: t.Mapping[str, t.Any]) -> None:
        _files.write(os.path.join(self._dir, "state.json"), json.dumps(state, sort_keys=True), 0o644)

    def _roots(self) -> t.Dict[str, str]:
        """The handle of each device's root qdisc. Devices without a qdisc have none."""
        text = self._call(["tc", "qdisc", "show"])
        return {name: handle for handle, name in re.findall(r"^qdisc \S+ (\S+) dev (\S+) root", text, re.MULTILINE)}

    def _ours(self, roots: t.Mapping[str, str]) -> t.Set[str]:
        """The devices that have rules of ours, whatever we remember."""
        names = [name for name in os.listdir(self._sys_net) if not name.startswith(IFB)]
        names = [name for name in names if self._exists(os.path.join(name, "ifindex"))]  # not the file bonding_masters
        return {name for name in names if roots.get(name) == _netem.HANDLE or self._exists(self._ifb(name))}

    def _exists(self, name: str) -> bool:
        return os.path.exists(os.path.join(self._sys_net, name))

    def _refuse_foreign(
        self,
        name: str,
        wanted: _Wanted,
        roots: t.Mapping[str, str],
    ) -> None:
        handle = roots.get(name, "0:")
        if handle not in ("0:", _netem.HANDLE):
            text = "{0} has a root qdisc of somebody else ({1}), which is left alone: 'tc qdisc del dev {0} root' removes it"
            raise NetemError(text.format(name, handle))
        shown = self._call(["tc", "qdisc", "show", "dev", name])
        hooked = re.search(r"^qdisc (?:ingress|clsact) ", shown, re.MULTILINE)
        if wanted.ingress and hooked and not self._exists(self._ifb(name)):
            text = "{0} has an ingress qdisc of somebody else, which is left alone: 'tc qdisc del dev {0} ingress' removes it"
            raise NetemError(text.format(name))

    def _snapshot(self, name: str) -> str:
        """A digest of what tc shows of a device, and of the ifb behind it."""
        shown = []
        for device in (name, self._ifb(name)):
            if self._exists(device):
                for kind in ("qdisc", "class", "filter"):
                    shown.append(self._call(["tc", kind, "show", "dev", device]))
        if self._exists(self._ifb(name)):
            shown.append(self._call(["tc", "filter", "show", "dev", name, "parent", "ffff:"]))
        if self._exists(name):
            shown.append(str(self._gso_max_segs(name)))
        # HTB counts the packets that pass by even without -s.
        text = re.sub(r" (?:refcnt|direct_packets_stat) \d+", "", "\n".join(shown))
        return hashlib.sha256(text.encode()).hexdigest()

    def _ifb(self, name: str) -> str:
        return IFB + (_files.read(os.path.join(self._sys_net, name, "ifindex")).strip() or "0")

    def _device(self, name: str) -> Device:
        mtu = int(_files.read(os.path.join(self._sys_net, name, "mtu")) or 1500)
        try:
            speed = int(_files.read(os.path.join(self._sys_net, name, "speed")) or -1)
        except OSError:  # a device that is down or has no speed refuses to be read
            speed = -1
        return Device(name, mtu, max(speed, 0) * 1000000)

    def _call(self, command: t.List[str], text: str = "") -> str:
        code, out, err = self._run(command, text)
        if code:
            raise NetemError("{}: {}".format(" ".join(command), err.strip() or "exit code {}".format(code)))
        return out

    # --- what there should be -----------------------------------------------------------------------------------------

    def _wanted(
        self, rules: t.Sequence[Rule], exemptions: t.Sequence[Exemption], later: t.Sequence[Rule]
    ) -> t.Dict[str, _Wanted]:
        by_device: t.Dict[str, t.Tuple[t.List[Rule], t.List[Rule]]] = {}
        for index, (rule, devices) in enumerate(zip([*rules, *later], self._devices([*rules, *later]))):
            for name in sorted(set().union(*devices)):
                part = tuple(network for network, names in zip(rule.to, devices) if name in names)
                own = by_device.setdefault(name, ([], []))
                own[index >= len(rules)].append(dataclasses.replace(rule, to=part))
        wanted = {name: self._steps(name, now, exemptions, then) for name, (now, then) in by_device.items()}
        return {name: values for name, values in wanted.items() if values.steps}

    def _devices(self, rules: t.Sequence[Rule]) -> t.List[t.List[t.FrozenSet[str]]]:
        """For each rule, the devices by which each of its networks is reached; none for the host itself."""
        networks = {network for rule in rules for network in rule.to}
        found: t.Dict[ipaddress.IPv4Network, t.Set[str]] = {network: set() for network in networks}
        probes: t.Dict[str, t.List[ipaddress.IPv4Network]] = {}
        routes = self._routes() if any(network.prefixlen < 32 for network in networks) else []
        for network in networks:
            probe: t.Optional[ipaddress.IPv4Address] = network.network_address
            if network.prefixlen < 32:
                # Parts of a network have routes of their own; the rest has the one of an address that is in none of them.
                inside = [route for route in routes if route.to.subnet_of(network)]
                found[network].update(*(route.devices for route in inside))
                probe = _outside(network, [route.to for route in inside])
            if probe is not None:
                probes.setdefault(str(probe), []).append(network)
        reached = self._reached(sorted(probes))
        for address, owners in probes.items():
            for network in owners:
                found[network] |= reached.get(address, set())
        # That nothing leads to the rest of a network is no mistake where something leads to a part of it.
        lost = [
            address
            for address, owners in probes.items()
            if any(not found[n] for n in owners) and address not in reached
        ]
        if lost:
            raise NetemError("this host has no route to {}".format(", ".join(sorted(lost))))
        return [[frozenset(found[network]) for network in rule.to] for rule in rules]

    def _routes(self) -> t.List[_Route]:
        """The host's routes, of all its tables."""
        routes = []
        for line in self._call(["ip", "-4", "-o", "route", "show", "table", "all"]).splitlines():
            kind, to, rest = re.findall(r"^(?:({}) )?(\S+)(.*)$".format(_ROUTE_KINDS), line)[0]
            network = ipaddress.IPv4Network("0.0.0.0/0" if to == "default" else to)
            leaves = kind in ("", "unicast")
            routes.append(_Route(network, frozenset(re.findall(r" dev (\S+)", rest)) if leaves else frozenset()))
        return routes

    def _reached(self, addresses: t.Sequence[str]) -> t.Dict[str, t.Set[str]]:
        """By which device each address is reached; none for one of the host's own. Those without a route are left out."""
        if not addresses:
            return {}
        # -force: those that have no route are named together.
        lines = "".join("route get {}\n".format(address) for address in addresses)
        _code, out, _err = self._run(["ip", "-force", "-batch", "-"], lines)
        found = {}
        for kind, address, rest in re.findall(r"^(?:([a-z]+) )?(\d+\.\d+\.\d+\.\d+)(.*)$", out, re.MULTILINE):
            device = re.search(r" dev (\S+)", rest)
            if device:
                found[address] = set() if kind == "local" else {device.group(1)}
        return found

    def _steps(
        self, name: str, rules: t.Sequence[Rule], exemptions: t.Sequence[Exemption], later: t.Sequence[Rule]
    ) -> _Wanted:
        out = [rule for rule in rules if not rule.ingress]
        back = [rule for rule in rules if rule.ingress]
        device = self._device(name)
        steps: t.List[Step] = []
        segments = _netem.largest_packet(device, [*out, *(rule for rule in later if not rule.ingress)])
        if segments:
            steps.append(("ip", ["link set dev {} gso_max_segs {}".format(name, segments)]))
        steps.append(("tc", _netem.compile_device(device, out, exemptions)))
        incoming = _netem.compile_device(
            dataclasses.replace(device, name=self._ifb(name)), back, exemptions, source=True
        )
        if incoming:
            ifb = self._ifb(name)
            # Of its own accord an ifb holds 32 packets of what no rule touches.
            steps.append(("ip", ["link add {} txqueuelen 1000 type ifb".format(ifb), "link set dev {} up".format(ifb)]))
            hook = "filter add dev {} parent ffff: protocol ip prio 1 u32 match u32 0 0 action mirred egress redirect dev {}"
            lines = [*incoming, "qdisc add dev {} handle ffff: ingress".format(name), hook.format(name, ifb)]
            steps.append(("tc", lines))
        return _Wanted(
            [step for step in steps if step[1]],
            [str(rule) for rule in rules],
            bool(incoming),
        )

    # --- the change ---------------------------------------------------------------------------------------------------

    def _change(
        self, names: t.Sequence[str], wanted: t.Mapping[str, _Wanted], state: t.Dict[str, t.Dict[str, t.Any]]
    ) -> None:
        segments = {name: self._gso_max_segs(name) for name in names if self._exists(name)}
        done: t.List[str] = []
        for name in names:
            if name in wanted and name not in state:
                # What it was before the first rules of ours is known to whoever comes after us, whatever becomes of us.
                state[name] = {"steps": [], "words": [], "snapshot": "", "gso_max_segs": segments[name]}
        self._write_state(state)
        try:
            for name in names:
                done.append(name)
                moves = self._moves(name, wanted, state)
                if moves is None:
                    moves = wanted[name].steps if name in wanted else []
                    sized = any("gso_max_segs" in line for _tool, lines in moves for line in lines)
                    self._undo(name, state, size=not sized)
                self._do(moves)
        except NetemError as exc:
            raise NetemError("{}. {}".format(exc, self._roll_back(done, segments, state))) from exc
        for name in names:
            old = state.pop(name, {})
            if name in wanted:
                state[name] = {
                    "steps": [list(step) for step in wanted[name].steps],
                    "words": wanted[name].words,
                    "snapshot": self._snapshot(name),
                    "gso_max_segs": old["gso_max_segs"],
                }
        self._write_state(state)

    def _moves(
        self, name: str, wanted: t.Mapping[str, _Wanted], state: t.Mapping[str, t.Mapping[str, t.Any]]
    ) -> t.Optional[t.List[Step]]:
        """What turns the rules of a device into the others in place, if that can be and they are as we have left them."""
        if name not in wanted or name not in state or self._snapshot(name) != state[name]["snapshot"]:
            return None
        size = "link set dev {} gso_max_segs ".format(name)
        sizes: t.List[str] = []
        parts: t.List[t.List[Step]] = []
        for steps in (state[name]["steps"], wanted[name].steps):
            own = [line for _tool, lines in steps for line in lines if line.startswith(size)]
            sizes += own or [size + str(state[name]["gso_max_segs"])]
            parts.append([(tool, list(lines)) for tool, lines in steps if lines != own])
        moves: t.List[Step] = [("ip", sizes[1:])] if sizes[0] != sizes[1] else []
        if [tool for tool, _lines in parts[0]] != [tool for tool, _lines in parts[1]]:
            return None
        for (tool, before), (_tool, after) in zip(*parts):
            lines = _netem.transition(before, after)
            if lines is None:
                return None
            if lines:
                moves.append((tool, lines))
        return moves

    def _do(self, steps: t.Sequence[t.Sequence[t.Any]]) -> None:
        for tool, lines in steps:
            code, _out, err = self._run([tool, "-batch", "-"], "\n".join(lines) + "\n")
            if code:
                raise NetemError(_explain(tool, lines, err))

    def _undo(self, name: str, state: t.Mapping[str, t.Mapping[str, t.Any]], size: bool = True) -> None:
        """Remove what is ours from a device, and nothing else; its packet size only where none of ours follows."""
        if not self._exists(name):
            return  # gone with all that was on it
        shown = self._call(["tc", "qdisc", "show", "dev", name])
        if re.search(r"^qdisc \S+ {} .*root".format(_netem.HANDLE), shown, re.MULTILINE):
            self._call(["tc", "qdisc", "del", "dev", name, "root"])
        ifb = self._ifb(name)
        if self._exists(ifb):  # the hook is ours too
            if re.search(r"^qdisc ingress ", shown, re.MULTILINE):
                self._call(["tc", "qdisc", "del", "dev", name, "ingress"])
            self._call(["ip", "link", "del", ifb])
        segments = state.get(name, {}).get("gso_max_segs")
        if size and segments and segments != self._gso_max_segs(name):
            self._call(["ip", "link", "set", "dev", name, "gso_max_segs", str(segments)])

    def _roll_back(
        self,
        names: t.Sequence[str],
        segments: t.Mapping[str, int],
        state: t.Dict[str, t.Dict[str, t.Any]],
    ) -> str:
        """Put back what was in force, and say so."""
        lost: t.List[str] = []
        stuck: t.Dict[str, str] = {}
        for name in names:
            old = {name: {"gso_max_segs": segments.get(name), **state.get(name, {})}}
            try:
                self._undo(name, old)
                try:
                    self._do(old[name].get("steps", []))
                except NetemError as exc:
                    lost.append("{}: {}".format(name, exc))
                    self._undo(name, old)  # a part of the rules is worse than none
                    state.pop(name, None)
            except NetemError as exc:
                # Whoever comes next, the timer too, has to know what to remove, and the size of before.
                stuck[name] = "{}: {}".format(name, exc)
                state[name] = {"steps": [], "words": [], "snapshot": "", "gso_max_segs": old[name]["gso_max_segs"]}
        for name in [name for name, values in state.items() if not values["snapshot"] and name not in stuck]:
            del state[name]  # had no rules before
        self._write_state(state)
        if stuck:
            text = "Nor could all that is in force be removed; state: absent tries again, and so does a timer (revert_after). {}"
            return text.format("; ".join([*lost, *stuck.values()]))
        if lost:
            return "Nor could the rules of before be put back, so there are none. {}".format("; ".join(lost))
        return "The rules of before are in force" if state else "No rule is in force"

    def _gso_max_segs(self, name: str) -> int:
        found = re.search(r"gso_max_segs (\d+)", self._call(["ip", "-d", "link", "show", "dev", name]))
        return int(found.group(1)) if found else 1

    # --- the dead man's switch ----------------------------------------------------------------------------------------

    def _arm(self, seconds: float, names: t.Sequence[str], state: t.Mapping[str, t.Mapping[str, t.Any]]) -> None:
        """Start the timer before anything is changed; only then stop the one of before."""
        script = os.path.join(self._dir, "revert")
        before = _files.read(os.path.join(self._dir, "timer"))
        token = ""
        if seconds:
            token = "{}-{}".format(UNIT, time.monotonic_ns())
            command = [
                "systemd-run",
                "--quiet",
                "--collect",
                "--unit",
                token,
                "--on-active",
                "{}ms".format(round(seconds * 1000)),
            ]
            command += ["--timer-property", "AccuracySec=1s", "/bin/sh", script, token]
            code, _out, err = self._run(command, "")
            if code:
                text = "rules that remove themselves need systemd (revert_after: 0 does without): {}"
                raise NetemError(text.format(err.strip()))
            _files.write(script, self._script(token, names, state), 0o755)
            _files.write(os.path.join(self._dir, "timer"), token, 0o644)
        if before:
            # Fails when it has just fired: its script then waits for our lock and sees that it is not the one any more.
            self._run(["systemctl", "stop", before + ".timer"], "")
        if before and not token:
            _files.write(os.path.join(self._dir, "timer"), "", 0o644)

    def _script(self, token: str, names: t.Sequence[str], state: t.Mapping[str, t.Mapping[str, t.Any]]) -> str:
        """What the timer runs: plain shell, so that it works whatever has become of Python."""
        lines = [
            "#!/bin/sh",
            "# Removes rules that nobody has renewed. Written by startline.lab.netem.",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "cd {} || exit 1".format(self._dir),
            "exec 9> lock && flock 9",
            '[ "$(cat timer)" = "$1" ] || exit 0  # renewed in the meantime',
        ]
        for name in names:
            if not self._exists(name):
                continue
            ifb = self._ifb(name)
            segments = state.get(name, {}).get("gso_max_segs") or self._gso_max_segs(name)
            lines += [
                "tc qdisc show dev {0} | grep -q '^qdisc htb {1} root' && tc qdisc del dev {0} root".format(
                    name, _netem.HANDLE
                ),
                "[ -e /sys/class/net/{1} ] && {{ tc qdisc del dev {0} ingress; ip link del {1}; }}".format(name, ifb),
                "ip link set dev {} gso_max_segs {}".format(name, segments),
            ]
        return "\n".join(
            [*lines, "rm -f state.json timer revert", "logger -t startline-netem 'rules removed' || true", ""]
        )

    def _forget(self, *names: str) -> None:
        for name in names:
            path = os.path.join(self._dir, name)
            if os.path.exists(path):
                os.unlink(path)


def _explain(tool: str, lines: t.Sequence[str], error: str) -> str:
    """What a failed batch says, with the command that failed and, where there is one, the remedy."""
    text = " ".join(line for line in error.split("\n") if line and not line.startswith("Command failed"))
    number = re.search(r"Command failed \S*?:(\d+)", error)
    command = lines[int(number.group(1)) - 1] if number and int(number.group(1)) <= len(lines) else lines[0]
    message = "{} {}: {}".format(tool, command, text.rstrip(".") or "failed")
    if "cannot mix duplicating" in text:
        return (
            "this kernel ({}) lets a netem that duplicates packets stand beside no other on a device: give duplicate to all "
            "links of the host, with one shape, or to none. {}"
        ).format(os.uname().release, message)
    missing = next((name for name in _PARTS if re.search(r"(?: |^){}(?: |$)".format(name), command)), "")
    if missing and re.search(
        "kind is unknown|RTNETLINK answers: No such file|Unknown device type|Failed to load", text
    ):
        message = (
            "the kernel of this host ({}) has no {}, {}: install its modules (Debian's cloud "
            "image: linux-image-amd64 in place of linux-image-cloud-amd64; Ubuntu: linux-modules-extra-$(uname -r); Amazon "
            "Linux and Fedora: kernel-modules-extra), or take hosts of another kind. {}"
        ).format(os.uname().release, missing, _PARTS[missing], message)
    return message


def _outside(
    network: ipaddress.IPv4Network, parts: t.Sequence[ipaddress.IPv4Network]
) -> t.Optional[ipaddress.IPv4Address]:
    """An address of a network that is in none of its parts, and not the network's own where it can be another."""
    ends = [(int(part.network_address), int(part.broadcast_address)) for part in parts]
    address = int(network.network_address) + (1 if network.prefixlen < 31 else 0)
    for first, last in sorted(ends):
        if first <= address <= last:
            address = last + 1
    return ipaddress.IPv4Address(address) if address <= int(network.broadcast_address) else None
