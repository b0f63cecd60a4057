"""RLM: configuration, and the way in to sessions.

An `RLM` holds what does not change between turns: the models, limits, tools and the environment. Each completion gets a
fresh session, `persistent=True` gives one for all, `session(name)` any number of named ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from rlm import compat, inputs
from rlm.engine.budget import Ledger
from rlm.engine.host import Namespace, Setup
from rlm.environments import environment_class, get_environment
from rlm.environments.base_env import PERSISTENCE_METHODS, BaseEnv, supports_persistence
from rlm.environments.repl import REPL
from rlm.environments.threaded import Threaded
from rlm.errors import ConfigurationError, SessionClosedError, SessionError
from rlm.listeners import Listening
from rlm.models import get_model
from rlm.ports import Model
from rlm.portal import blocking, hopping
from rlm.session import Session
from rlm.tools import parse_tools
from rlm.types import Event, Limits, Listener, RLMChatCompletion, Tool

if TYPE_CHECKING:
    from rlm.compat import Older


class RLM:
    """A Recursive Language Model.

    model: `provider:model`, or a Model. sub_model: what `llm_query` and `rlm_query` ask, the same model by default; of a
    sequence the first is the default and cells may name the others. persistent: all completions share one namespace.
    limits: per turn. tools, sub_tools: host functions and values for cells, and for the cells of children (the same by
    default). environment: a name, a path `package.module:Class`, or a class; environment_kwargs go to it. system_prompt:
    in place of ours. output_limit: characters of a stream of output that the model sees of a cell. settings,
    sub_settings: for each model request (temperature, max_tokens, …). listener: told of every event, in a thread.

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
        **older: Unpack[Older],
    ) -> None:
        given = compat.translate(model, limits, tools, sub_tools, system_prompt, settings, sub_settings, older)
        root = get_model(given.model)
        self._setup = Setup(
            model=root,
            sub_models=_sub_models(root, sub_model if sub_model is not None else given.sub_model),
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
        if output_limit < 100:
            raise ConfigurationError(f"output_limit={output_limit!r}: give at least 100 characters")
        self._environment = environment
        self._environment_kwargs = dict(environment_kwargs or {})
        self._listening = Listening([*given.listeners, *([listener] if listener else [])])
        self._sessions: dict[str, Session] = {}
        self._passing: set[Session] = set()
        self._closed = False
        self.persistent = persistent
        Ledger(given.limits).require_prices([root, *self._setup.sub_models])
        self._check_environment()

    # -- completions -----------------------------------------------------------------------------------------------

    async def _completion(
        self, prompt: Any, root_prompt: str | None = None, *, key: str | None = None, output_type: Any = None
    ) -> RLMChatCompletion:
        """Answer a question about an input of any size.

        prompt: the input, which becomes `context`: str, bytes, dict, list, a `Path` (a file is its text, a folder a mapping
        from path to text), or any value that pickles. root_prompt: the question; without one the task is in the input.
        key: in a persistent RLM, the same key and inputs return the recorded answer, free. output_type: a type to
        validate the answer against, given as `output`.

        Raises a `TurnError` (a limit, a cancellation) with the partial answer, or `ModelError`.
        """
        inputs.warn_if_unlikely(prompt, root_prompt)
        session = self._session_for_completion()
        try:
            completion = await session._completion(prompt, root_prompt, key=key, output_type=output_type)
            await self._listening.caught_up()
            return completion
        finally:
            await self._done_with(session)

    completion, acompletion = blocking(_completion), hopping(_completion)

    def stream(
        self, prompt: Any, root_prompt: str | None = None, *, key: str | None = None, output_type: Any = None
    ) -> Iterator[Event]:
        """`completion` as a stream of typed events; the last one is `Answered`, with the completion."""
        inputs.warn_if_unlikely(prompt, root_prompt)
        session = self._session_for_completion()
        try:
            yield from session.stream(prompt, root_prompt, key=key, output_type=output_type)
        finally:
            blocking(RLM._done_with)(self, session)

    async def astream(
        self, prompt: Any, root_prompt: str | None = None, *, key: str | None = None, output_type: Any = None
    ) -> AsyncIterator[Event]:
        """The async form of `stream`."""
        inputs.warn_if_unlikely(prompt, root_prompt)
        session = self._session_for_completion()
        try:
            async for event in session.astream(prompt, root_prompt, key=key, output_type=output_type):
                yield event
        finally:
            await hopping(RLM._done_with)(self, session)

    def _session_for_completion(self) -> Session:
        if self.persistent:
            return self.session("persistent")
        self._check_open()
        session = self._new_session("completion", None)
        self._passing.add(session)
        return session

    async def _done_with(self, session: Session) -> None:
        if session in self._passing:
            self._passing.discard(session)
            await session._close()

    # -- sessions --------------------------------------------------------------------------------------------------

    def session(self, name: str = "session", *, limits: Limits | None = None) -> Session:
        """The session of this name; a new one if there is none, or if it was closed. Spends nothing, asks nothing.

        limits: for the session's whole life, beside those of each turn.
        """
        self._check_open()
        session = self._sessions.get(name)
        if session is None or session.closed:
            self._check_persistence(f"session({name!r})")
            session = self._sessions[name] = self._new_session(name, limits)
        elif limits is not None:
            raise SessionError(f"session {name!r} is open: limits are given when it is opened")
        return session

    def _new_session(self, name: str, limits: Limits | None) -> Session:
        listeners = [self._listening.tell] if self._listening else []
        return Session(self._setup, name, limits=limits, listeners=listeners)

    # -- the environment -------------------------------------------------------------------------------------------

    def _open_namespace(self, tools: Sequence[Tool]) -> Namespace:
        kind = environment_class(self._environment)
        if issubclass(kind, REPL):
            repl = get_environment(kind, {**self._environment_kwargs, "tools": tools})
            assert isinstance(repl, REPL)
            return repl.namespace
        return Threaded(get_environment(kind, {**self._environment_kwargs, "persistent": self.persistent}), tools)

    def _check_environment(self) -> None:
        kind = environment_class(self._environment)
        if self.persistent:
            self._check_persistence("persistent=True")
        if issubclass(kind, REPL):
            get_environment(kind, {**self._environment_kwargs, "tools": self._setup.tools})

    def _check_persistence(self, what: str) -> None:
        """Also before each reuse: a class may lose its methods, and a namespace that forgets must not be trusted."""
        kind = environment_class(self._environment)
        if not supports_persistence(kind):
            missing = [name for name in PERSISTENCE_METHODS if not callable(getattr(kind, name, None))]
            raise ConfigurationError(
                f"{what} is not supported for environment {self._environment!r}: {kind.__name__} lacks "
                f"{', '.join(missing)} (see rlm.environments.SupportsPersistence)"
            )

    # -- life ------------------------------------------------------------------------------------------------------

    async def _close(self) -> None:
        """Close all sessions. Running turns are cancelled; their callers get `CancellationError`. Twice is fine."""
        self._closed = True
        sessions = [*self._sessions.values(), *self._passing]
        await asyncio.gather(*(session._close() for session in sessions))
        self._listening.close()

    close, aclose = blocking(_close), hopping(_close)

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosedError("this RLM was closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _sub_models(root: Model, given: str | Model | Sequence[str | Model] | None) -> Sequence[Model]:
    if given is None:
        return [root]
    several = [given] if isinstance(given, str) or not isinstance(given, Sequence) else list(given)
    if not several:
        raise ConfigurationError("sub_model=[]: name at least one model, or leave it out")
    return [get_model(one) for one in several]
