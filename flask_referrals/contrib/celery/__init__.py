"""Store clicks in Celery workers, in batches. Install ``Flask-Referrals[celery]``.

::

    celery_app = celery_init_app(app)       # from Flask's documentation: tasks run in an app context
    referrals.init_app(app, recorder=CeleryRecorder(celery_app))

A click stays in the broker until it is in the database. A batch that fails is retried after a pause. If a worker dies,
another worker stores its clicks.
"""

import os
import time
import typing as t
from collections.abc import Callable, Sequence

from celery import Celery
from celery.worker.consumer import Consumer
from kombu.connection import Connection

from ...failures import log_failure
from ...queue import Event, store
from .messages import Collector, Messages
from .stream import Drainer, Stream

#: The name of the task. Use it in ``task_routes``.
TASK = "flask_referrals.store"

#: Seconds to wait for the broker, and seconds until the next attempt if it did not answer, so that no click waits.
_TIMEOUT = 1.0
_REST = 10.0


class CeleryRecorder:
    """Send clicks to Celery's broker. Celery workers store them.

    :param celery_app: a ``Celery`` app whose tasks run in the Flask app's context.
    """

    def __init__(self, celery_app: t.Any) -> None:
        self._app = celery_app
        base = type("Store", (_StoreMixin, celery_app.Task), {})
        self._task: t.Any = celery_app.task(_store, name=TASK, base=base, ignore_result=True)
        #: One broker for each process id, because a forked process must not use its parent's connections.
        self._brokers: dict[int, Messages | Stream] = {}
        self._rests_until = 0.0

    def __call__(self, event: Event) -> None:
        """Send a click, and return when the broker has it.

        :param event: the click.
        :raises Exception: if the broker refuses the click, or does not answer in time.
        """
        if self._app.conf.task_always_eager:  # set in the tests of hosts
            store([event])
            return
        began = time.monotonic()
        if began < self._rests_until:
            raise TimeoutError("The broker did not answer; the next attempt is in a few seconds.")
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
    """Store clicks. This is the body of the task."""
    try:
        store(events)
    except Exception:
        log_failure("Could not store %d clicks; they stay queued and are retried.", len(events))
        raise


class _StoreMixin:
    """Collect the messages of a task into batches, instead of running each alone."""

    _drainer: Drainer | None = None

    def Strategy(self, task: t.Any, app: Celery, consumer: Consumer) -> Callable[..., None]:
        """Return the function that a worker calls with each message.

        Celery calls this after each connection to the broker, which then delivers unacknowledged messages again.
        """
        collector = Collector(task, consumer)
        if self._drainer is not None:
            self._drainer.stop()
        if _is_redis(consumer.connection):
            self._drainer = Drainer(task, consumer)
        return collector.receive
