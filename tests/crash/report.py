"""docs/crash.md, made from the result of the long run and nothing else, and that result on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.results import about_this_run
from rlm import LocalREPL
from tests.crash.harness import ROOT, Tally
from tests.crash.life import CONCURRENCY

RESULT = ROOT / "bench" / "results" / "crash.json"
PAGE = ROOT / "docs" / "crash.md"
SHOWN = ("date", "processor", "memory", "system", "python")


@dataclass(frozen=True)
class Result:
    """What a run came to. seed: of its first session; seconds: how long it took; about: the machine, by name."""

    tally: Tally
    violations: int
    seed: int
    jobs: int
    seconds: float
    about: Mapping[str, str]


def about(load: float, isolation: str) -> Mapping[str, str]:
    """The machine, and the level of isolation. load: its average before the run."""
    known = about_this_run(load)
    return {name: known[name] for name in SHOWN} | {"isolation": LocalREPL(isolation=isolation).isolation}


def write(result: Result, path: Path) -> None:
    data = asdict(result) | {"seconds": round(result.seconds)}
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: Path = RESULT) -> Result:
    data = json.loads(path.read_text(encoding="utf-8"))
    return Result(**data | {"tally": Tally(**data["tally"])})


def page(result: Result) -> str:
    """The page for this result."""
    tally = result.tally
    kills = f"{tally.kills:,}: {tally.hosts:,} of a host, {tally.workers:,} of a worker whose host went on"
    if tally.guards or tally.zygotes:
        kills += f", of these {tally.guards:,} by its guard's end, and {tally.zygotes:,} by its zygote's"
    rows = {
        "kills": kills,
        "violations": f"**{result.violations:,}**",
        "sessions": f"{tally.sessions:,}, killed in {_counted(tally.styles)}",
        "lives of a host": f"{tally.lives:,}",
        "events in their logs": f"{tally.events:,}",
        "model requests": f"{tally.requests:,}",
        "of these in flight at a kill, on no record, and made again": f"{tally.repeated:,}",
        "seeds": f"from {result.seed} on",
        "time": f"{result.seconds / 60:.0f} minutes, {result.jobs} sessions at a time",
        **result.about,
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
    return TEXT.replace("<figures>", table).replace("<concurrency>", str(CONCURRENCY))


def _counted(styles: Mapping[str, int]) -> str:
    return ", ".join(f"{times:,} {style if times == 1 else style + 's'}" for style, times in sorted(styles.items()))


TEXT = """\
# Killed at any instant

<!-- Made by `python -m tests.crash.report` from bench/results/crash.json and the text there. A test compares them. -->

What a session promises about the end of its process is tested by ending it: `SIGKILL`, sent to the host, to the worker
that holds the variables, or to both, at random instants and at every event of the log. Now and then it is the guard of
a sandbox that is hit instead of its worker, or the zygote that all of a host's sandboxes were forked from. The session
is opened in a new process, goes on, and is killed again. `scripts/crash` does this as often as one likes, the tests for
a moment.

<figures>

A run ends with the first violation, so that these figures exist only where there was none. `scripts/crash --kills
10000` takes them again; `--minutes`, `--seed`, `--jobs` and `--isolation` do what they say.

## What is true after every kill

- **No committed turn is lost.** What `ask` returned before the kill is in the log after it, and so is each cell of the
  user's own that returned, each input, each fork.
- **A log only grows.** What one process found in it, every later one finds there, in the same order.
- **No recorded reply is asked for again.** The provider keeps its own bill, and each reply carries its number there
  into the log. No place in a log has two replies; a request that is on no record was in flight at a kill, of which
  there are at most as many as `Limits(concurrency=)` allows (here <concurrency>).
- **The bill is the usage.** `session.usage()` is, to the token, what the provider billed for what is on record.
- **Same answers, same values, same identity.** A twin with the same script is run to its end without a kill. The
  results of all steps must be the same, and so must a canonical form of the namespace: types, values, which names share
  which objects, closures, classes, iterators, the files of the session. So must inputs, histories, and what the model
  was told.
- **What cannot be saved is told.** A generator or a lock is there, or it is named in the report of a restore.
- **A tool with `retry="never"` is called once by a cell**, however often its host is killed meanwhile.
- The store passes its own check, nothing in it is left over, and no process of a session's outlives its host.

Sessions whose cells use the clock, random numbers and racing threads have no twin: they are only never stranded, lose
nothing, and ask for nothing twice.

## How it works

A session is a script drawn from a seed: turns with and without inputs, some with a key, cells of the user's own, calls
(single, in batches, from threads), children with a REPL of their own, tools, failing cells, cells that end their
worker, rewinds, forks, exports and imports, collections of the store, idle workers. The model's replies are a function
of what it was sent, so that whatever it was told otherwise would make another answer.

The host runs in a process of its own that is forked from a warm one, and says over a pipe what each step came to. It
finds out from the log alone what a process before it had done, as a program of yours would. The harness kills it

- **by event**: a `Store` around the real one counts what is appended, and ends its own process before the n-th event
  is handed on, while it is on its way (up to 4 ms later, in the middle of a commit, a blob's file, a checkpoint), or
  after it is durable and before anybody knows;
- **by request**: when the provider has got the n-th one, or has just answered it;
- **by the clock**: at a random instant, during opening, resuming, restoring and closing too.

A *storm* does this to every life of a session, differently each time. A *sweep* kills at the first event, goes on, and
kills at the next one, so that every boundary between two events is met by a process that was itself resumed. A *single*
kill meets one that comes from the beginning.

A violation prints the seed, and the run leaves the session's folder as it is. `scripts/crash --seed N --sessions 1
--jobs 1 --trace` runs that session again. The instants inside a life are the machine's own, so that a rare one may take
several tries.

## What "killed" means here

A **process crash**: the operating system and the disk go on. That is what these figures are about; they say nothing
about a power cut, because a killed process cannot take back what it has written. `SIGKILL` tests pass without a single
`fsync`.

For a **power cut** the store relies on order, which a test of its own holds by tracing the system calls
(`tests/unit/test_store_crashes.py`):

1. A large blob is written to a new file, synced, renamed to its digest, and its folder synced.
2. Then the event that refers to it is committed, by SQLite with a write-ahead log and `synchronous=FULL`: the log is
   synced before the commit returns.
3. Only then is anybody told, and only then is the effect acted upon: a reply used, a cell answered, a request sent.

So it takes a disk that keeps what it said it had synced, and a file system that keeps a rename whose folder was synced.
On macOS the store asks for `F_FULLFSYNC`. Where a disk lies, SQLite's checksums and the digests of events and blobs
tell: the session is refused, or stands as of an earlier commit, and a damaged value is lost by name.

## What goes wrong around it

`tests/integration/test_faults.py`, with real disks, locks and processes:

| fault | what happens |
|---|---|
| the disk is full in the middle of a turn | `StoreError`; opened again when there is room, the turn goes on |
| the store cannot be written | `StoreError` at opening; listing and showing work |
| another program locks the database | it is waited for, then `StoreError`; nothing is lost |
| another process has the session | `SessionBusyError` names it, `wait=` waits; its end frees it at once |
| that process is stopped (`SIGSTOP`) | it keeps the session, because it may go on at any moment, and does |
| a blob has a flipped bit, or was cut | made again by its cells, or lost as "damaged"; `strict=True` refuses |
| the database has a flipped bit, or was cut | `StoreError`, or the session as of an earlier commit |
| the clock runs backwards | nothing: no order depends on it |
"""


if __name__ == "__main__":
    PAGE.write_text(page(read()), encoding="utf-8")
