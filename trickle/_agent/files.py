"""Read a file or a tree, and write one: both sides of a transfer, either of which may be at either end.

A Source lists what there is; a Target says what it has of that; the Source then gives what is missing, and the Target
puts each file together beside its place and moves it there when its checksum is right.  How all this gets to the
other end is channels.py's and _files.py's business.
"""

import hashlib
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO, Dict, Iterator, List, Optional, Tuple

    # Path below the top (b"" is the top itself), kind, size, mode, mtime in ns, target of a link, uid, gid.
    Entry = Tuple[bytes, str, int, int, int, bytes, int, int]
    Op = Tuple[Any, ...]

BLOCK = 128 * 1024  # bytes that are compared, and sent again if they differ
BATCH = 256 * 1024  # bytes of contents in one message
LISTED = 1000  # entries in one message
DIGEST = 16  # bytes of a block's hash
FILE, DIRECTORY, LINK, OTHER = "file", "directory", "link", "other"
# What a Source gives for the file with a number: all of it in one, or piece by piece.
WHOLE, OPEN, DATA, SAME, HOLE, COMMIT, UNCHANGED = range(7)
MARK = b".trickle-"
PART = MARK + b"part"


def block_hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST).digest()


def temporary_name(name: bytes) -> bytes:
    """Beside the target, for file systems without nameless files."""
    import binascii

    return b"." + name[:200] + MARK + binascii.hexlify(os.urandom(6))


class Source:
    """A file or tree that is read.

    Args:
      path: where it is.
    """

    def __init__(self, path: bytes) -> None:
        self.path = path
        self.entries: "List[Entry]" = []
        self.special: "List[bytes]" = []  # what is neither file, directory nor link
        self.size = 0

    def listing(self) -> "Iterator[List[Entry]]":
        """What there is, directories before what is in them."""
        batch: "List[Entry]" = []
        for entry in self._walk(b"", os.stat(self.path)):  # the top may be a link: to what is meant
            if entry[1] == OTHER:
                self.special.append(entry[0])
                continue
            self.entries.append(entry)
            self.size += entry[2]
            batch.append(entry)
            if len(batch) == LISTED:
                yield batch
                batch = []
        yield batch

    def _walk(self, below: bytes, found: os.stat_result) -> "Iterator[Entry]":
        entry = self._entry(below, found)
        if not below and entry[1] == OTHER:
            raise OSError("%r is neither a file nor a directory" % os.fsdecode(self.path))
        yield entry
        if entry[1] == DIRECTORY:
            for name in sorted(os.listdir(self._at(below))):
                inner = os.path.join(below, name)
                for each in self._walk(inner, os.lstat(self._at(inner))):
                    yield each

    def _at(self, below: bytes) -> bytes:
        return os.path.join(self.path, below) if below else self.path

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

    def contents(self, had: "Dict[int, Optional[List[bytes]]]") -> "Iterator[List[Op]]":
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
                if weight >= BATCH:
                    yield ops
                    ops, weight = [], 0
        yield ops

    def _file(self, number: int, entry: "Entry", had: "Optional[List[bytes]]") -> "Iterator[Op]":
        path = self._at(entry[0])
        with open(path, "rb", 0) as file:
            before = os.fstat(file.fileno())
            if had is not None and before.st_size == entry[2] and self._is_same(file, had):
                yield UNCHANGED, number
                return
            file.seek(0)
            if had is None and before.st_size <= BLOCK:
                data = _read(file, BLOCK + 1)
                yield WHOLE, number, hashlib.sha256(data).digest(), data
            else:
                yield OPEN, number
                checksum = hashlib.sha256()
                for op in self._pieces(file, before, had or [], checksum):
                    yield op
                yield COMMIT, checksum.digest()
            after = os.fstat(file.fileno())
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise OSError("%r was changed while it was read" % os.fsdecode(path))

    def _is_same(self, file: "Any", had: "List[bytes]") -> bool:
        for known in had:
            if block_hash(_read(file, BLOCK)) != known:
                return False
        return not file.read(1)

    def _pieces(self, file: "Any", found: os.stat_result, had: "List[bytes]", checksum: "Any") -> "Iterator[Op]":
        holes = _holes(file, found) if not had else []
        position = 0
        while True:
            if holes and position == holes[0][0]:
                size = holes.pop(0)[1]
                _add_zeros(checksum, size)
                position = file.seek(size, 1)
                yield HOLE, size
                continue
            size = BLOCK if had else BATCH
            if holes:
                size = min(size, holes[0][0] - position)
            data = _read(file, size)
            if not data:
                return
            checksum.update(data)
            number = position // BLOCK
            if number < len(had) and block_hash(data) == had[number]:
                yield SAME, len(data)
            else:
                yield DATA, data
            position += len(data)


