"""What a process of the worker's does with a batch of clicks."""

import logging
import typing as t
from collections.abc import Sequence

import sqlalchemy as sa
from celery.utils.log import get_task_logger

from ...queued import Event

logger: logging.Logger = get_task_logger(__name__)

#: How many clicks are stored at once, and how many seconds the first of them waits for the others.
SIZE = 500
INTERVAL = 1.0

#: The longest pause before a batch is tried again, in seconds; the first is one second, and they double.
_PAUSE = 10.0

#: What becomes of a batch.
STORED, FAILED, REFUSED = "stored", "failed", "refused"

#: What says that the database is not there, or busy. Any other error is about one of the clicks.
_PASSING = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError)


def store(task: t.Any, events: Sequence[Event]) -> str:
    """Store a batch; nothing is raised.

    :param task: the task, which Celery gives an app context.
    :param events: the clicks.
    :return: what became of it.
    """
    try:
        task(events)
    except _PASSING:
        return FAILED
    except Exception:
        logger.exception("Among %d clicks, one at least cannot be stored.", len(events))
        return REFUSED
    return STORED


def pause(failures: int) -> float:
    """Return how many seconds to wait after some failures."""
    return min(2.0 ** (failures - 1), _PAUSE)
