"""What the user types in a chat or shell: on a terminal with history and completion, else lines of standard input.

`Lines.read` gives one entry, or None at the end. The terminal's form loads prompt_toolkit.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output

from rlm.cli.terminal import Output

PROMPT, MORE = "rlm> ", "...> "
NAME = re.compile(r"[^\W\d]\w*\Z")


class Lines(Protocol):
    """Where entries come from. typed: by a person, now. names: the variables that there are, and their types."""

    typed: bool
    names: Mapping[str, str]

    def read(self, more: bool = False) -> str | None:
        """The next entry; None at the end. more: it continues the one before."""
        ...

    def choose(self, question: str, letters: str) -> str | None:
        """Which of the letters the user types; None where nobody answers."""
        ...


class Piped:
    """The lines of standard input."""

    typed = False
    names: Mapping[str, str] = {}

    def read(self, more: bool = False) -> str | None:
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None

    def choose(self, question: str, letters: str) -> str | None:
        return None


class Typed:
    """What is typed on a terminal. names: what is completed in code, kept up to date by the caller. prompts: before an
    entry, and before what continues one."""

    typed = True

    def __init__(
        self, output: Output, commands: Mapping[str, str] | None, history: Path, prompts: tuple[str, str]
    ) -> None:
        self.names: Mapping[str, str] = {}
        self._prompts = prompts
        self._warned = False
        self._session: PromptSession[str] = PromptSession(
            history=_history(history, output),
            completer=_Completer(commands, self),
            complete_while_typing=False,
            key_bindings=self._keys(),
            output=create_output(always_prefer_tty=True),
        )
        self._session.default_buffer.on_text_changed += self._typed

    def read(self, more: bool = False) -> str | None:
        """Ctrl-C drops what was typed; with nothing typed, the second time in a row ends the input, as Ctrl-D does."""
        self._warned = False
        return _prompted(self._session, self._prompts[more])

    def choose(self, question: str, letters: str) -> str | None:
        """Asks until it is one of them; Ctrl-C and Ctrl-D are no answer."""
        session: PromptSession[str] = PromptSession(output=create_output(always_prefer_tty=True))
        while (typed := _prompted(session, question)) is not None:
            if (letter := typed.strip().lower()[:1]) and letter in letters:
                return letter
        return None

    def _typed(self, buffer: Buffer) -> None:
        self._warned = False

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("c-c")
        @keys.add("<sigint>")
        def drop(event: KeyPressEvent) -> None:
            if event.current_buffer.text:
                event.current_buffer.reset()
            elif self._warned:
                event.app.exit(exception=EOFError())
            else:
                self._warned = True
                run_in_terminal(lambda: print("Ctrl-C again, or Ctrl-D, leaves", file=sys.stderr))

        @keys.add("escape", "enter")
        def new_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        return keys


def _prompted(session: PromptSession[str], prompt: str) -> str | None:
    # Here Ctrl-C is a key. A signal could only strike while the terminal is being switched, and break that.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return session.prompt(prompt)
    except (EOFError, KeyboardInterrupt):
        return None
    finally:
        signal.signal(signal.SIGINT, before)


def _history(path: Path, output: Output) -> History:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        with path.open("r+b"):
            return FileHistory(path)
    except OSError as error:
        output.note(f"what you type is not remembered: {path}: {error.strerror}")
        return InMemoryHistory()


class _Completer(Completer):
    """Commands at the beginning, paths after /add, variables after /run; without commands all is code."""

    def __init__(self, commands: Mapping[str, str] | None, lines: Typed) -> None:
        self._commands = commands
        self._lines = lines
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        before = document.text_before_cursor
        if self._commands is None:
            yield from _starting(NAME.search(before), self._lines.names)
        elif before.startswith("/add "):
            path = before.removeprefix("/add ").lstrip()
            yield from self._paths.get_completions(Document(path), complete_event)
        elif before.startswith("/run"):
            yield from _starting(NAME.search(before), self._lines.names)
        elif before.startswith("/") and " " not in before:
            yield from _starting(re.match(".*", before), self._commands)


def _starting(typed: re.Match[str] | None, names: Mapping[str, str]) -> Iterator[Completion]:
    if typed is None:
        return
    for name, meaning in names.items():
        if name.startswith(typed.group()):
            yield Completion(name, start_position=-len(typed.group()), display_meta=meaning)


def lines_for(
    output: Output, commands: Mapping[str, str] | None, history: Path, prompts: tuple[str, str] = (PROMPT, MORE)
) -> Lines:
    """How this process's user types: into a terminal, or not. commands: None where entries are code."""
    if sys.stdin.isatty() and (sys.stdout.isatty() or sys.stderr.isatty()):
        return Typed(output, commands, history, prompts)
    return Piped()
