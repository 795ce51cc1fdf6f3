# SPDX-License-Identifier: GPL-3.0-or-later
"""One host of an any-trust distributed key generation: a party, or the simulated blockchain on the last rank.

    run.py RANK HOSTS AT_SIZE SID [PROTOCOL]

RANK      this host's line in HOSTS, from 0
HOSTS     a file with one address per line, the last one the blockchain's; or, if there is no such file, the number of
          parties, and everyone is at 127.0.0.1
AT_SIZE   size of the committee of dealers (all parties, when there are fewer)
SID       text that all hosts of the run share and no other run has; the committee is drawn from it
PROTOCOL  normal (default); anything else corrupts just under half of the parties

Rank i listens on TCP 10000 + i of its own address. Exit code: 0 the key is there and every check passed, 1 it is not
(the last line of stderr says why and names who is missing), 2 the arguments are wrong.
DKG_TIMEOUT in the environment is the number of seconds that anyone is waited for (default 30).

On stdout the value stands on the line after its label. On stderr a line with the word dealer says that this party is
one, a line with the word plaintiff that it complained about one. The scheme and its threat model: anytrust/protocol.py.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
import typing as t

from anytrust.net import Blockchain, DkgError, Node, Roster, Timing
from anytrust.protocol import Corrupt, Party, Setup


def say(label: str, value: object) -> None:
    print(f"{label}\n{value}", flush=True)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Arguments(t.NamedTuple):
    rank: int
    roster: Roster
    at_size: int
    sid: str
    corrupted: bool
    timing: Timing


def parse(argv: t.Sequence[str], environ: t.Mapping[str, str]) -> Arguments:
    """The command line's meaning; `ValueError` says what is wrong with it."""
    if len(argv) not in (4, 5):
        raise ValueError(f"{len(argv)} arguments, 4 or 5 are needed: RANK HOSTS AT_SIZE SID [PROTOCOL]")

    def number(name: str, text: str, least: int, most: int | None = None) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            wanted = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise ValueError(f"{name} is {text!r}: a whole number {wanted} is needed")
        return int(text)

    hosts = argv[1]
    if os.path.isfile(hosts):
        with open(hosts, encoding="ascii") as lines:
            addresses = tuple(line.strip() for line in lines if line.strip())
        if len(addresses) < 2:
            raise ValueError(f"{hosts} names {len(addresses)} hosts: at least one party and the blockchain are needed")
    elif hosts.isdecimal():
        addresses = ("127.0.0.1",) * (number("HOSTS", hosts, 1) + 1)
    else:
        raise ValueError(f"HOSTS is {hosts!r}: neither a file nor a number of parties")
    seconds = environ.get("DKG_TIMEOUT", "30")
    try:
        timing = Timing(connect=float(seconds), round=float(seconds))
    except ValueError:
        raise ValueError(f"DKG_TIMEOUT is {seconds!r}: a number of seconds is needed") from None
    return Arguments(
        rank=number("RANK", argv[0], 0, len(addresses) - 1),
        roster=Roster(addresses),
        at_size=number("AT_SIZE", argv[2], 1),
        sid=argv[3],
        corrupted=len(argv) == 5 and argv[4] != "normal",
        timing=timing,
    )


async def blockchain(setup: Setup, arguments: Arguments) -> list[str]:
    chain = Blockchain(setup, arguments.roster, arguments.timing, lambda line: print(line, flush=True))
    wrong = await chain.run()
    say("group public key:", chain.seen.public_key.hex())
    say("total data:", chain.bytes)
    return wrong


async def party(setup: Setup, arguments: Arguments) -> list[str]:
    member = (Corrupt if arguments.rank in setup.corrupt else Party)(setup, arguments.rank)
    if member.deals:
        note("this party is a dealer")
    node = Node(member, arguments.roster, arguments.timing)
    wrong = await node.run()
    for accused in node.accused:
        note(f"plaintiff against rank {accused}")
    say("group public key:", member.seen.public_key.hex())
    say("qualified dealers:", " ".join(map(str, member.seen.qualified)))
    say("total data:", node.bytes)
    say("total computation cost:", f"{node.compute_ms:.3f}")
    say("time to send multicast complaint", f"{node.send_ms:.3f}")
    say("time to receive multicast complaint", f"{node.receive_ms:.3f}")
    return wrong


def main() -> int:
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    try:
        arguments = parse(sys.argv[1:], os.environ)
    except (ValueError, OSError) as exc:
        note(f"dkg: {exc}")
        return 2
    started = time.perf_counter()
    setup = Setup.draw(arguments.roster.chain, arguments.at_size, arguments.sid, arguments.corrupted)
    role = "blockchain" if arguments.rank == setup.n else "corrupt" if arguments.rank in setup.corrupt else "honest"
    say(
        "parties, threshold, committee, corrupt:",
        f"{setup.n} {setup.threshold} {len(setup.dealers)} {len(setup.corrupt)}; this is rank {arguments.rank}, {role}",
    )
    try:
        wrong = asyncio.run((blockchain if role == "blockchain" else party)(setup, arguments))
    except DkgError as exc:
        wrong = [str(exc)]
    say("total time:", f"{(time.perf_counter() - started) * 1000:.3f}")
    say("check:", "failed" if wrong else "ok")
    for line in wrong:
        note(f"dkg: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
