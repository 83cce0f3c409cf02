"""What both sides of a transfer share: the words that they say to each other, names, hashes, and how errors are told.

A Source (file_source.py) lists what there is; a Target (file_target.py) says what it has of that; the Source then
gives what is missing, and the Target puts each file together beside its place and moves it there when its checksum is
right.  Either may be at either end.  How all this gets there is channels.py's and _files.py's business.
"""

import errno
import hashlib
import os
import pickle

from trickle._wire.frames import CHUNK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Tuple

    # Path below the top (b"" is the top itself), kind, size, mode, mtime in ns, target of a link, uid, gid.
    # Size -1: not known; mode, mtime, uid or gid -1: there is none to keep.
    Entry = Tuple[bytes, str, int, int, int, bytes, int, int]
    Op = Tuple[Any, ...]

BLOCK = 128 * 1024  # bytes that are compared, and sent again if they differ; more of files that have too many of them
MOST_BLOCKS = 2**20  # of one file: what is told of them takes 16 MiB
# Bytes of contents in one message, with what is said of them eight frames: fewer take more turns, more are no faster.
BATCH = 8 * CHUNK - 4096
LISTED = 1000  # entries in one message
DIGEST = 16  # bytes of a block's hash
FILE, DIRECTORY, LINK, OTHER = "file", "directory", "link", "other"
# What a Source gives for the file with a number: all of it in one, or piece by piece.
WHOLE, OPEN, DATA, SAME, HOLE, COMMIT, UNCHANGED = range(7)
WITH_CONTENTS = (WHOLE, DATA)  # which are the last of what they say


def block_size(size: int) -> int:
    """Bytes of the blocks that a file of *size* bytes is compared by."""
    block = BLOCK
    while size > block * MOST_BLOCKS:
        block *= 2
    return block


def block_hash(data: bytes) -> bytes:
    """What tells blocks apart.  It need not be proof against malice: the checksum of the whole file is."""
    return hashlib.sha256(data).digest()[:DIGEST]


def checksum_of(sums: "List[Tuple[bytes, bytes]]") -> str:
    """The SHA-256 of a file; of a tree, that of the lines of ``sha256sum``."""
    import binascii

    if [path for path, _ in sums] == [b""]:
        return binascii.hexlify(sums[0][1]).decode()
    lines = hashlib.sha256()
    for path, digest in sorted(sums):
        lines.update(binascii.hexlify(digest) + b"  " + path + b"\n")
    return lines.hexdigest()


def add_zeros(checksum: "Any", size: int, check: "Any") -> None:
    """Tell a checksum of a hole."""
    zeros = bytes(min(size, BATCH))
    while size:
        check()
        checksum.update(zeros[:size])
        size -= min(size, len(zeros))


def read_all(file: "Any", size: int) -> bytes:
    """So many bytes, unless the file ends before."""
    data: bytes = file.read(size)
    while len(data) < size:
        more = file.read(size - len(data))
        if not more:
            break
        data += more
    return data


# ---- errors


class Doing:
    """Has an OSError of the block say what was being done, to what, where, and what to try.

    Args:
      what: "while ..." is what it says.
      path: of the file or directory.
      where: which end it is, for people.
      advice: what to try, by errno.
    """

    def __init__(self, what: str, path: bytes, where: str, advice: "Dict[int, str]") -> None:
        self.what = what
        self.path = path
        self.where = where
        self.advice = advice

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: "Any", exc: "Any", traceback: "Any") -> None:
        if isinstance(exc, OSError) and exc.errno is not None:
            text = "%s, while %s%s" % (exc.strerror, self.what, self.where)
            if exc.errno in self.advice:
                text += "; " + self.advice[exc.errno].format(uid=os.geteuid())
            raise OSError(exc.errno, text, os.fsdecode(self.path)) from exc  # of the class that fits the errno


NO_ROOM = "make room there: a file is put together beside the old one, which is left until the new one is complete"
NOT_ALLOWED = "user {uid} may not: see the permissions of the directory, or use another user, as with Sudo"
WRITING = {
    errno.ENOSPC: NO_ROOM,
    errno.EDQUOT: NO_ROOM,
    errno.EACCES: NOT_ALLOWED,
    errno.EPERM: NOT_ALLOWED,
    errno.EROFS: "nothing can be written to that file system",
    errno.ENOENT: "the directory to put it in has to be there first",
    errno.EISDIR: "name the file itself, not the directory to put it in",
    errno.ENOTDIR: "a part of that path is no directory",
    errno.ENAMETOOLONG: "what is put together there has a longer name than the target",
    errno.EFBIG: "that file system, or a limit of that user, does not allow so large a file",
}
READING = {
    errno.EACCES: "user {uid} may not: see its permissions, or use another user, as with Sudo",
    errno.EPERM: "user {uid} may not: see its permissions, or use another user, as with Sudo",
    errno.ENOENT: "it is not there, or was removed meanwhile",
    errno.ELOOP: "it is a link that leads to itself, or one was put in its place meanwhile",
    errno.ENXIO: "something else was put in its place meanwhile",
}


# ---- messages: something pickled, and behind it the contents that it speaks of


def message(head: bytes, contents: "List[bytes]") -> "List[bytes]":
    """The pieces of one."""
    return [len(head).to_bytes(4, "big"), head, *contents]


def split_message(data: bytes) -> "Tuple[bytes, memoryview]":
    """What is pickled of one, and the contents.

    Raises:
      ValueError: it is no message.
    """
    end = 4 + int.from_bytes(data[:4], "big")
    if not 4 < end <= len(data):
        raise ValueError("a message of %d bytes that ends before it has begun" % len(data))
    return data[4:end], memoryview(data)[end:]


def take_contents(ops: "List[Op]") -> "Tuple[List[Op], List[bytes]]":
    """The same with the sizes of the contents instead of them, and the contents."""
    contents = [op[-1] for op in ops if op[0] in WITH_CONTENTS]
    return [(*op[:-1], len(op[-1])) if op[0] in WITH_CONTENTS else op for op in ops], contents


def put_contents(ops: "List[Op]", contents: memoryview) -> "List[Op]":
    """The reverse.

    Raises:
      ValueError: they do not fit.
    """
    found: "List[Op]" = []
    start = 0
    for op in ops:
        if op[0] in WITH_CONTENTS:
            end = start + op[-1]
            if not start <= end <= len(contents):
                raise ValueError("%r bytes of %d" % (op[-1], len(contents) - start))
            op = (*op[:-1], contents[start:end])
            start = end
        found.append(op)
    if start != len(contents):
        raise ValueError("%d bytes of contents too many" % (len(contents) - start))
    return found


class Messages:
    """What goes to the other side and comes from it, at the far end of a channel."""

    def __init__(self, channel: "Any") -> None:
        self._channel = channel

    def send(self, value: "Any", contents: "List[bytes]") -> None:
        from trickle._agent import results

        self._channel.send_payload(*message(results.dumps_result(value), contents))

    def receive(self) -> "Tuple[Any, memoryview]":
        """Raises EOFError at the end."""
        head, contents = split_message(self._channel.receive_payload())
        return pickle.loads(head), contents


def serve(channel: "Any", verb: str, path: bytes, options: "Dict[str, Any]") -> "Any":
    """The far end of a transfer: the target of ``put``, the source of ``fetch``."""
    path = os.path.expanduser(path)
    if verb == "put":
        from trickle._agent import file_target

        return file_target.receive(Messages(channel), path, options)
    from trickle._agent import file_source

    return file_source.send(Messages(channel), path)
