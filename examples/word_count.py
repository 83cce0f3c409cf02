"""Spread many small jobs over a few hosts, one of which hangs: its item is given to another as well.

Counting words may be done twice without harm, and so the calls are ``repeatable``.
"""

import time
from collections import Counter

import trio

import trickle
import trickle.remote

CHAPTERS = ["to be or not to be", "that is the question", "to sleep perchance to dream", "and by a sleep to say"] * 5


def count(text: str) -> "dict[str, int]":
    """Runs over there, on any Python from 3.6 on."""
    if trickle.remote.host_name == "cedar":
        time.sleep(3600)
    words = text.split()
    return {word: words.count(word) for word in words}


async def main() -> None:
    words: Counter[str] = Counter()
    async with trickle.open_group(trickle.Local(name) for name in ("amber", "birch", "cedar")) as group:
        view = group.options(repeatable=True, retries=2, hedge=2, timeout=60)
        async with view.map(count, CHAPTERS) as results:
            async for index, _, host, outcome in results:
                match outcome:
                    case trickle.Success(counts):
                        words.update(counts)
                    case trickle.Failure(error):
                        print(f"chapter {index} on {host}: {error}")
    ((word, number),) = words.most_common(1)
    print(f"{word!r}: {number} of {words.total()} words")


if __name__ == "__main__":
    trio.run(main)
