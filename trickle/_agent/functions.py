"""Make a call out of what the controller pickled: the far end of trickle/_pickling.py.

The pickles name the functions below.  A function that cannot be imported comes as its source, or as code
where both ends have the same Python.  Functions, classes and globals of the controller's script live in one
module of this process, which is its ``__main__``.
"""

import io
import marshal
import sys

from trickle._agent.importer import compile_source, show_lines

try:
    import _pickle as pickle
except ImportError:  # a Python without its accelerators
    import pickle  # type: ignore[no-redef]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import Any, Callable, Dict, List, Optional, Set, Tuple

    # A Snippet of trickle/_source_code.py: file name, number of the first line, text, start, end, before,
    # after, names of __future__ features.
    Snippet = Tuple[str, int, str, int, int, str, str, Tuple[str, ...]]
    # Name; "value" or "statement"; a pickle or a snippet; names needed before it can be executed, and after;
    # whether only annotations name it: it is left out where it cannot be made.
    MainItem = Tuple[str, str, Any, List[str], List[str], bool]

FunctionType: "Any" = type(lambda: None)
ModuleClass = type(sys)
MAX_COMPILED = 1000  # snippets kept compiled: a program that makes lambdas in a loop sends the same few


def loads_call(payload: bytes, start: int = 0) -> "Tuple[Callable[..., Any], Tuple[Any, ...], Dict[str, Any]]":
    """The function and the arguments in a payload, from *start*; what unpickling raises is raised as it is."""
    stream = io.BytesIO(payload)
    stream.seek(start)
    loaded = pickle.Unpickler(stream).load()
    if isinstance(loaded, list):  # what the call needs of __main__; the call itself comes behind it
        main.update(loaded)
        loaded = pickle.Unpickler(stream).load()
    if type(loaded) is tuple:
        fn, args, kwargs = loaded
    else:  # a function by its name; what it is called with comes behind it
        fn = loaded
        args, kwargs = pickle.Unpickler(stream).load()
    if _to_show and "linecache" in sys.modules:
        show_sources()
    return fn, args, kwargs


# ---- what the pickles name


def import_module(name: str, *below: str) -> "ModuleType":
    """The module *name*, itself also where its name has dots, and with those *below* it that can be had."""
    __import__(name)
    for each in below:
        try:
            __import__(each)
        except Exception:
            pass  # if it is needed, using it says so
    return sys.modules[name]


def attribute(module: str, qualname: str) -> "Any":
    """An object by its module and dotted name."""
    found: "Any" = import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return found


def bound(function: "Callable[..., Any]", owner: "Any") -> "Callable[..., Any]":
    """A method of *owner* that cannot be had by its name."""
    return MethodType(function, owner)  # type: ignore[no-any-return]


def main_module() -> "ModuleType":
    """The module that serves as the script's ``__main__``."""
    return main.module


def main_attribute(qualname: str) -> "Any":
    """An object of the script, by its dotted name."""
    name, _, rest = qualname.partition(".")
    main.ensure(name)
    found = getattr(main.module, name)
    for part in rest.split(".") if rest else ():
        found = getattr(found, part)
    return found


def make_namespace(name: str) -> "ModuleType":
    """An empty module that nobody can import: the globals of code that was executed outside any module."""
    module = ModuleClass(name)
    module.__dict__["__builtins__"] = __builtins__  # older Pythons look there, and nowhere else
    return module


def make_cell() -> "Any":
    """An empty closure cell."""
    if TYPE_CHECKING:
        nothing = None
    return (lambda: nothing).__closure__[0]  # type: ignore[index]


def make_function(
    code: "CodeType", globals_of: "ModuleType", name: str, cells: "Dict[str, Any]"
) -> "Callable[..., Any]":
    """A function that has its code and nothing else yet, so that cells and globals may refer to it."""
    # Another Python's compiler may order the free variables differently, so they come by name.
    closure = tuple([cells[free] for free in code.co_freevars])
    return FunctionType(code, globals_of.__dict__, name, None, closure)  # type: ignore[no-any-return]


def fill_function(function: "Any", state: "Tuple[Dict[str, Any], List[Tuple[Any, Any]], Dict[str, Any]]") -> None:
    """Give a function its attributes, the contents of its cells, and those globals that it brings itself."""
    attributes, contents, namespace = state
    for name, value in attributes.items():
        setattr(function, name, value)
    for cell, value in contents:
        _set_cell(cell, value)
    function.__globals__.update(namespace)


def code_from_source(snippet: "Snippet", name: str) -> "CodeType":
    """The code of the function *name* that a snippet defines, without executing anything."""
    key = (snippet, name)
    code = _compiled.get(key)
    if code is None:
        if len(_compiled) >= MAX_COMPILED:
            _compiled.clear()
        _remember_lines(snippet)
        code = _compiled[key] = _find_code(_unwrap(compile_snippet(snippet), snippet), name)
    if code is None:
        raise ValueError("no function %s in the source of %s, line %d" % (name, snippet[0], snippet[1]))
    return code


def code_from_marshal(data: bytes) -> "CodeType":
    """The code that a Python of the same version dumped."""
    return marshal.loads(data)  # type: ignore[no-any-return]


_compiled: "Dict[Tuple[Snippet, str], Optional[CodeType]]" = {}


def _set_cell(cell: "Any", value: "Any") -> None:
    try:
        cell.cell_contents = value
    except AttributeError:  # read-only before 3.7: let a function assign to it, as its nonlocal variable
        FunctionType(_assign.__code__, {}, "assign", None, (cell,))(value)


