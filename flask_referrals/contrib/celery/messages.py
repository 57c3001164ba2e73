"""For RabbitMQ: send each click as a Celery message, and acknowledge it when it is stored."""

import typing as t
from collections.abc import Callable, Sequence

from kombu.entity import Queue
from kombu.exceptions import KombuError
from kombu.pools import ProducerPool

from ...exceptions import ConfigurationError
from ...queue import Event, check_event
from . import batches


class Messages:
    """Send messages from one process. The broker confirms each message, whatever the host's settings are.

    :param task: the task to send.
    :param timeout: the seconds to wait for the broker.
    :raises ConfigurationError: if the queue does not survive a restart of the broker.
    """

    def __init__(self, task: t.Any, timeout: float) -> None:
        app = task.app
        queue: Queue | None = app.amqp.router.route({}, task.name, task_type=task).get("queue")
        if queue is not None and not (queue.durable and queue.exchange.durable and not queue.auto_delete):
            raise ConfigurationError(
                f"The queue {queue.name!r} would lose its clicks when the broker restarts. Declare the queue and its "
                "exchange with durable=True and auto_delete=False."
            )
        options = {"confirm_publish": True, "read_timeout": timeout, "write_timeout": timeout}
        connection = app.connection_for_write(connect_timeout=timeout, transport_options=options)
        limit = app.conf.broker_pool_limit
        self._producers = ProducerPool(connection.Pool(limit=limit), limit=limit)
        self._task = task
        self._timeout = timeout

    def publish(self, event: Event) -> None:
        """Send a click, and return when the broker has it on disk."""
        with self._producers.acquire(block=True, timeout=self._timeout) as producer:
            try:
                self._task.apply_async(
                    ([event],),
                    producer=producer,
                    delivery_mode="persistent",
                    mandatory=True,
                    confirm_timeout=self._timeout,
                    # One retry, because the connection may have been lost since the last click.
                    retry=True,
                    retry_policy={"max_retries": 1, "interval_start": 0, "interval_step": 0},
                )
            except Exception:
                # Otherwise a late confirmation would be read as the answer to the next message.
                producer.connection.collect()
                raise


class _Delivery(t.NamedTuple):
    """The clicks of a message, and the function that acknowledges it."""

    events: Sequence[Event]
    ack: Callable[..., None]


class Collector:
    """Collect the messages of a worker into batches. It prefetches enough messages for two batches."""

    def __init__(self, task: t.Any, consumer: t.Any) -> None:
        self._task = task
        self._consumer = consumer
        self._waiting: list[_Delivery] = []
        self._under_way = 0
        if consumer.initial_prefetch_count:
            consumer.initial_prefetch_count = max(consumer.initial_prefetch_count, 2 * batches.SIZE)

    def receive(self, message: t.Any, payload: dict[str, t.Any] | None, ack: Callable[..., None], *args: t.Any) -> None:
        """Add a message to the current batch.

        Celery passes ``payload`` in its protocol 1 only; in protocol 2, the message is decoded here.
        """
        try:
            (events,) = message.payload[0] if payload is None else payload["args"]
            self._waiting.append(_Delivery([check_event(event) for event in events], ack))
        except (LookupError, TypeError, ValueError, KombuError):
            self._set_aside(message)
            return
        limit = self._consumer.qos.value
        if len(self._waiting) >= batches.SIZE or (limit and len(self._waiting) + self._under_way >= limit):
            self._flush()
        elif len(self._waiting) == 1:
            self._later(batches.INTERVAL, self._flush)

    def _set_aside(self, message: t.Any) -> None:
        """Move a malformed message to another queue, as it is."""
        app = self._task.app
        name = f"{app.amqp.router.route({}, self._task.name, task_type=self._task)['queue'].name}.dead"
        batches.log_malformed(name)
        try:
            with app.producer_or_acquire() as producer:
                producer.publish(
                    message.body,
                    exchange="",
                    routing_key=name,
                    declare=[Queue(name, durable=True)],
                    delivery_mode="persistent",
                    content_type=message.content_type,
                    content_encoding=message.content_encoding,
                )
        except Exception:
            batches.logger.exception("A malformed click could not be kept; it stays in the queue.")
            message.requeue()
        else:
            message.ack()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._under_way += len(waiting)
            self._send(waiting, 0)

    def _send(self, batch: Sequence[_Delivery], failures: int) -> None:
        """Store a batch, which has failed ``failures`` times, in a process of the worker."""
        events = [event for delivery in batch for event in delivery.events]

        def finish(outcome: t.Any) -> None:
            self._consumer.call_soon(self._finish, batch, failures, outcome)

        # If the process dies, the pool calls error_callback.
        self._consumer.pool.apply_async(
            batches.store_batch, (self._task, events), callback=finish, error_callback=finish
        )

    def _finish(self, batch: Sequence[_Delivery], failures: int, outcome: t.Any) -> None:
        if outcome == batches.STORED:
            self._under_way -= len(batch)
            for delivery in batch:
                delivery.ack(batches.logger, self._consumer.connection_errors)
            return
        failures += 1
        middle = len(batch) // 2 if outcome == batches.REFUSED else 0
        for part in (batch[:middle], batch[middle:]):
            if part:
                self._later(batches.pause(failures), self._send, part, failures)

    def _later(self, seconds: float, work: Callable[..., None], *args: t.Any) -> None:
        """Call a function in the worker's event loop, because the timer may be a thread."""
        self._consumer.timer.call_after(seconds, self._consumer.call_soon, (work, *args))
