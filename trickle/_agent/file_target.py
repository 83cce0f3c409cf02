"""The side of a transfer that writes: says what is there already, and puts in place what comes."""

import errno
import hashlib
import os
import stat
import sys

from trickle import remote
from trickle._agent import file_writing, files
from trickle._agent.file_writing import Writing
from trickle._agent.files import COMMIT, DATA, DIRECTORY, FILE, HOLE, LINK, OPEN, SAME, UNCHANGED, WHOLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Set, Tuple

    from trickle._agent.files import Entry, Op

ENTRY_SIZE = 200  # bytes that one takes in a list, without its names
LIST_SIZE = 16 * 2**20  # that a list may take where there is a max_size, and as much again as that


class Target:
    """A place that a file or tree is written to.

    Args:
      path: the place itself, not what it is in.
      options: ``mode``, ``preserve``, ``fsync`` and ``resume`` of the transfer; with ``set_id`` false, files do not
        get the rights of their owners and groups to whoever runs them.
      where: which end this is, for error messages.
      check: called between blocks; what it raises ends the writing.

    Attributes:
      total: bytes of all the files that were listed so far.
      listed: bytes that the list of them takes, about.
    """

    def __init__(
        self,
        path: bytes,
        options: "Dict[str, Any]",
        where: str = "",
        check: "Callable[[], object]" = remote.check_cancelled,
    ) -> None:
        self.path = path
        self.options = options
        self.where = where
        self.check = check
        self.entries: "List[Entry]" = []
        self.total = 0
        self.listed = 0
        self._skipped: "List[bytes]" = []
        self._sums: "List[Tuple[bytes, bytes]]" = []
        self._received = 0
        self._come = 0  # bytes of contents, holes and what was there already included
        self._size = 0
        self._writing: "Optional[Writing]" = None
        self._newest = -1  # the number of the last file that came
        self._to_come = 0  # files
        self._parts: "Dict[int, int]" = {}  # what is gone on with: descriptors, by the number of the entry
        self._is_root = os.geteuid() == 0
        self._new_mode = -1
        self._directories: "Set[bytes]" = set()
        self._leftovers: "Dict[bytes, Dict[bytes, List[bytes]]]" = {}  # by directory

    def _doing(self, what: str, path: bytes) -> files.Doing:
        return files.Doing(what, path, self.where, files.WRITING)

    def _at(self, below: bytes) -> bytes:
        return os.path.join(self.path, below) if below else self.path

    # ---- what is there

    def have(self, entries: "List[Entry]") -> "List[Optional[bytes]]":
        """Make directories and links, and say what is there of each file: hashes of its blocks, or None."""
        return [self._have_one(entry) for entry in entries]

    def _have_one(self, entry: "Entry") -> "Optional[bytes]":
        if not is_entry(entry) or bool(self.entries) != bool(entry[0]) or (entry[1] == LINK and not entry[0]):
            raise ValueError("an entry that no source of ours lists: %r" % (entry,))
        below, kind, size = entry[:3]
        if below and os.path.dirname(below) not in self._directories:
            raise ValueError("an entry in a directory that was not listed: %r" % (entry,))
        self.check()
        number = len(self.entries)
        self.entries.append(entry)
        path = self._at(below)
        self.listed += ENTRY_SIZE + len(below) + len(entry[5])
        self._check_size(self.listed - LIST_SIZE, path, "a list of files, beyond %d bytes: " % LIST_SIZE)
        if kind == DIRECTORY:
            with self._doing("this directory was made", path):
                self._make_directory(below, path, entry)
            return None
        self._sweep(path)
        if kind == LINK:
            with self._doing("this link was made", path):
                self._make_link(path, entry)
            return None
        self.total += max(size, 0)
        self._check_size(self.total, path)
        self._to_come += 1
        with self._doing("what is there was compared", path):
            return self._hashes_for(number, path, size)

    def _make_directory(self, below: bytes, path: bytes, entry: "Entry") -> None:
        if os.path.islink(path) and below:
            raise NotADirectoryError(20, "a directory is to go where a link is", os.fsdecode(path))
        if not os.path.isdir(path):
            # Never more open than it will be; and so that it can be written to.
            os.mkdir(path, (entry[3] | 0o700) & 0o777 if self.options["preserve"] and entry[3] >= 0 else 0o777)
            self._leftovers[os.path.abspath(path)] = {}
        self._directories.add(below)

    def _make_link(self, path: bytes, entry: "Entry") -> None:
        try:
            if os.readlink(path) == entry[5]:
                self._dress(path, entry)
                return
        except OSError:
            pass  # there is something else, or nothing
        while not self._put_link(path, entry):
            pass

    def _put_link(self, path: bytes, entry: "Entry") -> bool:
        """False if another transfer to that place came between."""
        directory, name = os.path.split(path)
        temporary = os.path.join(directory, file_writing.stem(name) + file_writing.random_tail())
        made = False
        try:
            os.symlink(entry[5], temporary)
            made = True
            self._dress(temporary, entry)
            os.replace(temporary, path)
        except BaseException as exc:
            if isinstance(exc, FileNotFoundError if made else FileExistsError):
                return False  # it was swept away; or is another's
            file_writing.remove(temporary)
            raise
        return True

    def _sweep(self, path: bytes) -> None:
        """Remove what transfers to this place have left that were killed."""
        directory, name = os.path.split(os.path.abspath(path))
        if directory not in self._leftovers:
            self._leftovers[directory] = file_writing.leftovers_in(directory)
        for leftover in self._leftovers[directory].get(file_writing.stem(name), ()):
            if not (self.options["resume"] and leftover.endswith(file_writing.PART)):
                file_writing.remove_dead(leftover)

    def _hashes_for(self, number: int, path: bytes, size: int) -> "Optional[bytes]":
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            if path.endswith(b"/"):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fsdecode(path)) from None
            if not self.options["resume"]:
                return None
            mode = stat.S_IFREG
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(21, "a file is to go where a directory is", os.fsdecode(path))
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise FileExistsError(17, "a file is to go where a device, pipe or socket is", os.fsdecode(path))
        if size < 0:
            return None  # it cannot be compared by its source
        part = file_writing.open_part(path, create=False) if self.options["resume"] else None
        if part is not None:
            self._parts[number] = part
            return self._hashes(part, size)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            found = os.fstat(fd).st_size
            return self._hashes(fd, size) if found == size or (found and size > files.BLOCK) else None
        finally:
            os.close(fd)

    def _hashes(self, fd: int, size: int) -> bytes:
        """Of the blocks of a file."""
        block = files.block_size(size)
        hashes: "List[bytes]" = []
        with open(fd, "rb", 0, closefd=False) as file:
            while True:
                self.check()
                data = files.read_all(file, block)
                if not data:
                    os.lseek(fd, 0, os.SEEK_SET)
                    return b"".join(hashes)
                hashes.append(files.block_hash(data))

    def _check_size(self, size: int, path: bytes, of: str = "") -> None:
        most = self.options.get("max_size")
        if most is not None and size > most:
            text = "%s%d bytes or more, and max_size allows %d%s" % (of, size, most, self.where)
            raise OSError(errno.EFBIG, text, os.fsdecode(path))

    # ---- what comes

    def write(self, ops: "List[Op]") -> None:
        """Do what a Source says."""
        for op in ops:
            kind = op[0]
            if kind in (WHOLE, DATA, SAME, HOLE):
                self._come += len(op[-1]) if kind in files.WITH_CONTENTS else op[1]
                self._check_size(self._come, self.path)
            if kind == WHOLE:
                self._begin(op[1], whole=True)
                self._add(op[3])
                self._commit(_digest(op[2]))
            elif kind == OPEN:
                self._begin(op[1])
            elif kind == DATA:
                self._add(op[1])
            elif kind == SAME:
                with self._doing("it was written", self._open_one.path):
                    self._open_one.copy(op[1])
            elif kind == HOLE:
                with self._doing("it was written", self._open_one.path):
                    self._open_one.skip(op[1])
            elif kind == COMMIT:
                self._commit(_digest(op[1]))
            elif kind == UNCHANGED:
                self._leave(op[1])
            else:
                raise ValueError("what no source of ours says: %r" % (kind,))

    @property
    def _open_one(self) -> Writing:
        if self._writing is None:
            raise ValueError("contents of no file")
        return self._writing

    def _add(self, data: bytes) -> None:
        self.check()
        with self._doing("it was written", self._open_one.path):
            self._open_one.add(data)
        self._received += len(data)

    def _file_entry(self, number: int) -> "Entry":
        if number <= self._newest or self.entries[number][1] != FILE or self._writing is not None:
            raise ValueError("contents of something else than the next file")
        self._newest = number
        self._to_come -= 1
        return self.entries[number]

    def _begin(self, number: int, *, whole: bool = False) -> None:
        entry = self._file_entry(number)
        path = self._at(entry[0])
        part = self._parts.pop(number, None)
        self._writing = Writing(path, entry, part, bool(self.options["resume"]), self.where, self.check)
        with self._doing("a file was made beside it", path):
            self._writing.open(whole=whole)

    def _commit(self, digest: "Optional[bytes]") -> None:
        writing = self._open_one
        with self._doing("it was given its mode, owner and time", writing.path):
            digest = writing.check_sum(digest)
            self._dress(writing.fd, writing.entry, writing.path)
        with self._doing("it was moved to its place", writing.path):
            writing.move(self.options["fsync"])
        self._writing = None
        self._size += writing.size
        self._sums.append((writing.entry[0], digest))

    def _leave(self, number: int) -> None:
        """It is there already: only what is about it may differ."""
        if number in self._parts:  # all of it has come, but the move to its place had not
            size = os.fstat(self._parts[number]).st_size
            self._begin(number)
            self._open_one.copy(size)
            self._commit(None)
            return
        entry = self._file_entry(number)
        path = self._at(entry[0])
        checksum = hashlib.sha256()
        with self._doing("it was given its mode, owner and time", path):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(fd, "rb", 0) as file:
                for data in iter(lambda: file.read(files.BATCH), b""):
                    self.check()
                    checksum.update(data)
                self._dress(fd, entry)
                if self.options["fsync"]:
                    os.fsync(fd)
        self._size += entry[2]
        self._skipped.append(entry[0])
        self._sums.append((entry[0], checksum.digest()))

    def _dress(self, what: "Any", entry: "Entry", path: "Optional[bytes]" = None) -> None:
        """Give a file, a link or a directory its mode, owner and time.

        A file that is to go to *path* gets the mode of what is there where none is given or kept.
        What is right is left alone: to set it may not be allowed.
        """
        _, kind, _, mode, mtime, _, uid, gid = entry
        if not self.options.get("set_id", True) and mode >= 0:
            mode &= 0o1777
        follow: "Dict[str, Any]" = {} if isinstance(what, int) else {"follow_symlinks": kind != LINK}
        found = os.stat(what, **follow)
        is_mode, has_time = stat.S_IMODE(found.st_mode), mode >= 0
        if self.options["preserve"] and self._is_root and uid >= 0 and (found.st_uid, found.st_gid) != (uid, gid):
            os.chown(what, uid, gid, **follow)
            is_mode = -1  # that may have changed it
        if kind == FILE and self.options["mode"] is not None:
            mode = self.options["mode"]
        elif not self.options["preserve"] or mode < 0:
            mode = self._mode_for(path) if path is not None else -1
        if kind != LINK and mode not in (-1, is_mode):
            os.chmod(what, mode)
        if self.options["preserve"] and has_time and found.st_mtime_ns != mtime:
            os.utime(what, ns=(mtime, mtime), **follow)

    def _mode_for(self, path: bytes) -> int:
        """The mode of the file that is there, or what a new one gets."""
        try:
            found = os.lstat(path).st_mode
            if stat.S_ISREG(found):
                return stat.S_IMODE(found)
        except OSError:
            pass
        if self._new_mode < 0:
            self._new_mode = 0o666 & ~umask()
        return self._new_mode

    # ---- the end

    def finish(self) -> "Dict[str, Any]":
        """Directories last: what was written into them has changed their times.  Returns what was done."""
        if self._writing is not None or self._to_come:
            raise ValueError("the contents are not complete")
        for entry in reversed(self.entries):
            if entry[1] == DIRECTORY:
                path = self._at(entry[0])
                with self._doing("this directory was given its mode, owner and time", path):
                    self._dress(path, entry)
                    if self.options["fsync"]:
                        file_writing.sync_directory(path)
        if self.options["fsync"] and self.entries and (self.entries[0][1] == DIRECTORY or self._skipped):
            with self._doing("its name was written to the disk", self.path):
                file_writing.sync_directory(os.path.dirname(os.path.abspath(self.path)))
        return {
            "path": self.path,
            "size": self._size,
            "checksum": files.checksum_of(self._sums),
            "sent": self._received,
            "skipped": self._skipped,
        }

    def abandon(self) -> None:
        """Leave nothing that is not complete, but for what a later transfer resumes."""
        if self._writing is not None:
            self._writing.abandon()
            self._writing = None
        while self._parts:
            os.close(self._parts.popitem()[1])


