# SPDX-License-Identifier: GPL-3.0-or-later
"""What members that are reached through S3 cost: requests a minute and a trial, counted by an S3 on loopback.

    python benchmarks/mailbox_cost.py [--members 8] [--minutes 1]

Prices are S3 Standard's in us-east-1 (https://aws.amazon.com/s3/pricing/): PUT and LIST 0.005 USD, GET 0.0004 USD a
thousand. A GET that is answered with 304 (not modified) counts like any other.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "collections"))

from ansible_collections.startline.lab.plugins.module_utils._agent import mailbox  # noqa: E402
from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent import world as worlds  # noqa: E402
from ansible_collections.startline.lab.tests.unit.plugins.module_utils._agent.store import MotoStore  # noqa: E402

PRICES = {"GET": 0.0004 / 1000, "PUT": 0.005 / 1000, "LIST": 0.005 / 1000}


def line(what: str, counted: collections.Counter[str], members: int) -> None:
    """Print what was counted, and what of it is each member's."""
    shared = counted["LIST"] * PRICES["LIST"]
    each = sum(counted[kind] * PRICES[kind] for kind in ("GET", "PUT")) / members
    print(
        f"  {what:<22} a member: {counted['GET'] / members:6.1f} GET {counted['PUT'] / members:5.1f} PUT = {each:.2e} USD"
        f"   the rendezvous: {counted['LIST']:4d} LIST = {shared:.2e} USD"
    )


def main() -> None:
    """Count in turn while nothing happens, and over some trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--trials", type=int, default=3)
    options = parser.parse_args()
    worlds.PACE = mailbox.Pace()
    store = MotoStore()
    with tempfile.TemporaryDirectory() as directory:
        members = [f"party-{i}" for i in range(options.members)]
        world = worlds.World(pathlib.Path(directory), members)
        world.use_mailboxes(store.url, *members)
        try:
            world.start_all()
            worlds.until(lambda: len(world.status()["connected"]) == len(members), 120, "the connections")
            time.sleep(2 * mailbox.LINGER)
            print(f"{options.members} members, looks every {worlds.PACE.fast:g} s or {worlds.PACE.slow:g} s")
            store.requests.clear()
            time.sleep(60 * options.minutes)
            idle = collections.Counter({kind: round(n / options.minutes) for kind, n in store.requests.items()})
            line("a minute of waiting", idle, options.members)
            for number in range(options.trials):
                store.requests.clear()
                began = time.monotonic()
                result = world.run(world.trial("sleep 1", f"r{number}", max_clock_error=30, deadline=60))
                line(f"a trial of {time.monotonic() - began:.1f} s", store.requests.copy(), options.members)
                assert result["verdict"] == "valid", result["reasons"]
                print(
                    f"    submitted to T {result['start'] - result['submitted']:.2f} s, lead {result['lead_s']:.2f} s"
                )
        finally:
            world.close()
            store.close()


if __name__ == "__main__":
    main()