def _make_assign() -> "Callable[[Any], None]":
    variable = None

    def assign(value: "Any") -> None:
        nonlocal variable
        variable = value

    return assign


_assign = _make_assign()


# ---- source


def compile_snippet(snippet: "Snippet") -> "CodeType":
    """Compile a snippet so that its lines and columns are those of the file it comes from."""
    return compile_source(snippet_source(snippet), snippet[0], _future_flags(snippet[7]))


def snippet_source(snippet: "Snippet") -> str:
    """What there is to compile of a snippet, every line and column where it was."""
    _, line, text, start, end, before, after, _ = snippet
    lines = text.split("\n")
    if end >= 0:
        lines[-1] = lines[-1][:end]
    lines[0] = " " * start + lines[0][start:]
    return "\n" * (line - 1 - before.count("\n")) + before + "\n".join(lines) + after


def _future_flags(features: "Tuple[str, ...]") -> int:
    flags = 0
    if features:
        import __future__

        for feature in features:
            if feature not in __future__.all_feature_names:
                raise SyntaxError("future feature %s is not defined" % feature)
            flags |= getattr(__future__, feature).compiler_flag
    return flags


def _unwrap(code: "CodeType", snippet: "Snippet") -> "CodeType":
    """The code of the innermost class or function that the controller put around a snippet."""
    for _ in range(snippet[5].count(":")):
        (code,) = [each for each in code.co_consts if isinstance(each, type(code))]
    return code


def _find_code(code: "CodeType", name: str) -> "Optional[CodeType]":
    """The last function of that name, outermost first: others may be in its defaults, compiled before it."""
    inner = [each for each in reversed(code.co_consts) if isinstance(each, type(code))]
    for each in inner:
        if each.co_name == name:
            return each
    for each in inner:
        found = _find_code(each, name)
        if found is not None:
            return found
    return None


_sources: "Dict[str, List[str]]" = {}  # the lines that are known of each file
_to_show: "Set[str]" = set()


def _remember_lines(snippet: "Snippet") -> None:
    filename, line, text = snippet[:3]
    lines = _sources.setdefault(filename, [])
    sent = text.split("\n")
    lines.extend(["\n"] * (line - 1 + len(sent) - len(lines)))
    lines[line - 1 : line - 1 + len(sent)] = [each + "\n" for each in sent]
    _to_show.add(filename)


def show_sources() -> None:
    """Make tracebacks show the source that came with calls.  Whoever formats one calls this first.

    Importing linecache takes 10 ms, so that it does not happen before somebody needs it.
    """
    if not _to_show:
        return
    import linecache

    # A module's loader shows the whole file, not only what calls brought.
    modules = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    while _to_show:
        filename = _to_show.pop()
        if filename not in modules and not _is_part_of(_sources[filename], linecache.getlines(filename)):
            show_lines(filename, list(_sources[filename]))


def _is_part_of(lines: "List[str]", whole: "List[str]") -> bool:
    """Whether the lines that were sent stand in this host's own file of that name (it may be the same host)."""
    if len(lines) > len(whole):
        return False
    return all(line in ("\n", whole[number]) for number, line in enumerate(lines))


# ---- the script's __main__


class _Main:
    """The module that is ``__main__`` here, and what it was given."""

    def __init__(self) -> None:
        self._module: "Optional[ModuleType]" = None
        self._boot_module: "Optional[ModuleType]" = None
        self._done: "Dict[str, Any]" = {}  # what each name was last set to
        self._items: "Dict[str, MainItem]" = {}  # of the call being loaded
        self._pending: "Set[str]" = set()
        self._under_way: "Set[str]" = set()

    @property
    def module(self) -> "ModuleType":
        if self._module is None:
            self._boot_module = sys.modules.get("__main__")  # alive, since code of the agent may be from it
            self._module = sys.modules["__main__"] = make_namespace("__main__")
        return self._module

    def update(self, items: "List[MainItem]") -> None:
        """Define everything in *items* that is new or has changed."""
        self._items = {item[0]: item for item in items}
        self._pending = set(self._items)
        self._under_way = set()
        for item in items:
            self.ensure(item[0])

    def ensure(self, name: str) -> None:
        """Define *name* now, and what it needs: it is about to be used."""
        if name not in self._pending:
            return
        self._pending.discard(name)  # first, so that definitions may refer to each other in circles
        self._under_way.add(name)
        _, kind, content, before, after, only_annotated = self._items[name]
        for each in before:
            self.ensure(each)
        if self._done.get(name) != content:
            try:
                self._define(name, kind, content)
            except Exception:
                if not only_annotated:
                    raise
            else:
                self._done[name] = content
        self._under_way.discard(name)
        for each in after:
            if not self._is_held_up(each):  # otherwise its turn comes in update()
                self.ensure(each)

    def _define(self, name: str, kind: str, content: "Any") -> None:
        if kind == "statement":
            _remember_lines(content)
            exec(compile_snippet(content), self.module.__dict__)
        else:
            setattr(self.module, name, pickle.loads(content))

    def _is_held_up(self, name: str) -> bool:
        """Whether *name* needs something first that is only just being defined."""
        needed = [name]
        for each in needed:
            if each in self._under_way:
                return True
            if each in self._pending:
                needed.extend(set(self._items[each][3]).difference(needed))
        return False


main = _Main()
MethodType: "Any" = type(main.ensure)
