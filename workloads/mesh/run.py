# SPDX-License-Identifier: GPL-3.0-or-later
"""One host of a mesh: asks all others, answers all others, and measures what lies between.

    run.py RANK HOSTS [options]

RANK      this host's line in HOSTS, from 0
HOSTS     a file with one address per line; or, if there is no such file, the number of hosts, all at 127.0.0.1

Rank i listens on TCP 10000 + i. Each ordered pair is measured by its first host: latency of small requests while nothing
else is on its way, rate of large requests (upload) and of large answers (download), and the latency of small requests
meanwhile. Large ones go in rounds in which each host asks one and is asked by one, unless --together. All hosts need the
same options; those that start late are waited for.

stdout has a line for each pair and phase. mesh.csv has rank,peer,metric,value,unit. Exit code: 0 all pairs were
measured and all answers were right, 1 not so (the last lines of stderr name each peer and what was wrong with it), 2 the
arguments are wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import os
import sys
import typing as t

from alltoall.node import Figure, Node, Settings
from alltoall.wire import LARGEST, Place

CSV = "mesh.csv"


def parse(argv: t.Sequence[str]) -> tuple[list[Place], int, Settings]:
    """The command line's meaning. Wrong arguments end the program with exit code 2 and what is wrong."""
    parser = argparse.ArgumentParser(
        prog="mesh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = Settings()
    parser.add_argument("rank", type=int, metavar="RANK")
    parser.add_argument("hosts", metavar="HOSTS")
    parser.add_argument(
        "--requests", type=int, default=usual.requests, help="small requests to each peer (%(default)s)"
    )
    parser.add_argument("--large", type=int, default=usual.large, help="large ones in each direction (%(default)s)")
    parser.add_argument("--size", type=int, default=usual.size, help="bytes of a large one (%(default)s)")
    parser.add_argument(
        "--concurrency", type=int, default=usual.concurrency, help="large ones at a time, to a peer (%(default)s)"
    )
    parser.add_argument("--together", action="store_true", help="large ones to all peers at once, instead of in rounds")
    parser.add_argument("--port", type=int, default=10000, help="of rank 0 (%(default)s)")
    parser.add_argument(
        "--wait",
        type=float,
        default=usual.wait,
        help="seconds that anyone is waited for: to come, to answer a request, to give a sign of life (%(default)s)",
    )
    parser.add_argument("--session", default="", help="text that all hosts share, and other meshes do not")
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="FROM:TO",
        help="ranks FROM open no connection to ranks TO, as in 0-3:4-5; may be given several times",
    )
    given = parser.parse_args(argv)
    try:
        addresses = read_addresses(given.hosts)
        last = len(addresses) - 1
        check("RANK", given.rank, 0, last)
        check("--requests", given.requests, 1, 1_000_000)
        check("--large", given.large, 0, 1_000_000)
        check("--size", given.size, 0, LARGEST)
        check("--concurrency", given.concurrency, 1, 1000)
        check("--port", given.port, 1, 65535 - last)
        check("--wait", given.wait, 0.1, 86400)
        skip = frozenset(pair for text in given.skip for pair in pairs(text, last))
    except ValueError as exc:
        parser.error(str(exc))
    places = [Place(rank, address, given.port + rank) for rank, address in enumerate(addresses)]
    settings = Settings(
        requests=given.requests,
        large=given.large,
        size=given.size,
        concurrency=given.concurrency,
        together=given.together,
        wait=given.wait,
        session=given.session,
        skip=skip,
    )
    return places, given.rank, settings


def read_addresses(hosts: str) -> list[str]:
    if os.path.isfile(hosts):
        with open(hosts, encoding="ascii") as lines:
            addresses = [line.strip() for line in lines if line.strip()]
    elif hosts.isdecimal():
        addresses = ["127.0.0.1"] * int(hosts)
    else:
        raise ValueError(f"HOSTS is {hosts!r}: neither a file nor a number of hosts")
    if len(addresses) < 2:
        raise ValueError(f"HOSTS names {len(addresses)} hosts: a mesh has two at least")
    return addresses


def check(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name} is {value}: a number from {least:g} to {most:g} is needed")


def pairs(text: str, last: int) -> t.Iterator[tuple[int, int]]:
    """The ordered pairs of ``0-3:4,6``."""

    def ranks(part: str) -> list[int]:
        result: list[int] = []
        for item in part.split(","):
            first, _dash, end = item.partition("-")
            if not first.isdecimal() or not (end or first).isdecimal() or int(end or first) > last:
                raise ValueError(f"--skip {text}: {item!r} is no rank from 0 to {last}, and no range of them")
            result += range(int(first), int(end or first) + 1)
        return result

    source, colon, target = text.partition(":")
    if not colon:
        raise ValueError(f"--skip {text}: FROM:TO is needed, as in 0-3:4-5")
    return ((one, other) for one in ranks(source) for other in ranks(target) if one != other)


class Report:
    """Figures as they come: to the file at once, to people a line for each pair and phase."""

    def __init__(self, places: t.Sequence[Place], rank: int, file: t.TextIO) -> None:
        self._places, self._rank, self._file = places, rank, file
        self._rows = csv.writer(file, lineterminator="\n")
        self._rows.writerow(["rank", "peer", "metric", "value", "unit"])
        self._line: dict[int, list[str]] = {}

    def __call__(self, figure: Figure) -> None:
        self._rows.writerow([self._rank, figure.peer, figure.metric, f"{figure.value:.6g}", figure.unit])
        self._file.flush()
        words = self._line.setdefault(figure.peer, [])
        words.append(f"{figure.metric} {figure.value:.4g}{'' if figure.unit == 'count' else ' ' + figure.unit}")
        # What ends a line: a number of requests is the last figure of a phase, the errors are the last of all.
        if figure.unit == "count":
            print(f"to {self._places[figure.peer]}: {', '.join(words)}", flush=True)
            words.clear()


def main() -> int:
    places, rank, settings = parse(sys.argv[1:])
    print(f"{places[rank]}: {len(places) - 1} peers, {settings}", flush=True)
    with open(CSV, "w", encoding="ascii", newline="") as file:
        node = Node(places, rank, settings, Report(places, rank, file), lambda line: print(line, flush=True))
        try:
            asyncio.run(node.run())
        except OSError as exc:
            print(f"mesh: {places[rank]} cannot listen: {exc.strerror or exc}", file=sys.stderr)
            return 1
    for peer in sorted(node.wrong):
        print(f"mesh: {'; '.join(node.wrong[peer])}", file=sys.stderr)
    return 1 if node.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
