# SPDX-License-Identifier: GPL-3.0-or-later
"""Letters and conversations, without an object store."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.startline.lab.plugins.module_utils._agent import mailbox
from ansible_collections.startline.lab.plugins.module_utils._agent.mailbox import IN, OUT, Address, Letter, MailError

ADDRESS = Address("dkg-1", "party-0")
KEY = mailbox.member_key(b"secret", ADDRESS)
GRANTS = {"get_in": "https://a", "get_out": "https://b", "put_out": "https://c"}


def test_a_letter_comes_out_as_it_went_in() -> None:
    letter = Letter(7, 5, 3, 2, 1, ({"type": "welcome"}, [None, "\u00e9"]), GRANTS, 1.5)
    assert mailbox.unseal(KEY, ADDRESS, IN, mailbox.seal(KEY, ADDRESS, IN, letter)) == letter


@pytest.mark.parametrize(
    ("address", "box", "key"),
    [
        (Address("dkg-2", "party-0"), OUT, KEY),
        (Address("dkg-1", "party-1"), OUT, KEY),
        (ADDRESS, IN, KEY),
        (ADDRESS, OUT, mailbox.member_key(b"other", ADDRESS)),
        (ADDRESS, OUT, mailbox.member_key(b"secret", Address("dkg-1", "party-1"))),
        (ADDRESS, OUT, mailbox.member_key(b"secret", Address("dkg-2", "party-0"))),
    ],
)
def test_what_is_meant_for_another_is_refused(address: Address, box: str, key: bytes) -> None:
    body = mailbox.seal(key, address, box, Letter(1))
    with pytest.raises(MailError):
        mailbox.unseal(KEY, ADDRESS, OUT, body)


@given(st.data())
def test_no_changed_letter_is_taken(data: st.DataObject) -> None:
    body = bytearray(mailbox.seal(KEY, ADDRESS, OUT, Letter(1, messages=({"type": "ping"},), sent=1)))
    where = data.draw(st.integers(0, len(body) - 1))
    body[where] ^= data.draw(st.integers(1, 255))
    with pytest.raises(MailError):
        mailbox.unseal(KEY, ADDRESS, OUT, bytes(body))


@given(st.binary(max_size=300))
def test_garbage_is_no_letter_even_when_it_is_sealed(content: bytes) -> None:
    for body in (content, mailbox._mac(KEY, content) + b"\n" + content):
        with pytest.raises(MailError):
            mailbox.unseal(KEY, ADDRESS, OUT, body)


@given(st.lists(st.tuples(st.sampled_from(["say", "write", "read", "replay"]), st.booleans(), st.integers(0, 30))))
def test_messages_come_once_and_in_order_whatever_happens_to_letters(steps: list[tuple[str, bool, int]]) -> None:
    """Two sides with one overwritten object each; any letter ever written may be read again at any time."""
    sides = {True: mailbox.Conversation(1, 2), False: mailbox.Conversation(2, 1)}
    written: dict[bool, list[Letter]] = {True: [], False: []}
    said: dict[bool, list[int]] = {True: [], False: []}
    heard: dict[bool, list[int]] = {True: [], False: []}

    def read(side: bool, letter: Letter) -> None:
        heard[side] += sides[side].hear(letter)
        assert heard[side] == said[not side][: len(heard[side])]

    for step, side, which in steps:
        if step == "say":
            said[side].append(len(said[side]))
            sides[side].say(said[side][-1])
        elif step == "write":
            written[side].append(sides[side].letter())
        elif written[not side]:
            read(side, written[not side][-1 if step == "read" else which % len(written[not side])])
    # When the store works again, all that was said comes.
    for side in (True, False, True):
        read(not side, sides[side].letter())
    assert heard == {side: said[not side] for side in (True, False)}
    assert not sides[True].letter().messages


@pytest.mark.parametrize(
    "letter",
    [
        Letter(2, 1, number=1, sent=5, messages=(1,)),  # four messages are nowhere
        Letter(2, 1, number=1, received=1),  # nothing was said yet
    ],
)
def test_a_letter_that_does_not_go_on_is_refused(letter: Letter) -> None:
    with pytest.raises(MailError):
        mailbox.Conversation(1, 2).hear(letter)
