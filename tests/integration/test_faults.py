"""What goes wrong around a session: full disks, locks, damage, other processes, clocks. Each is told, or makes no
difference; no session is ever silently another one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlm import RLM, LossError, ScriptedModel, SessionBusyError, StoreError
from rlm.log import dump
from rlm.portal import portal
from rlm.sessions import Sessions
from rlm.stores.memory import MemoryStore
from rlm.stores.sqlite import SQLiteStore
from rlm.types import Asked, Opened, Ran, Recorded, Replied, REPLResult, Reply, Restored, Usage
from tests.store_processes import child, own_mounts, said
from tests.turns import by_task, cell, opening, submit

HOST = """
from rlm import RLM, ScriptedModel
from rlm.sessions import Sessions
from tests.turns import by_task, cell, submission, submit
folder = Path(sys.argv[1])
"""


def until(condition: Any) -> None:
    while not condition():
        time.sleep(0.002)


# -- disks -------------------------------------------------------------------------------------------------------------

FULL_DISK = """
first = [True]

def fill():
    if first.pop() if first else False:
        (folder / "ballast").write_bytes(bytes(100_000)) if small else None
        fill_up()

model = by_task({
    "One?": cell("rows = [1]", submission("'one'")),
    "a": "A", "b": "B",
    "Two?": [cell("rows.append(llm_query('a'))"), cell("fill()\\nrows.append(llm_query('b'))"), submit("str(rows)")],
})
with RLM(model, tools=[fill], store=folder / "store") as rlm:
    session = rlm.session("s")
    session.ask("One?")
    for question in ("Two?", "Two?"):
        try:
            session.ask(question)
        except StoreError as error:
            said = str(error)
            say(type(error).__name__, "nothing was recorded" in said or "full" in said, "open it again" in said)
    session.close()
    make_room()
    session = rlm.session("s")
    say(session.unfinished.question, session.resume().response)
    say(session.usage().total_calls, len(model.requests), [one[-1]["content"] for one in model.requests].count("a"))
    session.close()
with Sessions(folder / "store") as sessions:
    say(sessions.check())
"""

SMALL_DISK = """
import subprocess
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], check=True)
small = True

def fill_up():
    with open(folder / "filling", "wb") as file:
        try:
            while True:
                file.write(bytes(4096))
                file.flush()
        except OSError:
            pass

def make_room():
    (folder / "ballast").unlink()
    (folder / "filling").unlink()
"""

SMALL_FILES = """
import resource
small = False

def fill_up():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))

def make_room():
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""

WENT_ON = ["StoreError True True", "StoreError True True", "Two? [1, 'A', 'B']", "6 6 1", "[]"]


def test_a_turn_that_meets_a_full_disk_goes_on_when_there_is_room_again(tmp_path: Path) -> None:
    assert said(HOST + SMALL_DISK + FULL_DISK, tmp_path, under=own_mounts()) == WENT_ON


def test_so_does_one_that_meets_a_limit_of_file_sizes(tmp_path: Path) -> None:
    assert said(HOST + SMALL_FILES + FULL_DISK, tmp_path) == WENT_ON


READ_ONLY = """
import subprocess
with RLM(ScriptedModel([submit("'one'")]), store=folder) as rlm, rlm.session("s") as session:
    session.ask("One?")
subprocess.run(["mount", "--bind", folder, folder], check=True)
subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
with RLM(ScriptedModel([]), store=folder) as rlm:
    for name in ("s", "new"):
        try:
            rlm.session(name).ask("Two?")
        except StoreError as error:
            say(type(error).__name__, str(folder) in str(error), "right to write" in str(error))
with Sessions(folder) as sessions:
    say([one.name for one in sessions.list()], sessions.show("s").turns[0].answer)
"""


def test_a_store_that_cannot_be_written_is_told_at_opening_and_can_be_looked_at(tmp_path: Path) -> None:
    refused = "StoreError True True"
    assert said(HOST + READ_ONLY, tmp_path, under=own_mounts()) == [refused, refused, "['s'] one"]


# -- locks and other processes -----------------------------------------------------------------------------------------

HOLDER = """
import sqlite3
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
say("locked")
sys.stdin.readline()
connection.execute("COMMIT")
say("free")
"""


