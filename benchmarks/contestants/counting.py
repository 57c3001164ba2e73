"""Puts what a request sends to the database into a header of its response, as the drivers have it.

Both drivers are asked, not the libraries above them: libpq tells what it sent, SQLite what it ran.
"""

import os
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

#: The response's header: the first word of each statement.
HEADER = "X-Statements"

_SENT = re.compile(r'\tF\t\d+\t(?:Query\t|Parse\t "") "\s*(\w+)')


class _Statements:
    """What was sent since it was asked last."""

    def __init__(self) -> None:
        self._sqlite: list[str] = []
        descriptor, name = tempfile.mkstemp()
        self._descriptor, self._libpq = descriptor, open(name)
        os.unlink(name)

    def take(self) -> list[str]:
        found, self._sqlite = self._sqlite, []
        return [*found, *_SENT.findall(self._libpq.read())]

    def watch_sqlite(self, connect: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            connection = connect(*args, **options)
            connection.set_trace_callback(lambda statement: self._sqlite.append(statement.split(maxsplit=1)[0]))
            return connection

        return watched

    def watch_libpq(self, connect: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            connection = connect(*args, **options)
            connection.prepare_threshold = None  # so that each statement is sent as text
            connection.pgconn.trace(self._descriptor)
            return connection

        return watched


def create_app(module: str, **options: Any) -> Callable[..., Iterable[bytes]]:
    """Build a site that counts.

    :param module: the contestant's module.
    :param options: those of its ``create_app``.
    """
    import psycopg

    statements = _Statements()
    sqlite3.connect = sqlite3.dbapi2.connect = statements.watch_sqlite(sqlite3.connect)
    psycopg.connect = statements.watch_libpq(psycopg.connect)
    app = import_module(module).create_app(**options)

    def count(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        statements.take()
        begun: list[Any] = []
        body = app(environ, lambda *arguments: begun.extend(arguments))
        content = b"".join(body)
        if hasattr(body, "close"):  # where Django closes its connection
            body.close()
        status, headers = begun[:2]
        start_response(status, [*headers, (HEADER, " ".join(statements.take()))])
        return [content]

    return count
