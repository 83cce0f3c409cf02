"""What results may contain besides what pickles have opcodes for, and how it is made: by constructors of ours.

They stand for classes of the standard library, and check the types and sizes of their arguments.
"""

import collections
import datetime
import decimal
import fractions
import functools
import ipaddress
import pathlib
import re
import sys
import types
import uuid
import zoneinfo
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from trickle._pickle_budget import Budget, Refused, printable

Name = tuple[str, str]  # a class's module and qualified name

ENTRY_WORK: Final = 8  # for an entry of a Counter: it is a hundred bytes in memory
MAX_BITS: Final = 16 * 1024  # of an integer in a fraction or range: their arithmetic is quadratic
MAX_DIGITS: Final = 16 * 1024
MAX_PATH: Final = 64 * 1024


class Factory:
    """Stands for a builtin type as the factory of a defaultdict, and is good for nothing else."""

    __slots__ = ("__weakref__", "cls")

    def __init__(self, cls: type) -> None:
        self.cls = cls


class Recipe(NamedTuple):
    make: Callable[..., object]
    kind: str = "value"  # or "mapping", "sequence": what can be put into it afterwards


def _expect(kind: type, value: object) -> None:
    if type(value) is not kind:
        raise Refused(f"it has a {printable(type(value).__name__)} where a {kind.__name__} belongs")


