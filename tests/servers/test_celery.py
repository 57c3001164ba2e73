"""Clicks through Celery, on a real Redis and a real RabbitMQ, as docs/queue.rst says; longer: tests/faults/queue.py."""

import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from kombu.connection import Connection
from kombu.entity import Exchange, Queue
from redis import Redis

from flask_referrals import Referral, Referrals
from flask_referrals.contrib.celery import TASK, CeleryRecorder
from tests.conftest import MakeHost
from tests.databases import new_database, unavailable
from tests.faults import queue, site
from tests.faults.outage import find_programs, new_server
from tests.faults.rabbitmq import RabbitMQ, find_program, new_node
from tests.faults.workers import BROKER, QUEUE, USE_CELERY, Worker, make_recorder, new_queue
from tests.host import BROWSER, Host
from tests.login_hosts import REDIS_URL

#: Nothing takes longer, in seconds, unless it hangs.
_PATIENCE = 30


@pytest.fixture(scope="module")
def node() -> Iterator[RabbitMQ]:
    """A separate RabbitMQ."""
    program = find_program()
    if program is None:
        unavailable("No RabbitMQ: rabbitmq-server was found nowhere.")
        return
    with new_node(program) as node:
        yield node


@pytest.fixture(params=queue.BROKERS)
def broker(request: pytest.FixtureRequest) -> str:
    """A broker's URL."""
    return REDIS_URL if request.param == "redis" else request.getfixturevalue("node").url


@pytest.fixture
def database_url(tmp_path: Path) -> Iterator[str]:
    """PostgreSQL: a worker and a site write at the same time."""
    with new_database("postgresql", tmp_path) as url:
        yield url


