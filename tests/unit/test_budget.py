"""What a ledger lets through, what it keeps waiting, what it refuses, and that its sums are true."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.engine.budget import OUTPUT_GUESS, Ledger
from rlm.errors import BudgetExceededError, ConfigurationError, TokenLimitExceededError, TurnError
from rlm.types import Limits, Message, Messages, Price, Reply, Usage, UsageSummary


@dataclass(frozen=True)
class Priced:
    """A model that is only ever asked for its name and price."""

    name: str
    price: Price | None

    async def reply(self, messages: Messages, **settings: Any) -> Reply:
        raise AssertionError("a ledger asks no model")


DOLLAR = Priced("test:dollar", Price(1_000_000, 1_000_000))  # one dollar a token
FREE = Priced("test:free", Price(0, 0))


def asking(tokens: int) -> list[Message]:
    """Messages that are estimated at exactly this many tokens (at least 4)."""
    return [{"role": "user", "content": "x" * 4 * (tokens - 4)}]


def used(input_tokens: int, output_tokens: int, model: Priced = DOLLAR) -> Usage:
    assert model.price is not None
    cost = (input_tokens * model.price.input + output_tokens * model.price.output) / 1e6
    return Usage(1, input_tokens, output_tokens, 0, cost)


async def call(
    ledger: Ledger, tokens: int = 4, output: int = 0, actual: int | None = None, model: Priced = DOLLAR
) -> None:
    """A request of `tokens` in and `actual` out, `output` being the most it may give."""
    async with ledger.reserve(model, asking(tokens), output) as slot:
        slot.sent = True
        await asyncio.sleep(0)
        slot.settle(used(tokens, output if actual is None else actual, model))


async def ticks(count: int = 5) -> None:
    """Let everything that can go on go on."""
    for _ in range(count):
        await asyncio.sleep(0)


# -- the books -----------------------------------------------------------------------------------------------------


def test_settled_usage_is_summed_by_model() -> None:
    async def scenario() -> None:
        ledger = Ledger(Limits(), UsageSummary({"test:free": Usage(2, 10, 20)}))
        await call(ledger, 5, 6, model=FREE)
        await call(ledger, 7, 8)
        assert ledger.usage == UsageSummary({"test:free": Usage(3, 15, 26), "test:dollar": Usage(1, 7, 8, 0, 15.0)})
        assert ledger.uncertain == 0

    asyncio.run(scenario())


def test_a_request_that_never_went_out_leaves_no_trace() -> None:
    async def scenario() -> None:
        ledger = Ledger(Limits(usd=10, calls=1))
        with pytest.raises(LookupError):
            async with ledger.reserve(DOLLAR, asking(4), 6):
                raise LookupError
        assert (ledger.usage, ledger.uncertain) == (UsageSummary(), 0)
        await call(ledger, 4, 6)  # the whole budget is there, and the one call

    asyncio.run(scenario())


def test_a_request_without_a_reply_is_uncertain_and_stays_a_call() -> None:
    async def scenario() -> None:
        session = Ledger(Limits())
        ledger = Ledger(Limits(usd=10, calls=2), parent=session)
        async with ledger.reserve(DOLLAR, asking(4), 6) as slot:
            slot.sent = True
        assert (ledger.uncertain, session.uncertain, ledger.usage) == (1, 1, UsageSummary())
        await call(ledger, 4, 6)
        with pytest.raises(BudgetExceededError) as caught:
            await call(ledger, model=FREE)
        assert (caught.value.limit, caught.value.spent, caught.value.budget) == ("calls", 2, 2)

    asyncio.run(scenario())


def test_a_slot_is_settled_once() -> None:
    async def scenario() -> None:
        async with Ledger(Limits()).reserve(FREE, []) as slot:
            slot.settle(Usage(1))
            with pytest.raises(RuntimeError, match="once"):
                slot.settle(Usage(1))

    asyncio.run(scenario())


def test_a_money_limit_needs_prices() -> None:
    unknown = Priced("test:unknown", None)
    Ledger(Limits(tokens=5)).require_prices([unknown])
    Ledger(Limits(usd=5)).require_prices([FREE, DOLLAR])
    for ledger in (Ledger(Limits(usd=5)), Ledger(Limits(), parent=Ledger(Limits(usd=5)))):
        with pytest.raises(ConfigurationError, match="test:unknown"):
            ledger.require_prices([FREE, unknown])


def test_a_cost_that_a_provider_does_not_tell_is_held_at_the_models_price() -> None:
    async def scenario() -> None:
        ledger = Ledger(Limits(usd=10))
        async with ledger.reserve(DOLLAR, asking(4), 6) as slot:
            slot.settle(Usage(1, 4, 6, 0, None))
        assert ledger.usage.total_cost is None
        with pytest.raises(BudgetExceededError):
            await call(ledger)

    asyncio.run(scenario())


# -- limits --------------------------------------------------------------------------------------------------------


def test_what_fits_is_spent_to_the_last_cent_and_then_refused() -> None:
    async def scenario() -> None:
        dime = Priced("test:dime", Price(100_000, 0))
        ledger = Ledger(Limits(usd=1.2))
        for _ in range(3):
            await call(ledger, 4, 0, model=dime)
        with pytest.raises(BudgetExceededError) as caught:
            await call(ledger, 4, 0, model=dime)
        assert caught.value.limit == "usd"
        assert caught.value.budget == 1.2
        assert caught.value.spent == pytest.approx(1.2)
        await call(ledger, model=FREE)  # what costs nothing can still be had

    asyncio.run(scenario())


def test_tokens_are_limited_as_money_is() -> None:
    async def scenario() -> None:
        ledger = Ledger(Limits(tokens=20))
        await call(ledger, 10, 5, model=FREE)
        with pytest.raises(TokenLimitExceededError) as caught:
            await call(ledger, 10, 5, model=FREE)
        assert (caught.value.tokens_used, caught.value.token_limit) == (15, 20)

    asyncio.run(scenario())


def test_alone_a_request_may_exceed_a_limit_by_its_output_only() -> None:
    async def scenario() -> None:
        ledger = Ledger(Limits(usd=10))
        await call(ledger, tokens=9, output=1000, actual=500)
        assert ledger.usage.total_cost == 509
        with pytest.raises(BudgetExceededError):
            await call(Ledger(Limits(usd=10)), tokens=11, output=0)

    asyncio.run(scenario())


def test_what_may_not_fit_waits_for_what_is_in_flight() -> None:
    async def scenario() -> None:
        ledger = Ledger(Limits(usd=20))
        async with ledger.reserve(DOLLAR, asking(4), 10) as first:
            second = asyncio.create_task(call(ledger, 4, 10, actual=2))
            await ticks()
            assert ledger.usage == UsageSummary()
            first.settle(used(4, 1))  # less than was feared
        await second
        assert ledger.usage.total_cost == 11

    asyncio.run(scenario())


def test_what_can_no_longer_fit_is_refused_while_it_waits() -> None:
    async def scenario() -> None:
        ledger = Ledger(Limits(usd=20))
        async with ledger.reserve(DOLLAR, asking(4), 10) as first:
            second = asyncio.create_task(call(ledger, 8, 4))
            await ticks()
            first.settle(used(4, 15))
        with pytest.raises(BudgetExceededError):
            await second

    asyncio.run(scenario())


def test_output_is_expected_to_be_as_it_was() -> None:
    """Before a model's first reply a guess is reserved, then its mean."""

    async def scenario() -> None:
        ledger = Ledger(Limits(tokens=4 + OUTPUT_GUESS + 24))
        async with ledger.reserve(FREE, asking(4)) as first:
            second = asyncio.create_task(call(ledger, 4, 20, model=FREE))
            third = asyncio.create_task(call(ledger, 5, model=FREE))
            await ticks()
            assert second.done()  # it fitted beside the guess, to the token
            assert not third.done()
            first.settle(Usage(1, 4, 10))
        await third
        slots = [ledger.reserve(FREE, asking(4)) for _ in range(12)]
        for slot in slots[:11]:  # 43 are used, the mean is 10: each takes 14
            await slot.__aenter__()
        assert ledger.usage.total.tokens == 43

    asyncio.run(scenario())


