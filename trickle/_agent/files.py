"""What both sides of a transfer share: the words that they say to each other, names, hashes, and how errors are told.

A Source (file_source.py) lists what there is; a Target (file_target.py) says what it has of that; the Source then
gives what is missing, and the Target puts each file together beside its place and moves it there when its checksum is
right.  Either may be at either end.  How all this gets there is channels.py's and _files.py's business.
"""

import errno
import hashlib
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Tuple

    # Path below the top (b"" is the top itself), kind, size, mode, mtime in ns, target of a link, uid, gid.
    # Size -1: not known; mode, mtime, uid or gid -1: there is none to keep.
    Entry = Tuple[bytes, str, int, int, int, bytes, int, int]
    Op = Tuple[Any, ...]

BLOCK = 128 * 1024  # bytes that are compared, and sent again if they differ; more of files that have too many of them
MOST_BLOCKS = 2**20  # of one file: what is told of them takes 16 MiB
BATCH = 256 * 1024  # bytes of contents in one message
LISTED = 1000  # entries in one message
DIGEST = 16  # bytes of a block's hash
FILE, DIRECTORY, LINK, OTHER = "file", "directory", "link", "other"
# What a Source gives for the file with a number: all of it in one, or piece by piece.
WHOLE, OPEN, DATA, SAME, HOLE, COMMIT, UNCHANGED = range(7)


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
    errno.ELOOP: "a link was put in its place meanwhile",
    errno.ENXIO: "something else was put in its place meanwhile",
}


def serve(channel: "Any", verb: str, path: bytes, options: "Dict[str, Any]") -> "Any":
    """The far end of a transfer: the target of ``put``, the source of ``fetch``."""
    path = os.path.expanduser(path)
    if verb == "put":
        from trickle._agent import file_target

        return file_target.receive(channel, path, options)
    from trickle._agent import file_source

    return file_source.send(channel, path)
