"""What is said before an agent has answered is one line that no shell, interpreter or terminal can act on."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trickle._wire.armor import END_OF_ARMOR, Unarmor, armored
from trickle._wire.frames import WireError

PARTS = st.lists(st.binary(min_size=1, max_size=200), max_size=5)


@given(PARTS, st.binary(max_size=50), st.data())
def test_what_was_armored_comes_out_however_it_is_cut(parts: list[bytes], plain: bytes, data: st.DataObject) -> None:
    sent = b"".join(map(armored, parts)) + END_OF_ARMOR + plain
    unarmor = Unarmor()
    received = b""

    while sent:
        size = data.draw(st.integers(1, len(sent)))
        received += unarmor.receive(sent[:size])
        sent = sent[size:]

    assert received == b"".join(parts) + plain


def test_a_part_is_there_as_soon_as_it_has_come() -> None:
    unarmor = Unarmor()

    for part in (b"one", b"two", b"three"):
        assert unarmor.receive(armored(part)) == part


@given(st.binary())
def test_a_part_has_no_blank_quote_or_control_character(data: bytes) -> None:
    assert re.fullmatch(rb"[A-Za-z0-9+/=]*\.", armored(data))


@pytest.mark.parametrize("wrong", [b"YQ=\n", b"a.", b"YQ==\nplain", b"\x00", b"YWJj"])
def test_what_is_no_armor_breaks_the_rules(wrong: bytes) -> None:
    with pytest.raises(WireError):
        Unarmor().receive(wrong + END_OF_ARMOR)
