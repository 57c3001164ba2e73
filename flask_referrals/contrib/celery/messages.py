"""Clicks as Celery's messages, one each, that a worker acknowledges when they are stored: for RabbitMQ."""

import typing as t
from collections.abc import Callable
from collections.abc import Sequence

from celery.exceptions import InvalidTaskError
from kombu.entity import Queue
from kombu.pools import ProducerPool

from ...exceptions import ConfigurationError
from ...queued import Event
from . import batches


class Messages:
    """The way to the broker, for one process. It confirms each message, whatever the host's settings are.

    :param task: what is sent.
    :param timeout: how many seconds the broker may take to answer.
    :raises ConfigurationError: the queue is lost with the broker.
    """

    def __init__(self, task: t.Any, timeout: float) -> None:
        app = task.app
        queue: Queue | None = app.amqp.router.route({}, task.name, task_type=task).get("queue")
        if queue is not None and not (queue.durable and queue.exchange.durable and not queue.auto_delete):
            raise ConfigurationError(
                f"Clicks in the queue {queue.name!r} would be lost with the broker: make it, and its exchange, "
                "durable=True and auto_delete=False."
            )
        options = {"confirm_publish": True, "read_timeout": timeout, "write_timeout": timeout}
        connection = app.connection_for_write(connect_timeout=timeout, transport_options=options)
        limit = app.conf.broker_pool_limit
        self._producers = ProducerPool(connection.Pool(limit=limit), limit=limit)
        self._task = task
        self._timeout = timeout

    def publish(self, event: Event) -> None:
        """Return once the broker has a click on disk.

        :param event: the click.
        """
        with self._producers.acquire(block=True, timeout=self._timeout) as producer:
            try:
                self._task.apply_async(
                    ([event],),
                    producer=producer,
                    delivery_mode="persistent",
                    mandatory=True,
                    confirm_timeout=self._timeout,
                    # Once, for the connection may have been lost since the last click.
                    retry=True,
                    retry_policy={"max_retries": 1, "interval_start": 0, "interval_step": 0},
                )
            except Exception:
                # What it still had to say would be taken for the answer to the next message.
                producer.connection.collect()
                raise


class _Delivery(t.NamedTuple):
    """A message, and how it is acknowledged."""

    events: Sequence[Event]
    ack: Callable[..., None]


class Collector:
    """The messages of a worker, on their way into the database.

    :param task: their task.
    :param consumer: where they come from; as many are asked for as make two batches.
    """

    def __init__(self, task: t.Any, consumer: t.Any) -> None:
        self._task = task
        self._consumer = consumer
        self._waiting: list[_Delivery] = []
        self._under_way = 0
        if consumer.initial_prefetch_count:
            consumer.initial_prefetch_count = max(consumer.initial_prefetch_count, 2 * batches.SIZE)

    def receive(self, message: t.Any, payload: dict[str, t.Any] | None, ack: Callable[..., None], *args: t.Any) -> None:
        """Take a message.

        :param message: what the broker delivered.
        :param payload: its content, in Celery's first protocol; the second leaves it unread.
        :param ack: acknowledges it.
        :raises InvalidTaskError: it is none of the recorder's.
        """
        try:
            (events,) = message.payload[0] if payload is None else payload["args"]
            self._waiting.append(_Delivery([dict(event) for event in events], ack))
        except (LookupError, TypeError, ValueError) as error:
            raise InvalidTaskError(f"No click: {error!r}") from error
        limit = self._consumer.qos.value
        if len(self._waiting) >= batches.SIZE or (limit and len(self._waiting) + self._under_way >= limit):
            self._flush()
        elif len(self._waiting) == 1:
            self._later(batches.INTERVAL, self._flush)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._under_way += len(waiting)
            self._send(waiting, 0)

    def _send(self, batch: Sequence[_Delivery], failures: int) -> None:
        """Have a process of the worker's store a batch.

        :param failures: how often that has failed.
        """
        events = [event for delivery in batch for event in delivery.events]

        def finish(outcome: t.Any) -> None:
            self._consumer.call_soon(self._finish, batch, failures, outcome)

        # The process that dies says nothing; the pool does, with an error.
        self._consumer.pool.apply_async(batches.store, (self._task, events), callback=finish, error_callback=finish)

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
        """Do something in the worker's loop; its timer may be a thread."""
        self._consumer.timer.call_after(seconds, self._consumer.call_soon, (work, *args))
