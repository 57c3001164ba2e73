"""Clicks in a stream of Redis, which a worker reads from its beginning, and cuts when they are stored.

They are no messages of Celery's, for on Redis those are taken from the queue first, and noted as unacknowledged then: a
worker that is killed in between loses one.
"""

import json
import typing as t
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import suppress
from functools import cache

from celery import Celery
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import LockError
from redis.retry import Retry

from ...queued import Event
from . import batches

_FIELD = "event"

#: For how many seconds a worker that reads the stream keeps others away. When it dies they wait as long; two that read
#: at the same time store the same, once.
_LEASE = 10.0

#: How many seconds Redis may take to answer a worker.
_TIMEOUT = 10.0


class Stream:
    """The stream, for one process.

    :param task: by its queue the stream is named.
    :param timeout: how many seconds Redis may take to answer.
    """

    def __init__(self, task: t.Any, timeout: float) -> None:
        options = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        # Celery's own client, for it knows of passwords, certificates and sentinels.
        self._connection = task.app.connection_for_write(connect_timeout=timeout, transport_options=options)
        self._redis: Redis = self._connection.default_channel.client
        # Once, for the connection may have been lost since the last click.
        self._redis.set_retry(Retry(NoBackoff(), 1))
        self._key = _key(task)

    def publish(self, event: Event) -> None:
        """Return once Redis has a click.

        :param event: the click.
        """
        self._redis.xadd(self._key, {_FIELD: json.dumps(event)})

    def drain(self, task: t.Any) -> str:
        """Store all that is in the stream, unless another is at it.

        :param task: what stores a batch.
        :return: what became of it.
        """
        lock = self._redis.lock(f"{self._key}.lock", timeout=_LEASE, blocking=False)
        if not lock.acquire():
            return batches.STORED
        outcome = batches.STORED
        try:
            for events in self._batches():
                lock.reacquire()
                outcome = self._store(task, events)
                if outcome == batches.FAILED:
                    break
        except LockError:  # it took too long, and another is at it
            pass
        finally:
            with suppress(LockError):
                lock.release()
        return outcome

    def _batches(self) -> Iterator[dict[bytes, Event]]:
        after = "-"
        entries: t.Any = [()] * batches.SIZE
        # What is no whole batch is the last: those that came meanwhile wait for others, or each batch would be small.
        while len(entries) == batches.SIZE:
            entries = self._redis.xrange(self._key, min=after, count=batches.SIZE)
            if entries:
                yield {entry: json.loads(fields[_FIELD.encode()]) for entry, fields in entries}
                after = f"({entries[-1][0].decode()}"

    def _store(self, task: t.Any, events: Mapping[bytes, Event]) -> str:
        outcome = batches.store(task, list(events.values()))
        if outcome == batches.STORED:
            self._redis.xdel(self._key, *events)
        elif outcome == batches.REFUSED and len(events) > 1:
            # The one that cannot be stored is left where it is, and keeps nobody else.
            entries = list(events.items())
            middle = len(entries) // 2
            halves = [self._store(task, dict(half)) for half in (entries[:middle], entries[middle:])]
            outcome = batches.FAILED if batches.FAILED in halves else batches.REFUSED
        return outcome


def _key(task: t.Any) -> str:
    prefix = task.app.conf.broker_transport_options.get("global_keyprefix", "")
    return f"{prefix}{task.app.amqp.router.route({}, task.name, task_type=task)['queue'].name}.{task.name}"


@cache
def _stream(task_name: str, app: Celery) -> Stream:
    return Stream(app.tasks[task_name], _TIMEOUT)


def drain(task: t.Any) -> str:
    """Store what is in the stream, in a process of the worker's; nothing is raised.

    :param task: the task.
    """
    try:
        return _stream(task.name, task.app).drain(task)
    except Exception:
        batches.logger.exception("Redis could not be read, or what it holds.")
        return batches.FAILED


class Drainer:
    """Has the stream read, again and again, in a worker of its queue's.

    :param task: what stores a batch.
    :param consumer: the worker's.
    """

    def __init__(self, task: t.Any, consumer: t.Any) -> None:
        self._task = task
        self._consumer = consumer
        self._failures = 0
        self._is_stopped = False
        queue = task.app.amqp.router.route({}, task.name, task_type=task)["queue"].name
        if queue in task.app.amqp.queues.consume_from:
            self._later(batches.INTERVAL)

    def stop(self) -> None:
        """Do it no more."""
        self._is_stopped = True

    def _later(self, seconds: float) -> None:
        self._consumer.timer.call_after(seconds, self._consumer.call_soon, (self._start,))

    def _start(self) -> None:
        def finish(outcome: t.Any) -> None:
            self._consumer.call_soon(self._finish, outcome)

        if not self._is_stopped:
            self._consumer.pool.apply_async(drain, (self._task,), callback=finish, error_callback=finish)

    def _finish(self, outcome: t.Any) -> None:
        self._failures = 0 if outcome == batches.STORED else self._failures + 1
        self._later(batches.pause(self._failures) if self._failures else batches.INTERVAL)