def test_a_turn_and_its_session_must_both_have_room() -> None:
    async def scenario() -> None:
        session = Ledger(Limits(usd=20, concurrency=1), UsageSummary({DOLLAR.name: used(4, 1)}))
        turn = Ledger(Limits(usd=15), parent=session)
        await call(turn, 4, 6)
        assert (turn.usage.total_cost, session.usage.total_cost) == (10, 15)
        with pytest.raises(BudgetExceededError) as caught:
            await call(turn, 6)
        assert caught.value.budget == 15
        with pytest.raises(BudgetExceededError) as caught:
            await call(Ledger(Limits(usd=15), parent=session), 6)
        assert caught.value.budget == 20

    asyncio.run(scenario())


def test_two_ledgers_of_one_session_wake_each_other() -> None:
    async def scenario() -> None:
        session = Ledger(Limits(usd=20))
        async with Ledger(Limits(), parent=session).reserve(DOLLAR, asking(4), 10) as first:
            other = asyncio.create_task(call(Ledger(Limits(), parent=session), 4, 10, actual=0))
            await ticks()
            assert not other.done()
            first.settle(used(4, 0))
        await other

    asyncio.run(scenario())


# -- concurrency ---------------------------------------------------------------------------------------------------


def test_slots_are_granted_in_order_of_arrival() -> None:
    async def scenario() -> list[int]:
        ledger = Ledger(Limits(concurrency=2))
        order: list[int] = []

        async def one(number: int) -> None:
            async with ledger.reserve(FREE, []) as slot:
                order.append(number)
                await ticks(7 - number)
                slot.settle(Usage(1))

        await asyncio.gather(*(one(number) for number in range(6)))
        return order

    assert asyncio.run(scenario()) == list(range(6))


