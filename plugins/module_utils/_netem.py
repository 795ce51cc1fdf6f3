# SPDX-License-Identifier: GPL-3.0-or-later
"""What a link does to packets, and the tc commands that make a device do it. Pure: nothing here touches a host.

A `Shape` is what one link does: delay, jitter, loss, rate and so on. A `Rule` says to which addresses it applies. For
each device `compile_device` makes one tc batch::

    htb 57a1: (root)                  unclassified and exempt packets pass directly
     |- class 57a1:1   rate           one for each rule with a rate, and for each address whose losses come in bursts;
     |   |                            rules without either share equal classes
     |   `- netem 1:                  delay, jitter, loss ...; bfifo where there is nothing but a rate
     `- class 57a1:2   rate           what rules with one `rate_group` send together; each has a class of its own below,
         |- class 57a1:3              which may have the whole rate while the others do not want theirs
         |   `- netem 3:
         `- class 57a1:4 ...
    u32, prio 1   exempt traffic      to 57a1:0, which is HTB's own direct queue
    u32, prio 2   single addresses    a table of 256 buckets, hashed by the octet that spreads them best
    u32, prio 3   networks            longest prefix first

A packet is classified by one look into a bucket, however many peers there are; u32 without a table compares them one
by one and takes 2,047 filters at most.

Sources: tc-htb(8), tc-netem(8), tc-u32(8), and the kernel's net/sched/sch_netem.c where the manuals are silent.
This util is PRIVATE to the collection.
"""

from __future__ import annotations

import collections
import dataclasses
import ipaddress
import math
import re
import typing as t

#: The root qdisc's handle; nobody else's root has it, so it also tells whose the rules are.
HANDLE = "57a1:"
#: Class and leaf handles count from 1 and stay below the root's.
MAX_CLASSES = 0x57A0
#: HTB needs a rate; a class without one gets what no host sends.
UNLIMITED = 100000000000
#: Taken for a device that does not know its speed, to size queues.
ASSUMED_SPEED = 10000000000
#: An Ethernet header: qdiscs count frames, not IP packets.
HEADER = 14
#: Packets may be small: the queue of a class without a rate has room for a full device of these.
SMALL_FRAME = 256
#: As fast as a class may catch up after a pause. Less, and timers cannot keep the rate; more, and short messages
#: would pass unshaped.
BURST_S = 0.001
#: Least time that a queue holds at full rate; the rule of thumb (one round trip, Villamizar and Song 1994) is too
#: little for short paths.
LEAST_QUEUE_S = 0.05
LEAST_QUEUE_FRAMES = 16
#: The quantities for which a kernel needs netem. Jitter and reordering are of a delay.
NEEDS_NETEM = ("delay", "loss", "corrupt", "duplicate")
#: netem keeps packets in order when it has a rate (sch_netem.c, netem_enqueue: a packet is never sent before the one
#: in front of it). This one is high enough to mean nothing else.
IN_ORDER = "rate 32gbit"

#: How tc's tables of distributions really spread around their mean: standard deviation and minimum, in units of the
#: jitter that netem is given. Computed from iproute2's *.dist; uniform has no table: it is +-jitter.
DISTRIBUTIONS: t.Dict[str, t.Tuple[float, float]] = {
    "normal": (1.0, -3.0),  # the table ends at -4; one packet in 740 is below -3
    "uniform": (1 / math.sqrt(3), -1.0),
    "pareto": (0.8197, -0.667),
    "paretonormal": (0.8339, -1.502),
}

#: Traffic that is never shaped: the way in, names, time, and the instance metadata.
DEFAULT_EXEMPT: t.Tuple[t.Dict[str, t.Any], ...] = (
    {"protocol": "tcp", "port": 22},
    {"protocol": "tcp", "port": 53},
    {"protocol": "udp", "port": 53},
    {"protocol": "udp", "port": 123},
    {"address": "169.254.169.254"},
)


class NetemError(ValueError):
    """Rules that cannot be. The text names each problem."""


# --- quantities -------------------------------------------------------------------------------------------------------

