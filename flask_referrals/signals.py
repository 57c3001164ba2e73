"""The signals, each sent with the app as sender, once the data is durable.

A receiver that raises is logged and stops neither the others nor the request.
"""

import typing as t

import sqlalchemy as sa
from blinker import NamedSignal
from blinker import Namespace
from flask import Flask
from flask import current_app
from sqlalchemy.orm import Session

from .after_commit import after_commit
from .context import current_state
from .failures import log_failure
from .identity import unwrapped
from .transactions import recover

_signals = Namespace()

#: A referral was made. Sent with ``referral``; not sent when an existing one was found.
referral_created: NamedSignal = _signals.signal("referral-created")

#: A click or an action was stored, counted or not. Sent with ``response``.
response_recorded: NamedSignal = _signals.signal("response-recorded")

#: A visitor's earlier response became that of a user. Sent with ``response``, once for each.
user_linked_to_response: NamedSignal = _signals.signal("user-linked-to-response")


def send(signal: NamedSignal, app: Flask, **payload: t.Any) -> None:
    """Call every receiver of a signal, whatever one of them raises.

    :param signal: one of the signals above.
    :param app: the sender.
    :param payload: what the receivers are given.
    """
    for receiver in signal.receivers_for(app):
        try:
            receiver(app, **payload)
        except Exception:
            log_failure("A receiver of the signal %r failed.", signal.name)
            state = current_state()
            recover(state.session, state.models.response)


def send_after_commit(session: Session, signal: NamedSignal, **payload: t.Any) -> None:
    """Send a signal once the session's running transaction is durable, if anybody listens.

    :param session: the host's session, inside a transaction.
    :param signal: one of the signals above.
    :param payload: the one object the receivers are given; nothing is sent when it was rolled back with a savepoint.
    """
    app = t.cast(Flask, unwrapped(current_app))
    if not signal.has_receivers_for(app):
        return

    def send_if_stored() -> None:
        if all(sa.inspect(obj).persistent for obj in payload.values()):
            send(signal, app, **payload)

    after_commit(session, send_if_stored)