def test_a_database_that_another_program_locks_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    model = by_task({"One?": submit("'one'"), "Two?": submit("'two'")})
    store = SQLiteStore(tmp_path / "store", patience=0.1)
    with RLM(model, store=store) as rlm, rlm.session("s") as session:
        session.ask("One?")
        with child(HOLDER, store.path) as holder:
            assert holder.line() == "locked"
            with pytest.raises(StoreError, match="locked"):
                session.ask("Two?")
            with pytest.raises(StoreError, match="locked"):
                rlm.session("another")
            holder.tell()
            assert holder.line() == "free"
        session.close()
        session = rlm.session("s")
        assert session.turns == 1
        assert session.ask("Two?").response == "two"
        assert len(model.requests) == 2
        session.close()
    portal().run(store.close())


def test_a_lock_that_is_given_back_in_time_is_waited_for(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store", patience=30)
    with RLM(by_task({"One?": submit("'one'")}), store=store) as rlm, rlm.session("s") as session:
        session.run("x = 1")
        with child(HOLDER, store.path) as holder:
            assert holder.line() == "locked"
            threading.Timer(0.1, holder.tell).start()
            assert session.ask("One?").response == "one"
    portal().run(store.close())


OWNER = """
def wait():
    say("in the cell")
    sys.stdin.readline()

model = by_task({"One?": [cell("rows = ['one']"), cell("wait()\\nrows.append('more')"), submit("str(rows)")]})
with RLM(model, tools=[wait], store=folder) as rlm, rlm.session("s") as session:
    say(session.ask("One?").response)
"""

HEIR = {"One?": submit("str(rows)"), "Two?": submit("str(rows)")}


def test_the_session_of_a_killed_owner_is_free_at_once(tmp_path: Path) -> None:
    with child(HOST + OWNER, tmp_path) as owner:
        assert owner.line() == "in the cell"
        with RLM(ScriptedModel([submit("str(rows)")]), tools={"wait": lambda: None}, store=tmp_path) as rlm:
            with pytest.raises(SessionBusyError) as caught:
                rlm.session("s")
            assert caught.value.pid == owner.pid
            owner.kill()
            with rlm.session("s") as session:
                assert session.resume().response == "['one', 'more']"


def test_whoever_waits_gets_the_session_of_an_owner_that_is_killed(tmp_path: Path) -> None:
    with child(HOST + OWNER, tmp_path) as owner:
        assert owner.line() == "in the cell"
        threading.Timer(0.1, owner.process.kill).start()
        with RLM(ScriptedModel([]), store=tmp_path) as rlm, rlm.session("s", wait=30) as session:
            assert session.unfinished is not None


def test_an_owner_that_stands_still_keeps_its_session_and_goes_on_with_it(tmp_path: Path) -> None:
    """A stopped process may go on at any moment, so that nobody may take its session: only its end frees it."""
    with child(HOST + OWNER, tmp_path) as owner:
        assert owner.line() == "in the cell"
        owner.process.send_signal(signal.SIGSTOP)
        with RLM(by_task(HEIR), store=tmp_path) as rlm:
            with pytest.raises(SessionBusyError) as caught:
                rlm.session("s", wait=0.2)
            assert caught.value.pid == owner.pid
            owner.process.send_signal(signal.SIGCONT)
            owner.tell()
            assert owner.line() == "['one', 'more']"
            owner.process.wait()
            with rlm.session("s", wait=30) as session:
                assert session.ask("Two?").response == "['one', 'more']"


# -- damaged values ----------------------------------------------------------------------------------------------------

VARIABLES = """
small = {'a': [1, 2]}
large = 'x' * 2_000_000
kept = ['kept']
def double(n): return 2 * n
"""


@pytest.fixture
def heap(tmp_path: Path) -> Path:
    """A store with a session of some variables, an input of a few bytes and one of millions."""
    with RLM(ScriptedModel([submit("'one'")]), store=tmp_path) as rlm, rlm.session("s") as session:
        session.run(VARIABLES)
        session.add_context("a small input", name="first")
        session.add_context(list(range(500_000)), name="second")
        session.ask("One?")
    return tmp_path


def blob_of(store: Path, name: str) -> str:
    """The digest of the blob that holds a variable, or an input."""
    for record in reversed(log_of(store)):
        event: Any = record.event
        if event.kind == "checkpoint":
            for group in event.change.groups:
                if name in group.names:
                    return str(group.digest)
        if event.kind == "context" and event.name == name:
            return str(event.digest)
    raise KeyError(name)


def log_of(folder: Path, name: str = "s") -> Sequence[Recorded]:
    async def read() -> Sequence[Recorded]:
        store = SQLiteStore(folder)
        try:
            return await store.read(name)
        finally:
            await store.close()

    return portal().run(read())


def damage(store: Path, digest: str, how: str) -> None:
    """Flip a bit of a blob, cut it, or remove it, wherever it is."""
    path = store / "blobs" / digest[:2] / digest
    connection = sqlite3.connect(store / "store.db")
    [[stored]] = connection.execute("SELECT data FROM blobs WHERE digest = ?", [digest]).fetchall()
    data = bytearray(path.read_bytes() if stored is None else stored)
    if how == "flipped":
        data[len(data) // 2] ^= 4
    else:
        del data[len(data) // 2 :]
    if stored is None:
        path.chmod(0o600)
        path.write_bytes(data)
    else:
        connection.execute("UPDATE blobs SET data = ? WHERE digest = ?", [bytes(data), digest])
        connection.commit()
    connection.close()


@pytest.mark.parametrize("how", ["flipped", "cut"])
@pytest.mark.parametrize(
    ("name", "gone"), [("small", "small"), ("large", "large"), ("first", "context_0"), ("second", "context_1")]
)
def test_a_damaged_value_is_lost_by_name_and_all_others_live(heap: Path, name: str, gone: str, how: str) -> None:
    damage(heap, blob_of(heap, name), how)
    look = submit("repr(sorted({'small', 'large', 'kept', 'context_0', 'context_1'} & globals().keys())) + kept[0]")
    model = ScriptedModel([look])
    with RLM(model, store=heap) as rlm:
        with pytest.raises(LossError, match=f"{gone}.*damaged") as caught:
            rlm.session("s", strict=True, rerun=False).run("1")
        assert set(caught.value.lost) == {gone}
        rlm.session("s").close()
        with rlm.session("s", rerun=False) as session:
            answer = session.ask("What is there?").response
            assert session.run("print(double(21))").stdout == "42\n"
            restored = next(event for event in reversed(session.log) if isinstance(event, Restored))
    assert set(restored.lost) == {gone}
    assert "damaged" in restored.lost[gone].reason
    assert gone not in answer
    assert all(each in answer for each in {"small", "large", "context_0", "context_1"} - {gone})
    assert f"could not be brought back: {gone}" in opening(model.requests[0])
    with Sessions(heap) as sessions:
        assert sessions.check() != []


def test_a_damaged_value_is_made_again_where_its_cell_may_be_run_again(heap: Path) -> None:
    damage(heap, blob_of(heap, "small"), "flipped")
    with RLM(ScriptedModel([]), store=heap) as rlm, rlm.session("s", strict=True) as session:
        assert session.run("print(small, kept, len(large), len(context_1))").stdout == (
            "{'a': [1, 2]} ['kept'] 2000000 500000\n"
        )
    with Sessions(heap) as sessions:
        assert sessions.check() == []


def test_a_value_that_was_made_again_is_used_by_later_restarts(heap: Path) -> None:
    damage(heap, blob_of(heap, "large"), "flipped")
    with RLM(ScriptedModel([]), store=heap, idle=None) as rlm, rlm.session("s") as session:
        assert session.run("print(len(large))").stdout == "2000000\n"
        while Sessions(heap).check() != []:  # it is whole again once the next checkpoint is there
            time.sleep(0.01)
        assert session.run("import os; os._exit(1)").restarted
        assert session.run("print(len(large), kept)").stdout == "2000000 ['kept']\n"
        assert session.restored is not None
        assert session.restored.rerun <= 1  # the one before, should its checkpoint not have come yet
        assert session.restored.lost == {}


# -- damaged logs ------------------------------------------------------------------------------------------------------

TALKER = """
def die():
    os.kill(os.getpid(), signal.SIGKILL)

model = by_task({f"Question {n}?": submit(f"'answer {n}'") for n in range(6)} | {"Last?": cell("die()")})
with RLM(model, tools=[die], store=folder) as rlm, rlm.session("s") as session:
    for n in range(6):
        session.ask(f"Question {n}?")
        session.run(f"rows = list(range({n}, 50))")
    session.ask("Last?")
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a process that was killed: what it recorded last stands in the write-ahead log alone."""
    folder = tmp_path_factory.mktemp("killed")
    with child(HOST + TALKER, folder) as talker:
        talker.process.wait(timeout=60)
    assert (folder / "store.db-wal").stat().st_size > 10_000
    return folder


@pytest.fixture
def copy(killed: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(killed, folder)
    return folder


def lines(records: Sequence[Recorded]) -> list[str]:
    return [dump(record.event) for record in records]


def opened(folder: Path) -> list[str] | None:
    """The log of the session as its opening finds it; None where that is refused."""
    try:
        with RLM(ScriptedModel([]), store=folder) as rlm, rlm.session("s") as session:
            return [dump(event) for event in session.log]
    except StoreError:
        return None


def test_what_is_not_damaged_is_all_there(copy: Path, killed: Path) -> None:
    model = ScriptedModel([submit("'there'")])
    with RLM(model, store=copy, tools={"die": lambda: None}) as rlm, rlm.session("s") as session:
        assert session.turns == 7
        assert session.resume().response == "there"


@pytest.fixture(scope="module")
def closed(killed: Path) -> Path:
    """The same store after it was closed: all of it stands in the database."""
    folder = shutil.copytree(killed, killed.with_name("closed"))
    log_of(folder)
    portal().run(_write_nothing(folder))
    assert not (folder / "store.db-wal").exists()
    return folder


async def _write_nothing(folder: Path) -> None:
    store = SQLiteStore(folder)
    await store.collect()
    await store.close()


@pytest.mark.parametrize("how", ["cut", "flipped"])
@pytest.mark.parametrize(("of", "file"), [("closed", "store.db"), ("killed", "store.db-wal")])
def test_a_damaged_database_is_an_error_or_the_session_as_it_once_was(
    of: str, file: str, how: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source: Path = request.getfixturevalue(of)
    whole = lines(log_of(shutil.copytree(source, tmp_path / "whole")))
    rng, seen = random.Random(f"{file} {how}"), set()
    for number in range(25):
        folder = shutil.copytree(source, tmp_path / str(number))
        data = bytearray((folder / file).read_bytes())
        place = rng.randrange(len(data))
        if how == "cut":
            del data[place:]
        else:
            data[place] ^= 1 << rng.randrange(8)
        (folder / file).write_bytes(data)
        (folder / "store.db-shm").unlink(missing_ok=True)
        found = opened(folder)
        assert found is None or found == whole[: len(found)], (number, place)
        seen.add("refused" if found is None else "whole" if found == whole else "earlier")
    assert seen - {"whole"}, "no damage was met"


def test_a_session_whose_log_was_cut_goes_on_from_what_it_has(killed: Path, tmp_path: Path) -> None:
    whole = len(log_of(shutil.copytree(killed, tmp_path / "whole")))
    size, kept = (killed / "store.db-wal").stat().st_size, whole
    while kept == whole:
        size -= 2_000
        copy = shutil.copytree(killed, tmp_path / f"copy {size}")
        os.truncate(copy / "store.db-wal", size)
        (copy / "store.db-shm").unlink(missing_ok=True)
        kept = len(log_of(shutil.copytree(copy, tmp_path / f"looked at {size}")))
    assert kept > whole / 2
    model = ScriptedModel([submit("str(rows[-1])")] * 2)
    with RLM(model, store=copy, tools={"die": lambda: None}) as rlm, rlm.session("s") as session:
        session.discard()
        assert session.ask("Now?").response == "49"


# -- clocks ------------------------------------------------------------------------------------------------------------


def test_a_clock_that_runs_backwards_changes_nothing() -> None:
    reply = Reply(cell("rows.append(2)"), "scripted", Usage(1, 10, 5))
    events = [
        Opened("", "s", "scripted", "local"),
        Ran("u0/c0", code="rows = [1]", result=REPLResult()),
        Asked("t0", "One?", model="scripted"),
        Replied("t0/a0", reply=reply, sent=[{"role": "user", "content": "Task: One?"}]),
    ]
    records = [Recorded(number, 2_000_000_000.0 - 1_000_000 * number, event) for number, event in enumerate(events)]

    async def write(store: MemoryStore) -> None:
        lease = await store.lease("s")
        await lease.append(records)
        await lease.release()

    for times in (records, [Recorded(one.number, 9e9, one.event) for one in records]):  # then a clock put right again
        records, store = list(times), MemoryStore()
        portal().run(write(store))
        model = ScriptedModel([submit("str(rows)")])
        with RLM(model, store=store) as rlm, rlm.session("s") as session:
            assert session.resume().response == "[1, 2]"
            assert len(model.requests) == 1
        with Sessions(store) as sessions:
            assert [one.name for one in sessions.list()] == ["s"]
            assert sessions.show("s").turns[0].answer == "[1, 2]"