_TIMES = {"us": 1000, "ms": 1000000, "s": 1000000000}
_RATES = {"bit": 1, "kbit": 1000, "mbit": 1000000, "gbit": 1000000000}
_NUMBER = r"\s*(\d+(?:\.\d+)?)\s*"


def parse_time(value: t.Any) -> int:
    """Nanoseconds of ``40ms``, ``250us`` or ``1.5s``."""
    match = re.match("^" + _NUMBER + r"(us|ms|s)\s*$", str(value))
    if not match:
        raise NetemError(_unit(value, "a time", "40ms, 250us or 1.5s", r"-?[\d.]+"))
    time = round(float(match.group(1)) * _TIMES[match.group(2)])
    if time > 60 * 10**9:
        raise NetemError("{} is more than a minute: is the unit right?".format(value))
    return time


def parse_rate(value: t.Any) -> int:
    """Bits per second of ``200mbit``. Decimal, as networks count: a kbit is 1,000 bits."""
    match = re.match("^" + _NUMBER + r"([kmg]?bit)(?:/s)?\s*$", str(value).lower())
    if not match:
        if re.match("^" + _NUMBER + r"[kmg]?bps\s*$", str(value).lower()):
            # To tc, bps is bytes; to people, bits.
            raise NetemError("{}: bps is bytes to tc and bits to people: write mbit".format(value))
        raise NetemError(_unit(value, "a rate", "200mbit, 64kbit or 1gbit", r"-?[\d.]+"))
    rate = round(float(match.group(1)) * _RATES[match.group(2)])
    if not 8000 <= rate <= 400 * 10**9:
        raise NetemError("{} is not between 8kbit and 400gbit: is the unit right?".format(value))
    return rate


def parse_percent(value: t.Any) -> float:
    """Per cent of ``0.1%``."""
    match = re.match("^" + _NUMBER + r"%\s*$", str(value))
    if not match:
        raise NetemError(_unit(value, "a share of the packets", "0.1%", r"-?[\d.]+"))
    percent = float(match.group(1))
    if percent > 100:
        raise NetemError("{} is more than all packets".format(value))
    return percent


def parse_burst(value: t.Any) -> float:
    """A mean number of packets."""
    if isinstance(value, bool) or not re.match("^" + _NUMBER + "$", str(value)) or not 1 < float(value) <= 10000:
        raise NetemError("{} is not a number of packets above 1".format(value))
    return float(value)


def parse_distribution(value: t.Any) -> str:
    """The name of a distribution."""
    if value not in DISTRIBUTIONS:
        raise NetemError("{} is not one of {}".format(value, ", ".join(sorted(DISTRIBUTIONS))))
    return str(value)


def _unit(value: t.Any, what: str, example: str, bare: str) -> str:
    if str(value).strip().startswith("-"):
        return "{} is negative".format(value)
    if re.match("^\\s*" + bare + "\\s*$", str(value)):
        return "{} has no unit: write {}".format(value, example)
    return "{} is not {}: write {}".format(value, what, example)


def format_time(time: int) -> str:
    """``40ms``: the largest unit that leaves no zeros in front."""
    for unit, size in (("s", 10**9), ("ms", 10**6)):
        if time >= size:
            return "{:.12g}{}".format(time / size, unit)
    return "{:.12g}us".format(time / 1000)


def format_rate(rate: int) -> str:
    """``200mbit``: the largest unit that keeps the number exact."""
    for unit, size in (("gbit", 10**9), ("mbit", 10**6), ("kbit", 10**3)):
        if rate >= size and rate * 1000 % size == 0:
            return "{:.12g}{}".format(rate / size, unit)
    return "{}bit".format(rate)


def format_percent(percent: float) -> str:
    """``0.1%``: never with an exponent, which nobody can read back."""
    return "{}%".format("{:.10f}".format(percent).rstrip("0").rstrip("."))


