"""One file on its way to its place: put together beside it, and moved there when it is complete and right.

What is put together has no name where the system can do without one, and else one that the next transfer to that
place recognises: who writes holds a lock on it, so that what nobody has locked is dead, and is removed.
"""

import errno
import fcntl
import hashlib
import os
import stat

from trickle._agent import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, List, Optional

    from trickle._agent.files import Entry

MARK = b".trickle-"
PART = b"part"  # what a later transfer may go on with
RANDOM = 6  # bytes in the names of all others
LONGEST = 200  # bytes of a name that is used as it is
PAGE = 4096  # bytes: what is not stored of a file with holes


class Writing:
    """One file on its way to its place.

    Args:
      path: that place.
      entry: what the source said of it.
      part: the descriptor of the part that is gone on with, from ``open_part``.
      resume: whether what is not complete is kept.
      where: which end this is, for error messages.
      check: called now and then; what it raises ends the writing.
    """

    def __init__(
        self,
        path: bytes,
        entry: "Entry",
        part: "Optional[int]",
        resume: bool,
        where: str,
        check: "Callable[[], object]",
    ) -> None:
        self.path = path
        self.entry = entry
        self.where = where
        self.check = check
        self.size = 0
        self.fd = -1 if part is None else part
        self._directory, self._target = os.path.split(os.path.abspath(path))
        self._goes_on = part is not None  # what is "same" is in place already
        self._keep = resume
        self._name: "Optional[bytes]" = None if part is None else self._beside(PART)
        self._base = -1
        self._is_sparse = False  # what it was
        self._has_holes = False  # what it is now; at its end, perhaps
        self._checksum = hashlib.sha256()

    def _beside(self, tail: bytes) -> bytes:
        return os.path.join(self._directory, stem(self._target) + tail)

    def open(self, *, whole: bool) -> None:
        """Be ready to be written to.  From here on it has to be moved or abandoned.

        With *whole*, nothing of what is there already will be copied.
        """
        if self._goes_on:
            return
        if not whole:
            self._open_base()
        if self._keep:
            part = open_part(self.path, create=True)
            if part is not None:
                self._name = self._beside(PART)
                self.fd = part
                os.ftruncate(part, 0)  # what another transfer has left since this one began
                return
            self._keep = False  # another transfer has it
        self._create()

    def _open_base(self) -> None:
        try:
            self._base = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            found = os.fstat(self._base)
            self._is_sparse = found.st_blocks * 512 < found.st_size
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ELOOP, errno.EACCES):
                raise

    def _create(self) -> None:
        if has_nameless_files():
            try:
                self.fd = os.open(self._directory, os.O_RDWR | os.O_TMPFILE, 0o600)  # gone with us, however we end
                return
            except OSError as exc:
                if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                    raise
        while True:
            self._name = self._beside(random_tail())
            try:
                self.fd = os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                continue
            if lock(self.fd) is not False and is_still(self.fd, self._name):
                return
            remove(self._name)
            os.close(self.fd)  # another transfer came between, and took it for dead

    # ---- contents

    def add(self, data: bytes) -> None:
        """The next bytes."""
        self._grow(len(data))
        self._checksum.update(data)
        self._write(data)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]

    def copy(self, size: int) -> None:
        """The next *size* bytes are those that were here."""
        source = self.fd if self._goes_on else self._base
        if size < 0:
            raise ValueError("%d bytes of contents" % size)
        left = size
        while left:
            self.check()
            data = os.pread(source, min(left, files.BATCH), self.size) if source >= 0 else b""
            if not data:
                raise OSError("%r was changed while it was compared%s" % (os.fsdecode(self.path), self.where))
            self._grow(len(data))
            self._checksum.update(data)
            if self._goes_on:
                os.lseek(self.fd, self.size, os.SEEK_SET)
            elif self._is_sparse:
                self._write_around_zeros(data)
            else:
                self._write(data)
            left -= len(data)

    def _write_around_zeros(self, data: bytes) -> None:
        self._has_holes = True
        start = 0
        zeros = bytes(PAGE)
        for page in range(0, len(data), PAGE):
            end = min(page + PAGE, len(data))
            if data[page:end] == zeros[: end - page]:
                self._write(data[start:page])
                os.lseek(self.fd, end - page, os.SEEK_CUR)
                start = end
        self._write(data[start:])

    def skip(self, size: int) -> None:
        """The next *size* bytes are zeros that need no place."""
        self._has_holes = True
        start = self.size
        self._grow(size)
        files.add_zeros(self._checksum, size, self.check)
        if self._goes_on:
            self._clear(start)
        os.lseek(self.fd, self.size, os.SEEK_SET)

    def _clear(self, position: int) -> None:
        """Write zeros up to where we are, over what is something else."""
        while position < self.size:
            self.check()
            data = os.pread(self.fd, min(files.BATCH, self.size - position), position)
            if not data:
                return
            if data.count(0) != len(data):
                os.pwrite(self.fd, bytes(len(data)), position)
            position += len(data)

    def _grow(self, size: int) -> None:
        if size < 0:
            raise ValueError("%d bytes of contents" % size)
        self.size += size
        if self.entry[2] >= 0 and self.size > max(self.entry[2], files.BLOCK + 1):
            raise OSError("%r has grown while it was sent%s" % (os.fsdecode(self.path), self.where))

    def check_sum(self, digest: "Optional[bytes]") -> bytes:
        """Refuse what is not right; None: whatever it is, it is.  Returns the checksum."""
        found = self._checksum.digest()
        if digest is not None and found != digest:
            raise OSError(
                "%r: what arrived has another checksum than what was sent%s; transfer it again"
                % (os.fsdecode(self.path), self.where)
            )
        if self._goes_on or self._has_holes:
            os.ftruncate(self.fd, self.size)
        return found

    # ---- the end

    def move(self, fsync: bool) -> None:
        """Give it its name, over what had that before."""
        if fsync:
            os.fsync(self.fd)
        if self._name is not None or not self._link(self.path):
            self._replace()
        self.close()
        if fsync:
            sync_directory(self._directory)

    def _replace(self) -> None:
        """Put it where something is."""
        if self._name is None:
            lock(self.fd)  # it will have a name for a moment
        while self._name is None:
            self._name = self._beside(random_tail())
            if not self._link(self._name):
                self._name = None
        os.replace(self._name, self.path)
        self._name = None

    def _link(self, path: bytes) -> bool:
        """Give what has no name one; False if something else has that."""
        try:
            # With a descriptor, which an absolute path does not need, Python calls linkat, which can follow.
            os.link("/proc/self/fd/%d" % self.fd, path, src_dir_fd=self.fd, follow_symlinks=True)
            return True
        except FileExistsError:
            return False

    def abandon(self) -> None:
        """Leave nothing but what may be resumed."""
        if self._name is not None and not (self._keep and self.fd >= 0 and os.fstat(self.fd).st_size):
            remove(self._name)
        self.close()

    def close(self) -> None:
        while self.fd >= 0 or self._base >= 0:
            # Forgotten first: what fails to be closed is closed nevertheless.
            fd, self.fd, self._base = max(self.fd, self._base), min(self.fd, self._base), -1
            os.close(fd)


