# SPDX-License-Identifier: GPL-3.0-or-later
"""How well rules do what they say, over a grid of settings: the table of docs/network.md.

    sudo python benchmarks/netem_accuracy.py [--pings 1000] [--seconds 8]

Two hosts in user-mode Linux, whose kernel has netem (Debian: user-mode-linux, fping, iperf3). Rates also on this
machine's own kernel, between two network namespaces, which reaches higher rates. Each setting is judged as an
experiment would judge it, but with the tolerances that we promise: round trip within max(0.2 ms, 1 %) of what was
asked, rate within 2 % on the wire, loss inside its 99 % interval.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import typing as t

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "collections")]

from ansible_collections.startline.lab.plugins.module_utils import _netem  # noqa: E402
from ansible_collections.startline.lab.plugins.plugin_utils import _network_check as check  # noqa: E402
from tests.support import uml  # noqa: E402

PROMISED = check.Tolerance(rtt=0.01, rtt_ms=0.2, jitter=0.05, jitter_ms=0.1, loss_percent=0, rate=0.02)
LINKS: list[dict[str, t.Any]] = [
    {"delay": "1ms"}, {"delay": "10ms"}, {"delay": "40ms"}, {"delay": "100ms"},
    {"delay": "40ms", "jitter": "1ms"}, {"delay": "40ms", "jitter": "5ms"},
    {"delay": "40ms", "jitter": "5ms", "distribution": "uniform"},
    {"delay": "40ms", "jitter": "5ms", "distribution": "pareto"},
    {"delay": "40ms", "jitter": "5ms", "distribution": "paretonormal"},
    {"loss": "1%"}, {"loss": "10%"}, {"delay": "10ms", "loss": "1%"},
    {"loss": "5%", "loss_burst": 4}, {"loss": "20%", "loss_burst": 8},
]  # fmt: skip
SLOW: list[dict[str, t.Any]] = [
    {"rate": "1mbit"}, {"rate": "10mbit"}, {"rate": "100mbit"}, {"rate": "10mbit", "delay": "40ms"},
    {"rate": "100mbit", "delay": "40ms"}, {"rate": "10mbit", "delay": "40ms", "jitter": "1ms", "loss": "1%"},
]  # fmt: skip
RATES = ("1mbit", "10mbit", "100mbit", "1gbit")
#: Of a rate that is shared, one gets all while the others do not want it.
FAST: list[dict[str, t.Any]] = [
    *({"rate": rate} for rate in RATES),
    *({"rate": rate, "rate_group": "of three"} for rate in RATES),
]

#: Links that lose packets are asked so many times more often than others.
LOSSY = 4

#: Runs beside the sender, `va` in `a`; prints what each tool said.
PROGRAM = """
import json, os
out = []
for batch, segments, ping, rate in [([], 65535, PING, None), *WORK]:
    subprocess.run(["ip", "link", "set", "va", "gso_max_segs", str(segments)], check=True)
    subprocess.run(["tc", "qdisc", "del", "dev", "va", "root"], stderr=subprocess.DEVNULL)
    subprocess.run(["tc", "-batch", "-"], input="\\n".join(batch) + "\\n", text=True, check=True)
    pinged = subprocess.run(ping, stderr=subprocess.PIPE, text=True).stderr if not rate else ""
    rated = ""
    if rate:
        # One server a measurement: it is busy until the queue of the one before is empty.
        command = ["ip", "netns", "exec", B, *SERVER]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        while b"listening" not in server.stdout.readline():
            pass
        rated = subprocess.run(rate, stdout=subprocess.PIPE, text=True).stdout
        server.kill()
        server.wait()
    out.append([pinged, rated])