def test_what_would_fit_does_not_overtake_what_waits_unless_that_gives_up() -> None:
    async def scenario() -> None:
        ledger = Ledger(Limits(usd=20))
        async with ledger.reserve(DOLLAR, asking(4), 6):
            large = asyncio.create_task(call(ledger, 4, 10))
            await ticks()
            small = asyncio.create_task(call(ledger, 4, 2))
            await ticks()
            assert not small.done()
            large.cancel()
            await ticks()
            assert small.done()
        assert large.cancelled()
        assert ledger.usage.total_cost == 6

    asyncio.run(scenario())


def test_cancelled_waiters_leak_nothing() -> None:
    async def scenario() -> None:
        ledger = Ledger(Limits(concurrency=1, calls=3))
        async with ledger.reserve(FREE, []) as held:
            waiters = [asyncio.create_task(call(ledger, model=FREE)) for _ in range(5)]
            await ticks()
            for waiter in waiters[:4]:
                waiter.cancel()
            await ticks()
            held.settle(Usage(1))
        await waiters[4]
        assert ledger.usage.total.calls == 2

    asyncio.run(scenario())


def test_a_slot_granted_to_a_task_that_is_cancelled_in_the_same_moment_goes_on() -> None:
    async def scenario() -> None:
        ledger = Ledger(Limits(concurrency=1))
        async with ledger.reserve(FREE, []) as held:
            first, second = (asyncio.create_task(call(ledger, model=FREE)) for _ in range(2))
            await ticks()
            held.settle(Usage(1))
            first.cancel()
        await second
        assert first.cancelled()
        assert ledger.usage.total.calls == 2

    asyncio.run(scenario())


@dataclass(frozen=True)
class Request:
    """One request of a random run; moments are counted in ticks of the event loop."""

    arrives: int
    lasts: int
    tokens: int
    output: int
    estimate: int | None
    ends: str  # settled, failed, unsent
    cancelled: int | None


