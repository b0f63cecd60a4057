"""Typed answers: the JSON schema that the model is shown, and the check of what it gives.

Validation is pydantic's, so anything it takes is an output type: models, dataclasses, TypedDicts, `list[int]`,
literals. Loaded only where an output type is asked for.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from rlm.engine.loop import AnswerRejected
from rlm.errors import ConfigurationError

MAX_ERRORS = 10  # mismatches told at once


class Output:
    """An output type, as given (`kind`). `schema` is JSON text; `check` turns an answer into a value or raises
    `AnswerRejected`.

    Raises `ConfigurationError` for what cannot be validated, or has no JSON schema to show.
    """

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(kind)
            self.schema = json.dumps(self._adapter.json_schema(), separators=(",", ":"))
        except PydanticUserError as error:
            raise ConfigurationError(f"output_type={kind!r} cannot be used: {error}") from error

    def check(self, text: str) -> Any:
        """The value of `text`: as JSON (in a fence or not), else as plain text, which is how models write a scalar."""
        bare = _unfenced(text)
        try:
            return self._adapter.validate_json(bare)
        except ValidationError as error:
            try:
                return self._adapter.validate_python(bare)
            except ValidationError:
                raise AnswerRejected(_told(error)) from error  # JSON is what the model was asked for


def _told(error: ValidationError) -> str:
    lines = []
    for one in error.errors(include_url=False)[:MAX_ERRORS]:
        path = ".".join(str(part) for part in one["loc"]) or "the answer"
        lines.append(f"{path}: {one['msg']}")
    return "; ".join(lines)


def _unfenced(text: str) -> str:
    bare = text.strip()
    if bare.startswith("```") and bare.endswith("```") and "\n" in bare:
        bare = bare[bare.index("\n") + 1 : -3].strip()
    return bare