def _read(file: "Any", size: int) -> bytes:
    """As much, unless the file ends before."""
    data: bytes = file.read(size)
    while len(data) < size:
        more = file.read(size - len(data))
        if not more:
            break
        data += more
    return data


def _holes(file: "Any", found: os.stat_result) -> "List[Tuple[int, int]]":
    """Where nothing is stored: (start, size)."""
    if found.st_blocks * 512 >= found.st_size or not hasattr(os, "SEEK_HOLE"):
        return []
    holes, position = [], 0
    fd = file.fileno()
    try:
        while position < found.st_size:
            start = os.lseek(fd, position, os.SEEK_HOLE)
            if start >= found.st_size:
                break
            try:
                position = os.lseek(fd, start, os.SEEK_DATA)
            except OSError:  # no data behind it
                position = found.st_size
            holes.append((start, position - start))
    except OSError:
        holes = []  # this file system does not know
    os.lseek(fd, 0, 0)
    return holes


def _add_zeros(checksum: "Any", size: int) -> None:
    zeros = bytes(min(size, BATCH))
    while size:
        checksum.update(zeros[:size])
        size -= min(size, len(zeros))


class Content:
    """A source that is no file here: its bytes are given as they come.

    Args:
      size: how many there are; -1 if that is not known.
    """

    def __init__(self, size: int) -> None:
        self.entry: "Entry" = (b"", FILE, size, -1, -1, b"", -1, -1)
        self.checksum = hashlib.sha256()

    def begin(self) -> "List[Op]":
        return [(OPEN, 0)]

    def add(self, data: bytes) -> "List[Op]":
        self.checksum.update(data)
        return [(DATA, data)]

    def end(self) -> "List[Op]":
        return [(COMMIT, self.checksum.digest())]


