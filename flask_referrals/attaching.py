"""Codes that people type into a form: found, and not guessed."""

import ipaddress
import time
import typing as t
from collections import OrderedDict
from collections import deque
from threading import Lock

import sqlalchemy as sa
from flask import current_app
from werkzeug.wrappers import Request

from . import clients
from .context import current_state
from .creation import CODE
from .exceptions import InvalidValueError
from .exceptions import TooManyGuessesError

if t.TYPE_CHECKING:
    from .models import ReferralMixin

#: The action of a typed code.
ATTACH = "ATTACHED"


class GuessLimit:
    """Counts wrong codes by address, in this process's memory, and forgets them after an hour.

    :param seconds: how long a wrong code is remembered.
    :param addresses: how many addresses are remembered; the one that guessed longest ago is forgotten first.
    """

    def __init__(self, seconds: float = 3600, addresses: int = 10_000) -> None:
        self._seconds = seconds
        self._addresses = addresses
        self._misses: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = Lock()

    def count(self, address: str) -> int:
        """Return how many wrong codes came from an address lately."""
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


def find(code: str, request: Request | None) -> "ReferralMixin":
    """Return the referral of a typed code.

    :param code: what was typed.
    :param request: whose guesses are counted; ``None`` outside a request: nobody's.
    :raises InvalidValueError: there is no such code, or its referral has expired: the answer is the same.
    :raises TooManyGuessesError: ``REFERRALS_GUESS_LIMIT`` wrong codes came from this address within an hour.
    """
    state = current_state()
    address = _network(request)
    limit = current_app.config["REFERRALS_GUESS_LIMIT"]
    if address is not None and limit is not None and state.guesses.count(address) >= limit:
        raise TooManyGuessesError
    typed = code.strip() if isinstance(code, str) else ""
    referral = None
    if CODE.fullmatch(typed):
        model = state.models.referral
        exact_first = (model.code != typed).asc()
        candidates = sa.select(model).where(model.code.in_({typed, typed.lower()})).order_by(exact_first).limit(1)
        referral = state.session.scalar(candidates)
    if referral is None or not referral.is_active():
        if address is not None:
            state.guesses.add(address)
        raise InvalidValueError("code", "is not known")
    return referral


def _network(request: Request | None) -> str | None:
    """Return what one guesser can hardly change: an IPv4 address, or the /64 of an IPv6 one."""
    address = clients.client_address(request) if request is not None else None
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address) if address is not None else None
