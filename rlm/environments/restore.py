"""A saved heap on its way back into a namespace: files, modules, definitions, values, each on its own.

Whatever cannot be brought back is named with the reason, and harms nothing beside it. Blobs are verified before they
are loaded, and code of another minor version of Python is never loaded: it is made again from its source, or lost. Code
of the user's that does not end is interrupted, so that it costs its own names only.
Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `worker.py`.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what cells see of signal waits until a cell runs
import io
import linecache
import mmap
import os
import signal
import sys
import time
from base64 import b64decode

import folder as files
from limits import cut, reason
from makers import Target
from names import code_names
from pickles import cloudpickle

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from handed import Handed

MISSING = "its blob is missing"


class Group:
    """Names that are loaded together. state: "" before, "loading", then "done" or why it is lost."""

    def __init__(self, saved: list[Any]) -> None:
        self.names, self.types, self.digest, _, self.definition, self.code, self.sources = saved
        self.state = ""
        self.refs: set[str] = set()
        self.uses: set[str] = set()


class Unusable(Exception):
    """Why something cannot be brought back."""


class OverTime(BaseException):
    """Strikes in code of the user's that takes too long; no error that it would handle."""


def unpickler() -> Any:
    import pickle  # many a worker never needs it

    class Unpickler(pickle.Unpickler):
        """Finds values of the host's by name."""

        def persistent_load(self, name: str) -> Any:
            return Target.given[name]

    return Unpickler


def no_definition(name: str) -> Any:
    raise Unusable(f"it needs {name}, and nothing is being restored")


def no_matter(code: Any) -> None:
    """Nobody is interested in the code of functions that cells load themselves."""


