# SPDX-License-Identifier: GPL-3.0-or-later
"""The DKG workload's protocol without a network: what everyone says goes round as JSON."""

from __future__ import annotations

import json
import typing as t

import pytest
from anytrust import protocol, vss
from anytrust.protocol import Corrupt, Party, Setup, Transcript
from hypothesis import given, settings
from hypothesis import strategies as st

Parties = dict[int, Party]


def members(setup: Setup, special: t.Mapping[int, type[Party]] | None = None) -> Parties:
    """A party for each rank: honest or corrupt as `setup` says, or of the class that `special` has for it."""
    default = {rank: Corrupt if rank in setup.corrupt else Party for rank in range(setup.n)}
    return {rank: kind(setup, rank) for rank, kind in {**default, **(special or {})}.items()}


def simulate(parties: Parties) -> tuple[Transcript, list[str]]:
    """Run the protocol among `parties`: what an onlooker saw, and what the check finds wrong."""
    setup = parties[0].setup
    seen, block = Transcript(setup), t.cast("dict[int, dict[str, t.Any]]", {})
    for name in protocol.ROUNDS:
        if not seen.needs(name):
            continue
        said = {rank: party.say(name) for rank, party in parties.items()}
        block = {int(rank): word for rank, word in json.loads(json.dumps(said)).items()}
        mail = [(dealer, p.sealed()) for dealer, p in parties.items() if p.deals] if name == "deal" else []
        seen.apply(name, block)
        for party in parties.values():
            party.hear(name, block)
        for dealer, messages in mail:
            for rank, message in messages.items():
                if dealer in seen.commitments:
                    parties[rank].open(dealer, message)
    return seen, protocol.check(seen, block)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.text("0123456789abcdef", min_size=1, max_size=4), st.booleans())
def test_honest_parties_agree_on_a_key_that_their_shares_make(n: int, at_size: int, sid: str, corrupted: bool) -> None:
    setup = Setup.draw(n, at_size, sid, corrupted)
    parties = members(setup)
    seen, wrong = simulate(parties)
    assert wrong == []
    assert {parties[rank].seen.public_key for rank in setup.honest} == {seen.public_key}
    assert {parties[rank].seen.qualified for rank in setup.honest} == {seen.qualified}
    shares = {protocol.place(rank): parties[rank].final_share() for rank in setup.honest[-(setup.threshold + 1) :]}
    assert vss.base(vss.reconstruct(shares)) == seen.public_key
    if not corrupted:
        assert seen.complaints == {}
        assert seen.qualified == setup.dealers


@given(st.integers(1, 60), st.integers(1, 60), st.text(max_size=8))
def test_any_trust_holds_in_every_drawn_setup(n: int, at_size: int, sid: str) -> None:
    setup = Setup.draw(n, at_size, sid, corrupted=True)
    assert len(setup.dealers) == min(n, at_size)
    assert len(setup.corrupt) == setup.threshold == (n - 1) // 2
    assert len(setup.honest) > len(setup.corrupt)
    assert not setup.corrupt.issuperset(setup.dealers)
    assert len(setup.corrupt.intersection(setup.dealers)) == min(setup.threshold, len(setup.dealers) - 1)
    assert setup == Setup.draw(n, at_size, sid, corrupted=True)


def test_each_manner_of_a_corrupt_dealer_ends_as_it_must() -> None:
    setup = Setup.draw(11, 4, "7", corrupted=True)
    parties = members(setup)
    seen, wrong = simulate(parties)
    assert wrong == []
    end = {
        party.manner: (rank in seen.qualified, rank in seen.exposed)
        for rank, party in parties.items()
        if isinstance(party, Corrupt) and party.deals
    }
    assert end == {"lie": (False, False), "late": (True, True), "mute": (False, False)}


class Blind(Party):
    """Takes every share without a look: what the check must find."""

    def accepts(self, dealer: int, share: vss.Share) -> bool:
        return True


class BlindToKeys(Party):
    """Does not look whether the part of the public key belongs to its share."""

    def _accuse(self) -> dict[str, t.Any]:
        return {"evidence": {}}


def test_a_wrong_share_that_a_party_did_not_catch_fails_the_check() -> None:
    setup = Setup.draw(5, 2, "7", corrupted=True)
    (liar,) = setup.corrupt.intersection(setup.dealers)

    class Lie(Corrupt):
        """Lies so that only the blind one could notice."""

        manner = "late"

        def __init__(self, setup: Setup, rank: int) -> None:
            super().__init__(setup, rank)
            self.manner, self.victims = "late", setup.honest[:1]

        def _extract(self) -> dict[str, t.Any]:
            return Party._extract(self)

    victim = setup.honest[0]
    _seen, wrong = simulate(members(setup, {liar: Lie, victim: Blind}))
    assert f"rank {victim} holds a wrong share" in wrong
    assert any("reconstruct another secret" in line for line in wrong)


def test_a_false_part_of_the_key_that_nobody_contests_fails_the_check() -> None:
    setup = Setup.draw(11, 4, "7", corrupted=True)
    _seen, wrong = simulate(members(setup, dict.fromkeys(setup.honest, BlindToKeys)))
    assert any("holds a wrong share" in line for line in wrong)


def test_a_dealer_with_more_than_t_complaints_is_out_though_it_answers() -> None:
    setup = Setup.draw(5, 2, "7", corrupted=False)
    dealer = setup.dealers[0]

    class Miser(Party):
        def sealed(self) -> dict[int, bytes]:
            return {}

    seen, wrong = simulate(members(setup, {dealer: Miser}))
    assert dealer not in seen.qualified
    assert wrong == [f"rank {dealer} dealt honestly and was put out"]  # it was said to be honest


GARBAGE: t.Final = [
    {},
    {"commitments": None, "against": None, "shares": None, "evidence": None, "key": None, "public_key": 1, "share": 2},
    {"commitments": ["00"] * 4, "against": [None, {}, 1e9, True], "shares": {"x": 1, "0": ["zz", "1"]}, "key": "zz"},
    {"commitments": [[], {}, 1, None], "against": "0", "shares": [1], "evidence": {"0": ["-1", "1"], "99999999999": 1}},
    {"key": bytes(32).hex(), "commitments": ["ff" * 32] * 4, "evidence": {"1": [f"{vss.ORDER:x}", "0"]}, "share": "-0"},
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_from_a_corrupt_party_stops_nobody(garbage: dict[str, t.Any]) -> None:
    setup = Setup.draw(7, 3, "7", corrupted=True)

    class Babbler(Corrupt):
        def say(self, name: str) -> dict[str, t.Any]:
            return garbage

        def sealed(self) -> dict[int, bytes]:
            return dict.fromkeys(range(self.setup.n), b"\xff" * 7)

    _seen, wrong = simulate(members(setup, dict.fromkeys(setup.corrupt, Babbler)))
    assert wrong == []
