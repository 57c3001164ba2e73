"""A click on a link: who it was, whether it counts, its row, and where the link leads."""

import math
import typing as t
from dataclasses import dataclass
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
from .times import as_utc, now
from .types import ANONYMOUS, CLICK, CODE, Actor, Anonymous, storable
from .web.client import arguments, description, ignored_reason, is_prefetch, opts_out
from .web.visitor_key import new_key

_MAX_MARK = 100
_FOLLOWED = "flask_referrals.query_followed"


@dataclass(frozen=True)
class Click:
    """What a click on an existing link would be: where it leads, and why it would be ignored, if it would be."""

    redirect_to: str
    is_active: bool
    ignored: str | None


class ClickQuery(t.NamedTuple):
    """Select the active referral with a code, and the reason to ignore a click on it."""

    has_user: bool
    has_visitor: bool
    has_reason: bool
    has_window: bool
    #: Select no referral where the click would be ignored.
    is_counted_only: bool = False

    def build(self, models: Models) -> t.Any:
        """Build the statement."""
        referrals, responses = models.referrals, models.responses
        reasons: list[sa.ColumnElement[t.Any]] = []
        if self.has_reason:
            reasons.append(sa.bindparam("reason", type_=responses.ignored.type))
        if self.has_user:
            reasons.append(own_reason(referrals))
        if self.has_window and (self.has_user or self.has_visitor):
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
    """Select where the link with a code leads, its owner, and when it expires."""

    def build(self, models: Models) -> t.Any:
        """Build the statement."""
        referrals = models.referrals
        columns = (referrals.redirect_to, referrals.user_id, referrals.expired_at)
        return sa.select(*columns).where(referrals.code == sa.bindparam("code"))


def follow_link(state: AppState, request: Request, code: str) -> str | None:
    """Record a click on a link, and return its target, or ``None`` if there is no such link.

    Failures to record are logged and do not reach the visitor.

    :raises Exception: the link cannot be read.
    """
    database = state.database
    was_idle = not is_in_transaction(database)
    actor, reason = _identify(state, request, was_idle=was_idle)
    deadline = get_deadline(state.settings.lock_timeout)
    transaction: OwnTransaction | None = None
    if not is_in_transaction(database):
        transaction = ConnectionTransaction(database, deadline=deadline, is_single=True)
    elif was_idle and not _has_changes(database.session):
        # Only the user has been read in it.
        transaction = OwnTransaction(database, deadline=deadline)
    if state.recorder is not None:
        return _follow_queued(state, request, code, actor, reason, deadline)
    choice = _choose(state, code, actor, reason)
    stored_actor = _stored_actor(state, request, actor, reason)
    try:
        client = description(request, state.settings, state.hooks)
    except Exception:
        log_failure("Could not describe the client of a click; recorded without a description.")
        client = {}
    row = new_row(CLICK, stored_actor, client, is_touch=True, params=_campaign(state, request))
    recording = _Recording(state, code, choice, row)
    key = stored_actor.visitor_key if stored_actor.user_id is None else None
    if transaction is None:
        link = _read_link(state, code, deadline)
        if link is not None and _is_active(link):
            defer(state, request, recording.store_later, state.settings.lock_timeout)
            # The response may be complete by then. A key that nothing is stored under does no harm.
            if key is not None:
                state.visitor_keys.set(request, key)
        return _target_of(link)
    try:
        stored = recording.store(transaction)
        if stored is not None and stored.ignored is None and key is not None:
            state.visitor_keys.set(request, key)
    except Exception:
        link = _read_link(state, code, deadline)
        if link is not None:
            log_failure("A click on the link %r could not be recorded.", code)
        return _target_of(link)
    return stored.redirect_to if stored is not None else _target_of(_read_link(state, code, deadline))


def _has_changes(session: t.Any) -> bool:
    return bool(session.new or session.dirty or session.deleted)


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


def _identify(state: AppState, request: Request, *, was_idle: bool) -> tuple[Actor | Anonymous, str | None]:
    """Return who clicks, and the reason to ignore the click. Bots get no visitor key, and no session."""
    reason = ignored_reason(request, state.settings, state.hooks)
    if reason is None and state.hooks.consent is not None and not state.visitor_keys.has_consent(request):
        reason = "no-consent"
    if reason is not None:
        return ANONYMOUS, reason
    user_id, visitor_key = _load_user(state, request, was_idle=was_idle), state.visitor_keys.get(request)
    return ANONYMOUS if user_id is None and visitor_key is None else Actor(user_id, visitor_key), None


def _load_user(state: AppState, request: Request, *, was_idle: bool) -> t.Any:
    try:
        if was_idle:
            user = current_user(state, request)
        else:
            with HostTransaction(state.database).read():
                user = current_user(state, request)
        return None if user is None else user_key(state, user)
    except Exception:  # such as a token that has expired: the visitor's history must outlive it
        log_failure("Could not load the user of a click; recorded as anonymous.")
        recover(state.database)
        return None


