"""RLM: configuration, and the way in to sessions.

An `RLM` holds what does not change between turns: the models, limits, tools and the environment. Each completion gets a
fresh session, `persistent=True` gives one for all, `session(name)` any number of named ones.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Coroutine, Generator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Unpack

from rlm import compat, inputs
from rlm.engine.budget import Ledger
from rlm.engine.host import Namespace, Setup
from rlm.environments import environment_class, get_environment
from rlm.environments.base_env import BaseEnv, require_persistence
from rlm.environments.repl import REPL
from rlm.environments.threaded import Threaded, require_tools
from rlm.errors import ConfigurationError, SessionClosedError, SessionError
from rlm.listeners import Listening
from rlm.models import get_model
from rlm.portal import Closing, aiterate, blocking, hopping, iterate, portal
from rlm.ports import Lease, Model, Store, SupportsClose
from rlm.session import Session
from rlm.session.terms import Stored, check_session_name, require_namespace
from rlm.stores.use import Use
from rlm.tools import parse_tools
from rlm.types import Event, Limits, Listener, Opened, Recorded, RLMChatCompletion, Tool
from rlm.version import __version__

if TYPE_CHECKING:
    from rlm.compat import Older

log = logging.getLogger("rlm")

IDLE = 900.0  # seconds: long enough for a person to think, short enough for a service with many sessions
UNNAMED = "session"  # what an unnamed session is called, which lives in memory

TAKEN = {
    "tools": "give them to RLM(tools=)",
    "persistent": "give it to RLM(persistent=)",
    "context_payload": "an input goes to completion() or add_context()",
    "lm_handler_address": "an RLM answers the calls of its cells itself",
}


class RLM(Closing):
    """A Recursive Language Model.

    model: `provider:model`, or a Model. sub_model: what `llm_query` and `rlm_query` ask, the same model by default; of
    a sequence the first is the default and cells may name the others. persistent: all completions share one namespace.
    limits: per turn. tools, sub_tools: host functions and values for cells, and for the cells of children (the same by
    default). environment: a name, a path `package.module:Class`, or a class; environment_kwargs go to it.
    system_prompt: in place of ours. output_limit: characters of a stream of output that the model sees of a cell.
    settings, sub_settings: for each model request (temperature, max_tokens, …). listener: told of every event, in a
    thread. store: where named sessions live: a folder, ":memory:" or a Store; by default RLM_STORE, else the place that
    the platform has for such data. idle: seconds after which the worker of an unused session is given back, if all that
    it holds is safe (None: never).

    The names that other RLM engines use for these are accepted too (`rlm.compat`). Raises `ConfigurationError` for what
    cannot be had, before anything is started or spent.
    """

    def __init__(
        self,
        model: str | Model | None = None,
        *,
        sub_model: str | Model | Sequence[str | Model] | None = None,
        persistent: bool = False,
        limits: Limits | None = None,
        tools: Sequence[Any] | Mapping[str, Any] = (),
        sub_tools: Sequence[Any] | Mapping[str, Any] | None = None,
        environment: str | type[BaseEnv] = "local",
        environment_kwargs: Mapping[str, Any] | None = None,
        system_prompt: str | None = None,
        output_limit: int = 10_000,
        settings: Mapping[str, Any] | None = None,
        sub_settings: Mapping[str, Any] | None = None,
        listener: Listener | None = None,
        store: str | os.PathLike[str] | Store | None = None,
        idle: float | None = IDLE,
        **older: Unpack[Older],
    ) -> None:
        given = compat.translate(
            model, sub_model, limits, tools, sub_tools, system_prompt, settings, sub_settings, older
        )
        if output_limit < 100:
            raise ConfigurationError(f"output_limit={output_limit!r}: give at least 100 characters")
        named: dict[str, Model] = {}  # the same name is the same model, with one set of connections
        models = [
            named.setdefault(one, named.get(one) or get_model(one)) if isinstance(one, str) else get_model(one)
            for one in (given.model, *given.sub_models)
        ]
        self._setup = Setup(
            model=models[0],
            sub_models=models[1:],
            limits=given.limits,
            open_namespace=self._open_namespace,
            tools=parse_tools(given.tools),
            sub_tools=parse_tools(given.tools if given.sub_tools is None else given.sub_tools),
            depth=given.depth,
            output_limit=output_limit,
            system_prompt=given.system_prompt,
            orchestrator=given.orchestrator,
            prologue=given.prologue,
            settings=given.settings,
            sub_settings=given.sub_settings,
        )
        Ledger(given.limits).require_prices([self._setup.model, *self._setup.sub_models])
        if persistent:
            require_namespace(self._setup, "persistent=True")
        self.persistent = persistent
        self._environment = environment
        self._environment_kwargs = dict(environment_kwargs or {})
        self._check_environment()
        users = (model, sub_model, *(sub_model if isinstance(sub_model, (list, tuple)) else ()))  # theirs to close
        ours = [one for one in dict.fromkeys(models) if not any(one is theirs for theirs in users)]
        self._models = [one for one in ours if isinstance(one, SupportsClose)]
        self._listening = Listening([*given.listeners, *([lambda: listener] if listener else [])])
        weakref.finalize(self, self._listening.close)
        if idle is not None and not idle > 0:
            raise ConfigurationError(f"idle={idle!r}: give seconds above 0, or None for never")
        self._stores = Use(store)
        self._idle = idle
        self._sessions: dict[str, Session] = {}
        self._in_memory: Session | None = None
        self._at_once: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._passing: set[Session] = set()
        self._opening = threading.Lock()
        self._closed = False

    # -- completions -----------------------------------------------------------------------------------------------

    def _completion(
        self, prompt: Any, root_prompt: str | None = None, *, key: str | None = None, output_type: Any = None
    ) -> Coroutine[Any, Any, RLMChatCompletion]:
        """Answer a question about an input of any size.

        prompt: the input, which becomes `context`: str, bytes, dict, list, a `Path` (a file is its text, a folder a
        mapping from path to text), or any value that pickles. root_prompt: the question; without one the task is in the
        input. key: in a persistent RLM, the same key and inputs return the recorded answer, free. output_type: a type
        to validate the answer against, given as `output`.

        Raises a `TurnError` (a limit, a cancellation) with the partial answer, or `ModelError`.
        """
        inputs.warn_if_unlikely(prompt, root_prompt, stacklevel=4)
        return self._complete(prompt, root_prompt, key, output_type)

    async def _complete(
        self, prompt: Any, root_prompt: str | None, key: str | None, output_type: Any
    ) -> RLMChatCompletion:
        session = self._session_for_completion()
        try:
            return await session.turn(prompt, root_prompt, key, output_type)
        finally:
            await self._done_with(session)

    completion, acompletion = blocking(_completion), hopping(_completion)

    def stream(
        self, prompt: Any, root_prompt: str | None = None, *, key: str | None = None, output_type: Any = None
    ) -> Generator[Event, None, None]:
        """`completion` as a stream of typed events; the last one is `Answered`, with the completion.

        A turn that ends without an answer raises what `completion` would. Leaving the stream early cancels the turn.
        """
        inputs.warn_if_unlikely(prompt, root_prompt, stacklevel=3)
        session = self._session_for_completion()
        try:
            yield from iterate(session.events(prompt, root_prompt, key, output_type))
        finally:
            blocking(RLM._done_with)(self, session)

    async def astream(
        self, prompt: Any, root_prompt: str | None = None, *, key: str | None = None, output_type: Any = None
    ) -> AsyncGenerator[Event, None]:
        """The async form of `stream`; to leave it early and go on at once, use `contextlib.aclosing`."""
        inputs.warn_if_unlikely(prompt, root_prompt, stacklevel=3)
        session = self._session_for_completion()
        try:
            async with aclosing(aiterate(session.events(prompt, root_prompt, key, output_type))) as events:
                async for event in events:
                    yield event
        finally:
            await hopping(RLM._done_with)(self, session)

    def _session_for_completion(self) -> Session:
        with self._opening:
            self._check_open()
            if self.persistent:
                return self._unnamed()
            session = Session(self._setup, "completion", persistent=False, listening=self._listening)
            self._passing.add(session)
            return session

    def _unnamed(self, limits: Limits | None = None) -> Session:
        """The one session that has no name and lives in memory; all completions of a persistent RLM are turns of it."""
        require_persistence(self._environment, environment_class(self._environment))
        known = self._in_memory
        if known is not None and not known.closed:
            if limits is not None:
                raise _is_open(UNNAMED)
            return known
        session = Session(self._setup, UNNAMED, limits=limits, listening=self._listening)
        self._in_memory = session
        return session

    async def _done_with(self, session: Session) -> None:
        """Close the session of one completion. Its answer is there, or its error: a failing end takes neither away."""
        if session in self._passing:
            try:
                await session.aclose()
            except Exception:
                log.exception("the environment of a completion could not be closed")
            finally:
                self._passing.discard(session)

    # -- sessions --------------------------------------------------------------------------------------------------

    def session(
        self,
        name: str | None = None,
        *,
        limits: Limits | None = None,
        wait: float | None = 0.0,
        strict: bool = False,
        rerun: bool = True,
    ) -> Session:
        """The session of this name: as it was when its last process ended, or a new one. Spends nothing, asks nothing.

        A named session is durable. Without a name it lives in memory: the same one each time, until it is closed.

        limits: what the session may consume in its whole life (`usd`, `tokens`, `calls`, `seconds`), beside the limits
        of each turn; to be given each time it is opened. wait: seconds to wait for another process that has the session
        open (None: for ever). strict: where something cannot be brought back, raise `LossError` at its first use.
        rerun: run the cells again that came after the last checkpoint, and the one that the end of the process cut off.

        Raises `SessionBusyError`, `StoreError`, and `ConfigurationError` where the environment does not persist.
        """
        session = self._open_one(name, limits)
        if session is None:
            session = portal().run(self._open_session(name or "", limits, wait, strict, rerun))
        return session

    async def asession(
        self,
        name: str | None = None,
        *,
        limits: Limits | None = None,
        wait: float | None = 0.0,
        strict: bool = False,
        rerun: bool = True,
    ) -> Session:
        """The async form of `session`."""
        session = self._open_one(name, limits)
        if session is None:
            session = await portal().hop(self._open_session(name or "", limits, wait, strict, rerun))
        return session

    async def _open_session(
        self, name: str, limits: Limits | None, wait: float | None, strict: bool, rerun: bool
    ) -> Session:
        require_persistence(self._environment, environment_class(self._environment))
        check_session_name(name)
        async with self._at_once.setdefault(name, asyncio.Lock()):
            session = self._open_one(name, limits)
            if session is not None:
                return session
            require_namespace(self._setup, f"session {name!r}")
            store = self._stores.open()
            lease = await store.lease(name, wait=wait)
            try:
                records = await store.read(name)
                return self._adopt(store, lease, records, limits=limits, strict=strict, rerun=rerun)
            except BaseException:
                await lease.release(unused=True)
                raise

    def _open_one(self, name: str | None, limits: Limits | None) -> Session | None:
        """The session that has no name, or one that this RLM has open."""
        with self._opening:
            self._check_open()
            if name is None:
                return self._unnamed(limits)
            session = self._sessions.get(name)
        if session is None or session.closed:
            return None
        if limits is not None:
            raise _is_open(name)
        return session

    def _adopt(self, store: Store, lease: Lease, records: Sequence[Recorded], **given: Any) -> Session:
        """A durable session over a lease."""
        limits = given.pop("limits", None)

        def sibling(name: str, lease: Lease, records: Sequence[Recorded]) -> Session:
            return self._adopt(store, lease, records, **given)

        stored = Stored(store, lease, sibling, records, idle=self._idle, **given)
        environment = self._environment if isinstance(self._environment, str) else self._environment.__name__
        opened = Opened("", lease.name, self._setup.model.name, environment, __version__)
        session = Session(
            self._setup, lease.name, limits=limits, listening=self._listening, stored=stored, opened=opened
        )
        return self._remember(session)

    def _remember(self, session: Session) -> Session:
        with self._opening:
            self._check_open()
            self._sessions = {name: known for name, known in self._sessions.items() if not known.closed}
            self._sessions[session.name] = session
        return session

    @property
    def isolation(self) -> str:
        """The level of isolation of new sessions. Blocks for some 100 ms where nothing has been tried out yet.

        Raises `SandboxError` where the level that is asked for cannot be had.
        """
        return self._open_namespace((), False).isolation

    # -- the environment -------------------------------------------------------------------------------------------

    def _open_namespace(self, tools: Sequence[Tool], persistent: bool) -> Namespace:
        kind = environment_class(self._environment)
        if issubclass(kind, REPL):
            repl = get_environment(kind, {**self._environment_kwargs, "tools": tools})
            assert isinstance(repl, REPL)
            return repl.namespace
        kwargs = {**self._environment_kwargs, "persistent": persistent}
        return Threaded(kind, lambda: get_environment(kind, kwargs), tools)

    def _check_environment(self) -> None:
        """Whether the environment can be had as asked for; nothing is started."""
        kind = environment_class(self._environment)
        for name in TAKEN:
            if name in self._environment_kwargs:
                raise ConfigurationError(f"environment_kwargs={{{name!r}: …}}: {TAKEN[name]}")
        if self.persistent:
            require_persistence(self._environment, kind)
        if issubclass(kind, REPL):
            get_environment(kind, {**self._environment_kwargs, "tools": self._setup.tools})
        else:
            require_tools(kind, [*self._setup.tools, *self._setup.sub_tools])

    # -- life ------------------------------------------------------------------------------------------------------

    async def _close(self) -> None:
        """Close all sessions. Running turns are cancelled; their callers get `CancellationError`. Twice is fine."""
        with self._opening:
            self._closed = True
            sessions = [*self._sessions.values(), *([self._in_memory] if self._in_memory else []), *self._passing]
        ended = await asyncio.gather(*(session.aclose() for session in sessions), return_exceptions=True)
        self._listening.close()
        ended += await asyncio.gather(self._stores.close(), return_exceptions=True)
        ended += await asyncio.gather(*(model.aclose() for model in self._models), return_exceptions=True)
        for error in ended:
            if error is not None:
                raise error

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosedError("this RLM was closed")


def _is_open(name: str) -> SessionError:
    return SessionError(f"session {name!r} is open: limits are given when it is opened")
