"""Store a batch of clicks in a process of the worker."""

import logging
import typing as t
from collections.abc import Sequence

import sqlalchemy as sa
from celery.utils.log import get_task_logger

from ...queue import Event

logger: logging.Logger = get_task_logger(__name__)

#: Maximum number of clicks in a batch, and seconds that the first click waits for others.
SIZE = 500
INTERVAL = 1.0

#: Maximum seconds before a retry. The first pause is one second, and each pause doubles.
_PAUSE = 10.0

#: Results of :func:`store_batch`: stored, retry later, or at least one click cannot be stored.
STORED, FAILED, REFUSED = "stored", "failed", "refused"

#: Errors of an unreachable or busy database. Any other error is caused by one of the clicks.
_PASSING = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError)


def store_batch(task: t.Any, events: Sequence[Event]) -> str:
    """Store a batch, and return the result instead of raising an error. Celery gives the task an app context."""
    try:
        task(events)
    except _PASSING:
        return FAILED
    except Exception:
        logger.exception("At least one of %d clicks cannot be stored.", len(events))
        return REFUSED
    return STORED


def log_malformed(place: str) -> None:
    """Log a malformed entry of the queue, without its data."""
    logger.error("A malformed click cannot be stored. It is kept in %r.", place)


def pause(failures: int) -> float:
    """Return the seconds to wait after a number of failures."""
    return min(2.0 ** (failures - 1), _PAUSE)
