# SPDX-License-Identifier: GPL-3.0-or-later
"""The key generation: pure decisions on what the blockchain shows, and what each party says in each round.

The scheme
    Gennaro, Jarecki, Krawczyk and Rabin's DKG ("Secure Distributed Key Generation for Discrete-Log Based
    Cryptosystems", EUROCRYPT '99, J. Cryptology 2007), which is Pedersen's (EUROCRYPT '91) without its bias: dealers
    commit with Pedersen's hiding commitments, the set of qualified dealers is fixed, and only then do they show the
    public key's parts with Feldman's. The dealers are not all the parties but a committee of at_size drawn by public
    randomness (here: a hash of sid), as in the any-trust DKG of Feng, Mai and Tang (CCS '24, arXiv 2311.09592).
    This is the idea of that paper, not its protocol: no sortition by VRF, no non-committing encryption, no security
    against adaptive corruption.

The rounds (every party says one thing per round; `ROUNDS`)
    keys      everyone: a fresh encryption key
    deal      dealer j: commitments to its polynomials f_j, g_j of degree t; (f_j(x), g_j(x)) to each party in private
    complain  everyone: the dealers whose share did not come, could not be read, or does not open the commitments
    answer    accused dealers: the shares that were complained about, in public. More than t complaints, an answer
              that is missing or does not open the commitments: the dealer is out. What remains is the qualified set
    extract   qualified dealers: Feldman commitments to f_j
    accuse    everyone: the shares that open the first commitments of a dealer but not the second, as evidence
    recover   everyone: its shares of the dealers so exposed, whose f_j all then interpolate: leaving now does not help
    check     everyone: its final share. THIS ENDS THE SECRET: a simulation's check, not a part of the protocol

The threat model under which this is correct
    * t = (n - 1) // 2, and at most t of the n parties are corrupt, chosen before the run (static). So n - t >= t + 1
      honest parties can reconstruct, and the corrupt ones cannot. ``corrupted`` runs have exactly t corrupt parties:
      half, rounded down so that the honest are more.
    * At least one dealer of the committee is honest. Its contribution makes the key secret and uniform. A real
      deployment gets this with high probability from the committee's size; the simulation corrupts as many dealers
      as that leaves possible, all but one.
    * The blockchain delivers the same messages to all in each round, and knows who speaks: a party is the first
      connection that claims its rank. There is no public-key infrastructure that would prove it.
    * Time is synchronous: a private share that an honest dealer has sent arrives within `net.Timing.share` of the
      block that holds its commitments. When that fails for a few parties, their shares of that dealer become public
      and the outcome is right all the same; when it fails for more than t, an honest dealer is out, and `check` says
      so.
    * Discrete logarithms in edwards25519 are hard, and the logarithm of H to G is unknown (binding, secrecy).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import typing as t

from nacl.exceptions import CryptoError
from nacl.public import Box, PrivateKey, PublicKey

from . import vss
from .vss import Point, Polynomial, Share

ROUNDS = ("keys", "deal", "complain", "answer", "extract", "accuse", "recover", "check")

#: What each party said in a round: rank -> JSON object.
Block = t.Mapping[int, t.Mapping[str, t.Any]]


def place(rank: int) -> int:
    """Where the polynomials are evaluated for a party; 0 is the secret's place."""
    return rank + 1


@dataclasses.dataclass(frozen=True)
class Setup:
    """What everyone knows before the run. The parties have ranks 0..n-1; rank n is the blockchain."""

    n: int
    threshold: int
    dealers: tuple[int, ...]
    corrupt: frozenset[int]
    sid: str

    @classmethod
    def draw(cls, n: int, at_size: int, sid: str, corrupted: bool) -> Setup:
        """Draw the committee from `sid`, and in a `corrupted` run the corrupt parties, as many dealers as can be."""

        def drawn(purpose: str) -> list[int]:
            return sorted(range(n), key=lambda rank: hashlib.sha256(f"{purpose}/{sid}/{rank}".encode()).digest())

        threshold = (n - 1) // 2
        committee = drawn("dealers")[: min(at_size, n)]
        corrupt: frozenset[int] = frozenset()
        if corrupted:
            order = committee[1:] + [rank for rank in drawn("corrupt") if rank not in committee]
            corrupt = frozenset(order[:threshold])
        return cls(n, threshold, tuple(sorted(committee)), corrupt, sid)

    @property
    def honest(self) -> tuple[int, ...]:
        return tuple(rank for rank in range(self.n) if rank not in self.corrupt)


