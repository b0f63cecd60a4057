"""What a failed attempt means: its status, the provider's own words, and whether another attempt is worth it.

The judgement follows pydantic-ai's exceptions, which say the same for every provider. Nothing here holds a key or a
header, and nothing waits: `Patience` computes how long to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RETRIED_STATUSES = frozenset({408, 409, 429})
LONGEST_MESSAGE = 300
KEY_LIKE = re.compile(
    r"\b(?:sk|pk|gsk|xai|key|nvapi)[-_][-_*\w]{6,}"
    r"|\b(?:hf|r8|gh[opsur]|github_pat|pplx)[-_][*a-z0-9]{12,}\w*"  # long: hf_transfer is a library
    r"|(?-i:AIza[-_*\w]{6,}|(?:AKIA|ASIA)[A-Z0-9*]{8,})"  # Google's and Amazon's, also where no word begins
    r"|\bBearer\s+\S+",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt. `again`: another one may succeed; `retry_after`: seconds the provider asks to wait before."""

    message: str
    status: int | None = None
    again: bool = True
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """When to try again: at most `retries` times, waiting at most `most` seconds in all.

    Waits double from `first` up to `longest` seconds; a random half of each is taken off, so that calls that failed
    together do not come back together. A provider's own `retry-after` counts instead, and at most a tenth is put on it.
    """

    retries: int = 4
    most: float = 120.0
    first: float = 0.5
    longest: float = 30.0

    def wait(self, failure: Failure, attempt: int, waited: float, random: float) -> float | None:
        """Seconds until the next attempt, None to give up. attempt: 0 for the first; random: from 0 up to 1."""
        if not failure.again or attempt >= self.retries:
            return None
        if failure.retry_after is not None:
            seconds = failure.retry_after * (1 + random / 10)
        else:
            seconds = min(self.longest, self.first * 2.0**attempt) * (1 - random / 2)
        return seconds if waited + seconds <= self.most else None


def explain(error: Exception) -> Failure:
    """What `error`, raised by a request, means. An exception that no table knows comes from reading the response."""
    from pydantic_ai import exceptions as known

    final = (
        known.ModelRequestRejectedError,
        known.ModelQuotaExceededError,
        known.ContentFilterError,
        known.OutputTokenLimitExceeded,
    )
    if isinstance(error, known.ModelHTTPError):
        status = error.status_code
        unwell = status in RETRIED_STATUSES or status >= 500 or isinstance(error, known.ModelUnavailableError)
        message = provider_message(error.body) or "no further word from the provider"
        return Failure(message, status, unwell and not isinstance(error, final), error.retry_after)
    if isinstance(error, known.ModelConnectionError):
        return Failure(f"the connection failed: {_first_cause(error)}")
    if isinstance(error, known.ModelAPIError):
        return Failure(error.message, None, not isinstance(error, final), error.retry_after)
    if isinstance(error, final):
        return Failure(str(error), None, again=False)
    return Failure(f"the response cannot be understood: {_one_line(str(error)) or type(error).__name__}")


def provider_message(body: object) -> str:
    """The sentence in an error body, wherever this provider puts it; "" where there is none."""
    if isinstance(body, str):
        return body
    if isinstance(body, Mapping):
        for name in ("message", "error", "detail", "Message"):
            if found := provider_message(body.get(name)):
                return found
    if isinstance(body, Sequence) and body:
        return provider_message(body[0])
    return ""


def presentable(message: str, secrets: Sequence[str] = ()) -> str:
    """`message` on one line of moderate length, without `secrets` and without anything that looks like a key."""
    for secret in secrets:
        message = message.replace(secret, "[key]")
    message = _one_line(KEY_LIKE.sub("[key]", message))
    return message if len(message) <= LONGEST_MESSAGE else message[:LONGEST_MESSAGE] + "…"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _first_cause(error: BaseException) -> str:
    """The words of the HTTP library, deepest below: SDKs wrap "Cannot connect to host" in "Connection error."."""
    words = str(error)
    cause = error.__cause__
    while cause is not None and type(cause).__module__ != "builtins":
        words = str(cause) or words
        cause = cause.__cause__
    return words
