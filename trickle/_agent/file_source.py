"""The side of a transfer that reads: lists a file or a tree, and gives what the other side lacks of it."""

import errno
import hashlib
import io
import os
import stat

from trickle import remote
from trickle._agent import files
from trickle._agent.files import BATCH, COMMIT, DATA, DIRECTORY, FILE, HOLE, LINK, OPEN, OTHER, SAME, UNCHANGED, WHOLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

    from trickle._agent.files import Entry, Op


COPIED_WHILE_SENT = 16  # bytes, about, that a target copies in the time that one byte takes to it


class Source:
    """A file or tree that is read.

    Args:
      path: where it is.
      where: which end this is, for error messages.
      check: called between blocks; what it raises ends the reading.

    Attributes:
      total: bytes of all the files that were listed so far.
      special: paths of what is neither file, directory nor link.
    """

    def __init__(self, path: bytes, where: str = "", check: "Callable[[], object]" = remote.check_cancelled) -> None:
        self.path = path
        self.where = where
        self.check = check
        self.entries: "List[Entry]" = []
        self.special: "List[bytes]" = []
        self.total = 0

    # ---- what there is

    def listing(self) -> "Iterator[List[Entry]]":
        """What there is, directories before what is in them."""
        batch: "List[Entry]" = []
        blocks = 0  # of which the answer may bring a hash
        for entry in self._walk():
            if entry[1] == OTHER:
                self.special.append(entry[0])
                continue
            self.entries.append(entry)
            self.total += entry[2]
            batch.append(entry)
            blocks += entry[2] // files.block_size(entry[2])
            if len(batch) == files.LISTED or blocks >= files.MOST_BLOCKS:
                yield batch
                batch, blocks = [], 0
        yield batch

    def _walk(self) -> "Iterator[Entry]":
        waiting = [b""]
        while waiting:
            self.check()
            below = waiting.pop()
            path = self._at(below)
            with self._doing("it was listed", path):
                # The top may be a link: to what is meant.
                entry = self._entry(below, os.lstat(path) if below else os.stat(path))
                names = self._names_in(path, below) if entry[1] == DIRECTORY else []
            if entry[1] == OTHER and not below:
                raise OSError("%r is neither a file nor a directory%s" % (os.fsdecode(path), self.where))
            yield entry
            waiting.extend(os.path.join(below, name) for name in sorted(names, reverse=True))

    def _names_in(self, path: bytes, below: bytes) -> "List[bytes]":
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | (os.O_NOFOLLOW if below else 0))
        try:
            return [os.fsencode(name) for name in os.listdir(fd)]
        finally:
            os.close(fd)

    def _entry(self, below: bytes, found: os.stat_result) -> "Entry":
        kind, size, target = OTHER, 0, b""
        if stat.S_ISREG(found.st_mode):
            kind, size = FILE, found.st_size
        elif stat.S_ISDIR(found.st_mode):
            kind = DIRECTORY
        elif stat.S_ISLNK(found.st_mode):
            kind, target = LINK, os.readlink(self._at(below))
        mode = stat.S_IMODE(found.st_mode)
        return below, kind, size, mode, found.st_mtime_ns, target, found.st_uid, found.st_gid

    def _at(self, below: bytes) -> bytes:
        return os.path.join(self.path, below) if below else self.path

    def _doing(self, what: str, path: bytes) -> files.Doing:
        return files.Doing(what, path, self.where, files.READING)

    # ---- what is in it

    def contents(self, had: "Dict[int, Optional[bytes]]") -> "Iterator[List[Op]]":
        """What the target lacks, in messages of some BATCH bytes.

        Args:
          had: for the number of an entry, the hashes of the blocks that the target has of it; None: nothing.
        """
        ops: "List[Op]" = []
        weight = 0
        for number, entry in enumerate(self.entries):
            if entry[1] != FILE:
                continue
            for op in self._file(number, entry, had.get(number)):
                ops.append(op)
                weight += len(op[-1]) if isinstance(op[-1], bytes) else 64
                if op[0] == SAME:
                    weight += op[1] // COPIED_WHILE_SENT  # for the target to copy while more is compared
                if weight >= BATCH:
                    yield ops
                    ops, weight = [], 0
        yield ops

    def _file(self, number: int, entry: "Entry", had: "Optional[bytes]") -> "Iterator[Op]":
        path = self._at(entry[0])
        with self._doing("it was read", path), self._open(path, entry) as file:
            for op in read_file(file, number, entry[2], holes_of(file), had, self.check):
                yield op
            self._refuse_changed(path, entry, os.fstat(file.fileno()))

    def _open(self, path: bytes, entry: "Entry") -> "Any":
        # O_NONBLOCK: the file may have been replaced by a pipe.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (os.O_NOFOLLOW if entry[0] else 0))
        file = open(fd, "rb", 0) if stat.S_ISREG(os.fstat(fd).st_mode) else None
        if file is None:
            os.close(fd)
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        try:
            self._refuse_changed(path, entry, os.fstat(fd))
        except BaseException:
            file.close()
            raise
        return file

    def _refuse_changed(self, path: bytes, entry: "Entry", found: os.stat_result) -> None:
        if (found.st_size, found.st_mtime_ns) != (entry[2], entry[4]):
            raise OSError(
                "%r was changed while it was read%s; transfer it again when nobody writes to it, or a copy of it"
                % (os.fsdecode(path), self.where)
            )