# What comes from a corrupt party can be anything: each reader returns None for what is not well formed.


def encode(share: Share) -> list[str]:
    return [f"{number:x}" for number in share]


def read_scalar(data: t.Any) -> int | None:
    if not isinstance(data, str) or not 0 < len(data) <= 64:
        return None
    try:
        scalar = int(data, 16)
    except ValueError:
        return None
    return scalar if 0 <= scalar < vss.ORDER else None


def read_share(data: t.Any) -> Share | None:
    if not isinstance(data, list) or len(data) != 2:
        return None
    value, blinding = map(read_scalar, data)
    return None if value is None or blinding is None else Share(value, blinding)


def read_bytes(data: t.Any) -> bytes | None:
    try:
        return bytes.fromhex(data)
    except (TypeError, ValueError):
        return None


def read_points(data: t.Any, count: int) -> tuple[Point, ...] | None:
    if not isinstance(data, list) or len(data) != count:
        return None
    points = tuple(read_bytes(item) or b"" for item in data)
    return points if all(map(vss.is_point, points)) else None


def by_rank(data: t.Any) -> dict[int, t.Any]:
    """JSON has text for keys: ranks again."""
    if not isinstance(data, dict):
        return {}
    return {int(key): value for key, value in data.items() if isinstance(key, str) and key.isdecimal() and len(key) < 9}


