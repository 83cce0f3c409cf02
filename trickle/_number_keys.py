"""Find out whether a pickle stores many numbers as keys, which `_probing.py` has to look into then.

Only numbers, and what is made of them, have hashes that a host can choose.  Results are full of numbers; few have many
as keys.  One pass of a pattern tells most of the others: it takes for values those numbers of which nothing else can
become, and counts the rest.
"""

from __future__ import annotations

import functools
import re
from array import array
from collections.abc import Generator, Iterable, Iterator
from typing import Final

from trickle._pickle_opcodes import LARGE_INTEGER, NUMBERS, SHORT_BYTES, SHORT_TEXT, SLICE, any_of
from trickle._pickle_scan import parts

FEW_KEYS: Final = 4000  # as many look for their places in some milliseconds, however they were chosen
FEW_IN_ONE: Final = 64  # and as many in less than one pass of a pattern
_PLACEHOLDER: Final = b"\x8c\x00"  # an empty text, for what has a long argument
_STRANGE: Final = 2  # the group
_SETS: Final = b"\x90\x91"  # ADDITEMS, FROZENSET: their items are keys


@functools.cache
def _pieces(with_sets: bool) -> re.Pattern[bytes]:
    """Return a pattern for opcodes that store no number as a key, and then for one that may.

    Its first group is for a number, or SETITEM, and its second for what makes no sense of pairs, or is not honest.
    """
    once = rb"(?!\x94)"  # no pickler remembers a number; what is remembered may be a key many times
    numbers = [each + once for each in NUMBERS]
    short_text = SHORT_TEXT + rb"\x94?+"
    number = _any(numbers)
    text = _any([rb"h.", short_text, rb"j.{4}", SHORT_BYTES + rb"\x94?+"])
    simples = [rb"h.", *numbers[:3], short_text, rb"[N\x88\x89]", *numbers[3:], rb"j.{4}"]  # common ones first
    simple = _any(simples)
    few_pairs = b"(?:" + simple + simple + b"){0,%d}+" % FEW_IN_ONE
    # Containers that were made just now, and get no more than a few keys.
    small = [
        rb"\]\x94?+(?:\(" + simple + b"*+e)?+",
        rb"}\x94?+(?:\(" + few_pairs + b"u|" + simple + simple + b"s)?+",
    ]
    if with_sets:
        few = simple + b"{0,%d}+" % FEW_IN_ONE
        small += [rb"\x8f\x94?+(?:\(" + few + rb"\x90)?+", rb"\(" + few + rb"\x91"]
    # Of texts and values.  What is above a text in a group of pairs stays there, whatever comes.
    in_pairs = b"(?:" + text + _any([*simples, *small, rb"\)"]) + b")++"
    groups = [in_pairs, number + b"++" + simple + b"*+[et]"]
    if with_sets:
        groups.insert(0, text + b"++" + any_of(_SETS))
    in_tuple = _any([rb"[aut\x85\x86\x87]", number + _any([rb"[\x86\x87]", number + rb"\x87"]), text + rb"[\x86\x87]"])
    harmless = [
        any_of(b"N\x88\x89)\x94aeRu\x85\x86\x87t\x81\x92\x93b") + b"++",
        *small,
        rb"\((?:" + b"|".join(groups) + b")?+",
        text,
        number + in_tuple,
        LARGE_INTEGER,  # counted when it is hashed, as tuples are
        rb"[01](?!\x94)",
    ]
    if not with_sets:
        harmless.append(b"\x8f")
    rest = _any([b"(" + number + b"|s)", b"(.)", rb"\Z"])
    return re.compile(_any(harmless) + b"*+" + rest, re.DOTALL)


def _any(patterns: Iterable[bytes]) -> bytes:
    return b"(?:" + b"|".join(patterns) + b")"


def may_have_many(data: bytes, runs: array[int]) -> Generator[None, None, bool]:
    """Return whether *data*, which has these *runs*, may store more than a few numbers as keys.

    Yields after each `SLICE` or so.
    """
    if sum(map(data.count, (b"K", b"M", b"J", b"G", b"\x8a"))) <= FEW_KEYS:
        return False
    find_pieces = _pieces(any(data.count(opcode) for opcode in (b"\x90", b"\x91"))).finditer
    count = 0
    for opcodes in _without_long_arguments(data, runs):
        for piece in find_pieces(opcodes):
            if piece.lastindex == _STRANGE:
                return True
            count += piece.lastindex is not None
            if count > FEW_KEYS:
                return True
        yield
    return False


def _without_long_arguments(data: bytes, runs: array[int]) -> Iterator[bytes]:
    """Yield what is in *runs*, and placeholders for what is between them, a `SLICE` or so at a time."""
    kept, size = [], 0
    for start, end, is_run in parts(data, runs):
        kept.append(data[start:end] if is_run else _PLACEHOLDER)
        size += len(kept[-1])
        if size >= SLICE or len(kept) >= SLICE // 4:
            yield b"".join(kept)
            kept, size = [], 0
    yield b"".join(kept)
