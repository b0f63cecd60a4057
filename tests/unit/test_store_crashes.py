"""What was acknowledged is on disk: the order of the system calls, kills in the middle of appends, disks that are full.

A kill shows nothing about what reached the disk, so the calls that make it do so are traced.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.store_processes import own_mounts, said

# -- the order of system calls -----------------------------------------------------------------------------------------

CALLS = "write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,link,linkat,fchmod"


@dataclass(frozen=True)
class Call:
    """A system call that succeeded; begin, end: places in the order of all begins and ends."""

    text: str
    begin: int
    end: int


def traced(log: Path) -> list[Call]:
    """All calls that a trace of several threads shows, whole, in the order in which they ended."""
    begun: dict[str, tuple[str, int]] = {}
    calls = []
    for number, line in enumerate(log.read_text(errors="replace").splitlines()):
        thread, _, text = line.partition(" ")
        text = text.strip()
        begin = number
        if text.endswith("<unfinished ...>"):
            begun[thread] = (text.removesuffix("<unfinished ...>"), number)
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>", text):
            first, begin = begun.pop(thread)
            text = first + text[resumed.end() :]
        if re.search(r"= (?!-1)\d+", text):
            calls.append(Call(text, begin, number))
    return calls


def trace(code: str, log: Path, *args: object) -> list[Call]:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed: apt-get install strace")
    command = [strace, "-f", "-y", "-s", "16", "-e", f"trace={CALLS}", "-o", str(log)]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody trace a process")
    said(code, *args, under=command)
    calls = traced(log)
    begin = next(index for index, call in enumerate(calls) if "write(1" in call.text and '"begin' in call.text)
    end = next(index for index, call in enumerate(calls) if "write(1" in call.text and '"done' in call.text)
    return calls[begin : end + 1]


def first(calls: list[Call], pattern: str) -> Call:
    return next(call for call in calls if re.search(pattern, call.text))


def last(calls: list[Call], pattern: str) -> Call:
    return [call for call in calls if re.search(pattern, call.text)][-1]


APPENDING = """
async def main():
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    store = SQLiteStore(folder / "store")
    lease = await store.lease("s")
    data = bytes(range(256)) * (1 << 13)
    path = lease.folder / "content"
    path.write_bytes(data)
    content = {"bytes": data, "stranger": path, "own": Owned(path)}.get(kind)
    sys.stdout.write("begin\\n")
    sys.stdout.flush()
    if kind == "begun":
        _, content = await lease.place(Owned(path))
    await lease.append([event(0)], {digest_of(data): content} if content else {})
    sys.stdout.write("done\\n")
    sys.stdout.flush()
    os._exit(0)

asyncio.run(main())
"""

LOG_WRITTEN = r"pwrite64\(\d+<[^>]*/store\.db-wal>"
LOG_SYNCED = r"f(data)?sync\(\d+<[^>]*/store\.db-wal>"


def in_order(steps: list[Call]) -> None:
    for one, other in itertools.pairwise(steps):
        assert one.end < other.begin, f"{one.text}\nwas to end before\n{other.text}"


@pytest.mark.parametrize("kind", ["bytes", "stranger"])
def test_a_large_blob_is_on_disk_before_the_event_that_refers_to_it(kind: str, tmp_path: Path) -> None:
    calls = trace(APPENDING, tmp_path / "trace", tmp_path, kind)
    written = last(calls, r"write\(\d+<[^>]*/blobs/new/")
    synced = last(calls, r"fsync\(\d+<[^>]*/blobs/new/")
    renamed = first(calls, r'rename(at2?)?\(.*/blobs/new/.*/blobs/../[0-9a-f]{64}"')
    names_synced = [first(calls, rf"fsync\(\d+<[^>]*/{folder}>") for folder in ("blobs/..", "blobs", "store")]
    acknowledged = [first(calls, LOG_WRITTEN), last(calls, LOG_SYNCED), calls[-1]]
    in_order([written, synced, renamed, *names_synced, *acknowledged])
    in_order([last(calls, LOG_WRITTEN), last(calls, LOG_SYNCED)])


@pytest.mark.parametrize("kind", ["own", "begun"])
def test_a_file_of_our_own_is_on_disk_before_the_event_that_refers_to_it(kind: str, tmp_path: Path) -> None:
    calls = trace(APPENDING, tmp_path / "trace", tmp_path, kind)
    synced = first(calls, r"fsync\(\d+<[^>]*/work/[0-9a-f]+/content>")
    linked = first(calls, r'link(at)?\(.*/content".*/blobs/../[0-9a-f]{64}"')
    names_synced = [first(calls, rf"fsync\(\d+<[^>]*/{folder}>") for folder in ("blobs/..", "blobs", "store")]
    in_order([synced, linked, *names_synced, first(calls, LOG_WRITTEN), last(calls, LOG_SYNCED), calls[-1]])
    assert not [call for call in calls if "/blobs/new/" in call.text]


def test_an_event_is_on_disk_before_it_is_acknowledged(tmp_path: Path) -> None:
    calls = trace(APPENDING, tmp_path / "trace", tmp_path, "none")
    in_order([first(calls, LOG_WRITTEN), last(calls, LOG_WRITTEN), first(calls, LOG_SYNCED), calls[-1]][1:])
    assert len([call for call in calls if re.search(LOG_SYNCED, call.text)]) == 1


# -- kills -------------------------------------------------------------------------------------------------------------

# One process does it all, so that a round takes no longer than a fork: a child appends and says through a pipe what was
# acknowledged; it is killed at a random instant; the parent opens the store and compares.
KILLING = """
import random, threading
folder, rounds, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
random.seed(seed)
LARGE = [bytes([number]) * (1 << 20) for number in range(4)]