# --- what a link does -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Shape:
    """What one link does to the packets of one direction. Times in nanoseconds, shares in per cent, rate in bit/s.

    `jitter` is the standard deviation of the delay, whatever the distribution. `loss_burst` is the mean number of
    packets that are lost in a row (a Gilbert model; 0: each packet is lost on its own). `queue` is how long a packet
    may wait for the rate, None for one round trip of twice the delay.
    """

    delay: int = 0
    jitter: int = 0
    distribution: str = "normal"
    loss: float = 0.0
    loss_burst: float = 0.0
    rate: int = 0
    queue: t.Optional[int] = None
    corrupt: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0

    @property
    def neutral(self) -> bool:
        """Whether it does nothing."""
        return not (self.rate or self.needs_netem)

    @property
    def needs_netem(self) -> bool:
        """Whether only netem can do it; a rate is HTB's."""
        return any(getattr(self, key) for key in NEEDS_NETEM)

    def as_dict(self) -> t.Dict[str, str]:
        """What differs from doing nothing, as a person writes it and `parse_shape` reads it."""
        result = {}
        for key, (_parse, show) in QUANTITIES.items():
            value = getattr(self, key)
            if value != getattr(_NEUTRAL, key):
                result[key] = show(value)
        if self.jitter:
            result["distribution"] = self.distribution
        return result

    def __str__(self) -> str:
        parts = []
        if self.delay:
            jitter = " +- {} ({})".format(format_time(self.jitter), self.distribution) if self.jitter else ""
            parts.append("delay {}{}".format(format_time(self.delay), jitter))
        if self.loss:
            burst = " in bursts of {:g}".format(self.loss_burst) if self.loss_burst else ""
            parts.append("loss {}{}".format(format_percent(self.loss), burst))
        for key in ("corrupt", "duplicate", "reorder"):
            if getattr(self, key):
                parts.append("{} {}".format(key, format_percent(getattr(self, key))))
        if self.rate:
            queue = "" if self.queue is None else " (queue {})".format(format_time(self.queue))
            parts.append("rate {}{}".format(format_rate(self.rate), queue))
        return ", ".join(parts) or "nothing"


#: The keys of a shape in the order in which they are shown: how each is read and written.
QUANTITIES: t.Dict[str, t.Tuple[t.Callable[[t.Any], t.Any], t.Callable[[t.Any], str]]] = {
    "delay": (parse_time, format_time),
    "jitter": (parse_time, format_time),
    "distribution": (parse_distribution, str),
    "loss": (parse_percent, format_percent),
    "loss_burst": (parse_burst, "{:g}".format),
    "rate": (parse_rate, format_rate),
    "queue": (parse_time, format_time),
    "corrupt": (parse_percent, format_percent),
    "duplicate": (parse_percent, format_percent),
    "reorder": (parse_percent, format_percent),
}

_NEUTRAL = Shape()


def parse_shape(values: t.Mapping[str, t.Any]) -> t.Tuple[Shape, t.List[t.Tuple[str, str]]]:
    """The shape of texts with units, and what is wrong with them: ``(key, message)``. Unknown keys are the caller's."""
    problems = []
    parsed = {}
    for key, (parse, _show) in QUANTITIES.items():
        if values.get(key) is None:
            continue
        try:
            parsed[key] = parse(values[key])
        except NetemError as exc:
            problems.append((key, str(exc)))
    shape = Shape(**parsed)
    if not problems:
        problems += check_shape(shape)
    return shape, problems


def check_shape(shape: Shape) -> t.List[t.Tuple[str, str]]:
    """What does not go together, as ``(key, message)``."""
    problems = []
    if shape.jitter:
        spread, lowest = DISTRIBUTIONS[shape.distribution]
        room = shape.delay / -lowest * spread
        if not shape.delay:
            problems.append(("jitter", "jitter needs a delay that it varies"))
        elif shape.jitter > room * (1 + 1e-9):
            text = (
                "no packet can arrive before it is sent: a delay of {} has room for a jitter of {} ({}), not {}; "
                "more would raise the mean"
            )
            limit = format_time(int(room))
            message = text.format(format_time(shape.delay), limit, shape.distribution, format_time(shape.jitter))
            problems.append(("jitter", message))
    if shape.loss_burst and not shape.loss:
        problems.append(("loss_burst", "loss_burst needs a loss"))
    if shape.loss_burst and shape.loss > 100 * shape.loss_burst / (shape.loss_burst + 1):
        text = "bursts of {:g} packets cannot lose {} of them"
        problems.append(("loss_burst", text.format(shape.loss_burst, format_percent(shape.loss))))
    if shape.reorder and not shape.delay:
        problems.append(("reorder", "reorder needs a delay that packets can overtake"))
    if shape.queue is not None and not shape.rate:
        problems.append(("queue", "queue needs a rate that packets wait for"))
    return problems


