"""Clicks recorded by Celery's workers, in batches, with the extra ``Flask-Referrals[celery]``.

::

    celery_app = celery_init_app(app)       # as Flask's documentation has it: tasks run in an app context
    referrals.init_app(app, recorder=CeleryRecorder(celery_app))

A click leaves the broker once it is in the database, and not before. What fails is tried again, after a pause, until it
does not; a worker that dies leaves it to the next.
"""

import os
import time
import typing as t
from collections.abc import Callable
from collections.abc import Sequence

from celery import Celery
from celery.worker.consumer import Consumer
from kombu.connection import Connection

from ... import queued
from ...failures import log_failure
from ...queued import Event
from .messages import Collector
from .messages import Messages
from .stream import Drainer
from .stream import Stream

#: The name of the task, for the host's ``task_routes``.
TASK = "flask_referrals.store"

#: How many seconds the broker may take to answer. When it does not, it is left alone for a while, and no click waits.
_TIMEOUT = 1.0
_REST = 10.0


class CeleryRecorder:
    """Hands clicks to Celery's broker, and has its workers store them.

    :param celery_app: the ``Celery`` app whose tasks run in the Flask app's context.
    """

    def __init__(self, celery_app: t.Any) -> None:
        self._app = celery_app
        base = type("Store", (_StoreMixin, celery_app.Task), {})
        self._task: t.Any = celery_app.task(_store, name=TASK, base=base, ignore_result=True)
        #: The broker by process: connections that a process inherits are its parent's.
        self._brokers: dict[int, Messages | Stream] = {}
        self._rests_until = 0.0

    def __call__(self, event: Event) -> None:
        """Return once the broker has the click.

        :param event: the click.
        :raises Exception: the broker has refused it, or has not answered in time.
        """
        if self._app.conf.task_always_eager:  # in a test of the host's
            queued.store([event])
            return
        began = time.monotonic()
        if began < self._rests_until:
            raise TimeoutError("The broker has not answered lately.")
        try:
            broker = self._brokers.get(os.getpid())
            if broker is None:
                is_redis = _is_redis(self._app.connection_for_write())
                broker = (Stream if is_redis else Messages)(self._task, _TIMEOUT)
                self._brokers[os.getpid()] = broker
            broker.publish(event)
        except Exception:
            if time.monotonic() - began >= _TIMEOUT:
                self._rests_until = time.monotonic() + _REST
            raise


def _is_redis(broker: Connection) -> bool:
    return bool(broker.transport.driver_type == "redis")


def _store(events: Sequence[Event]) -> None:
    """Store clicks: what the task does."""
    try:
        queued.store(events)
    except Exception:
        log_failure("%d clicks could not be stored; they are kept, and tried again.", len(events))
        raise


class _StoreMixin:
    """A task whose messages a worker collects, instead of running each by itself."""

    _drainer: Drainer | None = None

    def Strategy(self, task: t.Any, app: Celery, consumer: Consumer) -> Callable[..., None]:
        """Return what a worker calls with each message: a new one each time it has connected to the broker.

        What was under way before that comes again.
        """
        collector = Collector(task, consumer)
        if self._drainer is not None:
            self._drainer.stop()
        if _is_redis(consumer.connection):
            self._drainer = Drainer(task, consumer)
        return collector.receive
