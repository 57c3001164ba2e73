"""A click on a link: who it was, whether it counts, its row, and where the link leads."""

import math
import typing as t
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import sqlalchemy as sa
from werkzeug.wrappers import Request

from .actors import current_user, user_key
from .db.build import Models
from .db.conditions import is_active, made_by, own_reason
from .db.responses import Choice, Stored, find_response, insert_response, new_row
from .db.transactions import (
    ConnectionTransaction,
    HostTransaction,
    OwnTransaction,
    Transaction,
    get_deadline,
    get_statement,
    is_in_transaction,
    recover,
)
from .deferral import defer
from .delivery import send_after_commit
from .failures import log_failure
from .queue.pending import hand_over
from .signals import response_recorded
from .state import AppState
from .times import now
from .types import ANONYMOUS, CLICK, CODE, Actor, Anonymous, storable
from .web.client import arguments, description, ignored_reason, is_prefetch, opts_out
from .web.visitor_key import new_key

_MAX_MARK = 100
_FOLLOWED = "flask_referrals.query_followed"

#: Who clicks, who is stored with the click, and the reason to ignore it.
_Who = tuple[Actor | Anonymous, Actor | Anonymous, str | None]


class ClickQuery(t.NamedTuple):
    """Select the active referral with a code, and the reason to ignore a click on it."""

    has_user: bool
    has_visitor: bool
    has_reason: bool
    has_window: bool
    #: Select no referral where the click would be ignored.
    is_counted_only: bool = False

    def build(self, models: Models) -> t.Any:
        referrals, responses = models.referrals, models.responses
        reasons: list[sa.ColumnElement[t.Any]] = []
        if self.has_reason:
            reasons.append(sa.bindparam("reason", type_=responses.ignored.type))
        if self.has_user:
            reasons.append(own_reason(referrals))
        if self.has_window:
            is_repeat = sa.exists().where(
                made_by(responses, has_user=self.has_user, has_visitor=self.has_visitor),
                responses.is_touch == sa.true(),
                responses.created_at > sa.bindparam("since"),
                # coalesce() keeps the planner off the link's index, which holds every visitor's clicks.
                sa.func.coalesce(responses.referral_id, 0) == referrals.id,
                responses.action == CLICK,
                responses.ignored.is_(None),
            )
            reasons.append(sa.case((is_repeat, "repeat")))
        ignored = sa.func.coalesce(*reasons, sa.null()) if reasons else sa.null()
        chosen = sa.select(referrals.id.label("referral_id"), ignored.label("ignored"))
        chosen = chosen.where(referrals.code == sa.bindparam("code"), is_active(referrals))
        return chosen.where(ignored.is_(None)) if self.is_counted_only and reasons else chosen


class LinkQuery(t.NamedTuple):
    """Select where the link with a code leads, its owner, and whether it is active."""

    def build(self, models: Models) -> t.Any:
        referrals = models.referrals
        columns = (referrals.redirect_to, referrals.user_id, is_active(referrals).label("is_active"))
        return sa.select(*columns).where(referrals.code == sa.bindparam("code"))


def follow_link(state: AppState, request: Request, code: str) -> t.Any:
    """Record a click on a link. Return a row with its ``redirect_to``, or ``None`` if there is no such link.

    Failures to record are logged and do not reach the visitor.

    :raises Exception: the link cannot be read.
    """
    database = state.database
    was_idle = not is_in_transaction(database)
    visitor, actor, reason = _identify(state, request, was_idle=was_idle)
    deadline = get_deadline(state.settings.lock_timeout)
    transaction: OwnTransaction | None = None
    if not is_in_transaction(database):
        transaction = ConnectionTransaction(database, deadline=deadline, is_single=True)
    elif was_idle and not (database.session.new or database.session.dirty or database.session.deleted):
        # Only the user has been read in it.
        transaction = OwnTransaction(database, deadline=deadline)
    if state.recorder is not None:
        return _follow_queued(state, request, code, (visitor, actor, reason), deadline)
    try:
        client = description(request, state.settings, state.hooks)
    except Exception:
        log_failure("Could not describe the client of a click; recorded without a description.")
        client = {}
    row = new_row(CLICK, actor, client, is_touch=True, params=_campaign(state, request))
    record = partial(_record, state, code, _choose(state, code, visitor, reason), row)
    key = actor.visitor_key if actor.user_id is None else None
    if transaction is None:
        link = _read_link(state, code, deadline)
        if link is not None and link.is_active:
            failure = "A click on the link %r could not be recorded."
            defer(state, request, record, failure, code, timeout=state.settings.lock_timeout)
            # The response may be complete by then. A key that nothing is stored under does no harm.
            if key is not None:
                state.visitor_keys.set(request, key)
        return link
    try:
        stored = record(transaction)
        if stored is not None and stored.ignored is None and key is not None:
            state.visitor_keys.set(request, key)
    except Exception:
        link = _read_link(state, code, deadline)
        if link is not None:
            log_failure("A click on the link %r could not be recorded.", code)
        return link
    return stored or _read_link(state, code, deadline)


def _record(
    state: AppState, code: str, choice: Choice, row: dict[str, t.Any], transaction: Transaction
) -> Stored | None:
    """Store a click. Return ``None`` if its link does not exist, has expired, or ignored clicks are dropped."""
    announced = partial(_announced, state, transaction)
    insert, find = partial(insert_response, transaction, choice, row), partial(find_response, transaction, row, code)
    return transaction.run(partial(announced, insert), partial(announced, find))


