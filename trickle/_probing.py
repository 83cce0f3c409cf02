"""Find out for how long the keys of a pickle would look for their places in dictionaries and sets.

CPython does not scatter the hashes of numbers, nor of what is made of them: a host can choose thousands that look for
their places one behind the other, and nothing interrupts that.  So a pickle that may have many such keys is first read
with lists in place of dictionaries and sets, which hashes nothing.  Then the keys go into tables that are thrown away,
a few at a time, in the order in which they would be stored.  As soon as that takes too long, the pickle is refused.
"""

from __future__ import annotations

import collections
import functools
import re
import secrets
import time
from array import array
from bisect import bisect_right
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any, Final, NamedTuple, TypeVar

from trickle._fence import undisturbed
from trickle._pickle_budget import LOOKUP_TIME, Budget, too_long
from trickle._pickle_opcodes import ALL_KINDS, COSTLY, FROZENSET, LARGE_INTEGER, WITHOUT_ARGUMENT, any_of, run_pattern
from trickle._pickle_slices import TURN, AnyFile, Loader, Slices
from trickle._plain_data import ENTRY_WORK, RECIPES, Name
from trickle._rehearsal import ASK, TUPLE_TIME, KeyFrozenset, Ledger, Rehearsal, stand_in, with_account, with_stand_ins

# Nanoseconds, where a key takes USUAL_TIME; on machines that are slower, or busy, as many times as long.
SPARE_TIME: Final = 60_000_000  # for all that a pickle stores
TIME_PER_BYTE: Final = 60
TIME_PER_BYTE_AT_ONCE: Final = 30  # for what one opcode stores, which nothing interrupts
USUAL_TIME: Final = 60  # of one of `_scattered()`

FEW: Final = 64  # keys: in a table of so many none looks for its place for long
CHUNK: Final = 256  # keys at a time
MOST_STEPS: Final = 2**24  # of a chunk, if each key has to pass by all the others: some tens of milliseconds
LOOKED_AT: Final = 10_000  # keys and tables at a time
HASHED_AT_ONCE: Final = 256  # keys that a ledger looks at
LIST_TIME: Final = 150  # of a list that has to be asked for
COPY_TIME: Final = 20  # of a batch of entries


class _Instead(dict[bytes, bytes]):
    """What is read in place of an opcode."""

    def __missing__(self, opcode: bytes) -> bytes:
        return opcode + ASK


# What is hashed, and what is read in place of it: containers are asked for, and get tuples of entries appended.
_INSTEAD: Final = _Instead(
    {
        b"}": b"N" + ASK,
        b"\x8f": b"N" + ASK,  # EMPTY_SET
        b"s": b"\x86a",  # SETITEM
        b"u": b"ta",  # SETITEMS
        b"\x90": b"ta",  # ADDITEMS
        FROZENSET: b"t\x88" + ASK + b"\x86" + ASK,  # for a tuple of its items and of what no host can ask for
        b"b": b"0",  # BUILD: states are nobody's keys
        b"\x92": b"0\x81",  # NEWOBJ_EX: keyword arguments are a dictionary
        b"": b"",  # at the end
    }
)
_NO_STAND_INS: Final = frozenset(_INSTEAD) - {FROZENSET}
_MAKERS: Final[Mapping[bytes, type]] = {b"}": dict, b"\x8f": set}
_FLAT: Final = frozenset({type(None), bool, int, float, str, bytes})  # hashing these takes no time


class _Table(NamedTuple):
    """A dictionary or set that there would be."""

    make: type
    batches: list[Sequence[Any]]  # of items; in dictionaries, of keys and values
    copied: int = 0  # batches: these do not look for their places anew, unless there are more

    def keys(self) -> list[Sequence[Any]]:
        """Those that each opcode stores."""
        if len(self.batches) == self.copied:
            return []
        return self.batches if self.make is set else [batch[::2] for batch in self.batches]


class _Stores(NamedTuple):
    """What is stored in a new table."""

    make: type
    keys: list[Any]
    ends: list[int]  # how many of them are stored when an opcode has been carried out, for each


def probe(
    data: bytes, runs: array[int], allowed: Mapping[Name, type], patience: int, loader: Loader
) -> Generator[None, None, None]:
    """Refuse *data*, which has these *runs*, if its keys would look for their places for too long.

    Yields often.

    Args:
      patience: how many times as long it may take.
    """
    budget = Budget(len(data), patience)
    form = _ListForm(budget)
    rewritten = yield from with_stand_ins(data, runs, budget, form.rewrite)
    ledger = Ledger(budget)
    tables = yield from _read_lists(rewritten, form, allowed, ledger, loader)
    yield
    meter = _Meter(len(data), patience)
    while tables:
        table = tables.pop()
        if _FLAT.issuperset(map(type, table.keys)):
            yield from meter.store(table, None)
        else:
            hashed = yield from _hashed(table.keys, ledger)
            yield from meter.store(table._replace(keys=hashed), ledger)


