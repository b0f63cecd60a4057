"""Values of a namespace as bytes and back: cloudpickle, but bound to one living namespace.

Functions of the session are saved without their globals, and find themselves in the namespace where they are loaded.
What the session has bound to a name, and what belongs to the host, is referred to by name. Whatever would come back
hollow (threads, locks, files, sockets) is refused. Blobs name this module and cloudpickle by the worker's private names
for them. Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `worker.py`.
"""

from __future__ import annotations

import functools
import sys
import types

import arrays
from definitions import Definitions, is_definition, module_of, of_singleton, singletons
from edges import LARGE
from makers import (
    attribute,
    by_name,
    host_value,
    make_cached,
    make_cached_property,
    make_cell,
    make_class,
    make_function,
    make_type_variable,
    set_cell,
    set_class,
    set_function,
)

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    Handler = Callable[[Any, Any], Any]

CLOUDPICKLE = "_rlm_cloudpickle"

# What would load as something that only looks the same; a module that is not imported has no objects.
HOLLOW = (
    ("_thread", "lock"),
    ("_thread", "RLock"),
    ("threading", "Thread"),
    ("threading", "Condition"),
    ("threading", "Event"),
    ("threading", "local"),
    ("io", "TextIOWrapper"),
    ("io", "BufferedReader"),
    ("io", "BufferedWriter"),
    ("io", "BufferedRandom"),
    ("io", "FileIO"),
    ("socket", "socket"),
    ("subprocess", "Popen"),
    ("multiprocessing.process", "BaseProcess"),
    ("sqlite3", "Connection"),
    ("sqlite3", "Cursor"),
    ("asyncio", "AbstractEventLoop"),
    ("asyncio", "Future"),
    ("mmap", "mmap"),
    ("tempfile", "_TemporaryFileWrapper"),
    ("numpy", "memmap"),
)


class Refused(TypeError):
    """A value that would not come back as what it is."""


def cloudpickle(path: str | None) -> Any:
    """The worker's own copy of cloudpickle, from this file; the installed one where no file was named."""
    if CLOUDPICKLE not in sys.modules:
        import importlib.util

        if path is None:
            found = importlib.util.find_spec("cloudpickle.cloudpickle")
            path = found.origin if found is not None else None
        spec = importlib.util.spec_from_file_location(CLOUDPICKLE, path or "")
        if spec is None or spec.loader is None:
            raise ImportError("cloudpickle is not where the host said that it is: " + str(path))
        module = importlib.util.module_from_spec(spec)
        sys.modules[CLOUDPICKLE] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[CLOUDPICKLE]
            raise
    return sys.modules[CLOUDPICKLE]


def saver(module: Any) -> type:
    """The pickler, made of a cloudpickle module."""

    class Saver(module.Pickler):  # type: ignore[misc]
        """own: names of the blob, whose definitions are saved in it, not referred to.

        code: whether code objects were saved. given: id -> name of host's values; only looked at if there are any.
        """

        def __init__(self, file: Any, definitions: Definitions, own: set[str], given: Mapping[int, str]) -> None:
            super().__init__(file, protocol=5)
            self.definitions, self.own, self.given = definitions, own, given
            self.code = False
            self.bare: set[int] = set()
            self.handlers: dict[type, Handler | None] = {}

        def reducer_override(self, obj: Any) -> Any:
            kind = type(obj)
            if kind not in self.handlers:
                self.handlers[kind] = handler(kind)
            found = self.handlers[kind]
            result = found(self, obj) if found is not None else None
            if result is None:
                return NotImplemented if found is None else super().reducer_override(obj)
            return result

    class GivenSaver(Saver):
        """Asks of every object whether it is a value of the host's, which takes time."""

        def persistent_id(self, obj: Any) -> str | None:
            return self.given.get(id(obj))

    return type("Savers", (), {"plain": Saver, "given": GivenSaver})


# -- saving ------------------------------------------------------------------------------------------------------------