@pytest.fixture
def environment(broker: str, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment of a worker, and of this process."""
    with new_queue(broker) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield {**environment, site.DATABASE: database_url}


@pytest.fixture
def host(environment: dict[str, str], new_host: MakeHost) -> Host:
    """The site, with Celery."""
    return new_host(make_recorder=make_recorder)


@pytest.fixture
def worker(environment: dict[str, str], host: Host, tmp_path: Path) -> Worker:
    """A worker that is not started."""
    return Worker(environment, tmp_path)


def new_link(host: Host, path: str = "/") -> str:
    """Store a link, and return its path."""
    with host.app.app_context():
        return f"/referrals/{Referral.create(path).code}"


def rows(host: Host) -> Counter[tuple[Any, ...]]:
    """Return how often each reason and agent was stored."""
    with host.app.app_context():
        return Counter((response.ignored, response.user_agent) for response in host.responses())


def recorder_of(host: Host) -> Callable[[Any], None]:
    """Return what takes the site's clicks."""
    recorder: Callable[[Any], None] = host.app.extensions["referrals"].recorder
    return recorder


def wait_for(condition: Callable[[], bool]) -> bool:
    """Wait until something holds; return whether it does."""
    give_up = time.monotonic() + _PATIENCE
    while not condition() and time.monotonic() < give_up:
        time.sleep(0.1)
    return condition()


@pytest.mark.slow
def test_worker_stores_clicks_each_once(host: Host, worker: Worker) -> None:
    link, client = new_link(host), host.client()
    for _ in range(3):
        client.get(link)
    assert rows(host) == {}
    assert client.post("/act/BOUGHT").text == link.rpartition("/")[2]
    event = {
        **{"id": "doubled", "code": link.rpartition("/")[2], "time": "2026-01-01T00:00:00+00:00", "user": None},
        **{"visitor": None, "ignored": None, "params": None},
        **{"ip_address": None, "http_referrer": None, "user_agent": "twice"},
    }
    with host.app.app_context():
        for _ in range(2):
            recorder_of(host)(event)
    expected = {(None, BROWSER): 2, ("repeat", BROWSER): 2, (None, "twice"): 1}
    with worker:
        assert wait_for(lambda: rows(host) == expected)
    # What it had not stored when it was told to stop is stored by the next, and nothing twice.
    client.get(link)
    with worker:
        assert wait_for(lambda: rows(host) == {**expected, ("repeat", BROWSER): 3})
    assert "Traceback" not in worker.log


def send_malformed(environment: dict[str, str], event: Any) -> None:
    """Put a malformed entry where the recorder puts clicks."""
    name = environment[QUEUE]
    if environment[BROKER].startswith("redis"):
        fields = {"event": event} if isinstance(event, str) else {"something": "else"}
        with Redis.from_url(environment[BROKER]) as server:
            server.xadd(f"{name}.{name}.{TASK}", fields)
        return
    with Connection(environment[BROKER]) as connection, connection.Producer() as producer:
        body = [[event], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
        headers = {"task": TASK, "id": "x", "lang": "py", "argsrepr": "", "kwargsrepr": ""}
        producer.publish(body, routing_key=name, exchange=name, headers=headers, serializer="json")


def dead_letters(environment: dict[str, str]) -> int:
    """Return how many malformed clicks were set aside."""
    name = environment[QUEUE]
    if environment[BROKER].startswith("redis"):
        with Redis.from_url(environment[BROKER]) as server:
            return int(server.xlen(f"{name}.{name}.{TASK}.dead"))
    with Connection(environment[BROKER]) as connection:
        return int(
            connection.default_channel.queue_declare(f"{name}.dead", durable=True, auto_delete=False).message_count
        )


@pytest.mark.slow
def test_malformed_click_is_set_aside(host: Host, worker: Worker, environment: dict[str, str]) -> None:
    link = new_link(host)
    host.client().get(link)
    malformed = ["no JSON", "[" * 100_000, '{"id": "no click"}', "null", 7]
    with worker:
        assert wait_for(lambda: rows(host) == {(None, BROWSER): 1})
        for event in malformed:
            send_malformed(environment, event)
        host.client().get(link)
        assert wait_for(lambda: rows(host) == {(None, BROWSER): 2})
        assert wait_for(lambda: dead_letters(environment) == len(malformed))
    assert worker.log.count("cannot be stored") == len(malformed)
    assert "Traceback" not in worker.log


@pytest.mark.slow
def test_click_that_cannot_be_stored_keeps_no_other_waiting(host: Host, worker: Worker) -> None:
    link = new_link(host)
    with host.app.app_context():
        recorder_of(host)({"id": "no click"})
    for _ in range(9):
        host.client().get(link)
    with worker:
        assert wait_for(lambda: rows(host) == {(None, BROWSER): 9})
    assert "cannot be stored" in worker.log


@pytest.mark.slow
@pytest.mark.parametrize("name", queue.BROKERS)
def test_nothing_is_lost_whatever_dies(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    programs = find_programs()
    if programs is None:
        unavailable("No programs of a PostgreSQL server: initdb was found nowhere.")
        return
    node = request.getfixturevalue("node") if name == "rabbitmq" else None
    url = REDIS_URL if node is None else node.url
    with new_server(programs) as server:
        outcome = queue.run(server, url, node, tmp_path, seconds=2)
    assert outcome.faults == []


class TestWithoutAWorker:
    """The database is SQLite."""

    @pytest.fixture
    def database_url(self, sqlite_url: str) -> str:
        return sqlite_url

    @pytest.mark.parametrize("scheme", ["redis", "amqp"])
    @pytest.mark.parametrize("is_silent", [True, False])
    def test_click_waits_a_moment_and_the_next_does_not(
        self, new_host: MakeHost, monkeypatch: pytest.MonkeyPatch, scheme: str, is_silent: bool
    ) -> None:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            if is_silent:
                server.listen(16)
            monkeypatch.setenv(BROKER, f"{scheme}://127.0.0.1:{server.getsockname()[1]}/")
            monkeypatch.setenv(QUEUE, "nowhere")
            host = new_host(make_recorder=make_recorder)
            link = new_link(host)
            took = []
            for _ in range(3):
                began = time.monotonic()
                assert host.client().get(link).status_code == 302
                took.append(time.monotonic() - began)
        assert took[0] < 5 and max(took[1:]) < 1
        assert rows(host) == {(None, BROWSER): 3}

    @pytest.mark.slow
    def test_click_waits_a_moment_for_a_broker_that_hangs(
        self, new_host: MakeHost, monkeypatch: pytest.MonkeyPatch, node: RabbitMQ
    ) -> None:
        with new_queue(node.url) as environment:
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            host = new_host(make_recorder=make_recorder)
            link = new_link(host)
            host.client().get(link)
            assert rows(host) == {}
            with node.frozen():
                began = time.monotonic()
                assert host.client().get(link).status_code == 302
                assert time.monotonic() - began < 5
        assert rows(host) == {(None, BROWSER): 1}

    @pytest.mark.slow
    @pytest.mark.parametrize("is_durable", [True, False])
    def test_queue_must_be_durable(
        self,
        new_host: MakeHost,
        monkeypatch: pytest.MonkeyPatch,
        node: RabbitMQ,
        caplog: pytest.LogCaptureFixture,
        is_durable: bool,
    ) -> None:
        with new_queue(node.url) as environment:
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            host = new_host(make_recorder=make_recorder)
            name = environment[QUEUE]
            options = {"durable": is_durable, "auto_delete": not is_durable}
            mine = Queue(name, Exchange(name, durable=is_durable), routing_key=name, **options)
            host.app.extensions["celery"].conf.task_queues = [mine]
            assert host.client().get(new_link(host)).status_code == 302
            with Connection(node.url) as connection:
                if is_durable:
                    message = connection.default_channel.basic_get(name)
                    assert message.properties["delivery_mode"] == 2
        assert ("durable=True" in caplog.text) is not is_durable
        assert sum(rows(host).values()) == (not is_durable)

    @pytest.mark.slow
    def test_queue_that_somebody_deletes_is_made_again(
        self, new_host: MakeHost, monkeypatch: pytest.MonkeyPatch, node: RabbitMQ
    ) -> None:
        with new_queue(node.url) as environment, Connection(node.url) as connection:
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            host = new_host(make_recorder=make_recorder)
            link = new_link(host)
            host.client().get(link)
            connection.default_channel.queue_delete(environment[QUEUE])
            for _ in range(3):
                host.client().get(link)
            waiting = connection.default_channel.queue_declare(environment[QUEUE], passive=True).message_count
        assert (sum(rows(host).values()), waiting) == (1, 2)

    def test_eager_tasks_are_no_queue(self, new_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(BROKER, "redis://127.0.0.1:1/")
        monkeypatch.setenv(QUEUE, "nowhere")
        host = new_host(make_recorder=make_recorder)
        host.app.extensions["celery"].conf.task_always_eager = True
        host.client().get(new_link(host))
        assert rows(host) == {(None, BROWSER): 1}


def test_page_is_a_set_up(sqlite_url: str) -> None:
    host = queue_page(sqlite_url)
    assert isinstance(host.extensions["referrals"].recorder, CeleryRecorder)
    assert TASK in host.extensions["celery"].tasks


def queue_page(url: str) -> Flask:
    """Build an app with what the page says."""
    from flask_sqlalchemy import SQLAlchemy
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

    from tests.faults.workers import MAKE_CELERY

    class Base(DeclarativeBase):
        pass

    app = Flask(__name__)
    app.config.from_mapping(SECRET_KEY="a test's secret", SQLALCHEMY_DATABASE_URI=url, TESTING=True)
    db = SQLAlchemy(app, model_class=Base)

    class User(db.Model):  # type: ignore[name-defined, misc]
        id: Mapped[int] = mapped_column(primary_key=True)

    names: dict[str, Any] = {"app": app, "referrals": Referrals(), "User": User}
    exec(MAKE_CELERY, names)
    exec(USE_CELERY, names)
    return app


def test_without_a_recorder_nothing_of_celery_is_imported() -> None:
    code = "import sys, flask_referrals; print(sorted({'celery', 'kombu', 'redis'} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed == "[]\n"
