"""One ledger for a whole tree of model calls: reserve before, settle after.

Every request of a turn, its children's too, takes a slot here first. A slot is granted where the request fits into the
limits on money, tokens, calls and concurrency together with all that is in flight; what does not fit waits until
something settles, in order of arrival, and what can never fit is refused. The ledger lives on one event loop and has no
locks and no clock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from rlm.errors import BudgetExceededError, ConfigurationError, TokenLimitExceededError, TurnError
from rlm.ports import Model
from rlm.types import Limits, Messages, Usage, UsageSummary

OUTPUT_GUESS = 256
"""Tokens of output that are reserved for a model before its first reply."""

_ROUNDING = 1 + 1e-9  # three requests of $0.10 fit into $0.30


class Ledger:
    """What a turn may spend, what it has spent, and what is in flight.

    limits: its `usd`, `tokens`, `calls` and `concurrency` are held here. spent: consumed before, and counted. parent: a
    ledger that must have room too, and to which everything is charged as well (a session's, over that of its turn); its
    `concurrency` does not bind the child.

    Calls are counted exactly. Money and tokens are known only with the reply, so a request reserves an estimate: as
    input a quarter of its characters; as output what the request allows, else the model's mean so far, else
    `OUTPUT_GUESS`. A request that does not fit by its output alone is still granted when nothing else is in flight, or
    the last of a budget could never be spent. So a limit is exceeded by at most the output of one request, or by what
    the estimates of the requests in flight were too low.
    """

    def __init__(self, limits: Limits, spent: UsageSummary | None = None, *, parent: Ledger | None = None) -> None:
        self.limits = limits
        self.uncertain = 0
        """Requests that went out and whose reply never came: perhaps paid, in no sum."""
        self._chain: tuple[Ledger, ...] = (self, *(parent._chain if parent else ()))
        self._estimates = any(one.limits.usd is not None or one.limits.tokens is not None for one in self._chain)
        self._waiting: deque[tuple[Slot, asyncio.Future[TurnError | None]]] = parent._waiting if parent else deque()
        self._models = dict(spent.model_usage_summaries) if spent else {}
        self._calls = sum(usage.calls for usage in self._models.values())
        self._tokens = sum(usage.tokens for usage in self._models.values())
        self._usd = sum(usage.cost or 0.0 for usage in self._models.values())
        self._in_flight = 0
        self._reserved_tokens = 0
        self._reserved_usd = 0.0

    @property
    def usage(self) -> UsageSummary:
        """What is settled, including what was consumed before."""
        return UsageSummary(dict(self._models))

    def require_prices(self, models: Iterable[Model]) -> None:
        """Raise `ConfigurationError` if money is limited and a model has no known price."""
        limit = next((one.limits.usd for one in self._chain if one.limits.usd is not None), None)
        if limit is None:
            return  # looking prices up takes half a second
        unknown = [model.name for model in models if model.price is None]
        if unknown:
            raise ConfigurationError(
                f"Limits(usd={limit}) cannot be held: no price is known for {', '.join(unknown)}. "
                "Limit tokens or calls instead, or take models whose prices are known."
            )

    def reserve(self, model: Model, messages: Messages, max_output: int | None = None) -> Slot:
        """`async with ledger.reserve(model, messages) as slot:` waits for room, and holds it until settled or left.

        max_output: the most tokens the reply may have, where that is set. Entering raises `BudgetExceededError` or
        `TokenLimitExceededError` where there never will be room.
        """
        slot = Slot(self, model)
        if self._estimates:
            characters = sum(len(message["content"]) for message in messages)
            slot._tokens_in = -(-characters // 4) + 4 * len(messages)
            slot._max_output = max_output
        return slot

    def _grant(self, slot: Slot) -> bool:
        """Book the slot if there is room for it now; False: it has to wait. Raises if there never will be room."""
        if self._estimates:
            slot._estimate(self._chain[-1]._models.get(slot.model.name))
        # All are asked, as one may refuse for good what another would let wait.
        room = [one._has_room(slot) for one in self._chain]
        if self._in_flight >= self.limits.concurrency or not all(room):
            return False
        for one in self._chain:
            one._calls += 1
            one._in_flight += 1
            one._reserved_tokens += slot._tokens
            one._reserved_usd += slot._usd
        slot._held = True
        return True

    def _has_room(self, slot: Slot) -> bool:
        limits = self.limits
        if limits.calls is not None and self._calls >= limits.calls:
            message = f"Limits(calls={limits.calls}) leaves no room for {slot.model.name}: {self._calls} are made."
            raise BudgetExceededError(message, limit="calls", spent=self._calls, budget=limits.calls)
        money = _fits(limits.usd, self._usd, self._reserved_usd, slot._usd_in, slot._usd)
        if money is None:
            message = f"Limits(usd={limits.usd}) leaves no room for {slot.model.name}: ${self._usd:.4f} is spent."
            raise BudgetExceededError(message, limit="usd", spent=self._usd, budget=limits.usd or 0.0)
        tokens = _fits(limits.tokens, self._tokens, self._reserved_tokens, slot._tokens_in, slot._tokens)
        if tokens is None:
            message = f"Limits(tokens={limits.tokens}) leaves no room for {slot.model.name}: {self._tokens} are used."
            raise TokenLimitExceededError(message, tokens_used=self._tokens, token_limit=limits.tokens or 0)
        return (money and tokens) or self._in_flight == 0

    def _close(self, slot: Slot, usage: Usage | None) -> None:
        """Take back what the slot reserved, book what came of it, and let others on."""
        slot._held = False
        for one in self._chain:
            one._book(slot, usage)
        self._wake()

    def _book(self, slot: Slot, usage: Usage | None) -> None:
        self._in_flight -= 1
        self._reserved_tokens -= slot._tokens
        self._reserved_usd = self._reserved_usd - slot._usd if self._in_flight else 0.0
        if usage is not None:
            name = slot.model.name
            self._models[name] = self._models.get(name, Usage()) + usage
            self._calls += usage.calls - 1
            self._tokens += usage.tokens
            self._usd += slot._price(usage.input_tokens, usage.output_tokens) if usage.cost is None else usage.cost
        elif slot.sent:
            self.uncertain += 1
        else:
            self._calls -= 1

    def _wake(self) -> None:
        """Grant what can be granted, in order of arrival."""
        while self._waiting:
            slot, turn = self._waiting[0]
            if not turn.done():  # else it was cancelled while it stood here
                try:
                    if not slot.ledger._grant(slot):
                        return
                    turn.set_result(None)
                except TurnError as refusal:
                    turn.set_result(refusal)
            self._waiting.popleft()


def _fits(limit: float | None, spent: float, reserved: float, least: float, estimate: float) -> bool | None:
    """Whether a request fits now; None if it never will, as the spent stays spent. What costs nothing always fits."""
    if limit is None or not estimate:
        return True
    if spent >= limit or spent + least > limit * _ROUNDING:
        return None
    return spent + reserved + estimate <= limit * _ROUNDING


class Slot:
    """The place of one request: to be entered, `sent` to be set when the request goes out, and `settle`d by its reply.

    Left without having settled, it gives back what it reserved. A request that was sent stays counted as a call, and
    as uncertain.
    """

    __slots__ = ("_held", "_max_output", "_tokens", "_tokens_in", "_usd", "_usd_in", "ledger", "model", "sent")

    def __init__(self, ledger: Ledger, model: Model) -> None:
        self.ledger = ledger
        self.model = model
        self.sent = False
        self._held = False
        self._max_output: int | None = None
        self._tokens_in = self._tokens = 0
        self._usd_in = self._usd = 0.0

    def settle(self, usage: Usage) -> None:
        """Book what the request consumed. A cost that is not told counts against limits at the model's price."""
        if not self._held:
            raise RuntimeError("a slot is settled once, while it is held")
        self.ledger._close(self, usage)

    async def __aenter__(self) -> Slot:
        ledger = self.ledger
        if not ledger._waiting and ledger._grant(self):
            return self
        turn: asyncio.Future[TurnError | None] = asyncio.get_running_loop().create_future()
        ledger._waiting.append((self, turn))
        try:
            refusal = await turn
        except asyncio.CancelledError:
            if self._held:  # granted and cancelled in the same moment
                ledger._close(self, None)
            else:
                ledger._wake()  # it may have kept others behind it
            raise
        if refusal is not None:
            raise refusal
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._held:
            self.ledger._close(self, None)

    def _estimate(self, known: Usage | None) -> None:
        output = self._max_output
        if output is None:
            output = -(-known.output_tokens // known.calls) if known and known.calls else OUTPUT_GUESS
        self._tokens = self._tokens_in + output
        self._usd_in = self._price(self._tokens_in, 0)
        self._usd = self._price(self._tokens_in, output)

    def _price(self, input_tokens: int, output_tokens: int) -> float:
        price = self.model.price
        return (input_tokens * price.input + output_tokens * price.output) / 1e6 if price else 0.0