def blobs_of(number):
    if number % 10 == 3:
        return {digest_of(data): data for data in (LARGE[number // 10 % 4],)}
    return {digest_of(data): data for data in (b"blob %d" % number,)} if number % 3 == 0 else {}

async def write(pipe):
    store = SQLiteStore(folder)
    lease = await store.lease("s")
    number = len(await store.read("s"))

    async def one(number):
        await lease.append([event(number)], blobs_of(number))
        os.write(pipe, b"%d\\n" % number)

    while True:
        many = random.choice((1, 1, 1, 5, 30))
        await asyncio.gather(*(one(number + index) for index in range(many)))
        number += many
        if random.random() < 0.05:
            await store.collect()

async def look(acknowledged):
    store = SQLiteStore(folder)
    lease = await store.lease("s")
    records = await store.read("s")
    wrong = []
    if records != [event(number) for number in range(len(records))]:
        wrong.append("the log is not what was appended")
    if any(number >= len(records) for number in acknowledged):
        wrong.append(f"acknowledged up to {max(acknowledged)}, found {len(records)}")
    for record in records[-40:]:
        for digest in blobs_of(record.number):
            blob = await store.blob(digest)
            if digest_of(blob if isinstance(blob, bytes) else blob.read_bytes()) != digest:
                wrong.append("a blob is damaged")
    await store.collect()
    wrong += await store.check()
    await store.close()
    return wrong, len(records)

wrong, recorded, told = [], 0, 0
for round in range(rounds):
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        random.seed(seed * 1000 + round)
        os.close(reading)
        asyncio.run(write(writing))
    os.close(writing)
    lines = os.fdopen(reading)
    enough = random.choice((0, 1, 5, 40))
    numbers = [int(line) for line, _ in zip(lines, range(enough))]
    time.sleep(random.random() * 0.03)
    os.kill(pid, signal.SIGKILL)
    numbers += [int(line) for line in lines]
    os.waitpid(pid, 0)
    lines.close()
    found, recorded = asyncio.run(look(numbers))
    told += len(numbers)
    wrong += [f"round {round}: {one}" for one in found]
say(json.dumps({"wrong": wrong, "recorded": recorded, "told": told}))
"""


def test_no_acknowledged_append_is_lost_by_a_kill(tmp_path: Path) -> None:
    [line] = said(KILLING, tmp_path, 30, 1)
    result = json.loads(line)
    assert result["wrong"] == []
    assert result["recorded"] >= result["told"] > 100


# -- disks that are full -----------------------------------------------------------------------------------------------

# Events are appended until the disk is full, then there is room again.
FILLING = """
async def main():
    store = SQLiteStore(store_folder, patience=1)
    leases = [await store.lease(f"s{index}") for index in range(3)]
    counts = [0, 0, 0]
    failures = []
    while len(failures) < 5:
        doing = [lease.append([event(counts[index])], blobs(counts[index])) for index, lease in enumerate(leases)]
        for index, outcome in enumerate(await asyncio.gather(*doing, return_exceptions=True)):
            if outcome is None:
                counts[index] += 1
            else:
                failures.append(outcome)
    say({type(one).__name__ for one in failures} == {"StoreError"})
    say(all("as the disk is full" in str(one) or "cannot be read or written" in str(one) for one in failures))
    say(all(str(store_folder) in str(one) for one in failures))
    say([len(await store.read(f"s{index}")) for index in range(3)] == counts, min(counts) > 3)
    make_room()
    for index, lease in enumerate(leases):
        await lease.append([event(counts[index])], blobs(counts[index]))
    await store.close()
    again = SQLiteStore(store_folder)
    say([len(await again.read(f"s{index}")) for index in range(3)] == [count + 1 for count in counts])
    say(await again.check())
    await again.close()

def blobs(number):
    data = b"%d" % number * 20_000
    return {digest_of(data): data}

asyncio.run(main())
"""

SMALL_DISK = """
import subprocess
folder = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], check=True)
(folder / "ballast").write_bytes(bytes(1 << 20))
store_folder = folder / "store"
make_room = (folder / "ballast").unlink
"""

SMALL_FILES = """
import resource
store_folder = Path(sys.argv[1]) / "store"
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
make_room = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""

GOOD = ["True", "True", "True", "True True", "True", "[]"]


def test_a_full_disk_is_told_and_nothing_is_half_recorded(tmp_path: Path) -> None:
    assert said(SMALL_DISK + FILLING, tmp_path, under=own_mounts()) == GOOD


def test_a_limit_of_file_sizes_is_told_and_nothing_is_half_recorded(tmp_path: Path) -> None:
    assert said(SMALL_FILES + FILLING, tmp_path) == GOOD
