"""Cells of the user's own, beside those of turns: answered and charged as the model's are, and on record."""

from __future__ import annotations

import asyncio
import time

from rlm.engine.journal import Journal, Record
from rlm.errors import CancellationError
from rlm.folds import root_of
from rlm.session.living import Living
from rlm.session.seconds import because_of, timed_out
from rlm.types import REPLResult


async def run(living: Living, code: str) -> REPLResult:
    """Run one in the namespace. Raises `TimeoutExceededError`."""
    await living.awake()
    allowed, started = living.seconds.allowed(), time.perf_counter()
    path = f"u{living.past.cells_begun}"
    # Where the end of a process cut a cell off, it has no end on record, but its calls have their answers.
    record = Record(event for event in living.past.path() if root_of(event.at) == path)
    host = living.host(path, living.ledger_below(), record=record)
    try:
        async with asyncio.timeout(allowed) as deadline:
            journal = Journal(
                host,
                path,
                record,
                living.append,
                once=host.tree.once,
                tell=living.tell,
                cut=because_of(deadline),
            )
            result = await journal.run(code)
    except asyncio.CancelledError:
        raise asyncio.CancelledError from CancellationError("the cell was cancelled")
    except TimeoutError as error:
        if not deadline.expired() or type(error) is not TimeoutError:
            raise
        raise timed_out("cell", time.perf_counter() - started, allowed) from None
    finally:
        living.seconds.used += time.perf_counter() - started
    await living.log.settled()
    return result
