"""Login and logout: join a visitor's history to the user, and drop the visitor key.

A login never touches the host's transaction. The join runs in one of its own: at once if the host's session has none,
else when that has ended, or with the next recorded action. If that may be after the response, the visitor key is
replaced by one that is reserved for the user, so that the next action can repeat a join that failed.
"""

import typing as t
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa
from flask import Response, after_this_request
from werkzeug.wrappers import Request

from .actors import require_user_key
from .credit import MAX_REPEATS
from .db.conditions import Condition, is_exactly, newest_first, oldest_first, unclaimed
from .db.keys import stored_key, user_exists
from .db.tables import TIME
from .db.totals import Counted, correct_totals
from .db.transactions import Transaction, is_in_transaction, open_transaction
from .deferral import defer
from .delivery import send_after_commit
from .failures import log_failure
from .queue.batches import insert_events
from .queue.pending import read_pending, settle_pending, store_pending
from .signals import user_linked_to_response
from .state import AppState
from .times import EPOCH
from .types import Actor, Anonymous, Event
from .web.client import resolve_request, unwrapped

_JOIN_FAILED = "A visitor's history could not be joined to the user who logged in; the next action retries."


def claim_responses(state: AppState, transaction: Transaction, actor: Actor, *conditions: Condition) -> None:
    """Assign a visitor's unclaimed responses to a user, in one UPDATE: the first claim wins.

    Clicks on the user's own links are no longer counted. Of the repeats, only the newest are assigned.
    ``user_linked_to_response`` is sent for each row.
    """
    models = transaction.database.models
    referrals, responses = models.referrals, models.responses
    claimed = [_is_claimable(responses, actor.visitor_key), unclaimed(responses), *conditions]
    if actor.until is not None:
        claimed.append(responses.created_at <= actor.until)
    is_own = sa.exists().where(referrals.id == responses.referral_id, is_exactly(referrals.user_id, actor.user_id))
    is_counted_own = sa.and_(responses.ignored.is_(None), is_own)
    reason = sa.case((is_counted_own, "self"), else_=responses.ignored)
    update = sa.update(models.response_table).where(*claimed)
    no_longer_counted = sa.select(*(responses[name] for name in Counted._fields))
    no_longer_counted = no_longer_counted.where(*claimed, is_counted_own).with_for_update(of=models.response_table)
    won: Sequence[int] = ()
    with transaction.write():
        transaction.lock()
        if user_linked_to_response.has_receivers_for(state.app):
            ids = sa.select(responses.id).where(*claimed).order_by(*oldest_first(responses))
            won = transaction.execute(ids.with_for_update()).scalars().all()
        own = transaction.execute(no_longer_counted).all()
        transaction.execute(update.values({responses.user_id: actor.user_id, responses.ignored: reason}))
        if own:
            correct_totals(transaction, own, -1)
    transaction.has_written = True
    send_after_commit(state, transaction, user_linked_to_response, won)


def _is_claimable(responses: t.Any, visitor_key: str | None) -> Condition:
    """Return the condition for a visitor's responses, of the repeats the newest. Each part has an index."""
    is_theirs, is_repeat = responses.session_key == visitor_key, responses.ignored == "repeat"
    repeats = sa.select(responses.created_at.label("time")).where(is_theirs, is_repeat)
    repeats = repeats.order_by(*newest_first(responses)).offset(MAX_REPEATS - 1).limit(1)
    since = sa.func.coalesce(sa.select(repeats.subquery().c.time).scalar_subquery(), sa.literal(EPOCH, TIME))
    is_recent = sa.and_(is_repeat, responses.created_at >= since)
    others = (responses.ignored.is_(None), responses.ignored < "repeat", responses.ignored > "repeat")
    return sa.or_(*(sa.and_(is_theirs, each) for each in (*others, is_recent)))


def join_history(state: AppState, transaction: Transaction, request: Request | None, actor: Actor | Anonymous) -> None:
    """Store the pending clicks of a request. Assign its visitor's history to the user, if any, and drop the key."""
    if state.recorder is not None:
        settle_pending(state, transaction, request)
    if actor.user_id is not None and actor.visitor_key is not None:
        claim_responses(state, transaction, actor)
        transaction.after_commit(partial(state.visitor_keys.drop, request))


