"""What models cost, by the price lists of `genai-prices`, which load on the first question.

Amounts are US dollars. A price that is not known is None, never zero.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from rlm.types import Price

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse

MILLION = 1_000_000


def list_price(provider: str, model: str) -> Price | None:
    """Dollars per million tokens of this model, today.

    Where long inputs cost more per token, this is the price of a long one: reserving too little would let a turn spend
    more than its limit, the bill itself comes with each reply.
    """
    from genai_prices import Usage, calc_price

    try:
        million = calc_price(Usage(input_tokens=MILLION, output_tokens=MILLION), model, provider_id=provider)
    except (LookupError, ValueError):
        return None
    return Price(float(million.input_price), float(million.output_price))


def cost_of(response: ModelResponse, model: str) -> float | None:
    """What this response cost, reads from the provider's cache at their own price; None where no price is known.

    The provider's own word comes first (gateways report it). A proxy may name the model in its own way: then `model`,
    the name it was asked for, is looked up. A response that reports no usage has no known cost.
    """
    if response.usage.cost is not None:
        return float(response.usage.cost)
    if response.usage.unmeasured_requests:
        return None
    for name in filter(None, (response.model_name, model)):
        try:
            return float(dataclasses.replace(response, model_name=name).cost().total_price)
        except (LookupError, ValueError):
            continue
    return None
