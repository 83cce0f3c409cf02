"""Names of many hosts by a pattern: all that it stands for.

Both ends have it: a module that is sent over there may name its hosts at its top level.
"""

import itertools
import re
from collections import Counter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator, List, Match

MOST_NAMES = 100_000  # that one pattern may stand for: "[1-1000000000]" is a slip

_PIECES = re.compile(r"\[([^\[\]]*)\]|([^\[\]]+)")
_RANGE = re.compile(r"([0-9]+)-([0-9]+)")
_WORD = re.compile(r"[A-Za-z0-9_.-]+")
_SLIP = re.compile(r"-.*|.*-|[A-Za-z]-[A-Za-z]")  # "1-", or "a-c": letters have no ranges


def hosts(pattern: str) -> "List[str]":
    """The names that a pattern stands for: ``"web[01-03].example.com"`` is web01, web02 and web03.example.com.

    In brackets stand numbers, words and ranges of numbers, with commas between them: ``"[1-3,7]"``, ``"db-[eu,us]"``.
    A range keeps the zeros that its first number begins with; letters have no ranges.  Several brackets give every
    combination.  Commas outside of brackets separate patterns.  A name without brackets, such as an alias of your
    ssh_config, stays what it is.

    Raises:
      ValueError: it is no such pattern, names a host twice, or stands for more than 100,000.
    """
    names: "List[str]" = []
    for part in _split(pattern):
        choices = [list(_choices(pattern, match)) for match in _pieces(pattern, part)]
        total = len(names)
        for each in choices:
            total = max(total, 1) * len(each)
        if total > MOST_NAMES:
            raise ValueError(f"{pattern!r} stands for more than {MOST_NAMES:,} hosts")
        names += ["".join(words) for words in itertools.product(*choices)]
    (name, count), *_ = Counter(names).most_common(1)
    if count > 1:
        raise ValueError(f"{pattern!r} names {name!r} twice")
    return names


def _split(pattern: str) -> "List[str]":
    """The parts between commas that are outside of brackets."""
    parts = [part.strip() for part in re.split(r",(?![^\[\]]*\])", pattern)]
    if not all(parts):
        raise ValueError(f"{pattern!r}: a name is missing")
    return parts


def _pieces(pattern: str, part: str) -> "Iterator[Match[str]]":
    position = 0
    for match in _PIECES.finditer(part):
        if match.start() != position:
            break
        position = match.end()
        yield match
    if position != len(part):
        raise ValueError(f"{pattern!r}: a bracket is not closed, or one too many is")


def _choices(pattern: str, piece: "Match[str]") -> "Iterator[str]":
    """What may stand in the place of one piece."""
    if piece[2] is not None:
        yield piece[2]
        return
    for word in piece[1].split(","):
        numbers = _RANGE.fullmatch(word)
        if numbers is None:
            if not _WORD.fullmatch(word) or _SLIP.fullmatch(word):
                raise ValueError(f"{pattern!r}: {word!r} is not a number, a word, or a range such as 01-20")
            yield word
            continue
        first, last = int(numbers[1]), int(numbers[2])
        if first > last:
            raise ValueError(f"{pattern!r}: the range {word} goes backwards")
        if last - first >= MOST_NAMES:
            raise ValueError(f"{pattern!r} stands for more than {MOST_NAMES:,} hosts")
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        yield from (f"{number:0{width}}" for number in range(first, last + 1))
