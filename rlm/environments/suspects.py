"""Which names a cell can have bound to another value, or have changed the value of: an analysis on the safe side.

They are the names in its code and in all code that those lead to, with all that shares objects with them. Where code
may reach anything (frames, namespaces, memory), or something runs beside the cells (threads, tasks, signal handlers),
it is every name.
Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `worker.py`.
"""

from __future__ import annotations

import sys
import threading
import types

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from typing import Any

    from definitions import Definitions
    from known import Known

# Names in code that say that it may reach anything: frames, namespaces, memory. And the modules that allow it.
DYNAMIC = frozenset(("globals", "locals", "vars", "exec", "eval", "setattr", "delattr", "settrace", "setprofile"))
DYNAMIC |= {"__dict__", "__import__", "__main__", "__builtins__", "__globals__", "builtins", "modules", "pickle"}
DYNAMIC |= {
    "gc",
    "ctypes",
    "inspect",
    "_getframe",
    "_current_frames",
    "currentframe",
    "f_globals",
    "f_locals",
    "f_back",
}
DYNAMIC |= {"tb_frame", "gi_frame", "cr_frame", "ag_frame"}
DYNAMIC_MODULES = frozenset(("__main__", "gc", "ctypes", "_ctypes", "inspect", "builtins", "cffi", "code", "pdb"))
DYNAMIC_BUILTINS = (globals, locals, vars, exec, eval, setattr, delattr, __import__)
MODULE_NAMES = frozenset(
    ("__name__", "__doc__", "__package__", "__loader__", "__spec__", "__builtins__", "__warningregistry__")
)
IDLE = ("concurrent/futures/thread.py", "multiprocessing/pool.py")  # where a pool's thread waits for work


class Suspects:
    """The analysis over one namespace. worker: what may run beside the cells; known: what the last captures found."""

    def __init__(self, worker: Any, definitions: Definitions, known: Known) -> None:
        self.worker, self.namespace, self.definitions, self.known = worker, worker.names, definitions, known

    def names(self, pending: set[str]) -> set[str] | None:
        """The names whose values the cells since the last capture can have changed; None for all."""
        known, namespace = self.known, self.namespace
        if pending & DYNAMIC or self.background():
            return None
        todo = [*pending, *known.restless]
        for name in reversed(namespace):  # new names stand at the end
            if name in known or name in self.worker.given:
                break
            if type(name) is str:
                todo.append(name)
        seen: set[str] = set()
        found: set[str] = set()
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            uses = known.uses.get(name, frozenset())
            if uses & DYNAMIC:
                return None
            todo += uses
            if name not in namespace and name not in known:
                continue
            value = namespace.get(name)
            if reaches_anything(value):
                return None
            found.add(name)
            todo += known.refs.get(name, ())
            todo += known.members.get(name, ())
            if name in known.referers and value is not self.definitions.objects.get(name):
                todo += known.referers[name]
        return found - MODULE_NAMES

    def background(self) -> bool:
        """Whether something may change values beside the cells' own code."""
        loop = self.worker.loop
        if loop is not None and not loop.is_closed() and sys.modules["asyncio"].all_tasks(loop):
            return True
        return threads_live() or self.worker.masked.handlers


def reaches_anything(value: Any) -> bool:
    """Whether who holds the value can reach every object, by a module or a function of it."""
    if isinstance(value, types.ModuleType):
        return value.__name__ in DYNAMIC_MODULES
    if type(value) is types.BuiltinFunctionType:
        return value in DYNAMIC_BUILTINS or value.__module__ in ("gc", "_ctypes")
    return getattr(type(value), "__module__", None) in ("_ctypes", "ctypes")


def threads_live() -> bool:
    """Whether a thread of the cells' runs, one that waits for work in a pool not counted."""
    import _thread

    threads = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    ours = [thread for thread in threads if thread.name.startswith("rlm-")]
    if _thread._count() <= len(ours):
        return False
    frames = sys._current_frames()
    idle = 0
    for thread in threads:
        frame = frames.get(thread.ident or 0)
        idle += frame is not None and thread not in ours and frame.f_code.co_filename.endswith(IDLE)
    return _thread._count() > len(ours) + idle