def handler(kind: type) -> Handler | None:
    """What reduces objects of this type; None where pickle and cloudpickle know how."""
    if kind in HANDLERS:
        return HANDLERS[kind]
    if issubclass(kind, type):
        return reduce_class
    for module, name in HOLLOW:
        hollow = getattr(sys.modules.get(module), name, None)
        if isinstance(hollow, type) and issubclass(kind, hollow):
            return reduce_standard_stream if hollow.__name__ == "TextIOWrapper" else refuse
    if kind.__module__ == "_rlm_capture":
        return reduce_standard_stream
    if kind.__module__ in ("_rlm_worker", "_rlm_channel", "_rlm_heap"):
        return refuse
    if kind.__module__ == "typing" and kind.__name__ in ("TypeVar", "ParamSpec", "TypeVarTuple"):
        return reduce_type_variable
    numpy = sys.modules.get("numpy")
    if numpy is not None and issubclass(kind, numpy.ndarray):
        return lambda saver, obj: arrays.reduce_array(obj)
    found = singletons(kind)
    if found:
        return lambda saver, obj: (attribute, (kind.__module__, found[id(obj)])) if id(obj) in found else None
    return None


def refuse(saver: Any, obj: Any) -> Any:
    raise Refused(f"cannot save {type(obj).__name__!r} object: it is of this process alone")


def reduce_standard_stream(saver: Any, obj: Any) -> Any:
    for name in ("stdout", "stderr", "stdin"):
        if obj is getattr(sys, name):
            return attribute, ("sys", name)
    return refuse(saver, obj)


def by_reference(saver: Any, obj: Any) -> Any:
    """How to refer to a function or class that is not to be saved here; None where it is."""
    name = saver.given.get(id(obj))
    if name is not None:
        return host_value, (name,)
    found = saver.definitions.locate(obj)
    if found is not None and found[0] not in saver.own:
        return (by_name, found) if found[1] else (by_name, (found[0],))
    return None


def reduce_function(saver: Any, obj: Any) -> Any:
    namespace = saver.definitions.namespace
    if not is_definition(obj, namespace):
        return None
    found = by_reference(saver, obj)
    if found is not None:
        return found
    module = None if obj.__globals__ is namespace else module_of(obj)
    if obj.__globals__ is not namespace and module is None:
        return None
    closure = obj.__closure__
    state = {
        "__dict__": interned(obj.__dict__),
        "__name__": interned(obj.__name__),
        "__qualname__": interned(obj.__qualname__),
        "__module__": interned(obj.__module__),
        "__doc__": interned(obj.__doc__),
        "__defaults__": obj.__defaults__,
        "__kwdefaults__": interned(obj.__kwdefaults__),
        "__annotations__": interned(obj.__annotations__),
    }
    if getattr(obj, "__type_params__", ()):
        state["__type_params__"] = obj.__type_params__
    if closure:
        state["cells"] = [(cell, contents(cell)) for cell in closure]
        saver.bare.update(map(id, closure))
    made_of = (obj.__code__, closure) if module is None else (obj.__code__, closure, module)
    return make_function, made_of, state, None, None, set_function


def interned(value: Any) -> Any:
    """A name, names, or a dict by names, made of the one string of that text: else equal functions were told apart."""
    if type(value) is str:
        return sys.intern(value) if len(value) <= LARGE else value
    if type(value) is tuple:
        return tuple(interned(item) if type(item) is str else item for item in value)
    if type(value) is dict:
        return {interned(name): item for name, item in value.items()}
    return value


def contents(cell: Any) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


def reduce_cell(saver: Any, obj: Any) -> Any:
    """Empty where a function follows that fills it: what it holds may be that function."""
    if id(obj) in saver.bare:
        return make_cell, ()
    return make_cell, (), contents(obj), None, None, set_cell


def reduce_code(saver: Any, obj: Any) -> Any:
    saver.code = True
    module = sys.modules[CLOUDPICKLE]
    if obj.co_filename.startswith("<cell ") and obj.co_filename[6:-1].isdigit():
        obj = obj.replace(co_filename=obj.co_filename[:-1] + " of an earlier worker>")  # there, N is another cell
    maker, args = module._code_reduce(obj)
    return maker, tuple(map(interned, args))


