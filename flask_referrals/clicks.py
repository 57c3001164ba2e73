"""A click on a link: who made it, whether it is counted, its row, and where the link leads."""

import math
import re
import typing as t
from collections.abc import Callable, Sequence
from functools import partial

import sqlalchemy as sa
from werkzeug.wrappers import Request, Response
from werkzeug.wsgi import get_current_url

from .actions import Action, record_touch
from .actors import current_actor, current_user, user_key
from .credit import MAX_REPEATS, TouchQuery
from .db.build import Models
from .db.conditions import is_active, made_by, made_by_each, own_reason
from .db.responses import Choice, Stored, find_response, insert_response, new_row
from .db.tables import ResponseColumns
from .db.transactions import (
    ConnectionTransaction,
    HostTransaction,
    OwnTransaction,
    Transaction,
    get_deadline,
    get_statement,
    is_in_transaction,
    open_transaction,
    recover,
)
from .deferral import defer
from .delivery import send_after_commit
from .failures import log_failure
from .links import LinkQuery, choose_link, find_typed_link, link_parameters
from .queue.pending import hand_over
from .signals import response_recorded
from .state import AppState
from .times import now
from .types import ANONYMOUS, ATTACH, CLICK, Actor, Anonymous, storable
from .web.client import arguments, description, ignored_reason, is_current, is_prefetch, opts_out
from .web.codes import find_codes, read_values
from .web.visitor_key import new_key

_MAX_PARAM = 100
_ORIGIN = re.compile(r"https?://(?:www\.)?")
_FOLLOWED = "flask_referrals.query_followed"

#: Who clicks, who is stored with the click, and the reason to ignore it.
_Who = tuple[Actor | Anonymous, Actor | Anonymous, str | None]


class ClickQuery(t.NamedTuple):
    """Select the active referral with a code, and the reason to ignore a click on it. Select none to store no click."""

    has_user: bool
    has_visitor: bool
    has_reason: bool
    has_window: bool
    #: Store no ignored click but a repeat that changes the credit, because it follows a touch of another link.
    is_counted_only: bool = False
    action: str = CLICK

    def build(self, models: Models) -> t.Any:
        referrals, responses = models.referrals, models.responses
        reasons: list[sa.ColumnElement[t.Any]] = []
        if self.has_reason:
            reasons.append(sa.bindparam("reason", type_=responses.ignored.type))
        if self.has_user:
            reasons.append(own_reason(referrals))
        stored: list[sa.ColumnElement[bool]] = []
        if self.is_counted_only and reasons:
            stored.append(sa.func.coalesce(*reasons, sa.null()).is_(None))
        if self.has_window:
            makers = made_by_each(has_user=self.has_user, has_visitor=self.has_visitor)
            is_recent = sa.and_(responses.is_touch == sa.true(), responses.created_at > sa.bindparam("since"))
            recent = [sa.select(responses.id).where(is_found(responses), is_recent) for is_found, _ in makers]
            # coalesce() keeps the planner off the link's index, which holds every visitor's clicks.
            is_same = sa.and_(
                sa.func.coalesce(responses.referral_id, 0) == referrals.id, responses.action == self.action
            )
            is_counted = sa.and_(made_by(responses, has_user=self.has_user, has_visitor=self.has_visitor), is_same)
            is_counted &= responses.ignored.is_(None)
            is_repeat = sa.or_(*(each.where(is_counted).exists() for each in recent))
            reasons.append(sa.case((is_repeat, "repeat")))
            if self.is_counted_only:
                touches = TouchQuery(self.has_user, self.has_visitor, has_window=False, newest_first=True)
                stored.append(~is_repeat | (touches.build_referral(models, is_any=True) != referrals.id))
            else:
                repeats = [each.where(responses.ignored == "repeat").limit(MAX_REPEATS).subquery() for each in recent]
                are_few = [
                    sa.select(sa.func.count()).select_from(each).scalar_subquery() < MAX_REPEATS for each in repeats
                ]
                stored.append(~is_repeat | sa.and_(*are_few))
        ignored = sa.func.coalesce(*reasons, sa.null()) if reasons else sa.null()
        chosen = sa.select(referrals.id.label("referral_id"), ignored.label("ignored"))
        return chosen.where(referrals.code == sa.bindparam("code"), is_active(referrals), *stored)


