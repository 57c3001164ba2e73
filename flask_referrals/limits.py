"""The limit on guessed codes."""

import time
from threading import Lock


class GuessLimit:
    """Counts wrong codes by address, in the memory of this process.

    :param seconds: after how long an address starts at zero again.
    :param addresses: how many addresses are remembered; the one with the oldest guess is forgotten first.
    """

    def __init__(self, seconds: float = 3600, addresses: int = 10_000) -> None:
        self._seconds = seconds
        self._addresses = addresses
        #: When each address began to guess, and how many wrong codes it has sent since.
        self._misses: dict[str, tuple[float, int]] = {}
        self._lock = Lock()

    def allow(self, address: str, limit: int) -> bool:
        """Count a wrong code, and return whether the address is still within the limit."""
        with self._lock:
            now = time.monotonic()
            began, count = self._misses.pop(address, (now, 0))
            if now - began > self._seconds:
                began, count = now, 0
            self._misses[address] = began, count + 1
            if len(self._misses) > self._addresses:
                del self._misses[next(iter(self._misses))]
            return count < limit
