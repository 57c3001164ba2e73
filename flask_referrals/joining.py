"""Whose a visitor's history becomes when they turn out to be a user."""

import typing as t
from collections.abc import Sequence

import sqlalchemy as sa
from flask import Flask
from flask import current_app
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from . import pending
from . import signals
from . import totals
from . import visitors
from .after_commit import after_commit
from .attribution import Visitor
from .attribution import unclaimed
from .context import current_state
from .failures import log_failure
from .identity import unwrapped
from .identity import user_id
from .transactions import Transaction
from .transactions import is_passing

#: How many responses are loaded at once; PostgreSQL takes 65,535 parameters at most.
_PAGE = 1000


def claim(transaction: Transaction, visitor: Visitor, *, referral_id: int | None = None) -> None:
    """Give a user the responses that nobody has claimed, in one UPDATE: the first claim wins.

    Clicks on the user's own links turn out to be their own. ``user_linked_to_response`` is sent for each row that was
    won here, once it is durable.

    :param transaction: what to write in.
    :param visitor: a user, with the key they had as a visitor.
    :param referral_id: claim the responses to this referral alone.
    """
    state = current_state()
    referral, response = state.models.referral, state.models.response
    session = transaction.session
    claimed = [response.session_key == visitor.key, unclaimed(response)]
    if referral_id is not None:
        claimed.append(response.referral_id == referral_id)
    own_link = sa.exists().where(referral.id == response.referral_id, referral.user_id == visitor.user_id)
    update = (
        sa.update(response)
        .where(*claimed)
        .values(
            user_id=visitor.user_id,
            ignored=sa.case((sa.and_(response.ignored.is_(None), own_link), "self"), else_=response.ignored),
        )
        .execution_options(synchronize_session=False)
    )
    no_longer_counted = (
        sa.select(response.referral_id, response.action, response.created_at)
        .where(*claimed, own_link, response.ignored.is_(None))
        .with_for_update(of=response)
    )
    app = t.cast(Flask, unwrapped(current_app))
    won: Sequence[int] = ()
    with transaction.write():
        transaction.begin()
        if signals.user_linked_to_response.has_receivers_for(app):
            oldest_first = sa.select(response.id).where(*claimed).order_by(response.created_at, response.id)
            won = session.scalars(oldest_first.with_for_update()).all()
        own = session.execute(no_longer_counted).all()
        session.execute(update)
        if own:
            totals.correct(session, [(row.referral_id, row.action, row.created_at) for row in own], -1)

    def announce() -> None:
        for start in range(0, len(won), _PAGE):
            page = sa.select(response).where(response.id.in_(won[start : start + _PAGE]))
            for each in session.scalars(page.order_by(response.created_at, response.id)).all():
                signals.send(signals.user_linked_to_response, app, response=each)

    if won:
        after_commit(session, announce)


def join(transaction: Transaction, visitor: Visitor) -> None:
    """Make a visitor's history that of the user they turned out to be, and then forget the key."""
    claim(transaction, visitor)
    after_commit(transaction.session, visitors.drop_key)


def link_user(user: t.Any, *, commit: bool) -> None:
    """Do what :meth:`.Referrals.link_user` promises."""
    key = visitors.get_key(visitors.resolve_request())
    if key is not None:
        state = current_state()
        _link(Transaction(state, state.models.response, commit=commit), user, key)


def _link(transaction: Transaction, user: t.Any, key: str) -> None:
    visitor = Visitor(user_id(user), key)

    def work() -> None:
        pending.settle(transaction, visitors.resolve_request(), visitor)
        join(transaction, visitor)
        transaction.commit()

    transaction.run(work)


def link_at_login(app: Flask, user: t.Any, **extra: t.Any) -> None:
    """Receive Flask-Login's signals: link the user, and never break the login.

    The host's transaction is committed, unless it has changes of its own waiting: then the link becomes durable with
    them, or at the first recorded action.
    """
    key = visitors.get_key(visitors.resolve_request())
    if key is None:
        return
    state = current_state()
    session = state.session
    host_is_writing = _is_host_writing(session)
    transaction = Transaction(state, state.models.response, commit=not host_is_writing)
    try:
        try:
            _link(transaction, user, key)
        except DBAPIError as error:
            transaction.recover()
            if host_is_writing or transaction.is_own or session.in_transaction() or not is_passing(error):
                raise
            # The host's is gone, in which it had read the user, for one: ours is done again in one of our own.
            transaction = Transaction(state, state.models.response, commit=True)
            _link(transaction, user, key)
            current_app.logger.warning("The database gave up the transaction in which a user logged in: %r", error.orig)
    except Exception:
        transaction.recover()
        # A view may have cleared the session: the first action that is recorded links them then.
        visitors.set_key(key)
        log_failure("A visitor's responses could not be linked to the user who logged in.")


def forget_at_logout(app: Flask, user: t.Any = None, **extra: t.Any) -> None:
    """Receive Flask-Login's signal: what the next person on this browser does is not this user's."""
    request = visitors.resolve_request()
    if pending.has_any(request):
        state = current_state()
        commit = not _is_host_writing(state.session)
        transaction = Transaction(state, state.models.response, commit=commit)
        try:
            pending.settle_now(transaction, request, Visitor(user_id(user), visitors.get_key(request)))
        except Exception:
            transaction.recover()
            log_failure("The clicks of the user who logged out could not be stored before the recorder's turn.")
    visitors.drop_key()


def _is_host_writing(session: Session) -> bool:
    """Whether the host has changes of its own waiting; they are flushed."""
    is_writing = bool(session.new or session.dirty or session.deleted)
    session.flush()  # the host's own errors stay the host's
    return is_writing
