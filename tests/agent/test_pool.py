"""The broker's side of a worker: what it hands it, and what it may take back of that."""

import socket
from collections.abc import Iterator

import pytest

from trickle._agent import pool
from trickle._wire.frames import Call, Decoder, Modules

pytestmark = pytest.mark.skipif(not pool.LINUX, reason="sockets with messages, of which each has one taker")


@pytest.fixture
def worker() -> Iterator[pool.Worker]:
    """A worker of which there is only the link."""
    worker = pool.Worker(1, "agent")
    ours, theirs = socket.socketpair(socket.AF_UNIX, pool.LINK_KIND)
    with ours, theirs:
        worker.link, worker.theirs = ours, theirs
        ours.setblocking(False)
        yield worker


def taken_by(worker: pool.Worker) -> object:
    """What the worker's process takes from its link next."""
    assert worker.theirs is not None
    (frame,) = Decoder().feed(worker.theirs.recv(pool.READ_SIZE))
    return frame


def test_what_a_worker_has_taken_is_not_taken_back(worker: pool.Worker) -> None:
    for id in (1, 2, 3):
        assert worker.give_ahead(Call(id))

    assert taken_by(worker) == Call(1)
    assert worker.take_back() == {2, 3}
    assert worker.take_back() == set()


def test_nothing_but_calls_is_taken_back(worker: pool.Worker) -> None:
    worker.give_bundles([b"a bundle"])

    assert not worker.can_be_given_ahead
    assert worker.take_back() == set()
    assert taken_by(worker) == Modules(0, 1, 0, b"a bundle")


@pytest.mark.parametrize("character", ["x", "é", "€", "😀"])
def test_a_long_line_is_cut_between_characters(character: str) -> None:
    lines = pool.Lines(1)
    text = "ab" + character * (3 * pool.LINE) + "\n"

    blocks = [
        block
        for start in range(0, len(text.encode()), 5000)
        for block in lines.feed(text.encode()[start : start + 5000])
    ]

    assert "".join(block.decode() for block in blocks) == text
    assert all(len(block) <= pool.LINE for block in blocks)


def test_what_is_no_text_is_cut_all_the_same() -> None:
    blocks = pool.Lines(1).feed(b"\x80" * (2 * pool.LINE))

    assert [len(block) for block in blocks] == [pool.LINE]