def _digest(said: "Any") -> bytes:
    if type(said) is not bytes:
        raise ValueError("a checksum of type %s" % type(said).__name__)
    return said


def is_entry(entry: "Any") -> bool:
    """Whether a source of ours may have listed that."""
    if not isinstance(entry, tuple) or tuple(map(type, entry)) != (bytes, str, int, int, int, bytes, int, int):
        return False
    below, kind, size, mode, mtime, link, uid, gid = entry
    return (
        is_safe(below)
        and kind in (FILE, DIRECTORY, LINK)
        and -1 <= size < 2**63
        and -1 <= mode < 0o10000
        and abs(mtime) < 2**63 * 10**9  # what has gone wrong with a clock is kept too
        and b"\0" not in link
        and -1 <= uid < 2**32
        and -1 <= gid < 2**32
    )


def is_safe(below: bytes) -> bool:
    """Whether a path leads to something below the top, and nowhere else."""
    if not isinstance(below, bytes) or b"\0" in below:
        return False
    return below == b"" or all(part not in (b"", b".", b"..") for part in below.split(b"/"))


def umask() -> int:
    """What new files are not allowed.  Asking the system means setting it, which other threads would feel."""
    if sys.platform.startswith("linux"):
        try:
            with open("/proc/self/status") as file:
                for line in file:
                    if line.startswith("Umask:"):  # Linux 4.7
                        return int(line.split()[1], 8)
        except OSError:
            pass
    mask = os.umask(0o77)
    os.umask(mask)
    return mask


def receive(messages: files.Messages, path: bytes, options: "Dict[str, Any]") -> "Dict[str, Any]":
    """Be the far end of ``put``."""
    target = Target(path, options)
    try:
        while True:
            try:
                (what, value), contents = messages.receive()
            except EOFError:
                return target.finish()
            if what == "list":
                messages.send(target.have(value), [])
            else:
                target.write(files.put_contents(value, contents))
    finally:
        target.abandon()