def _choose(state: AppState, code: str, actor: Actor | Anonymous, reason: str | None) -> Choice:
    """Return how the link of a click is chosen, if it is active, and why the click is ignored."""
    settings, time_now = state.settings, now()
    is_counted_only = settings.ignored == "drop"
    parameters: dict[str, t.Any] = {"code": code, "now": time_now}
    if reason is not None:
        return Choice(ClickQuery(False, False, True, False, is_counted_only), {**parameters, "reason": reason})
    window = settings.repeat_window if actor is not ANONYMOUS else None
    if actor.user_id is not None:
        parameters["user"] = actor.user_id
    if window is not None:
        parameters["since"] = time_now - window
        if actor.visitor_key is not None:
            parameters["visitor"] = actor.visitor_key
    has_user, has_visitor = "user" in parameters, "visitor" in parameters
    return Choice(ClickQuery(has_user, has_visitor, False, window is not None, is_counted_only), parameters)


def _stored_actor(state: AppState, request: Request, actor: Actor | Anonymous, reason: str | None) -> Actor | Anonymous:
    """Return who is stored with a click: nobody if the visitor opts out, a new visitor if they have no key yet."""
    if reason is not None:
        return actor
    if opts_out(request, state.settings):
        return ANONYMOUS
    return actor if actor is not ANONYMOUS else Actor(None, new_key())


@dataclass(frozen=True)
class _Recording:
    """The recording of one click."""

    state: AppState
    code: str
    choice: Choice
    row: dict[str, t.Any]

    def store(self, transaction: Transaction) -> Stored | None:
        """Store the click. Return ``None`` if its link does not exist, has expired, or ignored clicks are dropped."""
        return transaction.run(partial(self._insert, transaction), partial(self._find, transaction))

    def store_later(self, transaction: Transaction) -> bool:
        """Store the click after the host's transaction has ended, and return whether that succeeded."""
        try:
            self.store(transaction)
        except Exception:
            log_failure("A click on the link %r could not be recorded.", self.code)
            return False
        return True

    def _insert(self, transaction: Transaction) -> Stored | None:
        stored = insert_response(transaction, self.choice, self.row)
        if stored is not None and response_recorded.receivers:
            send_after_commit(self.state, transaction, response_recorded, [stored.id])
        return stored

    def _find(self, transaction: Transaction) -> Stored | None:
        stored = find_response(transaction, self.row, self.code)
        if stored is not None:
            send_after_commit(self.state, transaction, response_recorded, [stored.id])
        return stored


def _target_of(link: t.Any) -> str | None:
    return None if link is None else t.cast(str, link.redirect_to)


def _is_active(link: t.Any) -> bool:
    return link.expired_at is None or as_utc(link.expired_at) > now()


def _read_link(state: AppState, code: str, deadline: float = math.inf) -> t.Any:
    """Return the row of a link, or ``None`` if there is none with this code."""
    database = state.database
    statement, parameters = get_statement(database.models, LinkQuery()), {"code": code}
    if is_in_transaction(database):
        hosts = HostTransaction(database)
        for attempt in (1, 2):
            try:
                with hosts.read():
                    return hosts.execute(statement, parameters).one_or_none()
            except Exception:
                recover(database)
                if attempt == 2:
                    raise
    transaction = ConnectionTransaction(database, deadline=deadline, is_single=True)
    return transaction.run(lambda: transaction.execute(statement, parameters).one_or_none())


def _follow_queued(
    state: AppState, request: Request, code: str, actor: Actor | Anonymous, reason: str | None, deadline: float
) -> str | None:
    """Hand a click to the recorder, also when the link cannot be read: it may exist."""
    params, stored_actor = _campaign(state, request), _stored_actor(state, request, actor, reason)
    try:
        link = _read_link(state, code, deadline)
    except Exception:
        hand_over(state, request, code, stored_actor, reason, params)
        raise
    if link is not None and _is_active(link):
        # The event of somebody who opts out does not say who it is.
        is_own = opts_out(request, state.settings) and actor.user_id is not None and actor.user_id == link.user_id
        hand_over(state, request, code, stored_actor, "self" if reason is None and is_own else reason, params)
    return _target_of(link)


def preview_click(state: AppState, request: Request, code: str) -> Click | None:
    """Return what a click on a link would be, or ``None`` without such a link. Nothing is written."""
    choice = _choose(state, code, *_identify(state, request, was_idle=not is_in_transaction(state.database)))
    link = _read_link(state, code)
    if link is None:
        return None
    transaction = HostTransaction(state.database)
    query = t.cast(ClickQuery, choice.query)._replace(is_counted_only=False)
    chosen = transaction.execute(get_statement(transaction.database.models, query), choice.parameters).one_or_none()
    return Click(link.redirect_to, chosen is not None, chosen.ignored if chosen is not None else None)


def _campaign(state: AppState, request: Request) -> dict[str, str] | None:
    """Return the marks of ``REFERRALS_CAMPAIGN_PARAMS`` that a link carries, at most 100 characters each."""
    if not request.query_string:
        return None
    given = arguments(request)
    names = state.settings.campaign_params
    return {name: storable(given[name], _MAX_MARK) for name in names if given.get(name)} or None