def link_user(state: AppState, request: Request | None, user: t.Any, *, commit: bool) -> None:
    """Join the history of the request's visitor to a user, in the host's session. If it fails, the key is kept."""
    transaction = open_transaction(state.database, commit=commit)
    actor = Actor(require_user_key(state, user), state.visitor_keys.get(request))
    if actor.visitor_key is not None:
        join = partial(join_history, state, transaction, request, actor)
        transaction.run(join, on_failure=partial(state.log_or_raise, _JOIN_FAILED))


def link_responses(state: AppState, referral_id: int, user: t.Any, visitor_key: str, *, commit: bool) -> None:
    """Assign a visitor's unclaimed responses to one referral to a user."""
    transaction = open_transaction(state.database, commit=commit)
    actor = Actor(require_user_key(state, user), visitor_key)
    is_this = state.database.models.responses.referral_id == referral_id
    transaction.run(partial(claim_responses, state, transaction, actor, is_this))


@dataclass
class _Join:
    """The join that follows a login. The user's key may be known only when the host's transaction has ended."""

    state: AppState
    request: Request
    user: t.Any
    visitor_key: str
    pending: Sequence[Event]
    is_reserved: bool = False

    def run(self, transaction: Transaction) -> None:
        """Join, unless an action has done so, or the user was not stored in the end."""
        keys, user_id = self.state.visitor_keys, self._user_key()
        if user_id is not None and (self.is_reserved or not keys.is_dropped(self.request)):
            try:
                transaction.run(partial(self._join, transaction, Actor(user_id, self.visitor_key)))
            except Exception:
                keys.set(self.request, self.visitor_key)  # a view may have cleared the session
                raise

    def _join(self, transaction: Transaction, actor: Actor) -> None:
        insert_events(self.state, transaction, self.pending)
        is_stored = user_exists(self.state.database.models, actor.user_id)  # the host may have rolled the user back
        claim_responses(self.state, transaction, actor, *is_stored)
        transaction.after_commit(partial(self.state.visitor_keys.drop, self.request))

    def before_response(self, response: Response) -> Response:
        """Reserve the key for the user if the join will follow after the response."""
        keys, user_id = self.state.visitor_keys, self._user_key()
        if user_id is not None and not keys.is_dropped(self.request):
            keys.reserve(self.request, self.visitor_key, user_id)
            self.is_reserved = True
        return response

    def _user_key(self) -> t.Any:
        if self.state.database.models.user is None:
            return require_user_key(self.state, self.user)
        return stored_key(self.user)


def join_at_login(state: AppState, user: t.Any) -> None:
    """Join the history of the current visitor to the user who logs in. An error is logged: the login goes on."""
    try:
        request, user = resolve_request(), unwrapped(user)
        visitor_key, pending = state.visitor_keys.get(request), read_pending(state, request)
        model = state.database.models.user
        if request is None or visitor_key is None or (model is not None and not isinstance(user, model)):
            if request is not None:
                store_pending(state, request, pending)  # those of a user who has been logged in
            return
        join = _Join(state, request, user, visitor_key, pending)
        if is_in_transaction(state.database):
            after_this_request(join.before_response)
        defer(state, request, join.run, _JOIN_FAILED)
    except Exception:
        log_failure("A visitor's history could not be joined to the user who logged in.")


def drop_key(state: AppState) -> None:
    """Drop the visitor key, at a logout or when consent is withdrawn: the next person on the browser may be another."""
    request = resolve_request()
    if request is not None:
        store_pending(state, request, read_pending(state, request))
        state.visitor_keys.drop(request)


def restore_key(state: AppState) -> None:
    """Give back the key whose session a view cleared before it failed."""
    request = resolve_request()
    try:
        if request is not None and not state.visitor_keys.is_dropped(request):
            state.visitor_keys.restore(request)
    except Exception:
        log_failure("Could not restore the visitor key after a failed request.")