@dataclasses.dataclass(frozen=True)
class Rule:
    """A shape for what goes to some addresses; with `ingress`, for what comes from them.

    All that goes to the addresses of a rule shares its rate, with what goes to those of the other rules of its
    `rate_group`, if it has one: ways that differ in delay or loss behind one link.
    """

    to: t.Tuple[ipaddress.IPv4Network, ...]
    shape: Shape
    ingress: bool = False
    rate_group: str = ""

    def __str__(self) -> str:
        shared = " shared as {}".format(self.rate_group) if self.rate_group else ""
        return "{} {}: {}{}".format("from" if self.ingress else "to", show_networks(self.to), self.shape, shared)


@dataclasses.dataclass(frozen=True)
class Exemption:
    """Traffic that no rule touches: an address, a port of a protocol (at either end), or both."""

    address: t.Optional[ipaddress.IPv4Network] = None
    protocol: str = ""
    port: int = 0


_PROTOCOLS = {"tcp": 6, "udp": 17}


def parse_rules(values: t.Sequence[t.Mapping[str, t.Any]]) -> t.List[Rule]:
    """The rules of the module's argument.

    Raises:
        NetemError: with every problem.
    """
    rules = []
    problems = []
    seen: t.Dict[t.Tuple[bool, ipaddress.IPv4Network], int] = {}
    groups: t.Dict[t.Tuple[bool, str], t.Tuple[int, int]] = {}
    for index, value in enumerate(values):
        networks = []
        ingress = value.get("direction") == "ingress"
        for address in value.get("to") or ():
            network = _network(address)
            if network is None:
                problems.append("rules[{}].to: {} is not an IPv4 address or network".format(index, address))
            elif (ingress, network) in seen:
                where = seen[ingress, network]
                problems.append("rules[{}].to: {} is in rules[{}] already".format(index, address, where))
            else:
                seen[ingress, network] = index
                networks.append(network)
        if not value.get("to"):
            problems.append("rules[{}].to: names no address".format(index))
        shape, found = parse_shape(value)
        problems += ["rules[{}].{}: {}".format(index, key, message) for key, message in found]
        group = value.get("rate_group") or ""
        if group and not found:
            where, rate = groups.setdefault((ingress, group), (index, shape.rate))
            if not shape.rate:
                problems.append("rules[{}].rate_group: {} needs a rate that is shared".format(index, group))
            elif rate and rate != shape.rate:
                text = "rules[{}].rate: {} shares its rate with rules[{}], which has {}: give both the same"
                problems.append(text.format(index, format_rate(shape.rate), where, format_rate(rate)))
        rules.append(Rule(tuple(sorted(networks)), shape, ingress, group))
    if problems:
        raise NetemError("; ".join(problems))
    return [rule for rule in rules if not rule.shape.neutral or _carves_out(rule, rules)]


def _carves_out(rule: Rule, rules: t.Sequence[Rule]) -> bool:
    """Whether some of a rule's networks are parts of what other rules shape; one that does nothing then says: not these."""
    wider = [n for other in rules if other.ingress == rule.ingress and not other.shape.neutral for n in other.to]
    wider = [network for network in wider if network.prefixlen < 32]
    return any(network.subnet_of(other) for network in rule.to for other in wider)


