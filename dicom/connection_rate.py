"""How many connections a second one address may open. No IO.

A token bucket for each address: it holds a second's worth, and fills at the rate. What is
remembered is bounded; an address that is forgotten begins with a full bucket.
"""

from typing import Final

_MOST_ADDRESSES: Final = 4096  # a hospital's network has fewer that speak to one node


class ConnectionRate:
    """Says of each new connection whether its address is within its rate."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and when there were so many

    def allows(self, address: str, now: float) -> bool:
        """Take one token of `address`, at `now` (monotonic seconds). False: there was none."""
        tokens, since = self._buckets.get(address, (self._per_s, now))
        tokens = min(tokens + (now - since) * self._per_s, self._per_s)
        allowed = tokens >= 1
        if address not in self._buckets and len(self._buckets) >= _MOST_ADDRESSES:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[address] = (tokens - 1 if allowed else tokens, now)
        return allowed
