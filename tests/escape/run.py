"""A host that runs payloads at one level, and the oracle. `python -m tests.escape.run LEVEL [NAME ...]` prints JSON.

A payload has succeeded where a canary was touched, a secret came back, the payload can show what it got, or the host
does not work any more. Each run is a process of its own, whose environment holds a secret too.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlm.environments.local_repl import LocalREPL
from rlm.errors import ReplError, SandboxError
from rlm.portal import portal
from rlm.ports import CallFailed
from rlm.types import REPLResult
from tests.escape.canaries import Canaries
from tests.escape.payload import AROUND, Payload
from tests.escape.payloads import GROUPS

CELL_SECONDS = 8.0
MOST_OUTPUT = 2_100_000  # characters, of both streams
GONE_SECONDS = 2.0  # in which nothing is left of a session that was closed


@dataclasses.dataclass
class Outcome:
    """What came of one payload. ran: it came to its decisive action. found: why it has succeeded, if it has."""

    name: str
    group: str
    none: str
    ran: bool
    found: list[str]
    said: list[str]
    seconds: float


class Host:
    """Opens sessions at one level, and looks for what came out of them."""

    def __init__(self, isolation: str, canaries: Canaries) -> None:
        self.isolation, self.canaries, self.level = isolation, canaries, ""
        self.shared = Path(tempfile.mkdtemp(prefix="rlm-escape-shared-", dir="/var/tmp"))
        self.shared.chmod(0o777)
        self.asked: list[str] = []

    @contextlib.contextmanager
    def session(self, settings: Mapping[str, Any]) -> Iterator[LocalREPL]:
        given = {"cell_timeout": CELL_SECONDS, **settings}
        if given.pop("shared", False):
            given["extra_paths"] = {str(self.shared): "rw"}
        with LocalREPL(isolation=self.isolation, **given) as repl:
            first = repl.execute_code(f"AROUND = {AROUND!r}\nexec(AROUND)\nshared = {str(self.shared)!r}")
            assert first.error is None, first.error
            self.level = repl.isolation
            yield repl

    async def answer(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        self.asked.append(name)
        if name == "slow":
            await asyncio.sleep(0.2)
        if name not in ("lookup", "slow"):
            raise CallFailed(f"there is no {name}()", "tool")
        return "found"

    def run(self, group: str, payload: Payload, repl: LocalREPL) -> Outcome:
        began, token = time.monotonic(), secrets.token_hex(4)
        code = f"token, C = {token!r}, {self.canaries.places()!r}\nNAME = 'esc' + token\n{payload.code}"
        print(group, payload.name, file=sys.stderr, flush=True)
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        result = portal().run(repl.namespace.run(code, self.answer))
        text = told(result)
        said = [line.split(" ", 1)[-1] for line in text.splitlines() if line.startswith("@@" + token)]
        found = ["it got " + line[4:] for line in said if line.startswith("got ")]
        if payload.host:
            found += AFTERWARDS[payload.host](repl, self.canaries, "esc" + token, descriptors)
        found += [f"{whose} came back" for whose, secret in self.canaries.secrets.items() if secret in text]
        if len(result.stdout) + len(result.stderr) > MOST_OUTPUT:
            found.append(f"{len(result.stdout):,} characters of output")
        found += [f"{path.name} is setuid" for path in self.shared.iterdir() if path.stat().st_mode & stat.S_ISUID]
        for path in self.shared.iterdir():
            path.unlink()
        found += self.canaries.touched()
        found = list(dict.fromkeys(found))
        ran = "tried" in said or any(line.startswith(("got", "refused")) for line in said)
        return Outcome(
            payload.name, group, payload.none, ran, found,
            [*said, *([result.error.text[-300:]] if result.error else [])], time.monotonic() - began,
        )  # fmt: skip

    def run_all(self, names: Sequence[str]) -> list[Outcome]:
        chosen = [
            (group, one)
            for group, payloads in GROUPS.items()
            for one in payloads
            if not names or {one.name, group} & {*names}
        ]
        with self.session({}):
            pass  # which says at which level
        if self.level == "none":
            chosen = [(group, one) for group, one in chosen if one.none != "not run"]
        else:
            chosen = [(group, one) for group, one in chosen if self.level in one.holds]
        outcomes = []
        together = [entry for entry in chosen if not entry[1].alone]
        together.sort(key=lambda entry: json.dumps(entry[1].settings, sort_keys=True))
        for _, some in itertools.groupby(together, key=lambda entry: entry[1].settings):
            outcomes += self.run_some(list(some))
        for entry in chosen:
            if entry[1].alone:
                outcomes += self.run_some([entry])
        return outcomes

    def run_some(self, some: Sequence[tuple[str, Payload]]) -> list[Outcome]:
        """Payloads in a session of their own, one after the other."""
        try:
            with self.session(some[0][1].settings) as repl:
                return [self.run(group, payload, repl) for group, payload in some]
        except (SandboxError, OSError) as error:
            found = [f"no session can be opened: {error}"]
            return [Outcome(one.name, group, one.none, False, found, [], 0.0) for group, one in some]

    def close(self) -> None:
        shutil.rmtree(self.shared, ignore_errors=True)


def told(result: REPLResult) -> str:
    """Everything that a cell has told."""
    parts = [result.stdout, result.stderr, result.error.text if result.error else "", result.final_answer or ""]
    return "\n".join([*parts, *result.locals])


# -- what the host does after a payload --------------------------------------------------------------------------------


def alive(repl: LocalREPL, canaries: Canaries, name: str, descriptors: int) -> list[str]:
    result = repl.execute_code("print(6 * 7)")
    if result.stdout != "42\n":
        result = repl.execute_code("print(6 * 7)")  # what the payload left behind may have ended the worker only now
    broken = result.stdout != "42\n" and result.error is None
    return [f"the host is answered {result.stdout!r}"] if broken and "builtins" not in result.stdout else []


def get(repl: LocalREPL, canaries: Canaries, name: str, descriptors: int) -> list[str]:
    with contextlib.suppress(ReplError, KeyError):
        value = repl.locals["bait"]
        if isinstance(value, str) and len(value) > 256 << 20:
            return ["the host has a value of over 256 MB"]
    return alive(repl, canaries, name, descriptors)


def names(repl: LocalREPL, canaries: Canaries, name: str, descriptors: int) -> list[str]:
    with contextlib.suppress(ReplError):
        sorted(repl.locals)
    return alive(repl, canaries, name, descriptors)


def capture(repl: LocalREPL, canaries: Canaries, name: str, descriptors: int) -> list[str]:
    with contextlib.suppress(ReplError):
        _, taken = portal().run(repl.namespace.capture(whole=True))
        for content in taken.blobs.values():
            data = content if isinstance(content, bytes) else content.read_bytes()
            if canaries.in_file.encode() in data:
                return ["the host took a file of its own for a blob"]
    return alive(repl, canaries, name, descriptors)


def kept(repl: LocalREPL, canaries: Canaries, name: str, descriptors: int) -> list[str]:
    more = len(list(Path("/proc/self/fd").iterdir())) - descriptors
    return [f"the host holds {more} descriptors more"] if more > 20 else alive(repl, canaries, name, descriptors)


def gone(repl: LocalREPL, canaries: Canaries, name: str, descriptors: int) -> list[str]:
    repl.cleanup()
    until = time.monotonic() + GONE_SECONDS
    while left := processes_named(name):
        if time.monotonic() > until:
            for pid in left:
                os.kill(pid, 9)
            return [f"{len(left)} processes outlive their session"]
        time.sleep(0.02)
    return []


def processes_named(name: str) -> list[int]:
    """The living ones: of what has ended the machine's first process takes its time to ask."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            said = (folder / "stat").read_text() if folder.name.isdigit() else ""
            if f"({name}) " in said and f"({name}) Z" not in said:
                found.append(int(folder.name))
    return found


AFTERWARDS: Mapping[str, Callable[[LocalREPL, Canaries, str, int], list[str]]] = {
    "alive": alive,
    "get": get,
    "names": names,
    "capture": capture,
    "descriptors": kept,
    "gone": gone,
}


def main() -> None:
    level, *names = sys.argv[1:]
    began = time.monotonic()
    with Canaries() as canaries:
        host = Host(level, canaries)
        try:
            outcomes = host.run_all(names)
        finally:
            host.close()
        report = {"level": host.level, "user": os.getuid(), "seconds": round(time.monotonic() - began, 2)}
        report["outcomes"] = [dataclasses.asdict(outcome) for outcome in outcomes]
        print(json.dumps(report))


if __name__ == "__main__":
    main()