_requests = st.builds(
    Request,
    arrives=st.integers(0, 10),
    lasts=st.integers(0, 6),
    tokens=st.integers(4, 12),
    output=st.integers(0, 12),
    estimate=st.none() | st.integers(0, 20),
    ends=st.sampled_from(["settled", "settled", "settled", "failed", "unsent"]),
    cancelled=st.none() | st.integers(0, 20),
)
_limits = st.builds(
    Limits,
    usd=st.none() | st.integers(1, 100),
    tokens=st.none() | st.integers(1, 100),
    calls=st.none() | st.integers(1, 12),
    concurrency=st.integers(1, 4),
)


class World:
    """Runs random requests over one ledger and keeps its own books."""

    def __init__(self, limits: Limits) -> None:
        self.ledger = Ledger(limits, parent=Ledger(Limits()))
        self.settled: list[Usage] = []
        self.sent = self.lost = self.in_flight = self.most = 0

    async def request(self, request: Request) -> None:
        await ticks(request.arrives)
        async with self.ledger.reserve(DOLLAR, asking(request.tokens), request.estimate) as slot:
            self.in_flight += 1
            self.most = max(self.most, self.in_flight)
            try:
                await ticks(request.lasts // 2)
                if request.ends == "unsent":
                    return
                slot.sent = True
                self.sent += 1
                self.lost += 1
                await ticks(request.lasts)
                if request.ends == "failed":
                    return
                self.lost -= 1
                self.settled.append(used(request.tokens, request.output))
                slot.settle(self.settled[-1])
            finally:
                self.in_flight -= 1

    async def run(self, requests: list[Request]) -> list[BaseException | None]:
        tasks = [asyncio.create_task(self.request(request)) for request in requests]
        for tick in range(21):
            await ticks(1)
            for task, request in zip(tasks, requests, strict=True):
                if request.cancelled == tick:
                    task.cancel()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), timeout=20)


async def nothing_is_left_reserved(ledger: Ledger, calls: int) -> None:
    """All that is left fits at once, in two requests."""
    limits = ledger.limits
    left = min(limits.usd or 100, limits.tokens or 100) - ledger.usage.total.tokens
    if left >= 8 and calls >= 2 and limits.concurrency >= 2:
        async with (
            asyncio.timeout(5),
            ledger.reserve(DOLLAR, asking(4), 0),
            ledger.reserve(DOLLAR, asking(4), int(left) - 8),
        ):
            pass


@given(_limits, st.lists(_requests, max_size=14))
def test_in_any_order_of_events_the_books_are_true_and_nobody_waits_forever(
    limits: Limits, requests: list[Request]
) -> None:
    async def scenario() -> None:
        world = World(limits)
        for outcome in await world.run(requests):
            assert outcome is None or isinstance(outcome, (TurnError, asyncio.CancelledError))
        assert world.most <= limits.concurrency
        assert world.ledger.usage.total == sum(world.settled, Usage())
        assert world.ledger.uncertain == world.lost
        if limits.calls is not None:
            assert world.sent <= limits.calls
        await nothing_is_left_reserved(world.ledger, (limits.calls or 99) - world.sent)

    asyncio.run(scenario())


@given(_limits, st.lists(_requests, max_size=14))
def test_with_exact_estimates_at_most_one_output_exceeds_a_limit(limits: Limits, requests: list[Request]) -> None:
    exact = [
        Request(one.arrives, one.lasts, one.tokens, one.output, one.output, one.ends, one.cancelled) for one in requests
    ]

    async def scenario() -> None:
        world = World(limits)
        await world.run(exact)
        spent = sum(usage.tokens for usage in world.settled)
        for limit in (limits.usd, limits.tokens):
            if limit is None or spent <= limit:
                continue
            before, last = spent - world.settled[-1].tokens, world.settled[-1]
            assert before + last.input_tokens <= limit

    asyncio.run(scenario())