def parse_exemptions(values: t.Sequence[t.Mapping[str, t.Any]]) -> t.List[Exemption]:
    """The exemptions of the module's argument.

    Raises:
        NetemError: with every problem.
    """
    exemptions = []
    problems = []
    for index, value in enumerate(values):
        address = _network(value["address"]) if value.get("address") else None
        protocol, port = value.get("protocol") or "", value.get("port") or 0
        if value.get("address") and address is None:
            problems.append("exempt[{}].address: {} is not an IPv4 address or network".format(index, value["address"]))
        if protocol and protocol not in _PROTOCOLS:
            problems.append("exempt[{}].protocol: {} is not tcp or udp".format(index, protocol))
        if not 0 <= port <= 65535 or bool(protocol) != bool(port):
            problems.append("exempt[{}]: a port goes with its protocol".format(index))
        if not value.get("address") and not port:
            problems.append("exempt[{}]: names neither an address nor a port".format(index))
        exemptions.append(Exemption(address, protocol, port))
    if problems:
        raise NetemError("; ".join(problems))
    return exemptions


def _network(text: t.Any) -> t.Optional[ipaddress.IPv4Network]:
    try:
        return ipaddress.IPv4Network(str(text))
    except ValueError:
        return None


def show_networks(networks: t.Iterable[ipaddress.IPv4Network]) -> str:
    """Addresses in few words but exactly: ``10.77.0.4-10.77.0.67, 10.78.0.0/16``."""
    runs: t.List[t.List[int]] = []
    others = []
    for network in sorted(networks):
        if network.prefixlen < 32:
            others.append(str(network))
            continue
        number = int(network.network_address)
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = []
    for first, last in runs:
        start, end = ipaddress.IPv4Address(first), ipaddress.IPv4Address(last)
        texts.append(str(start) if first == last else "{}-{}".format(start, end))
    return ", ".join(texts + others)


# --- tc ---------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Device:
    """A network device, as far as rules depend on it. `speed` in bit/s, 0 where it does not know."""

    name: str
    mtu: int = 1500
    speed: int = 0

    @property
    def frame(self) -> int:
        """The largest packet as a qdisc counts it, in bytes."""
        return self.mtu + HEADER


def compile_device(
    device: Device, rules: t.Sequence[Rule], exemptions: t.Sequence[Exemption] = (), source: bool = False
) -> t.List[str]:
    """The lines of ``tc -batch`` that shape what leaves a device. No rules: no lines.

    Args:
        device: the device; has no rules of ours when the batch is run.
        rules: for this device. An address that several networks hold follows the longest prefix.
        exemptions: what no rule touches. Those that no rule could touch anyhow cost nothing.
        source: classify by the source of packets, as on the ifb device behind an ingress hook.

    Raises:
        NetemError: more than a device can have; a rate that is more than the device's own.
    """
    if all(rule.shape.neutral for rule in rules):
        return []
    dev = device.name
    classes: t.List[_Class] = []
    shared: t.Dict[Shape, int] = {}
    targets: t.Dict[ipaddress.IPv4Network, int] = {}
    sharers = collections.Counter(rule.rate_group for rule in rules if rule.rate_group)
    parents: t.Dict[str, int] = {}
    for rule in rules:
        if device.speed and rule.shape.rate > device.speed:
            text = "the rate {} is more than the {} of {}"
            raise NetemError(text.format(format_rate(rule.shape.rate), format_rate(device.speed), dev))
        if sharers[rule.rate_group] > 1 and rule.rate_group not in parents:
            classes.append(_Class(Shape(rate=rule.shape.rate), 0, 0))
            parents[rule.rate_group] = len(classes)
        number = 0  # passes directly
        for network in rule.to:
            if not rule.shape.neutral:
                if not rule.shape.rate:
                    # In one queue a burst would hit several peers, of which each would lose a single packet.
                    number = 0 if rule.shape.loss_burst else shared.get(rule.shape, 0)
                if not number:
                    parent = parents.get(rule.rate_group, 0)
                    classes.append(_Class(rule.shape, parent, sharers[rule.rate_group] if parent else 1))
                    number = len(classes)
                    shared[rule.shape] = number
            targets[network] = number
    if len(classes) > MAX_CLASSES:
        text = "{:,} different links on {}: {:,} is the limit; let peers share a rate"
        raise NetemError(text.format(len(classes), dev, MAX_CLASSES))
    lines = ["qdisc add dev {} root handle {} htb default 0".format(dev, HANDLE)]
    for number, values in enumerate(classes, 1):
        lines += _class(device, number, values)
    lines += _exempt(dev, targets, exemptions, source)
    lines += _classify(dev, targets, source)
    return lines


