"""How often an address may call with a key that is none, so that keys can't be tried by the thousand.

Counted by each gateway process for itself, and forgotten when it ends: a guess has no chance against 192 random bits
anyway, and what this saves is work and logs. A right key always passes, so that nobody is shut out by a neighbour
behind the same address.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import AddressValueError, IPv6Address
from typing import Final

#: The addresses that failed last; of those before nothing is known.
_MOST_ADDRESSES: Final = 10_000
_MINUTE: Final = 60.0


class FailedKeys:
    """Thread-safe. Each address has so many failures at once, and gets them back over a minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`per_minute` of 0 is no limit."""
        self._per_minute = per_minute
        self._clock = clock
        self._lock = threading.Lock()
        #: By network: failures that are left, and when that was so.
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def add(self, address: str) -> int:
        """Another failure: 0 if it is within the limit, else the seconds after which the next one is."""
        if self._per_minute == 0:
            return 0
        network, now = _network(address), self._clock()
        with self._lock:
            left, at = self._left.pop(network, (float(self._per_minute), now))
            left = min(self._per_minute, left + (now - at) * self._per_minute / _MINUTE)
            is_within = left >= 1
            self._left[network] = (left - 1 if is_within else left, now)
            if len(self._left) > _MOST_ADDRESSES:
                self._left.popitem(last=False)
        return 0 if is_within else math.ceil((1 - left) * _MINUTE / self._per_minute)


def _network(address: str) -> str:
    """Of IPv6 the first half: whoever has one address has all of its network."""
    try:
        return str(int(IPv6Address(address)) >> 64)
    except AddressValueError:
        return address