class Transcript:
    """What the blocks so far imply. Everyone computes it from the same blocks, so everyone agrees."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.keys: dict[int, PublicKey] = {}
        self.commitments: dict[int, tuple[Point, ...]] = {}  # dealer -> Pedersen commitments
        self.complaints: dict[int, frozenset[int]] = {}  # dealer -> who complained
        self.answers: dict[tuple[int, int], Share] = {}  # (dealer, complainer) -> share made public
        self.qualified: tuple[int, ...] = ()
        self.feldman: dict[int, tuple[Point, ...]] = {}  # dealer -> Feldman commitments, in the end right for all
        self.exposed: tuple[int, ...] = ()

    def apply(self, name: str, block: Block) -> None:
        """Take in the block of round `name`."""
        getattr(self, f"_{name}")(block)

    def needs(self, name: str) -> bool:
        """Whether round `name` has anything to say; nobody holds it otherwise."""
        return {"answer": bool(self.complaints), "recover": bool(self.exposed)}.get(name, True)

    @property
    def polynomial(self) -> tuple[Point, ...]:
        """Feldman commitments to the group's polynomial: the sum over the qualified dealers."""
        return tuple(vss.add(*column) for column in zip(*(self.feldman[dealer] for dealer in self.qualified)))

    @property
    def public_key(self) -> Point:
        return vss.add(*(self.feldman[dealer][0] for dealer in self.qualified))

    def opens(self, dealer: int, rank: int, share: Share) -> bool:
        """Whether `share` is what `dealer` committed to give to party `rank`."""
        return vss.opens_pedersen(self.commitments[dealer], place(rank), share)

    def _points(self, block: Block, speakers: t.Iterable[int]) -> dict[int, tuple[Point, ...]]:
        read = {rank: read_points(block[rank].get("commitments"), self.setup.threshold + 1) for rank in speakers}
        return {rank: points for rank, points in read.items() if points is not None}

    def _keys(self, block: Block) -> None:
        for rank, said in block.items():
            key = read_bytes(said.get("key"))
            if key is not None and len(key) == PublicKey.SIZE:
                self.keys[rank] = PublicKey(key)

    def _deal(self, block: Block) -> None:
        self.commitments = self._points(block, (rank for rank in self.setup.dealers if rank in self.keys))
        self.qualified = tuple(self.commitments)

    def _complain(self, block: Block) -> None:
        against: dict[int, set[int]] = {}
        for rank, said in block.items():
            named = said.get("against")
            for dealer in named if isinstance(named, list) else []:
                if isinstance(dealer, int) and dealer in self.commitments:
                    against.setdefault(dealer, set()).add(rank)
        self.complaints = {dealer: frozenset(against[dealer]) for dealer in sorted(against)}
        self._qualify({})

    def _answer(self, block: Block) -> None:
        self._qualify(block)

    def _qualify(self, answers: Block) -> None:
        """Keep the dealers without complaint, and those of at most t complaints that answered each one rightly."""
        self.answers = {}
        for dealer, complainers in self.complaints.items():
            said = by_rank(answers.get(dealer, {}).get("shares"))
            for rank in complainers:
                share = read_share(said.get(rank))
                if share is not None and self.opens(dealer, rank, share):
                    self.answers[dealer, rank] = share
        self.qualified = tuple(
            dealer
            for dealer in self.commitments
            if len(self.complaints.get(dealer, ())) <= self.setup.threshold
            and all((dealer, rank) in self.answers for rank in self.complaints.get(dealer, ()))
        )

    def _extract(self, block: Block) -> None:
        self.feldman = self._points(block, self.qualified)

    def _accuse(self, block: Block) -> None:
        exposed = set(self.qualified) - set(self.feldman)
        for rank, said in block.items():
            for dealer, data in by_rank(said.get("evidence")).items():
                share = read_share(data)
                if (
                    dealer in self.feldman
                    and dealer not in exposed
                    and share is not None
                    and self.opens(dealer, rank, share)
                    and not vss.opens_feldman(self.feldman[dealer], place(rank), share.value)
                ):
                    exposed.add(dealer)
        self.exposed = tuple(sorted(exposed))

    def _recover(self, block: Block) -> None:
        for dealer in self.exposed:
            read = {rank: read_share(by_rank(said.get("shares")).get(dealer)) for rank, said in sorted(block.items())}
            right = {
                place(rank): share.value
                for rank, share in read.items()
                if share is not None and self.opens(dealer, rank, share)
            }
            if len(right) <= self.setup.threshold:
                raise ValueError(f"only {len(right)} right shares of rank {dealer}: more parties are corrupt than t")
            enough = dict(list(right.items())[: self.setup.threshold + 1])
            self.feldman[dealer] = vss.feldman(vss.interpolate(enough))

    def _check(self, block: Block) -> None:
        """The shares published for the check change nothing."""