def transition(before: t.Sequence[str], after: t.Sequence[str]) -> t.Optional[t.List[str]]:
    """The lines of ``tc -batch`` that turn a device that `before` has shaped into one that `after` shapes, in place.

    Packets that are under way stay so, but in a netem whose options are others: netem keeps the options that a change does
    not name (sch_netem.c, netem_change), so it is made anew, and so is a leaf of another kind. None if the packets are
    classified in another way: then everything has to be made anew.
    """
    if len(before) != len(after):
        return None
    lines = []
    for old, new in zip(before, after):
        if old == new:
            continue
        place = re.match(r"(class|qdisc) add (dev \S+ parent \S+ (?:classid|handle) \S+) ", new)
        if not place or not old.startswith(place.group(0)):
            return None
        if place.group(1) == "class" or _options(old) == _options(new):
            lines.append(new.replace(" add ", " change ", 1))
        else:
            lines += ["qdisc del {}".format(place.group(2)), new]
    return lines


def _options(line: str) -> str:
    """What a line says but for its numbers."""
    return re.sub(r"\b\d[\w.%]*", "#", line)


def largest_packet(device: Device, rules: t.Sequence[Rule]) -> int:
    """How many segments a packet of TCP may have until the network card cuts it up; 0 for as many as ever.

    With segmentation offload a qdisc sees up to 64 KiB as one packet. It would be lost as one, and fill a slow link's
    queue alone. Without offload a host's CPU may be the slower link, so a rate allows for a packet of a millisecond.
    """
    shapes = [rule.shape for rule in rules]
    if any(shape.loss or shape.corrupt or shape.duplicate or shape.reorder for shape in shapes):
        return 1
    slowest = min((shape.rate for shape in shapes if shape.rate), default=0)
    segments = max(1, int(slowest / 8 * BURST_S / device.frame))
    return segments if slowest and segments * device.frame < 65536 else 0


class _Class(t.NamedTuple):
    """A class of HTB: below the root, or below the class `parent`, whose rate it has with others, `sharers` in all.

    Such a parent has no `sharers` itself, and no packets of its own.
    """

    shape: Shape
    parent: int
    sharers: int


