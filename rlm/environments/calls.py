"""What a cell may ask of its host: models, tools, and how their failures look to it.

Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `worker.py`. Any thread of a cell may
ask, any number at once; one that outlived its cell is refused.
"""

from __future__ import annotations

import threading

import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from channel import Channel

QUERIES = ("llm_query", "llm_query_batched", "rlm_query", "rlm_query_batched")
POOLS = ("concurrent.futures.thread", "multiprocessing.pool")


class ToolError(RuntimeError):
    """A host function failed; the message is the host's."""

    __module__ = "builtins"  # so that a traceback names it as it names any other

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason or "error"


class Failure(str):
    """The text of a model call that failed: it starts with "Error: ", and `reason` says in a word of what kind."""

    __module__ = "_rlm_calls"  # where the worker puts this module, for pickle
    reason = "error"


class Calls:
    """The functions of a namespace that ask the host. cell: the number of the running one, None between two."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.cell: int | None = None
        self.calls, self.forked = 0, False
        self.outlived: set[threading.Thread] = set()

    def call(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if self.forked:
            raise RuntimeError(name + "() reaches the host only from the REPL's own process, not from a fork of it")
        thread = threading.current_thread()
        args = [codec.encode(arg) for arg in args]
        kwargs = {key: codec.encode(arg) for key, arg in kwargs.items()}
        number, replies = 0, self.channel.replies
        try:
            with self.channel.masked, self.channel.sending:
                if self.cell is None or (thread in self.outlived and not pooled(thread)):
                    raise RuntimeError(name + "() was called by a thread whose cell has ended")
                self.calls = number = self.calls + 1
                replies[number] = None
                self.channel.send(type="call", id=number, cell=self.cell, name=name, args=args, kwargs=kwargs)
            self.channel.wait(lambda: replies[number] is not None)
            reply = replies[number]
        finally:
            replies.pop(number, None)
        if reply is None:
            raise RuntimeError("the host is gone")
        if "error" in reply:
            raise ToolError(reply["error"], reply.get("reason"))
        return codec.decode(reply["value"])

    def query(self, name: str, prompt: Any, model: str | None) -> Any:
        try:
            return self.call(name, [plain(prompt)], {} if model is None else {"model": model})
        except ToolError as error:
            return failure(str(error), error.reason)

    def query_batched(self, name: str, prompts: Iterable[Any], model: str | None) -> list[Any]:
        if isinstance(prompts, str):
            raise TypeError(name + "() takes a list of prompts; for one prompt use " + name[: -len("_batched")] + "()")
        asked = [plain(prompt) for prompt in prompts]
        try:
            items = self.call(name, [asked], {} if model is None else {"model": model}) if asked else []
        except ToolError as error:
            return [failure(str(error), error.reason) for _ in asked]
        return [item["value"] if "value" in item else failure(item["error"], item.get("reason")) for item in items]

    def llm_query(self, prompt: Any, model: str | None = None) -> Any:
        """Ask a language model; returns its answer as text."""
        return self.query("llm_query", prompt, model)

    def llm_query_batched(self, prompts: Iterable[Any], model: str | None = None) -> list[Any]:
        """Ask a language model about many prompts at once; returns the answers in order."""
        return self.query_batched("llm_query_batched", prompts, model)

    def rlm_query(self, prompt: Any, model: str | None = None) -> Any:
        """Give a task to a recursive language model with a REPL of its own; returns its answer."""
        return self.query("rlm_query", prompt, model)

    def rlm_query_batched(self, prompts: Iterable[Any], model: str | None = None) -> list[Any]:
        """Give many tasks to recursive language models at once; returns the answers in order."""
        return self.query_batched("rlm_query_batched", prompts, model)

    def tool(self, name: str) -> Callable[..., Any]:
        def function(*args: Any, **kwargs: Any) -> Any:
            return self.call(name, args, kwargs)

        function.__name__ = function.__qualname__ = name
        return function


def pooled(thread: threading.Thread) -> bool:
    """Whether the thread belongs to a pool, and so works for whichever cell gives it something to do."""
    return getattr(getattr(thread, "_target", None), "__module__", None) in POOLS


def plain(prompt: Any) -> Any:
    """A text of any kind as a str, so that an answer (a `Failure` too) can be part of the next question."""
    return str.__str__(prompt) if isinstance(prompt, str) else prompt


def failure(message: str, reason: str | None = None) -> Failure:
    text = Failure("Error: " + message)
    text.reason = reason or "error"
    return text