def follow_link(state: AppState, request: Request, codes: Sequence[str]) -> t.Any:
    """Record a click on a link. Return a row with its ``redirect_to``, or ``None`` if there is no such link.

    Failures to record are logged and do not reach the visitor.

    :param codes: the codes that the request may mean, the most likely one first.
    :raises Exception: the link cannot be read.
    """
    database = state.database
    was_idle = not is_in_transaction(database)
    find_visitor = partial(_find_visitor, state, request, was_idle=was_idle)
    reason = ignored_reason(request, state.settings, state.hooks, database.without_flush)
    who = _identify(state, request, reason, find_visitor)
    deadline = get_deadline(state.settings.lock_timeout)
    transaction: OwnTransaction | None = None
    if not is_in_transaction(database):
        transaction = ConnectionTransaction(database, deadline=deadline, is_single=True)
    elif was_idle and not (database.session.new or database.session.dirty or database.session.deleted):
        # Only the user has been read in it.
        transaction = OwnTransaction(database, deadline=deadline)
    try:
        client = description(request, state.settings, state.hooks)
    except Exception:
        log_failure("Could not describe the client of a click; recorded without a description.")
        client = {}
    (_, actor, _), params = who, _campaign(state, request)
    if state.recorder is not None:
        hand = partial(hand_over, state, request, actor=actor, client=client, params=params)
        return _follow_queued(state, request, codes, who, hand, deadline)
    row = new_row(CLICK, actor, client, is_touch=True, params=params)
    record = partial(_record, state, who, row)
    key = actor.visitor_key if actor.user_id is None else None
    if transaction is None:
        link = _read_link(state, codes, deadline)
        if link is not None and link.is_active:
            failure, timeout = "A click on the link %r could not be recorded.", state.settings.lock_timeout
            defer(state, request, partial(record, link.code), failure, link.code, timeout=timeout)
            # The response may be complete by then. A key that nothing is stored under does no harm.
            if key is not None:
                state.visitor_keys.set(request, key)
        return link
    stored = link = None
    try:
        stored = record(codes[0], transaction)
        if stored is None:
            link = _read_link(state, codes, deadline)
            if link is not None and link.is_active and link.code != codes[0]:
                stored = record(link.code, transaction)
        if stored is not None and stored.ignored is None and key is not None:
            state.visitor_keys.set(request, key)
    except Exception:
        link = link or _read_link(state, codes, deadline)
        if link is not None:
            log_failure("A click on the link %r could not be recorded.", link.code)
    return stored or link


def _record(state: AppState, who: _Who, row: dict[str, t.Any], code: str, transaction: Transaction) -> Stored | None:
    """Store a click. Return ``None`` if its link does not exist, has expired, or ignored clicks are dropped."""
    choice, announced = _choose(state, code, who), partial(_announced, state, transaction)
    insert, find = partial(insert_response, transaction, choice, row), partial(find_response, transaction, row, code)
    return transaction.run(partial(announced, insert), partial(announced, find))


def _announced(state: AppState, transaction: Transaction, store: Callable[[], Stored | None]) -> Stored | None:
    stored = store()
    if stored is not None and response_recorded.receivers:
        send_after_commit(state, transaction, response_recorded, [stored.id])
    return stored


def _follow_queued(
    state: AppState, request: Request, codes: Sequence[str], who: _Who, hand: Callable[..., None], deadline: float
) -> t.Any:
    """Hand a click to the recorder, also when the link cannot be read: it may exist."""
    visitor, _, reason = who
    try:
        link = _read_link(state, codes, deadline)
    except Exception:
        hand(codes[0], ignored=reason)
        raise
    if link is not None and link.is_active:
        # The event of somebody who opts out does not say who it is.
        is_own = opts_out(request, state.settings) and visitor.user_id is not None and visitor.user_id == link.user_id
        hand(link.code, ignored="self" if reason is None and is_own else reason)
    return link


def attach_code(
    state: AppState, request: Request | None, code: str, *, user: t.Any, join: bool, commit: bool
) -> ResponseColumns | None:
    """Store a touch of the link whose code was typed, by the rules of a click."""
    transaction = open_transaction(state.database, commit=commit)

    def read() -> str:
        with transaction.read():
            return find_typed_link(state, code, request).code

    code = transaction.run(read)
    find_visitor = partial(current_actor, state, request, user, join=join)
    if request is None or user_key(state, user) is not None:
        visitor = find_visitor()
        who: _Who = visitor, visitor, None
    else:
        # A request that is not the current one may have no headers but a cookie.
        reason = None
        if is_current(request):
            reason = ignored_reason(request, state.settings, state.hooks, state.database.without_flush, is_click=False)
        who = _identify(state, request, reason, find_visitor)
    query, parameters = _choose(state, code, who)
    choice = Choice(t.cast(ClickQuery, query)._replace(action=ATTACH), parameters)
    return record_touch(state, request, transaction, Action(ATTACH, may_fail=True), who[1], choice)


def is_page(request: Request, response: Response | None = None) -> bool:
    """Return whether a code in the query of a request counts: it is for a page, not for a file or a link.

    :param response: its type shows whether a 404 handler has sent a page, as in a single-page app. A redirect to the
        same page, by https or with ``www``, is no page: browsers do not keep its cookies for the page.
    """
    endpoint: str | None = getattr(request, "endpoint", None)
    if request.method != "GET" or (endpoint or "").startswith("referrals."):
        return False
    if response is not None and response.location is not None:
        here, there = (_ORIGIN.sub("", url, count=1) for url in (get_current_url(request.environ), response.location))
        if here == there:
            return False
    if endpoint is None or endpoint.rpartition(".")[2] == "static":
        return response is not None and response.status_code < 400 and response.mimetype == "text/html"
    return True


