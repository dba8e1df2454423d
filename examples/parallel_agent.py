"""An agent with tools of your own; the calls of one turn run at the same time.

    openk2 serve &
    python examples/parallel_agent.py [BASE_URL]

Without a server, the embedded model answers in this process (needs openk2[local]).
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Literal

from openk2 import LLM, Agent, RemoteProvider, tool


@tool
def fetch_weather(city: str, unit: Literal["C", "F"] = "C") -> str:
    """Get the current weather of a city.

    Args:
        city: Name of the city.
        unit: Unit of the temperature.
    """
    time.sleep(1)  # stands for a slow service
    return f"14 {unit}, light rain in {city}"


@tool
async def get_exchange_rate(currency: str) -> float:
    """Get how much one euro is in another currency.

    Args:
        currency: Code of the currency, such as USD.
    """
    await asyncio.sleep(1)
    return {"USD": 1.08, "JPY": 171.3}.get(currency, 1.0)


def main() -> None:
    provider = RemoteProvider(sys.argv[1]) if len(sys.argv) > 1 else LLM()
    agent = Agent(provider, tools=[fetch_weather, get_exchange_rate])
    result = agent.run("Get the weather of Oslo and the exchange rate of USD.")
    start_s = min((end.started_s for end in result.calls), default=0.0)
    for end in result.calls:
        print(f"{end.call.name}({end.call.arguments}) -> {end.result}")
        print(f"  from {end.started_s - start_s:.2f} s to {end.finished_s - start_s:.2f} s")
    print(result.text, f"[{result.reason}]")


if __name__ == "__main__":
    main()