class Party:
    """An honest party: what it says in each round, `say(name)`, given the transcript so far."""

    def __init__(self, setup: Setup, rank: int) -> None:
        self.setup = setup
        self.rank = rank
        self.seen = Transcript(setup)
        self.secret = PrivateKey.generate()
        self.dealt = (Polynomial.random(setup.threshold), Polynomial.random(setup.threshold)) if self.deals else None
        self.shares: dict[int, Share] = {}  # dealer -> my share, verified
        self.refused: set[int] = set()  # dealers that sent me something else

    @property
    def deals(self) -> bool:
        return self.rank in self.setup.dealers

    def say(self, name: str) -> dict[str, t.Any]:
        """This party's word in round `name`."""
        return t.cast("dict[str, t.Any]", getattr(self, f"_{name}")())

    def hear(self, name: str, block: Block) -> None:
        """Take in the block of round `name`."""
        self.seen.apply(name, block)

    def share_for(self, rank: int) -> Share:
        """What this dealer owes to party `rank`."""
        values, blindings = t.cast("tuple[Polynomial, Polynomial]", self.dealt)
        return Share(values(place(rank)), blindings(place(rank)))

    def sealed(self) -> dict[int, bytes]:
        """The private messages of this dealer: rank -> share, encrypted to that party and authenticated."""
        messages = {}
        for rank in self.seen.keys:
            if rank != self.rank:
                with contextlib.suppress(CryptoError):  # a key of small order: who published it must complain
                    messages[rank] = self._seal(rank, self.share_for(rank))
        return messages

    def _seal(self, rank: int, share: Share) -> bytes:
        return bytes(Box(self.secret, self.seen.keys[rank]).encrypt(" ".join(encode(share)).encode()))

    def open(self, dealer: int, message: bytes) -> None:
        """Take in a private `message` that is said to be the share from `dealer`."""
        try:
            plain = Box(self.secret, self.seen.keys[dealer]).decrypt(message)
        except (CryptoError, ValueError):
            return  # not from the dealer: it proves nothing about it
        share = read_share(plain.decode("ascii", "replace").split(" "))
        if share is not None and self.accepts(dealer, share):
            self.shares[dealer] = share
        else:
            self.refused.add(dealer)

    def accepts(self, dealer: int, share: Share) -> bool:
        """Whether to take `share` for the one that `dealer` committed to."""
        return self.seen.opens(dealer, self.rank, share)

    def final_share(self) -> int:
        """This party's share of the group's secret key."""
        return sum(self.shares[dealer].value for dealer in self.seen.qualified) % vss.ORDER

    def _keys(self) -> dict[str, t.Any]:
        return {"key": bytes(self.secret.public_key).hex()}

    def _deal(self) -> dict[str, t.Any]:
        if self.dealt is None:
            return {}
        self.shares[self.rank] = self.share_for(self.rank)
        return {"commitments": [point.hex() for point in vss.pedersen(*self.dealt)]}

    def _complain(self) -> dict[str, t.Any]:
        return {"against": [dealer for dealer in self.seen.commitments if dealer not in self.shares]}

    def _answer(self) -> dict[str, t.Any]:
        return {"shares": {rank: encode(self.share_for(rank)) for rank in self.seen.complaints.get(self.rank, ())}}

    def _extract(self) -> dict[str, t.Any]:
        for dealer in self.seen.qualified:  # who complained rightly has the share from the answer
            if dealer not in self.shares:
                self.shares[dealer] = self.seen.answers[dealer, self.rank]
        if self.dealt is None or self.rank not in self.seen.qualified:
            return {}
        return {"commitments": [point.hex() for point in vss.feldman(self.dealt[0])]}

    def _accuse(self) -> dict[str, t.Any]:
        wrong = [
            dealer
            for dealer, commitments in self.seen.feldman.items()
            if not vss.opens_feldman(commitments, place(self.rank), self.shares[dealer].value)
        ]
        return {"evidence": {dealer: encode(self.shares[dealer]) for dealer in wrong}}

    def _recover(self) -> dict[str, t.Any]:
        return {"shares": {dealer: encode(self.shares[dealer]) for dealer in self.seen.exposed}}

    def _check(self) -> dict[str, t.Any]:
        return {"public_key": self.seen.public_key.hex(), "share": f"{self.final_share():x}"}


