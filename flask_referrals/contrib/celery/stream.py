"""For Redis: append clicks to a stream. A worker reads it from the start, and deletes clicks that are stored.

Celery's own messages are not safe on Redis: a worker takes a message from the queue before it saves the message as
unacknowledged, so a message is lost if the worker is killed in between.
"""

import json
import typing as t
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache

from celery import Celery
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import LockError
from redis.retry import Retry

from ...queue import Event, check_event
from . import batches

_FIELD = "event"

#: Seconds for which a worker locks the stream. If it dies, others wait as long. Even if two workers read the stream at
#: the same time, each click is stored once.
_LEASE = 10.0

#: How many malformed entries are kept.
_MAX_DEAD = 10_000

#: Seconds that a worker waits for Redis.
_TIMEOUT = 10.0


class Stream:
    """The stream of one process. It is named after the queue of the task.

    :param task: the task.
    :param timeout: the seconds to wait for Redis.
    """

    def __init__(self, task: t.Any, timeout: float) -> None:
        options = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        # Celery's client is configured with the passwords, certificates and sentinels.
        self._connection = task.app.connection_for_write(connect_timeout=timeout, transport_options=options)
        self._redis: Redis = self._connection.default_channel.client
        # One retry, because the connection may have been lost since the last click.
        self._redis.set_retry(Retry(NoBackoff(), 1))
        self._key = _key(task)

    def publish(self, event: Event) -> None:
        """Append a click, and return when Redis has it."""
        self._redis.xadd(self._key, {_FIELD: json.dumps(event)})

    def drain(self, task: t.Any) -> str:
        """Store all clicks of the stream, unless another worker does. Return the result of the last batch."""
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
        except LockError:  # the lock expired, and another worker has it
            pass
        finally:
            with suppress(LockError):
                lock.release()
        return outcome

    def _batches(self) -> Iterator[dict[bytes, Event]]:
        after = "-"
        entries: t.Any = [()] * batches.SIZE
        # Stop after a batch that is not full, so that new clicks can gather into another full batch.
        while len(entries) == batches.SIZE:
            entries = self._redis.xrange(self._key, min=after, count=batches.SIZE)
            events = {}
            for entry, fields in entries:
                try:
                    events[entry] = check_event(json.loads(fields[_FIELD.encode()]))
                except (LookupError, ValueError, RecursionError):
                    self._set_aside(entry, fields)
            if events:
                yield events
            if entries:
                after = f"({entries[-1][0].decode()}"

    def _set_aside(self, entry: bytes, fields: Mapping[t.Any, t.Any]) -> None:
        """Move a malformed entry to another stream, so that it is not read again."""
        batches.log_malformed(f"{self._key}.dead")
        with self._redis.pipeline() as pipeline:
            pipeline.xadd(f"{self._key}.dead", dict(fields), maxlen=_MAX_DEAD)
            pipeline.xdel(self._key, entry)
            pipeline.execute()

    def _store(self, task: t.Any, events: Mapping[bytes, Event]) -> str:
        outcome = batches.store_batch(task, list(events.values()))
        if outcome == batches.STORED:
            self._redis.xdel(self._key, *events)
        elif outcome == batches.REFUSED and len(events) > 1:
            # Split the batch to find the click that cannot be stored. It stays in the stream; the others are stored.
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
    """Store the clicks of the stream in a process of the worker, and return the result instead of raising an error."""
    try:
        return _stream(task.name, task.app).drain(task)
    except Exception:
        batches.logger.exception("Could not read the clicks from Redis; trying again after a pause.")
        return batches.FAILED


class Drainer:
    """Read the stream at intervals, in each worker that consumes its queue."""

    def __init__(self, task: t.Any, consumer: t.Any) -> None:
        self._task = task
        self._consumer = consumer
        self._failures = 0
        self._is_stopped = False
        queue = task.app.amqp.router.route({}, task.name, task_type=task)["queue"].name
        if queue in task.app.amqp.queues.consume_from:
            self._later(batches.INTERVAL)

    def stop(self) -> None:
        """Stop reading."""
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