class Restore:
    """Made and `run` once. given: the host's values in the namespace by name."""

    def __init__(
        self,
        image: dict[str, Any],
        contents: dict[str, Any],
        namespace: dict[str, Any],
        given: dict[str, Any],
        handed: Handed,
    ) -> None:
        self.image, self.contents, self.namespace, self.given = image, contents, namespace, given
        self.handed = handed
        self.opened: dict[str, int] = {}
        self.groups = [Group(saved) for saved in image["groups"]]
        self.of_name = {name: group for group in self.groups for name in group.names if name}
        self.loading: list[Group] = []
        self.end = self.share = 0.0
        self.timed = False
        self.unpickler = unpickler()
        self.lost: dict[str, list[str]] = {}
        self.rebuilt: set[str] = set()
        self.why: dict[str, str] = {}
        here = ".".join(map(str, sys.version_info[:2]))
        self.foreign = image["python"] not in ("", here)
        self.versions = f"made by Python {image['python']}, cannot be loaded by {here}"

    def run(self, folder: str, cloudpickle_path: str | None, seconds: float) -> None:
        """Bring everything back, in the order in which one thing needs another. seconds: how long that may take."""
        self.end = time.monotonic() + seconds
        before = _signal.signal(signal.SIGALRM, self.strike)
        try:
            self.bring_back(folder, cloudpickle_path)
        finally:
            _signal.signal(signal.SIGALRM, before)

    def bring_back(self, folder: str, cloudpickle_path: str | None) -> None:
        cloudpickle(cloudpickle_path)
        for path, (digest, _, mode, link) in self.image["files"].items():
            self.put_file(folder, path, digest, mode, link)
        for name, imported in self.image["modules"].items():
            self.import_module(name, imported)
        Target.namespace, Target.given = self.namespace, self.given
        Target.find, Target.used = self.find, self.used  # type: ignore[method-assign]
        order = sorted(self.groups, key=lambda group: not group.definition)
        while self.foreign and (self.rebuild() or self.retry(order)):
            pass
        for group in order:
            self.load(group)
            if group.state != "done":
                for name, kind in zip(group.names, group.types):
                    if name and name not in self.rebuilt:
                        self.lost[name] = [kind, cut(self.why.get(name, group.state), 300), ""]
        for name, known in self.image["given"].items():
            if known in self.given:
                self.namespace[name] = self.given[known]
            else:
                self.lost[name] = ["", cut(f"it was {known}, which is not here"), ""]
        self.contents = {}
        for file in self.opened.values():
            os.close(file)
        Target.namespace, Target.given = {}, {}
        Target.find, Target.used = no_definition, no_matter  # type: ignore[method-assign]

    # -- time ----------------------------------------------------------------------------------------------------------

    def strike(self, number: int, frame: Any) -> None:
        if self.timed:
            raise OverTime(f"it took over {self.share:.3g} s")

    def timely(self, work: Callable[[], object]) -> None:
        """Do it, but for half of the time that is left at the most: what comes after it needs some, too. Raises
        `OverTime`, here or where it strikes."""
        if self.timed:
            work()
            return
        self.share = max((self.end - time.monotonic()) / 2, 0.01)
        self.timed = True
        _signal.setitimer(_signal.ITIMER_REAL, self.share, self.share)  # again, where the first was swallowed
        try:
            work()
        finally:
            self.timed = False
            _signal.setitimer(_signal.ITIMER_REAL, 0)

    # -- parts ---------------------------------------------------------------------------------------------------------

    def put_file(self, folder: str, path: str, digest: str, mode: int, link: str | None) -> None:
        try:
            data = b"" if link is not None or digest == files.EMPTY_DIGEST else self.content(digest)
            files.put(folder, path, mode, link, data)
        except (OSError, ValueError, Unusable) as error:
            self.lost["./" + path] = ["file", cut(error), ""]

    def import_module(self, name: str, imported: str) -> None:
        first, *below = imported.split(", ")

        def work() -> None:
            __import__(first)
            self.namespace[name] = sys.modules[first]
            for further in below:
                __import__(further)

        try:
            self.timely(work)
        except BaseException as error:  # noqa: BLE001 - a module's own code may raise anything; the name is lost
            self.lost[name] = ["module", reason(error), ""]

    def content(self, digest: str) -> Any:
        """The bytes of a blob, verified. Raises `Unusable`."""
        content = self.contents.get(digest)
        if content is None:
            raise Unusable(MISSING)
        try:
            if "path" in content:
                data: Any = self.read(content["path"], content.get("at"), content.get("size", 0))
            else:
                data = b64decode(content["data"])
        except OSError as error:
            raise Unusable(f"its blob cannot be read: {error}") from None
        import hashlib

        if hashlib.sha256(data).hexdigest() != digest:
            raise Unusable("damaged: its blob has another digest")
        return data

    def read(self, path: str, at: int | None, size: int) -> Any:
        """What the host has put into a file, or a part of it."""
        if path not in self.opened:
            self.opened[path] = self.handed.open(path)
        file = self.opened[path]
        if at is not None:
            return os.pread(file, size, at)
        return mmap.mmap(file, 0, access=mmap.ACCESS_READ) if os.fstat(file).st_size else b""

    # -- values --------------------------------------------------------------------------------------------------------

    def find(self, name: str) -> Any:
        """A definition that a blob refers to; brought back first, if it is not there yet."""
        for group in self.loading[-1:]:
            group.refs.add(name)
        needed = None if name in self.rebuilt else self.of_name.get(name)
        if needed is not None and not needed.state:
            self.load(needed)
        if name not in self.namespace or (needed is not None and needed.state not in ("done", "loading")):
            why = f": {needed.state}" if needed is not None and needed.state not in ("done", "loading") else ""
            raise Unusable(f"it needs {name}, which is lost{why}")
        return self.namespace[name]

    def used(self, code: Any) -> None:
        for group in self.loading[-1:]:
            group.uses |= code_names(code)

    def load(self, group: Group) -> None:
        if group.state or not any(group.names):
            return
        if self.foreign and group.code:
            group.state = self.versions
        else:
            group.state = "loading"
            self.loading.append(group)
            try:
                data = self.content(group.digest)
                self.timely(lambda: self.bind(group, self.unpickle(data)))
                group.state = "done"
            except (Unusable, OverTime) as error:
                group.state = str(error)
            except BaseException as error:  # noqa: BLE001 - code of the user's runs here, and costs only its own names
                group.state = reason(error)
            finally:
                self.loading.pop()

    def unpickle(self, data: Any) -> Any:
        if isinstance(data, mmap.mmap):
            with data:
                return self.unpickler(data).load()
        return self.unpickler(io.BytesIO(data)).load()

    def bind(self, group: Group, values: Any) -> None:
        if type(values) is not list or len(values) != len(group.names):
            raise Unusable("damaged: its blob holds something else")
        for name, value in zip(group.names, values):
            if not name or name in self.rebuilt:
                continue
            old = self.given.get(name)
            if name in self.given:
                for other in [other for other, held in self.given.items() if held is old]:
                    self.given[other] = value
            self.namespace[name] = value

    # -- definitions of another version of Python ----------------------------------------------------------------------

    def rebuild(self) -> bool:
        """Run the statements that made the definitions, in whichever order works. Whether any did that had not."""
        before = len(self.rebuilt)
        left = {name: group.sources[name] for name, group in self.of_name.items() if name in group.sources}
        progress = True
        while progress:
            progress = False
            for name in [name for name in left if name not in self.rebuilt]:
                filename, source = f"<rebuilt {name}>", left[name]
                linecache.cache[filename] = (len(source), None, list(io.StringIO(source)), filename)
                try:
                    made = compile(source, filename, "exec", dont_inherit=True)
                    self.timely(lambda made=made: exec(made, self.namespace))  # type: ignore[misc]
                except BaseException as error:  # noqa: BLE001 - it may lack another one, or is lost
                    self.why[name] = f"{self.versions}; its source says {reason(error)}"
                else:
                    progress = True
                    self.rebuilt.add(name)
        for group in self.groups:
            if all(not name or name in self.rebuilt for name in group.names):
                group.state = "done"
        return len(self.rebuilt) > before

    def retry(self, order: list[Group]) -> bool:
        """Load what can be loaded by now; whether that was anything."""
        before = sum(group.state == "done" for group in order)
        for group in order:
            if group.state != "done":
                group.state = ""
                self.load(group)
        return sum(group.state == "done" for group in order) > before
