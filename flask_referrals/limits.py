"""The limit on guessed codes."""

import time
from collections import OrderedDict, deque
from threading import Lock


class GuessLimit:
    """Counts wrong codes by address, in the memory of this process.

    :param seconds: how long a wrong code is remembered.
    :param addresses: how many addresses are remembered; the one with the oldest guess is forgotten first.
    """

    def __init__(self, seconds: float = 3600, addresses: int = 10_000) -> None:
        self._seconds = seconds
        self._addresses = addresses
        self._misses: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = Lock()

    def count(self, address: str) -> int:
        """Return how many wrong codes an address has sent within the time."""
        with self._lock:
            misses = self._misses.get(address, deque())
            while misses and misses[0] < time.monotonic() - self._seconds:
                misses.popleft()
            return len(misses)

    def add(self, address: str) -> None:
        """Remember a wrong code."""
        with self._lock:
            self._misses.setdefault(address, deque()).append(time.monotonic())
            self._misses.move_to_end(address)
            while len(self._misses) > self._addresses:
                self._misses.popitem(last=False)