print(json.dumps(out))
"""


VA = _netem.Device("va")


def batch(link: dict[str, t.Any]) -> list[str]:
    others = [{"to": [f"10.9.0.{host}"], **link} for host in (3, 4) if "rate_group" in link]
    return _netem.compile_device(VA, _netem.parse_rules([{"to": ["10.9.0.2"], **link}, *others]))


def segments(link: dict[str, t.Any]) -> int:
    return _netem.largest_packet(VA, _netem.parse_rules([{"to": ["10.9.0.2"], **link}])) or 65535


def probe(link: dict[str, t.Any]) -> check.Probe:
    """A link with a rate is asked for that alone."""
    shape, _problems = _netem.parse_shape(link)
    return check._probe(("a", "b"), shape, _netem.Shape(), "rate" not in link, "rate" in link)


def ping(link: dict[str, t.Any], count: int) -> list[str]:
    asked = probe(link)
    if asked.loss:  # so often that none lost would be wrong, however they come in bursts
        asked = dataclasses.replace(asked, enough=LOSSY * count)
    (step,) = check.schedule([asked], count)
    return check.ping_command(["10.9.0.2"], step)


def program(links: list[dict[str, t.Any]], pings: int, other: str) -> str:
    work = [
        (batch(link), segments(link), None, check.rate_command("10.9.0.2", probe(link)))
        if "rate" in link
        else (batch(link), segments(link), ping(link, pings), None)
        for link in links
    ]
    return (
        PROGRAM.replace("WORK", repr(work))
        .replace("PING", repr(ping({}, pings)))
        .replace("B,", f"{other!r},")
        .replace("SERVER", repr(check.rate_server(check.RATE_PORT)))
    )


def here(source: str) -> str:
    """The program in two network namespaces of this machine."""
    names = ("startline-bench-a", "startline-bench-b")
    commands = [f"ip netns add {name}" for name in names]
    commands.append(f"ip link add va netns {names[0]} type veth peer name vb netns {names[1]}")
    for name, device, host in zip(names, ("va", "vb"), (1, 2), strict=True):
        commands += [f"ip -n {name} addr add 10.9.0.{host}/24 dev {device}", f"ip -n {name} link set {device} up"]
    try:
        for command in commands:
            subprocess.run(command.split(), check=True)
        inside = ["ip", "netns", "exec", names[0], sys.executable, "-c", f"import subprocess\n{source}"]
        return subprocess.run(inside, check=True, stdout=subprocess.PIPE, text=True).stdout
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def show(kernel: str, links: list[dict[str, t.Any]], text: str) -> bool:
    results = json.loads(text.splitlines()[-1])
    baseline = check.Measured(check.parse_fping(results[0][0])["10.9.0.2"])
    good = True
    for link, (pinged, rated) in zip(links, results[1:], strict=True):
        wanted = probe(link)
        round_trips = () if rated else check.parse_fping(pinged)["10.9.0.2"]
        measured = check.Measured(round_trips, check.parse_iperf3(rated, wanted.rate) if rated else None)
        words = ", ".join(f"{key} {value}" for key, value in link.items())
        for finding in check.judge(wanted, measured, baseline, PROMISED):
            if finding.metric == "loss" and not wanted.loss:
                continue
            scale, unit = (1e6, "Mbit/s") if finding.metric == "rate" else (1, finding.unit)
            asked, got, low, high = (
                f"{value / scale:.4g}" for value in (finding.asked, finding.measured or 0, finding.low, finding.high)
            )
            good &= finding.right
            row = (
                kernel,
                words,
                finding.metric,
                asked,
                f"{got} {unit}",
                f"{low}-{high}",
                "yes" if finding.right else "**no**",
            )
            print(f"| {' | '.join(row)} |")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pings", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=8)
    args = parser.parse_args()
    check.RATE_SECONDS, check.PING_LOSS_MS = args.seconds, 300_000  # longer than a run takes for it
    if uml.missing():
        raise SystemExit(uml.missing())
    print("| kernel | rule | metric | asked | measured | allowed | right |\n|---|---|---|---|---|---|---|")
    inside = [*LINKS, *SLOW]
    good = show("UML 6.1", inside, uml.run(program(inside, args.pings, "b"), timeout=900))
    good &= show("this one", FAST, here(program(FAST, 20, "startline-bench-b")))
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