def _class(device: Device, number: int, values: _Class) -> t.List[str]:
    most = values.shape.rate or UNLIMITED
    # A part of the rate is each one's own, whatever the others send, and all parts are no more than the whole.
    rate = max(8, most // max(1, values.sharers))
    burst, cburst = (max(2 * device.frame, int(bits / 8 * BURST_S)) for bits in (rate, most))
    quantum = min(max(device.frame, int(rate / 8 * BURST_S)), 60000)
    where = "dev {} parent {}{}".format(device.name, HANDLE, "{:x}".format(values.parent) if values.parent else "")
    numbers = "rate {}bit ceil {}bit burst {} cburst {} quantum {}".format(rate, most, burst, cburst, quantum)
    lines = ["class add {} classid {}{:x} htb {}".format(where, HANDLE, number, numbers)]
    if values.sharers:
        leaf = "dev {0} parent {1}{2:x} handle {2:x}:".format(device.name, HANDLE, number)
        lines.append("qdisc add {} {}".format(leaf, _leaf(device, values.shape)))
    return lines


def _leaf(device: Device, shape: Shape) -> str:
    queue = max(2 * shape.delay / 1e9, LEAST_QUEUE_S) if shape.queue is None else shape.queue / 1e9
    if not shape.needs_netem:
        frames = max(LEAST_QUEUE_FRAMES, math.ceil(shape.rate * queue / 8 / device.frame))
        return "bfifo limit {}".format(frames * device.frame)
    # netem's queue holds what is under way as well as what waits for the rate; a packet that finds it full is lost
    # without a trace. Its default of 1,000 packets is too little for 120 Mbit/s at 100 ms.
    under_way = shape.delay / 1e9 + 4 * shape.jitter / 1e9
    if shape.rate:
        limit = math.ceil(shape.rate * (under_way + queue) / 8 / device.frame)
    else:
        limit = math.ceil((device.speed or ASSUMED_SPEED) * under_way / 8 / SMALL_FRAME)
    words = ["netem limit {}".format(max(limit, 1000 if not shape.rate else LEAST_QUEUE_FRAMES))]
    if shape.delay:
        words.append("delay {}".format(_microseconds(shape.delay)))
    if shape.jitter:
        words.append(_microseconds(shape.jitter / DISTRIBUTIONS[shape.distribution][0]))
        if shape.distribution != "uniform":
            words.append("distribution {}".format(shape.distribution))
    if shape.loss and shape.loss_burst:
        # The Gilbert model by what one can see: bursts of 1/r packets, and a share of p / (p + r) lost.
        # netem's own correlation changes the share that is lost.
        leave = 100 / shape.loss_burst
        enter = leave * shape.loss / (100 - shape.loss)
        words.append("loss gemodel {} {}".format(format_percent(enter), format_percent(leave)))
    elif shape.loss:
        words.append("loss {}".format(format_percent(shape.loss)))
    for key in ("corrupt", "duplicate", "reorder"):
        if getattr(shape, key):
            words.append("{} {}".format(key, format_percent(getattr(shape, key))))
    if shape.jitter and not shape.reorder:
        words.append(IN_ORDER)
    return " ".join(words)


def _microseconds(time: float) -> str:
    return "{:.12g}us".format(round(time / 1000, 3))


def _exempt(
    dev: str, targets: t.Collection[ipaddress.IPv4Network], exemptions: t.Sequence[Exemption], source: bool
) -> t.List[str]:
    add = "filter add dev {} parent {} protocol ip prio 1 u32".format(dev, HANDLE)
    lines = []
    for exemption in exemptions:
        words = ""
        if exemption.address:
            if not any(exemption.address.overlaps(network) for network in targets):
                continue
            words = " match ip {} {}".format("src" if source else "dst", exemption.address)
        ports = [""]
        if exemption.port:
            # u32 looks 20 bytes into the packet. The later fragments of one have no ports there.
            words += " match ip protocol {} 0xff match u16 0 0x1fff at 6".format(_PROTOCOLS[exemption.protocol])
            ports = [" match ip {} {} 0xffff".format(end, exemption.port) for end in ("dport", "sport")]
        lines += ["{}{}{} flowid {}0".format(add, words, port, HANDLE) for port in ports]
    return lines


def _classify(dev: str, targets: t.Dict[ipaddress.IPv4Network, int], source: bool) -> t.List[str]:
    field, offset = ("src", 12) if source else ("dst", 16)
    filters = "filter add dev {} parent {} protocol ip".format(dev, HANDLE)
    single = {int(network.network_address): number for network, number in targets.items() if network.prefixlen == 32}
    lines = []
    if single:
        shift = _best_octet(single)
        lines.append("{} prio 2 handle 2: u32 divisor 256".format(filters))
        for address in sorted(single):
            text = "{} prio 2 u32 ht 2:{:x}: match ip {} {}/32 flowid {}{:x}"
            bucket = address >> shift & 0xFF
            lines.append(text.format(filters, bucket, field, ipaddress.IPv4Address(address), HANDLE, single[address]))
        text = "{} prio 2 u32 match u32 0 0 at 0 hashkey mask 0x{:08x} at {} link 2:"
        lines.append(text.format(filters, 0xFF << shift, offset))
    networks = sorted(
        (network for network in targets if network.prefixlen < 32), key=lambda n: (-n.prefixlen, n.network_address)
    )
    if len(networks) > 2000:
        raise NetemError("{:,} networks on {}: 2,000 is the limit".format(len(networks), dev))
    for network in networks:
        text = "{} prio 3 u32 match ip {} {} flowid {}{:x}"
        lines.append(text.format(filters, field, network, HANDLE, targets[network]))
    return lines


def _best_octet(addresses: t.Iterable[int]) -> int:
    """The shift of the octet whose fullest bucket is the smallest; the last octet where several are as good."""
    addresses = list(addresses)

    def fullest(shift: int) -> int:
        uses = [0] * 256
        for address in addresses:
            uses[address >> shift & 0xFF] += 1
        return max(uses)

    return min((0, 8, 16, 24), key=fullest)