def _announced(state: AppState, transaction: Transaction, store: Callable[[], Stored | None]) -> Stored | None:
    stored = store()
    if stored is not None and response_recorded.receivers:
        send_after_commit(state, transaction, response_recorded, [stored.id])
    return stored


def _follow_queued(state: AppState, request: Request, code: str, who: _Who, deadline: float) -> t.Any:
    """Hand a click to the recorder, also when the link cannot be read: it may exist."""
    visitor, actor, reason = who
    record = partial(hand_over, state, request, code, actor)
    params = _campaign(state, request)
    try:
        link = _read_link(state, code, deadline)
    except Exception:
        record(reason, params)
        raise
    if link is not None and link.is_active:
        # The event of somebody who opts out does not say who it is.
        is_own = opts_out(request, state.settings) and visitor.user_id is not None and visitor.user_id == link.user_id
        record("self" if reason is None and is_own else reason, params)
    return link


def follow_query(state: AppState, request: Request | None) -> None:
    """Record the click of a page that was requested with a code in its query, once.

    It is called when something asks who acts, or else after the view: by then the host's preprocessing is over. An
    argument that is not a code of this site is left alone: other sites add arguments of their own.
    """
    if request is None or not state.settings.query_param or _FOLLOWED in request.environ or not request.query_string:
        return
    request.environ[_FOLLOWED] = True
    endpoint: str | None = getattr(request, "endpoint", None)
    if request.method != "GET" or endpoint is None:
        return
    given = arguments(request)
    code = next((given[name] for name in state.settings.query_param if name in given), "")
    is_page = not endpoint.startswith("referrals.") and endpoint.rpartition(".")[2] != "static"
    if not is_page or not CODE.fullmatch(code) or is_prefetch(request):
        return
    try:
        follow_link(state, request, code)
    except Exception:
        log_failure("Could not read the link %r.", code)


def _identify(state: AppState, request: Request, *, was_idle: bool) -> _Who:
    """Return who clicks, who is stored, and the reason to ignore the click. Bots get no visitor key, and no session."""
    reason = ignored_reason(request, state.settings, state.hooks)
    if reason is None and state.hooks.consent is not None and not state.visitor_keys.has_consent(request):
        reason = "no-consent"
    if reason is not None:
        return ANONYMOUS, ANONYMOUS, reason
    user_id, visitor_key = _load_user(state, request, was_idle=was_idle), state.visitor_keys.get(request)
    visitor = ANONYMOUS if user_id is None and visitor_key is None else Actor(user_id, visitor_key)
    if opts_out(request, state.settings):
        return visitor, ANONYMOUS, None
    return visitor, Actor(None, new_key()) if visitor is ANONYMOUS else visitor, None


def _load_user(state: AppState, request: Request, *, was_idle: bool) -> t.Any:
    try:
        with nullcontext() if was_idle else HostTransaction(state.database).read():
            user = current_user(state, request)
        return None if user is None else user_key(state, user)
    except Exception:  # such as a token that has expired: the visitor's history must outlive it
        log_failure("Could not load the user of a click; recorded as anonymous.")
        recover(state.database)
        return None


def _choose(state: AppState, code: str, visitor: Actor | Anonymous, reason: str | None) -> Choice:
    """Return how the link of a click is chosen, if it is active, and why the click is ignored."""
    settings, time = state.settings, now()
    has_user, has_visitor = visitor.user_id is not None, visitor.visitor_key is not None
    window = settings.repeat_window if visitor is not ANONYMOUS else None
    parameters = {"code": code, "now": time, "user": visitor.user_id, "visitor": visitor.visitor_key, "reason": reason}
    if window is not None:
        parameters["since"] = time - window
    query = ClickQuery(has_user, has_visitor, reason is not None, window is not None, settings.ignored == "drop")
    return Choice(query, parameters)


def _read_link(state: AppState, code: str, deadline: float = math.inf) -> t.Any:
    """Return the row of a link, or ``None`` if there is none with this code."""
    database = state.database
    statement, parameters = get_statement(database.models, LinkQuery()), {"code": code, "now": now()}
    transaction: HostTransaction | OwnTransaction = HostTransaction(database)
    if is_in_transaction(database):
        try:
            with transaction.read():
                return transaction.execute(statement, parameters).one_or_none()
        except Exception:
            recover(database)
            if is_in_transaction(database):
                raise
    transaction = ConnectionTransaction(database, deadline=deadline, is_single=True)
    return transaction.run(lambda: transaction.execute(statement, parameters).one_or_none())


def preview_click(state: AppState, request: Request, code: str) -> tuple[str, str | None] | None:
    """Return where a link leads and why a click on it would not be counted, or ``None`` without such a link."""
    visitor, _, reason = _identify(state, request, was_idle=not is_in_transaction(state.database))
    choice = _choose(state, code, visitor, reason)
    link = _read_link(state, code)
    if link is None:
        return None
    query = t.cast(ClickQuery, choice.query)._replace(is_counted_only=False)
    statement = get_statement(state.database.models, query)
    chosen = HostTransaction(state.database).execute(statement, choice.parameters).one_or_none()
    return link.redirect_to, "expired" if chosen is None else chosen.ignored


def _campaign(state: AppState, request: Request) -> dict[str, str] | None:
    """Return the marks of ``REFERRALS_CAMPAIGN_PARAMS`` that a link carries, at most 100 characters each."""
    if not request.query_string:
        return None
    given = arguments(request)
    names = state.settings.campaign_params
    return {name: storable(given[name], _MAX_MARK) for name in names if given.get(name)} or None