class Target:
    """A place that a file or tree is written to.

    Args:
      path: the place itself, not what it is in.
      options: ``mode``, ``preserve``, ``fsync`` and ``resume`` of the transfer.
    """

    def __init__(self, path: bytes, options: "Dict[str, Any]") -> None:
        self.path = path
        self.options = options
        self.entries: "List[Entry]" = []
        self.skipped: "List[bytes]" = []
        self.sums: "List[Tuple[bytes, bytes]]" = []
        self.received = 0
        self.size = 0
        self._open: "Optional[_Writing]" = None
        self._is_root = os.geteuid() == 0
        self._made: "set[bytes]" = set()

    # ---- what is there

    def have(self, entries: "List[Entry]") -> "List[Optional[List[bytes]]]":
        """Make directories and links, and say what is there of each file: hashes of its blocks, or None."""
        return [self._have_one(entry) for entry in entries]

    def _have_one(self, entry: "Entry") -> "Optional[List[bytes]]":
        below, kind, size = entry[0], entry[1], entry[2]
        if (
            not is_safe(below)
            or (bool(self.entries) != bool(below))
            or kind not in (FILE, DIRECTORY, LINK)
            or size < -1
        ):
            raise ValueError("an entry that no source of ours lists: %r" % (entry,))
        if below and os.path.dirname(below) not in self._made:
            raise ValueError("an entry in a directory that was not listed: %r" % (entry,))
        self.entries.append(entry)
        path = self._at(below)
        if kind == DIRECTORY:
            self._make_directory(below, path)
            return None
        if kind == LINK:
            self._make_link(path, entry)
            return None
        if os.path.isdir(path) and not os.path.islink(path):
            raise IsADirectoryError(21, "a file is to go where a directory is", os.fsdecode(path))
        directory, name = os.path.split(os.path.abspath(path))
        part = os.path.join(directory, b"." + name[:200] + PART)
        if not self.options["resume"]:
            _remove(part)
        for known in (part, path) if self.options["resume"] else (path,):
            hashes = _hashes(known, size, any_size=known == part or size > BLOCK)
            if hashes is not None:
                return hashes
        return None

    def _at(self, below: bytes) -> bytes:
        return os.path.join(self.path, below) if below else self.path

    def _make_directory(self, below: bytes, path: bytes) -> None:
        if os.path.islink(path) and below:
            raise NotADirectoryError(20, "a directory is to go where a link is", os.fsdecode(path))
        if not os.path.isdir(path):
            os.mkdir(path)
        self._made.add(below)

    def _make_link(self, path: bytes, entry: "Entry") -> None:
        directory, name = os.path.split(path)
        temporary = os.path.join(directory, temporary_name(name))
        os.symlink(entry[5], temporary)
        try:
            self._dress(temporary, entry)
            os.replace(temporary, path)
        except BaseException:
            _remove(temporary)
            raise

    # ---- what comes

    def write(self, ops: "List[Op]") -> None:
        """Do what a Source says."""
        for op in ops:
            if op[0] == WHOLE:
                self._begin(op[1])
                self._writing.add(op[3])
                self._commit(op[2])
            elif op[0] == OPEN:
                self._begin(op[1])
            elif op[0] == DATA:
                self._writing.add(op[1])
            elif op[0] == SAME:
                self._writing.copy(op[1])
            elif op[0] == HOLE:
                self._writing.skip(op[1])
            elif op[0] == COMMIT:
                self._commit(op[1])
            elif op[0] == UNCHANGED:
                self._leave(op[1])
            else:
                raise ValueError("what no source of ours says: %r" % (op[0],))
            if op[0] in (WHOLE, DATA):
                self.received += len(op[-1])

    @property
    def _writing(self) -> "_Writing":
        if self._open is None:
            raise ValueError("contents of no file")
        return self._open

    def _file_entry(self, number: int) -> "Entry":
        entry = self.entries[number]
        if entry[1] != FILE or self._open is not None:
            raise ValueError("contents of something else than the next file")
        return entry

    def _begin(self, number: int) -> None:
        entry = self._file_entry(number)
        self._open = _Writing(self._at(entry[0]), entry, bool(self.options["resume"]))

    def _commit(self, digest: bytes) -> None:
        writing = self._writing
        writing.check(digest)
        self._dress(writing.fd, writing.entry, _mode_of(writing.path))
        writing.move(self.options["fsync"])
        self._open = None
        self.size += writing.size
        self.sums.append((writing.entry[0], digest))

    def _leave(self, number: int) -> None:
        """It is there already: only what is about it may differ."""
        entry = self._file_entry(number)
        path = self._at(entry[0])
        with open(path, "rb") as file:
            checksum = hashlib.sha256()
            for data in iter(lambda: file.read(BATCH), b""):
                checksum.update(data)
            self._dress(file.fileno(), entry)
        self.size += entry[2]
        self.skipped.append(entry[0])
        self.sums.append((entry[0], checksum.digest()))

    def _dress(self, what: "Any", entry: "Entry", new_mode: "Optional[int]" = None) -> None:
        """Give a file, a link or a directory its mode, owner and time; *new_mode* where none is given or kept."""
        _, kind, _, mode, mtime, _, uid, gid = entry
        follow: "Dict[str, Any]" = {} if isinstance(what, int) else {"follow_symlinks": kind != LINK}
        if self.options["preserve"] and self._is_root and uid >= 0:
            os.chown(what, uid, gid, **follow)
        if kind == FILE and self.options["mode"] is not None:
            os.chmod(what, self.options["mode"])
        elif kind != LINK and self.options["preserve"] and mode >= 0:
            os.chmod(what, mode)
        elif kind == FILE and new_mode is not None:
            os.chmod(what, new_mode)
        if self.options["preserve"] and mtime >= 0:
            os.utime(what, ns=(mtime, mtime), **follow)

    def finish(self) -> "Dict[str, Any]":
        """Directories last: what was written into them has changed their times.  Returns what was done."""
        if self._open is not None:
            raise ValueError("the contents of the last file are not complete")
        for entry in reversed(self.entries):
            if entry[1] == DIRECTORY:
                self._dress(self._at(entry[0]), entry)
        return {
            "path": self.path,
            "size": self.size,
            "checksum": checksum_of(self.sums),
            "sent": self.received,
            "skipped": self.skipped,
        }

    def abandon(self) -> None:
        """Leave nothing that is not complete, but for what a later transfer resumes."""
        if self._open is not None:
            self._open.abandon()
            self._open = None


def checksum_of(sums: "List[Tuple[bytes, bytes]]") -> str:
    """The SHA-256 of a file; of a tree, that of the lines of ``sha256sum``."""
    import binascii

    if [path for path, _ in sums] == [b""]:
        return binascii.hexlify(sums[0][1]).decode()
    lines = hashlib.sha256()
    for path, digest in sorted(sums):
        lines.update(binascii.hexlify(digest) + b"  " + path + b"\n")
    return lines.hexdigest()


def is_safe(below: bytes) -> bool:
    """Whether a path leads to something below the top, and nowhere else."""
    if not isinstance(below, bytes) or b"\0" in below:
        return False
    return below == b"" or all(part not in (b"", b".", b"..") for part in below.split(b"/"))