def _expect_integers(budget: Budget, *values: Any) -> None:
    for value in values:
        _expect(int, value)
        if value.bit_length() > MAX_BITS:
            raise Refused("it has a huge integer in a fraction, range or slice")
        budget.charge_work(value.bit_length() // 8)
        budget.charge_time(4 * value.bit_length())  # arithmetic with it


def _expect_text(budget: Budget, text: Any, limit: int) -> None:
    _expect(str, text)
    if len(text) > limit:
        raise Refused("it has a text that is too long for what it stands for")
    budget.charge_work(len(text))


def _make_bytearray(budget: Budget, data: bytes = b"") -> bytearray:
    budget.charge_time(300)
    _expect(bytes, data)
    budget.charge_work(len(data) // 8)  # copying takes no longer than that
    return bytearray(data)


def _make_complex(budget: Budget, real: float, imag: float) -> complex:
    budget.charge_time(500)
    _expect(float, real)
    _expect(float, imag)
    return complex(real, imag)


def _make_range(budget: Budget, start: int, stop: int, step: int) -> range:
    budget.charge_time(1000)
    _expect_integers(budget, start, stop, step)
    return range(start, stop, step)


def _make_slice(budget: Budget, *bounds: Any) -> slice:
    budget.charge_time(1000)
    for bound in bounds:
        if type(bound) is int:
            _expect_integers(budget, bound)
        elif type(bound) not in (type(None), bool, float, str):
            raise Refused("it has a slice of something strange")
    start, stop, step = bounds
    return slice(start, stop, step)


# Dates and times come as datetime packs them.  It believes what it unpacks; replace() checks it.


def _make_date(budget: Budget, packed: Any) -> datetime.date:
    budget.charge_time(700)
    _expect(bytes, packed)
    return datetime.date(packed).replace()  # type: ignore[call-arg]


def _make_datetime(budget: Budget, packed: Any, zone: Any = None) -> datetime.datetime:
    budget.charge_time(1600)
    _expect(bytes, packed)
    _expect_zone(zone)
    return datetime.datetime(packed).replace(tzinfo=zone)  # type: ignore[call-arg]


def _make_time(budget: Budget, packed: Any, zone: Any = None) -> datetime.time:
    budget.charge_time(1600)
    _expect(bytes, packed)
    _expect_zone(zone)
    return datetime.time(packed).replace(tzinfo=zone)


def _expect_zone(zone: object) -> None:
    if zone is not None and type(zone) not in (datetime.timezone, zoneinfo.ZoneInfo):
        raise Refused("it has a time zone of an unknown kind")


def _make_timedelta(budget: Budget, days: int, seconds: int, microseconds: int) -> datetime.timedelta:
    budget.charge_time(1600)
    _expect_integers(budget, days, seconds, microseconds)
    return datetime.timedelta(days, seconds, microseconds)


def _make_timezone(budget: Budget, offset: datetime.timedelta, *name: str) -> datetime.timezone:
    budget.charge_time(1000)
    _expect(datetime.timedelta, offset)
    for text in name:
        _expect(str, text)
    return datetime.timezone(offset, *name)


_ZONE_KEY = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")


def _make_zone(budget: Budget, key: str) -> zoneinfo.ZoneInfo:
    budget.charge_time(1500)
    _expect_text(budget, key, 100)
    return _read_zone(key)


@functools.lru_cache(maxsize=1024)  # more than there are: each costs reading a file
def _read_zone(key: str) -> zoneinfo.ZoneInfo:
    # Looked for first, because ZoneInfo would go on to import the tzdata package.
    if not _ZONE_KEY.fullmatch(key) or not any(pathlib.Path(path, key).is_file() for path in zoneinfo.TZPATH):
        raise Refused(f"it has the time zone {printable(key)}, which this machine does not know")
    return zoneinfo.ZoneInfo(key)


def _make_decimal(budget: Budget, text: str) -> decimal.Decimal:
    budget.charge_time(800)
    _expect_text(budget, text, MAX_DIGITS)
    return decimal.Decimal(text)


def _make_fraction(budget: Budget, numerator: int, denominator: int) -> fractions.Fraction:
    budget.charge_time(1300)
    _expect_integers(budget, numerator, denominator)
    return fractions.Fraction(numerator, denominator)


def _make_uuid(budget: Budget, text: str) -> uuid.UUID:
    budget.charge_time(1800)
    _expect_text(budget, text, 36)
    return uuid.UUID(text)


def _path_maker(cls: type[pathlib.PurePath]) -> Callable[..., pathlib.PurePath]:
    def make(budget: Budget, *parts: str) -> pathlib.PurePath:
        budget.charge_time(3000)
        for part in parts:
            _expect_text(budget, part, MAX_PATH)
        return cls(*parts)

    return make


def _address_maker(cls: Callable[[str], object]) -> Callable[..., object]:
    def make(budget: Budget, text: str) -> object:
        budget.charge_time(4000 if cls is ipaddress.IPv4Address else 10_000)
        _expect_text(budget, text, 128)
        return cls(text)

    return make


def _make_ordered_dict(budget: Budget) -> collections.OrderedDict[Any, Any]:
    budget.charge_time(400)
    return collections.OrderedDict()


def _make_counter(budget: Budget, counts: dict[Any, Any]) -> collections.Counter[Any]:
    budget.charge_time(3000)
    _expect(dict, counts)
    budget.charge_work(ENTRY_WORK * len(counts))
    return collections.Counter(counts)


def _make_deque(budget: Budget, items: tuple[()] = (), maxlen: int | None = None) -> collections.deque[Any]:
    budget.charge_time(600)
    if items != () or type(maxlen) not in (int, type(None)):
        raise Refused("it has a deque that is made of something strange")
    budget.count_nestable()
    return collections.deque(maxlen=maxlen)


def _make_defaultdict(budget: Budget, factory: object = None) -> collections.defaultdict[Any, Any]:
    budget.charge_time(600)
    if not isinstance(factory, Factory | None):
        raise Refused("it has a defaultdict whose factory is not a builtin type")
    budget.count_nestable()
    return collections.defaultdict(None if factory is None else factory.cls)


RECIPES: Final[Mapping[Name, Recipe]] = {
    ("builtins", "complex"): Recipe(_make_complex),
    ("builtins", "bytearray"): Recipe(_make_bytearray),
    ("builtins", "range"): Recipe(_make_range),
    ("builtins", "slice"): Recipe(_make_slice),
    ("datetime", "date"): Recipe(_make_date),
    ("datetime", "datetime"): Recipe(_make_datetime),
    ("datetime", "time"): Recipe(_make_time),
    ("datetime", "timedelta"): Recipe(_make_timedelta),
    ("datetime", "timezone"): Recipe(_make_timezone),
    ("zoneinfo", "ZoneInfo"): Recipe(_make_zone),
    ("decimal", "Decimal"): Recipe(_make_decimal),
    ("fractions", "Fraction"): Recipe(_make_fraction),
    ("uuid", "UUID"): Recipe(_make_uuid),
    **{
        (module, cls.__name__): Recipe(_path_maker(cls))
        for module in ("pathlib", "pathlib._local")  # the latter in Python 3.13 alone
        for cls in (pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath)
    },
    **{
        ("ipaddress", cls.__name__): Recipe(_address_maker(cls))
        for cls in (
            ipaddress.IPv4Address,
            ipaddress.IPv6Address,
            ipaddress.IPv4Network,
            ipaddress.IPv6Network,
            ipaddress.IPv4Interface,
            ipaddress.IPv6Interface,
        )
    },
    ("collections", "OrderedDict"): Recipe(_make_ordered_dict, "mapping"),
    ("collections", "Counter"): Recipe(_make_counter, "mapping"),
    ("collections", "defaultdict"): Recipe(_make_defaultdict, "mapping"),
    ("collections", "deque"): Recipe(_make_deque, "sequence"),
}
SINGLETONS: Final[Mapping[Name, object]] = {
    ("builtins", "Ellipsis"): Ellipsis,
    ("builtins", "NotImplemented"): NotImplemented,
}
FACTORIES: Final = {cls.__name__: cls for cls in (bool, bytes, dict, float, frozenset, int, list, set, str, tuple)}


def refusal_of_class(module: str, name: str) -> Refused:
    """Return what to raise about a class, or something else by that name, that results may not contain."""
    full_name, short = f"{printable(module)}.{printable(name)}", printable(name.rpartition(".")[2])
    if _is_other_than_a_class(module, name):
        instead = _INSTEAD.get((module, name), "plain data")
        return Refused(
            f"it contains {full_name}, which is not plain data, nor a class that could be allowed.  "
            f'Return {instead} instead, or trust this host with trust="full"'
        )
    return Refused(
        f"it contains {full_name}, which is not plain data.  Return plain data instead, or name the class "
        f'with trickle.allow({short}) or options(allow=({short},)), or trust this host with trust="full"'
    )


_INSTEAD: Final = {
    ("re", "_compile"): "the pattern's .pattern and .flags",
    ("array", "_array_reconstructor"): "its .tolist() or .tobytes()",
}


def _is_other_than_a_class(module: str, name: str) -> bool:
    """Whether a name leads to something else in a module that is imported here; runs no code of the module's."""
    found = sys.modules.get(module)
    if not isinstance(found, types.ModuleType):
        return False
    something = object.__getattribute__(found, "__dict__").get(name)
    return something is not None and not issubclass(type(something), type)
