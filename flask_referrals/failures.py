"""How it is logged that something went wrong which the visitor must not notice."""

import sys

from flask import current_app
from sqlalchemy.exc import SQLAlchemyError


def log_failure(message: str, *args: object) -> None:
    """Log the exception that is being handled, as one record.

    A database's error is told on one line, by its kind and its first line: the statement's parameters are the visitor's
    address, agent and key. Any other comes with its traceback.

    :param message: what could not be done, a sentence for ``logging`` to put the arguments in.
    :param args: the arguments; what the client wrote goes in with ``%r``.
    """
    error = sys.exc_info()[1]
    if isinstance(error, SQLAlchemyError):
        reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
        current_app.logger.error(f"{message} %s: %r", *args, type(error).__name__, reason)
    else:
        current_app.logger.exception(message, *args)