def _hashes(path: bytes, size: int, any_size: bool) -> "Optional[List[bytes]]":
    """Of the blocks of a file; None if there is no such file, or none that is worth comparing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(fd, "rb", 0) as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or not (found.st_size == size or any_size):
            return None
        return [block_hash(block) for block in iter(lambda: _read(file, BLOCK), b"")]


def _mode_of(path: bytes) -> int:
    """The mode of the file that is there, or what a new one gets."""
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except OSError:
        mask = os.umask(0o77)
        os.umask(mask)
        return 0o666 & ~mask


def _remove(path: bytes) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


class _Writing:
    """One file on its way to its place."""

    def __init__(self, path: bytes, entry: "Entry", resume: bool) -> None:
        self.path = path
        self.entry = entry
        self.resume = resume
        self.size = 0
        self.directory, name = os.path.split(os.path.abspath(path))
        self.name: "Optional[bytes]" = None  # of the temporary file, if it has one
        self.base: "Optional[BinaryIO]" = None
        self.checksum = hashlib.sha256()
        part = os.path.join(self.directory, b"." + name[:200] + PART)
        self._temporary = os.path.join(self.directory, temporary_name(name))
        if resume:
            if os.path.islink(part):
                _remove(part)
            self.fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            self.name = part
            if not os.fstat(self.fd).st_size:
                self._open_base()
        else:
            self._open_base()
            self.fd = self._create()

    def _open_base(self) -> None:
        try:
            self.base = open(self.path, "rb", 0)
        except OSError:
            pass  # there is none

    def _create(self) -> int:
        if hasattr(os, "O_TMPFILE"):
            try:
                return os.open(self.directory, os.O_RDWR | os.O_TMPFILE, 0o600)  # gone with us, however we end
            except OSError:
                pass  # this file system has none
        fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self.name = self._temporary
        return fd

    def add(self, data: bytes) -> None:
        self._grow(len(data))
        self.checksum.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]

    def copy(self, size: int) -> None:
        """The next *size* bytes are those that were here."""
        if self.base is None:  # resumed: they are in place
            data = os.read(self.fd, size)
            os.lseek(self.fd, -len(data), 1)
        else:
            self.base.seek(self.size)
            data = _read(self.base, size)
        if len(data) != size:
            raise OSError("%r was changed while it was compared" % os.fsdecode(self.path))
        self.add(data)

    def skip(self, size: int) -> None:
        """The next *size* bytes are zeros that need no place."""
        self._grow(size)
        _add_zeros(self.checksum, size)
        os.ftruncate(self.fd, self.size)
        os.lseek(self.fd, self.size, 0)

    def _grow(self, size: int) -> None:
        self.size += size
        if size < 0 or (self.entry[2] >= 0 and self.size > max(self.entry[2], BLOCK + 1)):
            raise OSError("%r has grown while it was sent" % os.fsdecode(self.path))

    def check(self, digest: bytes) -> None:
        if self.checksum.digest() != digest:
            raise OSError("%r: what arrived has another checksum than what was sent" % os.fsdecode(self.path))
        os.ftruncate(self.fd, self.size)

    def move(self, fsync: bool) -> None:
        """Give it its name, over what had that before."""
        if fsync:
            os.fsync(self.fd)
        if self.name is None:
            # With a descriptor, which an absolute path does not need, Python calls linkat, which can follow.
            source = "/proc/self/fd/%d" % self.fd
            os.link(source, self._temporary, src_dir_fd=self.fd, follow_symlinks=True)
            self.name = self._temporary
        os.replace(self.name, self.path)
        self.name = None
        self._close()
        if fsync:
            directory = os.open(self.directory, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def abandon(self) -> None:
        if self.name is not None and not self.resume:
            _remove(self.name)
        self._close()

    def _close(self) -> None:
        os.close(self.fd)
        if self.base is not None:
            self.base.close()


def serve(channel: "Any", verb: str, path: bytes, options: "Dict[str, Any]") -> "Any":
    """The far end of a transfer: the target of ``put``, the source of ``fetch``."""
    path = os.path.expanduser(path)
    if verb == "put":
        return _receive(channel, Target(path, options))
    return _send(channel, Source(path))


def _receive(channel: "Any", target: Target) -> "Dict[str, Any]":
    try:
        for what, value in channel:
            if what == "list":
                channel.send(target.have(value))
            else:
                target.write(value)
        return target.finish()
    finally:
        target.abandon()


def _send(channel: "Any", source: Source) -> "Dict[str, Any]":
    had: "Dict[int, Optional[List[bytes]]]" = {}
    sent = 0
    for batch in source.listing():
        if batch:
            channel.send(("list", batch))
            had.update(enumerate(channel.receive(), sent))
            sent += len(batch)
    for ops in source.contents(had):
        if ops:
            channel.send(("write", ops))
    return {"special": source.special}
