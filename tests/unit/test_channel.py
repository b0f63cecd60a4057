"""The worker's end of its channel: whole frames whatever the split, one reader among threads, and signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.environments import wire
from tests.sandboxed import PATIENCE
from tests.sandboxed import channel as module


@pytest.fixture
def pair() -> Iterator[tuple[Any, socket.socket]]:
    """A channel of this thread, and the host's socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield module.Channel(theirs.fileno(), theirs.fileno()), ours


def in_thread(work: Any) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@given(
    st.lists(st.text(st.characters(codec=None, exclude_categories=()), max_size=30), max_size=5),
    st.lists(st.integers(0, 10**6)),
)
def test_any_split_of_what_a_host_sends_gives_the_same_frames(texts: list[str], cuts: list[int]) -> None:
    reading, writing = os.pipe()
    channel = module.Channel(reading, writing)
    data = b"".join(wire.encode({"type": "run", "code": text}) for text in texts)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in zip(edges, edges[1:]):  # noqa: B905, RUF007 - as the sandbox's own Python would write it
        if start < end:
            os.write(writing, data[start:end])
            channel.read()
    channel.close()
    assert [frame["code"] for frame in channel.inbox] == [json.loads(json.dumps(text)) for text in texts]


def test_large_frames_come_in_parts(pair: tuple[Any, socket.socket]) -> None:
    channel, host = pair
    text = '"\\' * 400_000
    in_thread(lambda: host.sendall(wire.encode({"type": "run", "code": text}, 1)))
    channel.wait(lambda: channel.inbox)
    assert channel.inbox == [{"type": "run", "code": text}]

    reader, frames = wire.Wire(), []
    in_thread(lambda: channel.send(type="value", id=1, value=text))
    while not frames:
        frames = reader.feed(host.recv(1 << 16))
    assert frames == [{"type": "value", "id": 1, "value": text}]


def test_a_frame_that_no_host_takes_is_not_begun(pair: tuple[Any, socket.socket]) -> None:
    channel, host = pair
    channel.limit = 1_000
    with pytest.raises(ValueError, match="more than one message can carry"):
        channel.send(type="value", id=1, value="x" * 1_000)
    channel.send(type="value", id=2, value="x")
    assert wire.Wire().feed(host.recv(1 << 16)) == [{"type": "value", "id": 2, "value": "x"}]


def test_replies_that_nobody_waits_for_are_dropped(pair: tuple[Any, socket.socket]) -> None:
    channel, host = pair
    channel.replies[2] = None
    host.sendall(b'{"type":"reply","id":1,"value":1}\n{"type":"reply","id":2,"value":2}\n')
    channel.wait(lambda: channel.replies[2])
    assert channel.replies == {2: {"type": "reply", "id": 2, "value": 2}}


def test_of_many_threads_each_gets_its_own_reply(pair: tuple[Any, socket.socket]) -> None:
    channel, host = pair
    channel.replies = dict.fromkeys(range(50))
    got: dict[int, Any] = {}

    def wait(number: int) -> None:
        channel.wait(lambda: channel.replies[number] is not None)
        got[number] = channel.replies[number]["value"]

    threads = [in_thread(lambda number=number: wait(number)) for number in range(50)]
    for number in reversed(range(50)):
        host.sendall(b'{"type":"reply","id":%d,"value":%d}\n' % (number, number))
    for thread in threads:
        thread.join(PATIENCE)
    assert got == {number: number for number in range(50)}


def test_frames_of_many_threads_do_not_mix(pair: tuple[Any, socket.socket]) -> None:
    channel, host = pair
    texts = [letter * 600_000 for letter in "abcd"]
    for text in texts:
        in_thread(lambda text=text: channel.send(type="value", id=1, value=text))
    reader, values = wire.Wire(), []
    while len(values) < 4:
        values += [frame["value"] for frame in reader.feed(host.recv(1 << 16))]
    assert sorted(values) == texts


def test_the_end_of_the_host_ends_all_waiting(pair: tuple[Any, socket.socket]) -> None:
    channel, host = pair
    threads = [in_thread(lambda: channel.wait(lambda: False)) for _ in range(5)]
    host.close()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert channel.closed
    channel.wait(lambda: False)  # and none begins again


# -- signals -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def alarms() -> Iterator[list[int]]:
    """What a handler of SIGUSR1 was called with; it is put back afterwards."""
    before = signal.getsignal(signal.SIGUSR1)
    yield []
    signal.signal(signal.SIGUSR1, before)


def test_signals_wait_where_a_frame_is_half_sent(pair: tuple[Any, socket.socket], alarms: list[int]) -> None:
    masked = pair[0].masked
    signal.signal(signal.SIGUSR1, masked.guard(lambda number, frame: alarms.append(masked.depth)))
    masked.depth = 0
    with masked:
        signal.raise_signal(signal.SIGUSR1)
        with masked:
            signal.raise_signal(signal.SIGUSR1)
        assert alarms == []
    assert alarms == [0, 0]
    signal.raise_signal(signal.SIGUSR1)
    assert alarms == [0, 0, 0]


def test_a_signal_ends_the_wait_for_a_reply_and_leaves_the_channel_whole(
    pair: tuple[Any, socket.socket], alarms: list[int]
) -> None:
    def stop(number: int, frame: Any) -> None:
        alarms.append(number)
        raise TimeoutError

    channel, host = pair
    signal.signal(signal.SIGUSR1, channel.masked.guard(stop))
    main = threading.get_ident()
    channel.masked.depth = 0
    waiting = threading.Event()
    in_thread(lambda: (waiting.wait(PATIENCE), time.sleep(0.05), signal.pthread_kill(main, signal.SIGUSR1)))

    def arrived() -> bool:
        waiting.set()
        return False

    with pytest.raises(TimeoutError):
        channel.wait(arrived)
    assert channel.masked.depth == 0
    host.sendall(wire.encode({"type": "names", "id": 1}))
    channel.wait(lambda: channel.inbox)
    assert channel.inbox == [{"type": "names", "id": 1}]


def test_handlers_that_user_code_sets_are_guarded(pair: tuple[Any, socket.socket], alarms: list[int]) -> None:
    original = signal.signal
    masked = pair[0].masked
    try:
        masked.guard_all()
        assert signal.signal.__name__ == "signal"
        signal.signal(signal.SIGUSR1, lambda number, frame: alarms.append(number))
        signal.raise_signal(signal.SIGUSR1)
        assert alarms == []  # outside of a cell
        masked.depth = 0
        masked.strike()
        assert alarms == [signal.SIGUSR1]
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally:
        signal.signal = original


def test_a_chore_is_done_once_when_nothing_comes_and_not_before_what_is_there(pair: tuple[Any, socket.socket]) -> None:
    channel, host = pair
    done: list[int] = []
    host.sendall(wire.encode({"type": "run", "code": "1"}))
    channel.wait(lambda: channel.inbox, lambda: done.append(1))
    assert not done

    def chore() -> None:
        done.append(1)
        threading.Timer(0.06, lambda: host.sendall(wire.encode({"type": "run", "code": "2"}))).start()

    channel.wait(lambda: len(channel.inbox) == 2, chore)
    assert done == [1]