class Corrupt(Party):
    """A corrupt party. All of them accuse honest dealers falsely, forge evidence and publish wrong shares. Besides:

    lie       dealer: a wrong share to every second honest party, fewer than t; the answers are wrong too
    late      dealer: the same parties get a wrong share, garbage or nothing; the answers are right; then the wrong
              part of the public key
    mute      dealer: nothing to anybody, no answer
    spoil     the first of the others: an encryption key with which nobody can encrypt

    The corrupt dealers take turns at the first three.
    """

    MANNERS = ("lie", "late", "mute")

    def __init__(self, setup: Setup, rank: int) -> None:
        super().__init__(setup, rank)
        peers = [other for other in sorted(setup.corrupt) if (other in setup.dealers) == self.deals]
        turn = peers.index(rank)
        self.manner = self.MANNERS[turn % len(self.MANNERS)] if self.deals else "" if turn else "spoil"
        self.victims = setup.honest[::2][: max(1, setup.threshold - 1)]

    def _keys(self) -> dict[str, t.Any]:
        return {"key": bytes(32).hex()} if self.manner == "spoil" else super()._keys()

    def sealed(self) -> dict[int, bytes]:
        if self.manner == "mute":
            return {}
        messages = super().sealed()
        for number, rank in enumerate(self.victims):
            if self.manner == "lie" or number % 3 == 0:
                share = self.share_for(rank)
                messages[rank] = self._seal(rank, share._replace(value=(share.value + 1) % vss.ORDER))
            elif number % 3 == 1:
                messages[rank] = b"garbage"
            else:
                messages.pop(rank, None)
        return messages

    def _complain(self) -> dict[str, t.Any]:
        honest_dealers = [dealer for dealer in self.setup.dealers if dealer not in self.setup.corrupt]
        return {"against": [*super()._complain()["against"], *honest_dealers, -1, "nonsense"]}

    def _answer(self) -> dict[str, t.Any]:
        shares = super()._answer()["shares"] if self.dealt and self.manner != "mute" else {}
        if self.manner == "lie":
            shares = {rank: [share[0], share[0]] for rank, share in shares.items()}
        return {"shares": shares}

    def _extract(self) -> dict[str, t.Any]:
        said = super()._extract()
        return {"commitments": said["commitments"][::-1]} if len(said.get("commitments", ())) > 1 else said

    def _accuse(self) -> dict[str, t.Any]:
        return {"evidence": {dealer: ["1", "2"] for dealer in self.seen.qualified}}

    def _recover(self) -> dict[str, t.Any]:
        return {"shares": {dealer: ["3", "4"] for dealer in self.seen.exposed}}

    def _check(self) -> dict[str, t.Any]:
        return {"public_key": vss.H.hex(), "share": f"{(self.final_share() + 1) % vss.ORDER:x}"}


def check(seen: Transcript, block: Block) -> list[str]:
    """What is wrong with the run, seen from outside: nothing, if the protocol did its work.

    The honest parties hold the same public key, each the share that it says; no honest dealer was put out; a share that
    a corrupt party made up is told from a right one; and any t+1 of the honest shares reconstruct the secret that
    belongs to the key (tried: every run of neighbours, by rank and in a drawn order).
    """
    setup = seen.setup
    put_out = set(setup.dealers) - setup.corrupt - set(seen.qualified)
    wrong = [f"rank {dealer} dealt honestly and was put out" for dealer in sorted(put_out)]
    if not seen.qualified:
        return [*wrong, "nobody who dealt is qualified: there is no key"]
    polynomial, public_key = seen.polynomial, seen.public_key
    shares: dict[int, int] = {}
    for rank, said in sorted(block.items()):
        share = read_scalar(said.get("share"))
        right = share is not None and vss.opens_feldman(polynomial, place(rank), share)
        if rank in setup.corrupt:
            if right:
                wrong.append(f"rank {rank} made up a share and it passes for a right one")
            continue
        if said.get("public_key") != public_key.hex():
            wrong.append(f"rank {rank} holds another public key: {said.get('public_key')}")
        if not right:
            wrong.append(f"rank {rank} holds a wrong share")
        if share is not None:
            shares[place(rank)] = share
    places = sorted(shares, key=lambda x: hashlib.sha256(f"check/{setup.sid}/{x}".encode()).digest())
    count = setup.threshold + 1
    if len(places) < count:
        wrong.append(f"{len(places)} honest shares were published, {count} are needed")
    starts = range(len(places) - setup.threshold)
    runs = [ordered[start : start + count] for ordered in (sorted(places), places) for start in starts]
    for subset in sorted({tuple(sorted(run)) for run in runs}):
        if vss.base(vss.reconstruct({x: shares[x] for x in subset})) != public_key:
            wrong.append(f"the shares of ranks {', '.join(str(x - 1) for x in subset)} reconstruct another secret")
    return wrong
