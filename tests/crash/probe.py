"""A cell that prints a namespace in one canonical form: values, types, and which names share which objects.

Two namespaces that print the same differ in nothing that a program could tell, addresses apart, and whether equal
texts, numbers, and tuples and frozensets of such are one object. It leaves no name behind, and reads nothing but the
namespace and the folder of the session. Inputs are left out, which may come while it waits to be run again.
"""

from __future__ import annotations

SOURCE = """
def _probe(space):
    import hashlib, os, types
    seen, kept = {}, []
    given = {"llm_query", "llm_query_batched", "rlm_query", "rlm_query_batched", "SHOW_VARS", "answer", "lookup",
             "effect"}

    def short(text):
        return text if len(text) < 4000 else hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()

    def attributes(kind):
        hidden = ("__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__firstlineno__",
                  "__static_attributes__", "__dataclass_fields__", "__dataclass_params__", "__match_args__",
                  "__slotnames__")
        return [(name, kind.__dict__[name]) for name in sorted(kind.__dict__) if name not in hidden]

    def code(one):
        consts = [code(each) if isinstance(each, types.CodeType) else repr(each) for each in one.co_consts]
        return short(repr((one.co_code, consts, one.co_names, one.co_varnames, one.co_freevars, one.co_cellvars)))

    def walk(value):
        kind = type(value)
        if value is None or kind in (int, float, bool, complex, str, bytes, type(...)):
            return short(repr(value))
        if kind in (tuple, frozenset) and all(type(one) in (int, float, bool, str, bytes) for one in value):
            return kind.__name__ + short(repr(sorted(value, key=repr) if kind is frozenset else value))
        if isinstance(value, types.ModuleType):
            return "module " + value.__name__
        if isinstance(value, (types.BuiltinFunctionType, types.WrapperDescriptorType, types.MemberDescriptorType,
                              types.GetSetDescriptorType)):
            return "builtin " + value.__name__
        if isinstance(value, type) and value.__module__ != "__main__":
            return "class " + value.__module__ + "." + value.__qualname__
        if isinstance(value, types.FunctionType) and value.__module__ not in (None, "__main__"):
            if value.__globals__ is not space:
                return "function " + value.__qualname__
        if id(value) in seen:
            return "#%d" % seen[id(value)]
        number = seen[id(value)] = len(seen)
        kept.append(value)
        return "%d=%s" % (number, short(parts(value, kind)))

    def parts(value, kind):
        if kind in (list, tuple):
            return kind.__name__ + "(" + ", ".join(map(walk, value)) + ")"
        if kind is dict:
            return "{" + ", ".join(walk(k) + ": " + walk(v) for k, v in value.items()) + "}"
        if kind in (set, frozenset):
            return kind.__name__ + repr(sorted(map(repr, value)))
        if kind is bytearray:
            return repr(value)
        if isinstance(value, type):
            bases = [walk(one) for one in value.__bases__]
            return "class %s %s %s" % (value.__name__, bases, [(n, walk(v)) for n, v in attributes(value)])
        if kind is types.FunctionType:
            cells = [walk(one) for one in value.__closure__ or ()]
            return "def %s %s %s %s %s %s" % (value.__qualname__, code(value.__code__), walk(value.__defaults__),
                walk(value.__kwdefaults__), cells, value.__globals__ is space)
        if kind is types.CellType:
            return "cell " + walk(value.cell_contents)
        if kind is types.MethodType:
            return "method %s of %s" % (value.__name__, walk(value.__self__))
        if kind is property:
            return "property " + walk(value.fget)
        if kind in (staticmethod, classmethod):
            return kind.__name__ + walk(value.__func__)
        state = value.__reduce_ex__(2) if kind.__module__ != "__main__" else (None, None, value.__getstate__())
        shown = [walk(list(one) if hasattr(one, "__next__") else one) for one in state[1:]]
        return "instance of %s %s" % (walk(kind), shown)

    def files(top):
        for folder, below, names in sorted(os.walk(top)):
            for name in sorted(names):
                path = os.path.join(folder, name)
                with open(path, "rb") as file:
                    yield "file %s %s" % (os.path.relpath(path, top), hashlib.sha256(file.read()).hexdigest()[:16])

    lost = sorted(name for name in space if name.startswith("lost_"))
    for name in sorted(space):
        if name in given or name.startswith(("_", "lost_", "history", "context")):
            continue
        print(name, "=", walk(space[name]))
    for line in files("."):
        print(line)
    print("lost", lost)

_probe(globals())
del _probe
"""