class _ListForm:
    """Writes pickles anew for `_ListReader`."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.makers: list[type] = []  # of the containers that are asked for
        self.has_stand_ins = False  # that are asked for as well

    def rewrite(self, data: bytes, start: int, end: int) -> bytes:
        pieces = list(chain.from_iterable(_pieces().findall(data, start, end)))
        opcodes = pieces[1::2]
        self.makers += filter(None, map(_MAKERS.get, opcodes))
        stand_ins = len(opcodes) - sum(map(_NO_STAND_INS.__contains__, opcodes))
        self.has_stand_ins |= stand_ins > 0
        self._budget.charge_time(TUPLE_TIME * stand_ins)
        pieces[1::2] = map(_INSTEAD.__getitem__, opcodes)
        return b"".join(pieces)


@functools.cache
def _pieces() -> re.Pattern[bytes]:
    """Return a pattern for opcodes up to one that is written anew, or to the end, with a group for either."""
    anew = b"".join(_INSTEAD) + WITHOUT_ARGUMENT[COSTLY]
    others = run_pattern(ALL_KINDS & ~COSTLY, anew)
    return re.compile(b"(" + others + b")(" + any_of(anew) + b"|" + LARGE_INTEGER + rb"|\Z)", re.DOTALL)


class _Unbuilt:
    """Stands in for a frozenset, which is built if it becomes a key."""

    __slots__ = ("_built", "items")

    def __init__(self, items: tuple[Any, ...]) -> None:
        self.items = items
        self._built: KeyFrozenset | None = None

    def built(self) -> KeyFrozenset:
        if self._built is None:
            self._built = KeyFrozenset(self.items)
        return self._built

    def __hash__(self) -> int:
        return hash(self.built())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unbuilt) and self.built() == other.built()


_UNBUILT: Final = object()  # asks for one


def _some_list(*args: object) -> list[object]:
    """What a constructor of a kind of list makes: whatever is appended, nobody looks at it."""
    return []


class _ListReader(Rehearsal):
    """Reads what `_ListForm` has written: nothing is hashed but what fields of classes are."""

    def __init__(self, file: AnyFile, form: _ListForm, allowed: Mapping[Name, type], ledger: Ledger) -> None:
        self.lists: list[list[Sequence[Any]]] = [[] for _ in form.makers]
        self.tables: list[_Table] = []  # those that constructors make
        self.unbuilt: list[_Unbuilt] = []
        self._ledger = ledger
        self._lists = iter(self.lists)
        self._class_like_dict: type | None = None
        if form.has_stand_ins:
            ledger.budget.charge_time(LIST_TIME * len(form.makers))
        answer: Callable[[Any], object] = functools.partial(next, self._lists)  # takes no Python
        self.persistent_load = self._answer if form.has_stand_ins else answer  # type: ignore[assignment]
        super().__init__(file, allowed)

    def _answer(self, asked: Any) -> object:
        if asked is None:
            return next(self._lists)
        if asked is True:
            return _UNBUILT
        if type(asked) is tuple and len(asked) == 2 and asked[1] is _UNBUILT:
            self.unbuilt.append(_Unbuilt(asked[0]))
            return self.unbuilt[-1]
        return stand_in(asked)

    def find_class(self, module: str, name: str) -> Any:
        recipe = RECIPES.get((module, name))
        if recipe is not None and recipe.kind != "value":
            self._ledger.budget.charge_time(LOOKUP_TIME)
            return functools.partial(self._table_for, name) if recipe.kind == "mapping" else _some_list
        if recipe is None and issubclass(self.allowed.get((module, name), object), dict):
            self._ledger.budget.charge_time(LOOKUP_TIME)
            return self._like_dict()
        return super().find_class(module, name)

    def _like_dict(self) -> type:
        """A class that the program allowed and that is a kind of dictionary."""
        if self._class_like_dict is None:
            self._class_like_dict = type("_LikeDict", (), {"__new__": lambda *args, **kwargs: self._table_for("dict")})
        return self._class_like_dict

    def _table_for(self, name: str, *args: Any) -> list[Sequence[Any]]:
        """What a constructor of a dictionary, or something like one, makes."""
        self._ledger.budget.charge_time(LIST_TIME)
        table = _Table(collections.OrderedDict if name == "OrderedDict" else dict, [])
        if args and type(args[0]) is list:  # a Counter of a dictionary, which it copies as it is
            self._ledger.budget.charge_time(COPY_TIME * len(args[0]))
            self._ledger.budget.charge_work(ENTRY_WORK * sum(map(len, args[0])) // 2)
            table = table._replace(batches=args[0][:], copied=len(args[0]))
        self.tables.append(table)
        return table.batches


def _read_lists(
    rewritten: Slices, form: _ListForm, allowed: Mapping[Name, type], ledger: Ledger, loader: Loader
) -> Generator[None, None, list[_Stores]]:
    """Return what would be stored in tables; what is in the last one is to be looked at first."""

    def read(file: AnyFile) -> _ListReader:
        reader = _ListReader(file, form, allowed, ledger)
        reader.load()
        return reader

    reader = yield from loader.load(read, rewritten, functools.partial(with_account, ledger))
    tables = [
        _Table(make, batches)
        for make, batches in zip(form.makers, reader.lists, strict=True)
        if len(batches) > 1 or (batches and len(batches[0]) > FEW)
    ]
    tables += reader.tables
    tables += (_Table(set, [each.items]) for each in reversed(reader.unbuilt))  # others may have them as keys
    found, looked_at = [], 0
    for table in tables:
        batches = table.keys()
        keys = list(chain.from_iterable(batches))
        if len(keys) > FEW:
            found.append(_Stores(table.make, keys, list(accumulate(map(len, batches)))))
        looked_at += 1 + len(keys)
        if looked_at > LOOKED_AT:
            looked_at = 0
            yield
    return found


_Value = TypeVar("_Value")


class _Stored:
    """Stands in for a key, as its hash is known."""

    __slots__ = ("_hash", "_key")

    def __init__(self, key: object) -> None:
        self._key = key
        self._hash = hash(key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return bool(self._key == (other._key if isinstance(other, _Stored) else other))


def _hashed(keys: list[Any], ledger: Ledger) -> Generator[None, None, list[Any]]:
    """Return *keys* in a form that takes no time to hash; *ledger* keeps account of it."""
    stored = []
    for start in range(0, len(keys), HASHED_AT_ONCE):
        stored += undisturbed(None, with_account, ledger, _to_store, keys[start : start + HASHED_AT_ONCE])
        yield
    return stored


def _to_store(keys: list[Any]) -> list[Any]:
    return [key if type(key) in _FLAT else _Stored(key) for key in keys]


class _Meter:
    """Stores keys of one pickle, and refuses it when that takes too long."""

    def __init__(self, size: int, patience: int) -> None:
        self._all = _Limit((SPARE_TIME + TIME_PER_BYTE * size) * patience)
        self._at_once = _Limit((SPARE_TIME + TIME_PER_BYTE_AT_ONCE * size) * patience)
        # fromkeys() goes on with a dictionary that this returns: nothing else stores keys without making pairs first.
        self._into: type[dict[Any, None]] = type("_Into", (dict,), {"__new__": lambda _: self._table})
        self._table: Any = None
        self._turn = time.thread_time_ns()

    def store(self, table: _Stores, ledger: Ledger | None) -> Generator[None, None, None]:
        """Store keys in a new table.  Yields after each `TURN` or so.

        Args:
          ledger: keeps account of comparisons, if these take time.
        """
        self._table = into = table.make()
        add: Callable[[list[Any]], object] = into.update if table.make is set else self._into.fromkeys
        if ledger is not None:
            add = functools.partial(undisturbed, None, with_account, ledger, add)
        stored = opcode = 0
        begun = time.thread_time_ns()
        while stored < len(table.keys):
            end = stored + max(1, min(CHUNK, MOST_STEPS // (stored + 1)))
            add(table.keys[stored:end])
            stored = end
            now = time.thread_time_ns()
            for limit in (self._all, self._at_once):
                limit.charge(now - begun)
            if stored >= table.ends[opcode]:
                self._at_once.spent = 0
                opcode = bisect_right(table.ends, stored, opcode)
            begun = time.thread_time_ns()
            if begun > self._turn + TURN:
                yield
                begun = self._turn = time.thread_time_ns()
        self._table = None


class _Limit:
    """Of time that may be spent, in nanoseconds."""

    def __init__(self, allowed: int) -> None:
        self._allowed = self._look_again_at = allowed
        self.spent = 0

    def charge(self, time: int) -> None:
        self.spent += time
        if self.spent > self._look_again_at:
            self._look_again()

    def _look_again(self) -> None:
        """Refuse if it took too long, as this machine is now."""
        usual = USUAL_TIME * len(_scattered())
        if self.spent > self._allowed * max(usual, *(_time_of(_scattered()) for _ in range(3))) // usual:
            raise too_long()
        self._look_again_at = self.spent * 5 // 4


@functools.cache
def _scattered() -> list[int]:
    """Some keys that nobody has chosen."""
    return [number >> 4 for number in array("Q", secrets.token_bytes(8 * 2**15))]


def _time_of(keys: list[int]) -> int:
    begun = time.thread_time_ns()
    dict.fromkeys(keys)
    return time.thread_time_ns() - begun
