"""The clicks that a recorder is given, and the database may not have yet.

The first and the last of a visitor's stay with them, behind the key: what is needed to store them at once, when it must
be told who gets credit. It is signed, and bound to the visitor.
"""

import hashlib
import secrets
import typing as t
from collections.abc import Mapping
from collections.abc import Sequence
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from functools import partial

from flask import current_app
from itsdangerous import Signer
from werkzeug.wrappers import Request

from . import attribution
from . import clients
from . import queued
from . import visitors
from .after_commit import after_commit
from .attribution import Visitor
from .context import current_state
from .context import signing_keys
from .failures import log_failure
from .times import parse_time
from .transactions import Transaction

if t.TYPE_CHECKING:
    from .queued import Event
    from .queued import Recorder

_SALT = "flask-referrals.pending"
#: Between the clicks and the signature, and between the parts of a click; in none of them.
_NEXT, _PART = "~", "."
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)

#: How long a click stays with its visitor. What is stored by then may be anonymous, and is not to come back.
_LIFETIME = timedelta(days=1)


def hand_over(
    code: str, visitor: Visitor, ignored: str | None, request: Request, params: Mapping[str, str] | None
) -> None:
    """Hand a click to the recorder, or store it when that fails, and give a stranger a key.

    :param code: the link's code.
    :param visitor: who clicks.
    :param ignored: the reason code why it does not count, as far as the request tells.
    :param request: the current request.
    :param params: the link's marks.
    """
    if ignored is not None and current_app.config["REFERRALS_IGNORED"] == "drop":
        return
    if clients.opts_out(request):
        visitor = Visitor()
    elif ignored is None and not visitor:
        visitor = Visitor(key=visitors.new_key())
    event = {
        **queued.new_event(secrets.token_urlsafe(16), code, datetime.now(timezone.utc), visitor),
        **clients.description(request),
        "ignored": ignored,
        "params": params,
    }
    recorder = t.cast("Recorder", current_state().recorder)
    try:
        recorder(event)
    except Exception:
        log_failure("A click on the link %r could not be handed over; it is stored at once.", code)
        try:
            queued.store([event])
        except Exception:
            log_failure("A click on the link %r could not be recorded.", code)
            return
    if ignored is None and visitor:
        _add(request, visitor, event)


def _add(request: Request, visitor: Visitor, event: "Event") -> None:
    """Keep a click with its visitor, and the first that is kept already.

    :param request: the current request.
    :param visitor: somebody, not nobody.
    :param event: what the recorder was given.
    """
    microseconds = (parse_time(event["time"]) - _EPOCH) // _MICROSECOND
    clicks = [*_clicks(request, visitor)[:1], _PART.join((event["id"], event["code"], str(microseconds)))]
    signature = _signer().get_signature(_signed(visitor, clicks)).decode()
    visitors.set_pending(_NEXT.join((*clicks, signature)), visitor.key)


def has_any(request: Request | None) -> bool:
    """Whether anything is kept with a request's visitor."""
    return current_state().recorder is not None and visitors.get_pending(request) is not None


def settle(transaction: Transaction, request: Request | None, visitor: Visitor) -> bool:
    """Store the visitor's clicks that are kept with them; what else is known of them comes with the events.

    :param transaction: what to write in.
    :param request: the visitor's request, or ``None`` for nobody's.
    :param visitor: who it is.
    :return: whether there were any.
    """
    if request is None or not has_any(request):
        return False
    # What a stranger did before they logged in is bound to the key.
    for owner in (Visitor(key=visitor.key), Visitor(visitor.user_id)):
        clicks = _clicks(request, owner) if owner else ()
        if clicks:
            queued.insert(transaction, [_event(click, owner) for click in clicks])
            after_commit(transaction.session, partial(visitors.drop_pending, request))
            return True
    return False


def settle_now(transaction: Transaction, request: Request | None, visitor: Visitor) -> None:
    """Do the same by itself.

    :param transaction: one in which nothing else is done.
    """

    def work() -> None:
        if settle(transaction, request, visitor):
            transaction.commit()

    transaction.run(work)


def identify(request: Request | None) -> Visitor:
    """Find out who acts, and store what they clicked on, so that it can be told who gets credit.

    In a transaction of the host's it becomes durable with the host's own commit.

    :param request: the request, or ``None`` outside of one.
    """
    visitor = attribution.identify(request)
    if has_any(request):
        state = current_state()
        commit = not state.session.in_transaction()
        settle_now(Transaction(state, state.models.response, commit=commit), request, visitor)
    return visitor


def _clicks(request: Request, visitor: Visitor) -> Sequence[str]:
    """Return what is kept with a visitor, if it is theirs, and young enough."""
    *clicks, signature = (visitors.get_pending(request) or "").split(_NEXT)
    if not clicks or not _signer().verify_signature(_signed(visitor, clicks), signature):
        return ()
    oldest = datetime.now(timezone.utc) - _LIFETIME
    return [click for click in clicks if _time(click) > oldest]


def _event(click: str, visitor: Visitor) -> "Event":
    event_id, code, _ = click.split(_PART)
    return queued.new_event(event_id, code, _time(click), visitor)


def _time(click: str) -> datetime:
    return _EPOCH + int(click.rpartition(_PART)[2]) * _MICROSECOND


def _signed(visitor: Visitor, clicks: Sequence[str]) -> str:
    who = f"visitor {visitor.key}" if visitor.key is not None else f"user {visitor.user_id}"
    return _NEXT.join((who, *clicks))


def _signer() -> Signer:
    return Signer(signing_keys(), salt=_SALT, digest_method=hashlib.sha256)