def reduce_class(saver: Any, obj: Any) -> Any:
    if not is_definition(obj, saver.definitions.namespace):
        return None
    if obj.__module__ == "builtins" and obj.__name__ in OWN_ERRORS:
        return attribute, (OWN_ERRORS[obj.__name__], obj.__name__)
    found = by_reference(saver, obj)
    if found is not None:
        return found
    module = sys.modules[CLOUDPICKLE]
    if issubclass(obj, module.Enum):
        reduced = list(module._dynamic_class_reduce(obj))
        reduced[1] = (*reduced[1][:-2], None, None)  # no random id: equal classes have equal bytes
        return tuple(reduced)
    return reduce_plain_class(obj)


def reduce_plain_class(obj: Any) -> Any:
    held = vars(obj)
    first = ("__module__", "__doc__", "__slots__", "__orig_bases__")  # in whichever order they stand in the class
    begin = {name: interned(held[name]) for name in first if name in held}
    begin["__qualname__"] = interned(obj.__qualname__)
    slots = held.get("__slots__", ())
    slots = (slots,) if isinstance(slots, str) else tuple(slots)
    left_out = {"__dict__", "__weakref__", "__slotnames__", "_abc_impl", "__annotate_func__", *slots, *begin}
    left_out |= {name for name, value in held.items() if type(value) is types.MemberDescriptorType}
    state = {name: value for name, value in held.items() if name not in left_out}
    registered = ()
    if "_abc_impl" in held:
        import abc

        registered = tuple(kind for ref in abc._get_dump(obj)[0] if (kind := ref()) is not None)  # type: ignore[attr-defined]
    return (
        make_class,
        (type(obj), interned(obj.__name__), obj.__bases__, begin),
        (state, registered),
        None,
        None,
        set_class,
    )


def reduce_method(saver: Any, obj: Any) -> Any:
    if id(obj) in saver.given:
        return host_value, (saver.given[id(obj)],)
    if of_singleton(obj):
        return attribute, (type(obj.__self__).__module__, obj.__name__)
    return types.MethodType, (obj.__func__, obj.__self__)


def reduce_builtin(saver: Any, obj: Any) -> Any:
    owner = obj.__self__
    if owner is None or isinstance(owner, types.ModuleType):
        return None
    return (attribute, (type(owner).__module__, obj.__name__)) if of_singleton(obj) else None


def reduce_cached(saver: Any, obj: Any) -> Any:
    """A function with a cache: the function lives, its cache begins anew."""
    found = by_reference(saver, obj)
    if found is not None or not is_definition(obj, saver.definitions.namespace):
        return found
    held = obj.cache_parameters()
    state = {name: value for name, value in obj.__dict__.items() if name not in ("__wrapped__", "cache_parameters")}
    return make_cached, (obj.__wrapped__, held["maxsize"], held["typed"]), state


def reduce_property(saver: Any, obj: Any) -> Any:
    return make_cached_property, (obj.func, obj.attrname, obj.__doc__)


def reduce_module(saver: Any, obj: types.ModuleType) -> Any:
    if sys.modules.get(obj.__name__) is not obj:
        raise Refused(f"cannot save module {obj.__name__!r}: a cell has made it")
    return sys.modules[CLOUDPICKLE].subimport, (obj.__name__,)


def reduce_type_variable(saver: Any, obj: Any) -> Any:
    options = {}
    if type(obj).__name__ != "TypeVarTuple":
        options = {"bound": obj.__bound__, "covariant": obj.__covariant__, "contravariant": obj.__contravariant__}
    bounds = getattr(obj, "__constraints__", ())
    return make_type_variable, (type(obj).__name__, obj.__name__, bounds, options, obj.__module__)


def reduce_view(saver: Any, obj: Any) -> Any:
    return arrays.reduce_memoryview(obj)


HANDLERS: dict[type, Handler | None] = {
    types.FunctionType: reduce_function,
    types.MethodType: reduce_method,
    types.BuiltinFunctionType: reduce_builtin,
    types.CodeType: reduce_code,
    types.CellType: reduce_cell,
    types.ModuleType: reduce_module,
    functools._lru_cache_wrapper: reduce_cached,
    functools.cached_property: reduce_property,
    memoryview: reduce_view,
}
OWN_ERRORS = {"ToolError": "_rlm_calls", "CodecError": "_rlm_codec"}  # which say that they are Python's, to read better
