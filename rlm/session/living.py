"""An open session: its log, its namespace and its ledger, which all that is done with it shares.

Everything that it knows of itself is a fold over the log. The namespace is made again from it at the first use that
needs one. What nobody holds any more is closed.
"""

from __future__ import annotations

import asyncio
import os
import weakref

from rlm import waking
from rlm.checkpoints import Keepable, Keeper
from rlm.engine.budget import Ledger
from rlm.engine.host import LiveHost, Namespace, Runs, Setup, Tree
from rlm.engine.journal import Record
from rlm.folds import Past, is_own
from rlm.portal import portal
from rlm.recording import Log
from rlm.session.seconds import Seconds
from rlm.session.terms import Stored
from rlm.session.weakly import held_weakly
from rlm.types import Event, Limits, Listener, Opened, Ran, UsageSummary


class Living:
    """What the parts of an open session share. Not started before it is used.

    limits: of its whole life. persistent: more than one turn will be asked of it. listeners: are told of all events.
    asleep: the namespace is not as the log says yet. closed: close() was called.
    """

    def __init__(
        self,
        setup: Setup,
        name: str,
        *,
        limits: Limits,
        persistent: bool,
        listener: Listener,
        stored: Stored | None,
        opened: Opened | None,
    ) -> None:
        self.name, self.setup, self.stored = name, setup, stored
        self.listeners = [listener]
        lease, records = (stored.lease, stored.records) if stored else (None, ())
        self.log = Log(lease, records, opening=opened, tell=held_weakly(self.tell))
        self.ledger = Ledger(limits, self.past.usage)
        self.ledger.require_prices([setup.model, *setup.sub_models])
        self.seconds = Seconds(name, setup.limits.seconds, limits.seconds, self.past.seconds)
        self.namespace: Namespace = setup.open_namespace(setup.tools, persistent)
        self.keeper = self._keep() if persistent else None
        self.asleep = self.past.number > 0
        self.closed = False
        self.untold: list[str] = []
        self._process = os.getpid()
        self._finalizer: weakref.finalize[..., Living] | None = None
        if stored is not None:
            self.watch()

    def _keep(self) -> Keeper | None:
        namespace, stored, connected = self.namespace, self.stored, held_weakly(self.connected)
        if not isinstance(namespace, Keepable):
            return None
        if stored is None:
            return Keeper(self.log, namespace, connected)
        namespace.place = stored.lease.folder
        return Keeper(self.log, namespace, connected, store=stored.store, rerun=stored.rerun, strict=stored.strict)

    @property
    def past(self) -> Past:
        """What the log says."""
        return self.log.past

    @property
    def rerun(self) -> bool:
        """Whether cells may be run again."""
        return self.stored is None or self.stored.rerun

    @property
    def is_parents(self) -> bool:
        """Whether it belongs to the process that forked this one, and runs on a loop that does not run here."""
        return self._process != os.getpid()

    async def awake(self) -> None:
        """Have the namespace as the log says it was: inputs and histories, the heap, and what ran since."""
        if not self.asleep:
            return
        namespace, stored = self.namespace, self.stored
        store = stored.store if stored is not None else None
        if isinstance(namespace, Keepable) and self.keeper is not None:
            await waking.from_checkpoint(namespace, self.keeper, self.past, store)
            await self.namespace.start()
        else:
            await self.namespace.start()
            strict = stored is not None and stored.strict
            await waking.by_running(self.namespace, self.log, self.connected, store, rerun=self.rerun, strict=strict)
        await self.log.settled()
        self.asleep = False

    # -- what happens in it ----------------------------------------------------------------------------------------

    async def append(self, event: Event) -> None:
        """Record what happened in a turn. The end of a cell is waited for only before the next thing is done."""
        if isinstance(event, Ran) and is_own(event):
            self.log.add(event, hold=True)
            if self.keeper is not None:
                self.keeper.cell_ended()
        else:
            await self.log.append(event)

    def tell(self, event: Event) -> None:
        """Tell the listeners."""
        for listener in self.listeners:
            listener(event)

    def ledger_below(self, spent: UsageSummary | None = None) -> Ledger:
        """The ledger of a turn or a cell, which is charged to the session as well."""
        return Ledger(self.setup.limits, spent, parent=self.ledger)

    def host(
        self,
        path: str,
        ledger: Ledger,
        *,
        record: Record | None = None,
        begun: int = 0,
        runs: Runs | None = None,
    ) -> LiveHost:
        """What a turn, or a cell of the user's own, is answered by."""
        setup = self.setup
        tree = Tree(setup, ledger, self.append, self.tell, self, record=record, settled=self.log.settled)
        runs = runs or self.namespace
        return LiveHost(tree, runs, path=path, model=setup.model, tools=setup.tools, depth=setup.depth, begun=begun)

    def connected(self, path: str, runs: Runs, record: Record, begun: int) -> LiveHost:
        """The host for a cell that is run again."""
        return self.host(path, self.ledger_below(), record=record, begun=begun, runs=runs)

    # -- its end ---------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """From here on, let go of everything once nobody holds it any more."""
        if self._finalizer is None:
            self._finalizer = weakref.finalize(self, _abandon, self.namespace, self.log, self._process)
            self._finalizer.atexit = False  # when the interpreter ends, namespaces see to themselves

    async def let_go(self) -> None:
        """Keep the heap safe, destroy the namespace, and let others write."""
        try:
            if self.keeper is not None:
                await self.keeper.settled()
                await self.keeper.stop()
                await self.keeper.thin()
                if self.keeper.dropped and self.stored is not None and not self.log.failed:
                    await self.stored.store.collect()
        finally:
            try:
                await self.namespace.close()
            finally:
                await self.log.close()

    def unwatch(self) -> None:
        """Nothing is left to let go of."""
        if self._finalizer is not None:
            self._finalizer.detach()


def _abandon(namespace: Namespace, log: Log, process: int) -> None:
    """Close a session that nobody holds; called by the garbage collector, so it must not wait."""
    if process != os.getpid():
        return

    async def close() -> None:
        try:
            await namespace.close()
        finally:
            await log.close()

    asyncio.run_coroutine_threadsafe(close(), portal().loop)