# ---- names


def stem(target: bytes) -> bytes:
    """What the names of all that is put together for a target begin with."""
    if len(target) > LONGEST:
        import binascii

        digest = hashlib.sha256(target).digest()[:RANDOM]
        target = target[: LONGEST - 13] + b"-" + binascii.hexlify(digest)
    return b"." + target + MARK


def random_tail() -> bytes:
    import binascii

    return binascii.hexlify(os.urandom(RANDOM))


def leftovers_in(directory: bytes) -> "Dict[bytes, List[bytes]]":
    """What transfers to a directory have left there, or write there now: paths, by the stem of their target."""
    found: "Dict[bytes, List[bytes]]" = {}
    try:
        names = os.listdir(directory)
    except OSError:
        return found  # it is not there yet; or nobody may look into it
    for name in names:
        before, mark, tail = name.rpartition(MARK)
        if mark and (tail == PART or (len(tail) == 2 * RANDOM and not tail.strip(b"0123456789abcdef"))):
            found.setdefault(before + mark, []).append(os.path.join(directory, name))
    return found


def remove(path: bytes) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def remove_dead(path: bytes) -> None:
    """Remove what a transfer has left, unless it lives."""
    try:
        if stat.S_ISLNK(os.lstat(path).st_mode):
            os.unlink(path)  # whoever is about to move it there makes another one
            return
        fd = _open_any(path)
    except OSError:
        return  # gone; or somebody else's
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode) and lock(fd) and is_still(fd, path):
            remove(path)
    finally:
        os.close(fd)


def _open_any(path: bytes) -> int:
    flags = os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, os.O_RDWR | flags)
    except PermissionError:
        return os.open(path, os.O_RDONLY | flags)  # it had its mode already


# ---- locks, and parts that are gone on with


def lock(fd: int) -> "Optional[bool]":
    """Lock a file; False if another has it locked, None if this file system has no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def is_still(fd: int, path: bytes) -> bool:
    """Whether a name still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except OSError:
        return False


def open_part(path: bytes, create: bool) -> "Optional[int]":
    """The part beside a target, locked; None if there is none, or another transfer writes it."""
    directory, target = os.path.split(os.path.abspath(path))
    part = os.path.join(directory, stem(target) + PART)
    while True:
        try:
            fd = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_CREAT if create else 0), 0o600)
        except OSError as exc:
            if exc.errno != errno.ELOOP or not create:
                return None
            os.unlink(part)
            continue
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink > 1:
            os.close(fd)  # whoever made that could change what we write
            return None
        if lock(fd) is False:
            os.close(fd)
            return None
        if is_still(fd, part):
            if create or found.st_size:
                return fd
            os.unlink(part)
        os.close(fd)


# ---- systems


_has_proc = None  # type: Optional[bool]


def has_nameless_files() -> bool:
    global _has_proc
    if _has_proc is None:
        _has_proc = os.path.isdir("/proc/self/fd")
    return hasattr(os, "O_TMPFILE") and _has_proc


def sync_directory(path: bytes) -> None:
    """Have the names in a directory on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