class Given(Source):
    """Contents that are in no file: bytes."""

    def __init__(self, data: bytes, check: "Callable[[], object]" = remote.check_cancelled) -> None:
        super().__init__(b"", check=check)
        self._data = data

    def _walk(self) -> "Iterator[Entry]":
        yield b"", FILE, len(self._data), -1, -1, b"", -1, -1

    def _file(self, number: int, entry: "Entry", had: "Optional[bytes]") -> "Iterator[Op]":
        return read_file(io.BytesIO(self._data), number, entry[2], [], had, self.check)


class Flowing:
    """Contents that are given as they come, of a size that nobody knows."""

    def __init__(self) -> None:
        self.entry: "Entry" = (b"", FILE, -1, -1, -1, b"", -1, -1)
        self._checksum = hashlib.sha256()

    def begin(self) -> "List[Op]":
        return [(OPEN, 0)]

    def add(self, data: bytes) -> "List[Op]":
        self._checksum.update(data)
        return [(DATA, data)]

    def end(self) -> "List[Op]":
        return [(COMMIT, self._checksum.digest())]


def read_file(
    file: "Any",
    number: int,
    size: int,
    holes: "List[Tuple[int, int]]",
    had: "Optional[bytes]",
    check: "Callable[[], object]",
) -> "Iterator[Op]":
    """One file, as far as the target lacks it."""
    if had is None and size <= files.BLOCK:
        data = files.read_all(file, files.BLOCK + 1)
        yield WHOLE, number, hashlib.sha256(data).digest(), data
        return
    checksum = hashlib.sha256()
    if had and holes:  # which are the same where the target has zeros
        if _is_same(file, files.block_size(size), had, check):
            yield UNCHANGED, number
            return
        file.seek(0)
    ops = _pieces(file, size, holes, had or b"", checksum, check)
    same = 0  # bytes, before anything else
    op = next(ops, None)
    while op is not None and op[0] == SAME:
        same += op[1]
        op = next(ops, None)
    blocks = -(-same // files.block_size(size))
    if had is not None and op is None and blocks * files.DIGEST == len(had):
        yield UNCHANGED, number
        return
    yield OPEN, number
    if same:
        yield SAME, same
    while op is not None:
        yield op
        op = next(ops, None)
    yield COMMIT, checksum.digest()


def _is_same(file: "Any", block: int, had: bytes, check: "Callable[[], object]") -> bool:
    for start in range(0, len(had), files.DIGEST):
        check()
        if files.block_hash(files.read_all(file, block)) != had[start : start + files.DIGEST]:
            return False
    return not file.read(1)


def _pieces(
    file: "Any", size: int, holes: "List[Tuple[int, int]]", had: bytes, checksum: "Any", check: "Callable[[], object]"
) -> "Iterator[Op]":
    block = files.block_size(size) if had else BATCH
    holes = holes[::-1]  # the next one is the last
    position = 0
    while True:
        check()
        while holes and holes[-1][1] <= position:
            holes.pop()
        if holes and holes[-1][0] <= position:
            hole = holes[-1][1] - position
            if had and position + hole < size:
                hole -= hole % block  # what is compared begins where the target's blocks do
            if hole:
                files.add_zeros(checksum, hole, check)
                position = file.seek(hole, 1)
                yield HOLE, hole
                continue
        data = files.read_all(file, block)
        if not data:
            return
        checksum.update(data)
        start = position // block * files.DIGEST
        if had and files.block_hash(data) == had[start : start + files.DIGEST]:
            yield SAME, len(data)
        else:
            for op in _around_holes(data, position, holes):
                yield op
        position += len(data)


def _around_holes(data: bytes, position: int, holes: "List[Tuple[int, int]]") -> "Iterator[Op]":
    """*data*, which stands at *position*, as what is stored of it and what is not."""
    start, end = position, position + len(data)
    for hole_start, hole_end in reversed(holes):
        if hole_start >= end:
            break
        if start < hole_start:
            yield DATA, data[start - position : hole_start - position]
        start = max(start, hole_start)
        stop = min(end, hole_end)
        yield HOLE, stop - start
        start = stop
    if start == position:
        yield DATA, data
    elif start < end:
        yield DATA, data[start - position :]


def holes_of(file: "Any") -> "List[Tuple[int, int]]":
    """Where nothing is stored: (start, end)."""
    fd = file.fileno()
    found = os.fstat(fd)
    if found.st_blocks * 512 >= found.st_size or not hasattr(os, "SEEK_HOLE"):
        return []
    holes, position = [], 0
    try:
        while position < found.st_size:
            start = os.lseek(fd, position, os.SEEK_HOLE)
            if start >= found.st_size:
                break
            try:
                position = os.lseek(fd, start, os.SEEK_DATA)
            except OSError:  # no data behind it
                position = found.st_size
            holes.append((start, position))
    except OSError:
        holes = []  # this file system does not know
    os.lseek(fd, 0, 0)
    return holes


def send(messages: files.Messages, path: bytes) -> "Dict[str, Any]":
    """Be the far end of ``fetch``."""
    source = Source(path)
    had: "Dict[int, Optional[bytes]]" = {}
    for batch in source.listing():
        if batch:
            messages.send(("list", batch), [])
            had.update(enumerate(messages.receive()[0], len(had)))
    for ops in source.contents(had):
        if ops:
            ops, contents = files.take_contents(ops)
            messages.send(("write", ops), contents)
    return {"special": source.special}