def follow_query(state: AppState, request: Request | None, response: Response | None = None) -> None:
    """Record the click of a page that was requested with a code in its query, once.

    It is called when something asks who acts, or else after the view: by then the host's preprocessing is over. The
    first value that is a code of this site is followed: other sites add arguments of their own.
    """
    if request is None or not request.query_string or _FOLLOWED in request.environ or not is_page(request, response):
        return
    request.environ[_FOLLOWED] = True
    if is_prefetch(request):
        return
    codes = _query_codes(state, request)
    try:
        if codes:
            follow_link(state, request, codes)
    except Exception:
        log_failure("Could not read the link %r.", codes[0])


def has_link(state: AppState, request: Request) -> bool:
    """Return whether a page's query has a code of this site. An error is logged and means no."""
    codes = _query_codes(state, request)
    try:
        return bool(codes) and _read_link(state, codes) is not None
    except Exception:
        log_failure("Could not read the link %r.", codes[0])
        return False


def _query_codes(state: AppState, request: Request) -> Sequence[str]:
    """Return the codes that the values in a page's query may stand for."""
    values = read_values(request.query_string.decode(errors="replace"), state.settings.query_param)
    return [code for value in values for code in find_codes(value, state.settings)]


def _identify(
    state: AppState, request: Request, reason: str | None, find_visitor: Callable[[], Actor | Anonymous]
) -> _Who:
    """Return who acts, who is stored, and the reason to ignore it. Bots get no visitor key, and no session."""
    if reason is None and state.hooks.consent is not None and not state.visitor_keys.has_consent(request):
        reason = "no-consent"
    if reason is not None:
        return ANONYMOUS, ANONYMOUS, reason
    visitor = find_visitor()
    if opts_out(request, state.settings):
        return visitor, ANONYMOUS, None
    return visitor, Actor(None, new_key()) if visitor is ANONYMOUS else visitor, None


def _find_visitor(state: AppState, request: Request, *, was_idle: bool) -> Actor | Anonymous:
    """Return who clicks. A login that cannot be read, such as an expired token, does not cost the visitor's history."""
    user_id = None
    try:
        if was_idle:
            user = current_user(state, request)
        else:
            with HostTransaction(state.database).read():
                user = current_user(state, request)
        user_id = None if user is None else user_key(state, user)
    except Exception:
        log_failure("Could not load the user of a click; recorded as anonymous.")
        recover(state.database)
    visitor_key = state.visitor_keys.get(request)  # a remembered login has dropped it
    return ANONYMOUS if user_id is None and visitor_key is None else Actor(user_id, visitor_key)


def _choose(state: AppState, code: str, who: _Who) -> Choice:
    """Return how the link of a click is chosen, if it is active, and why the click is ignored."""
    settings, time, (visitor, _, reason) = state.settings, now(), who
    has_user, has_visitor = visitor.user_id is not None, visitor.visitor_key is not None
    window = settings.repeat_window if visitor is not ANONYMOUS else None
    parameters = {"code": code, "now": time, "user": visitor.user_id, "visitor": visitor.visitor_key, "reason": reason}
    if window is not None:
        parameters["since"] = time - window
    query = ClickQuery(has_user, has_visitor, reason is not None, window is not None, settings.ignored == "drop")
    return Choice(query, parameters)


def _read_link(state: AppState, codes: Sequence[str], deadline: float = math.inf) -> t.Any:
    """Return the row of the link that some codes may stand for, or ``None``."""
    database = state.database
    statement, parameters = get_statement(database.models, LinkQuery()), link_parameters(codes)
    if is_in_transaction(database):
        hosts = HostTransaction(database)
        for attempt in (1, 2):
            try:
                with hosts.read():
                    return choose_link(hosts.execute(statement, parameters).all(), codes)
            except Exception:
                recover(database)
                if attempt == 2:
                    raise
    transaction = ConnectionTransaction(database, deadline=deadline, is_single=True)
    return choose_link(transaction.run(lambda: transaction.execute(statement, parameters).all()), codes)


def preview_click(state: AppState, request: Request, codes: Sequence[str]) -> tuple[str, str | None] | None:
    """Return where a link leads and why a click on it would not be counted, or ``None`` without such a link."""
    find_visitor = partial(_find_visitor, state, request, was_idle=not is_in_transaction(state.database))
    reason = ignored_reason(request, state.settings, state.hooks, state.database.without_flush)
    who = _identify(state, request, reason, find_visitor)
    link = _read_link(state, codes)
    if link is None:
        return None
    choice = _choose(state, link.code, who)
    query = t.cast(ClickQuery, choice.query)._replace(is_counted_only=False)
    statement = get_statement(state.database.models, query)
    chosen = HostTransaction(state.database).execute(statement, choice.parameters).one_or_none()
    return link.redirect_to, "expired" if chosen is None else chosen.ignored


def _campaign(state: AppState, request: Request) -> dict[str, str] | None:
    """Return the arguments of a link that ``REFERRALS_CAMPAIGN_PARAMS`` names, at most 100 characters each."""
    if not request.query_string:
        return None
    given = arguments(request)
    names = state.settings.campaign_params
    return {name: storable(given[name], _MAX_PARAM) for name in names if given.get(name)} or None
