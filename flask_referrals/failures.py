"""Logging of failures that a visitor must not notice."""

import sys

from flask import current_app


def log_failure(message: str, *args: object) -> None:
    """Log the exception that is being handled as one record.

    A database error is logged on one line, with its class and its first line only: its parameters hold the visitor's
    address, agent and key. Any other exception is logged with its traceback.

    :param args: the values of the placeholders. Use ``%r`` for text that a client sent.
    """
    error = sys.exc_info()[1]
    if type(error).__module__.startswith("sqlalchemy."):
        current_app.logger.error(f"{message} %s: %r", *args, type(error).__name__, reason_of(error))
    else:
        current_app.logger.exception(message, *args)


def reason_of(error: object) -> str:
    """Return the first line of what the database said; the statement and its parameters follow."""
    return str(getattr(error, "orig", None) or error).partition("\n")[0]
