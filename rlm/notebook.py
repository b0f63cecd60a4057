"""A session as a Jupyter notebook: questions, inputs and answers as text, cells as code with the output that they had.

The same records give the same notebook, ids included. It is to be read: what its cells name (`context`, `llm_query`)
is there in a session alone. What was dropped by a rewind is left out. Nothing here needs Jupyter.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlm import files
from rlm.engine.cells import prose
from rlm.folds import Past, is_own, note_of_restore, root_of
from rlm.types import (
    Answered,
    Asked,
    Called,
    ContextAdded,
    Event,
    Failed,
    Forked,
    Opened,
    Ran,
    Recorded,
    Replied,
    REPLResult,
    Restored,
    Stopped,
)

FORMAT, MINOR = 4, 5  # of nbformat
_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9_-]+")
_SURROGATES = re.compile("[\ud800-\udfff]")


def notebook(records: Sequence[Recorded], *, title: str) -> dict[str, Any]:
    """The notebook as plain data, for `json`: `records` are a session's log, oldest first."""
    pages = _Pages()
    path = Past(records).path()
    opened = next((event for event in path if isinstance(event, Opened)), Opened(""))
    about = [opened.model, opened.environment, opened.version and f"rlm {opened.version}"]
    pages.text("title", f"# {_line(title)}\n\n{' · '.join(_line(one) for one in about if one)}".rstrip())
    calls = _calls(path)
    for event in path:
        pages.tell(event, calls)
    language = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": language}
    return {"cells": pages.cells, "metadata": metadata, "nbformat": FORMAT, "nbformat_minor": MINOR}


def write(records: Sequence[Recorded], path: Path, title: str) -> None:
    """Write the notebook of a session to `path`, in place of what stands there. Raises `OSError`."""
    text = json.dumps(notebook(records, title=title), indent=1, ensure_ascii=False)
    files.write(path, text + "\n")


class _Pages:
    """The notebook's cells, told of one event after the other."""

    def __init__(self) -> None:
        self.cells: list[dict[str, Any]] = []
        self._ids: Counter[str] = Counter()
        self._ran = 0

    def tell(self, event: Event, calls: Mapping[str, Counter[str]]) -> None:
        match event:
            case Asked(question=question):
                asked = question if question is not None else "(the task is in the input)"
                self.text(f"{event.at}-question", f"## Turn {event.at.removeprefix('t')}\n\n{asked}")
            case ContextAdded(index=index, type=kind, size=size, name=name):
                also = f" (also `{name}`)" if name else ""
                told = kind if size is None else f"{kind}, {size:,} long"
                self.text(f"context_{index}", f"`context_{index}`{also}: {_line(told)}")
            case Replied(reply=reply) if is_own(event) and (said := prose(reply.text)):
                self.text(event.at, said)
            case Ran() if is_own(event):
                if root_of(event.at).startswith("u"):
                    self.text(f"{event.at}-user", "*The user's own cell:*")
                self._cell(event, calls.get(event.at, Counter()))
            case Restored() if note := note_of_restore(event):
                self.text("restored", f"*{_line(note)}*")
            case Forked(source=source):
                self.text("forked", f"*Forked from {_line(source)}.*")
            case Answered(completion=completion) if "/" not in event.at:
                self.text(f"{event.at}-answer", f"**Answer**\n\n{completion.response}")
            case Stopped(reason=reason, message=message, partial_answer=partial) if "/" not in event.at:
                self._without_answer(event, f"stopped by {reason}", message, partial)
            case Failed(error=error, message=message, partial_answer=partial) if "/" not in event.at:
                self._without_answer(event, f"failed with {error}", message, partial)

    def _without_answer(self, event: Event, how: str, message: str, partial: str | None) -> None:
        told = f"**No answer**: {how}: {_line(message)}"
        if partial:
            told += f"\n\nUp to there it was:\n\n{partial}"
        self.text(f"{event.at}-end", told)

    def text(self, name: str, markdown: str) -> None:
        self.cells.append({"cell_type": "markdown", "id": self._id(name), "metadata": {}, "source": _lines(markdown)})

    def _cell(self, ran: Ran, calls: Counter[str]) -> None:
        self._ran += 1
        told = {"at": ran.at, "seconds": round(ran.result.execution_time, 3)}
        metadata = {
            "rlm": {**told, **({"calls": {_text(name): count for name, count in calls.items()}} if calls else {})}
        }
        self.cells.append(
            {
                "cell_type": "code",
                "id": self._id(ran.at),
                "execution_count": self._ran,
                "metadata": metadata,
                "source": _lines(ran.code),
                "outputs": [*_outputs(ran.result)],
            }
        )
        if calls:
            made = ", ".join(f"{count:,} × `{name}`" for name, count in calls.items())
            self.text(f"{ran.at}-calls", f"*The cell called: {made}*")

    def _id(self, name: str) -> str:
        """Of up to 64 letters, digits, - and _, and never given twice."""
        plain = _NOT_IN_IDS.sub("-", name)[:48].strip("-") or "cell"
        self._ids[plain] += 1
        return plain if self._ids[plain] == 1 else f"{plain}--{self._ids[plain]}"


def _outputs(result: REPLResult) -> Iterator[dict[str, Any]]:
    """What a cell printed, and why it failed; the traceback, with which standard error ends, stands once."""
    error = result.error
    stderr = result.stderr
    if error is not None:
        stderr = stderr.rstrip("\n").removesuffix(error.text.rstrip("\n"))
    for name, text in (("stdout", result.stdout), ("stderr", stderr)):
        if text.strip("\n"):
            yield {"output_type": "stream", "name": name, "text": _lines(text)}
    if error is not None:
        shown = _text(error.text).strip("\n")
        value = shown.rpartition("\n")[2].removeprefix(error.type).removeprefix(": ")
        yield {"output_type": "error", "ename": _text(error.type), "evalue": value, "traceback": shown.split("\n")}


def _calls(path: Sequence[Event]) -> Mapping[str, Counter[str]]:
    """For each cell of the session's own, how often it called what."""
    found: dict[str, Counter[str]] = {}
    for event in path:
        if isinstance(event, Called) and event.at.count("/") == 2:
            found.setdefault(event.at.rpartition("/")[0], Counter())[event.name] += 1
    return found


def _lines(text: str) -> list[str]:
    """As Jupyter writes texts: line by line, each with its end."""
    return _text(text).splitlines(keepends=True)


def _line(text: str) -> str:
    return " ".join(_text(text).split())


def _text(text: str) -> str:
    """Surrogates have no UTF-8."""
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
