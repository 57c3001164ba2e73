"""The two models as a host sees them: columns, and methods that each make one call into a subject."""

import typing as t
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from functools import partial

from sqlalchemy import inspect
from sqlalchemy.orm import DynamicMapped
from werkzeug.wrappers import Request

from . import actions, credit, links, logins, reports
from .actors import current_actor, user_key
from .clicks import attach_code, follow_query
from .db.tables import RecordColumns, ReferralColumns, ResponseColumns
from .db.transactions import HostTransaction, OwnTransaction, is_in_transaction
from .deferral import settle_deferred
from .queue.pending import read_pending, settle_pending
from .state import AppState, current_state
from .targets import load_target, reference
from .types import Actor, Anonymous, storable
from .web.client import resolve_request, unwrapped
from .web.urls import referral_url

if t.TYPE_CHECKING:
    from typing_extensions import Self


class RecordMixin(RecordColumns):
    """The target, which both models have."""

    @property
    def target(self) -> t.Any:
        """The object that this is about, or ``None``, also when it has been deleted."""
        name = self.target_type, self.target_id
        of, target = self.__dict__.get("_loaded_target", (None, None))
        state = inspect(target, raiseerr=False)
        if of != name or (state is not None and (state.expired or not state.persistent)):
            target = load_target(current_state(), *name)
            set_loaded_target(self, target)
        return target

    @target.setter
    def target(self, target: t.Any) -> None:
        self.target_type, self.target_id = reference(current_state(), target)
        set_loaded_target(self, unwrapped(target))


def set_loaded_target(record: RecordColumns, target: t.Any) -> None:
    """Set the target of a record, ``None`` if it is deleted. Until the record is refreshed, reading needs no query."""
    record.__dict__["_loaded_target"] = ((record.target_type, record.target_id), target)


class ReferralMixin(RecordMixin, ReferralColumns):
    """A referral: a link that its owner shares.

    A host may declare its own, with more columns or another table::

        class Invite(ReferralMixin, db.Model):
            __tablename__ = "invite"
            __user_model__ = User
            campaign: Mapped[str | None] = mapped_column(String(40))
    """

    if t.TYPE_CHECKING:
        responses: DynamicMapped["ReferralResponseMixin"]

    def __str__(self) -> str:
        return f"{self.user} ({self.code})" if self.user else self.code

    @classmethod
    def create(
        cls,
        redirect_to: str,
        user: t.Any = None,
        label: str = "",
        target: t.Any = None,
        *,
        code: str | None = None,
        expires_at: datetime | None = None,
        commit: bool = True,
    ) -> "Self":
        """Return the one referral for a user, page, label and target. Create it if there is none.

        :param redirect_to: where the link leads: a path on this site, a URL on it or on a host in
            ``REFERRALS_ALLOWED_REDIRECT_HOSTS``, or an endpoint without arguments; at most 2,048 characters.
        :param user: the owner; ``None`` for a link of the site's own.
        :param label: tells a user's links apart, at most 100 characters.
        :param target: the object that the link is about, an instance of a model.
        :param code: the code of a new referral, 1 to 64 letters, digits, ``-`` or ``_``; random by default.
        :param expires_at: when a new referral expires, an aware time.
        :param commit: commit the session if a referral was created; ``False`` only flushes, in the host's transaction.
        :raises InvalidValueError: an argument is invalid. Nothing was written.
        :raises CodeTakenError: another referral has the code.
        """
        referral = links.create_link(
            current_state(), redirect_to, user, label, target, code=code, expires_at=expires_at, commit=commit
        )
        return t.cast("Self", referral)

    @classmethod
    def record_response(
        cls,
        action: str,
        *,
        target: t.Any = None,
        user: t.Any = None,
        request: Request | None = None,
        key: str | None = None,
        value: Decimal | int | None = None,
        currency: str | None = None,
        once: bool = False,
        join: bool = False,
        commit: bool = True,
    ) -> "ReferralResponseMixin | None":
        """Record what a visitor or user does, under the referral that earns the credit.

        Within a request and without ``key``, a database failure is logged and the result is ``None``, except in debug
        and testing mode. With ``key``, or outside a request, it is raised, so that a webhook or a worker retries.

        :param action: the action, at most 128 characters.
        :param target: the object of the action, an instance of a model.
        :param user: who acts, if that is not the user who is logged in, as in a payment's webhook. The history of the
            request's visitor is left alone then.
        :param request: the request, by default the current one.
        :param key: a second call with the same action and key returns the first response.
        :param value: what the action is worth, a decimal with at most 10 digits before the point and 4 after it.
        :param currency: the currency of the value, as in ISO 4217.
        :param once: a second call for the same user or visitor returns the first response.
        :param join: the request's visitor is ``user``: join their history, as at a login. For a sign-up view that logs
            nobody in, or whose login sends no signal.
        :param commit: commit the session; ``False`` only flushes, in the host's transaction.
        :return: the response, or ``None`` if no referral earns the credit.
        :raises InvalidValueError: an argument is invalid. Nothing was written.
        """
        state, request = _start(request)
        action_ = actions.Action(action, target, key, value, currency, once, may_fail=True)
        response = actions.record_action(state, request, action_, user=user, join=join, commit=commit)
        return t.cast("ReferralResponseMixin | None", response)

    @classmethod
    def attach(
        cls, code: str, *, user: t.Any = None, request: Request | None = None, join: bool = False, commit: bool = True
    ) -> "ReferralResponseMixin | None":
        """Record that somebody typed a code into a form. It counts, or is ignored, as a click on the link would be.

        The other parameters, and what follows a database failure, are as in :meth:`record_response`. With ``user``, the
        request may be that of a program.

        :param code: what was typed: a code or a whole link. Its case and signs around it do not matter.
        :return: the response, with the action ``ATTACHED``; ``None`` too if ``REFERRALS_IGNORED`` drops it.
        :raises InvalidValueError: there is no such code, or its referral has expired.
        :raises TooManyGuessesError: too many wrong codes came from this address within an hour.
        """
        state, request = _start(request)
        response = attach_code(state, request, code, user=user, join=join, commit=commit)
        return t.cast("ReferralResponseMixin | None", response)

    @classmethod
    def explain(cls, who: t.Any = None) -> "list[credit.Verdict[ReferralResponseMixin]]":
        """Explain which touch earns the credit, and why the others do not.

        :param who: a user or a request, by default the current request.
        :return: a verdict on each touch, newest first. If the user is bound, the first is on the action that binds.
        """
        who = unwrapped(who)
        if who is None or isinstance(who, Request):
            state, actor = _settled_actor(who)
            return credit.explain_credit(state, actor) if actor else []
        state = current_state()
        key = user_key(state, who)
        return [] if key is None else credit.explain_credit(state, Actor(key))

    @classmethod
    def referral_for_request(cls, request: Request | None = None) -> "Self | None":
        """Return the referral that earns the credit for a request, by default the current one, or ``None``."""
        state, actor = _settled_actor(request)
        return t.cast("Self", credit.find_credited_referral(state, actor)) if actor else None

    @classmethod
    def for_request(cls, request: Request | None = None) -> "Self | None":
        """Return the same as :meth:`referral_for_request`. pinax-referrals has both names."""
        return cls.referral_for_request(request)

    @classmethod
    def referrer_of(cls, user: t.Any) -> "Self | None":
        """Return the referral that a user is bound to by their first credited action, or ``None``."""
        state = current_state()
        key = user_key(state, user)
        return None if key is None else t.cast("Self | None", credit.find_referrer(state, key))

    @classmethod
    def referred_by(cls, user: t.Any) -> Sequence[t.Any]:
        """Return the users who are bound to a user's referrals, in the order in which they came.

        In an app without a user model these are their stored keys.
        """
        state = current_state()
        key = user_key(state, user)
        return [] if key is None else credit.find_referred_users(state, key)

    @classmethod
    def referral_responses_for_request(cls, request: Request | None = None) -> "Sequence[ReferralResponseMixin]":
        """Return all responses of a request's user or visitor, newest first; by default the current request's."""
        state, actor = _settled_actor(request)
        return reports.responses_of(state, actor) if actor else []

    def respond(
        self,
        action: str,
        *,
        user: t.Any = None,
        target: t.Any = None,
        request: Request | None = None,
        key: str | None = None,
        value: Decimal | int | None = None,
        currency: str | None = None,
        join: bool = False,
        commit: bool = True,
    ) -> "ReferralResponseMixin":
        """Record a response to this referral, whichever earns the credit otherwise.

        It is a touch, like a click: later actions of the same visitor are credited to this referral. The owner's own is
        ignored. The parameters and errors are as in :meth:`record_response`; a database failure is always raised.
        """
        state, request = _start(request)
        action_ = actions.Action(action, target, key, value, currency)
        response = actions.respond(state, request, self, action_, user, join, commit)
        return t.cast("ReferralResponseMixin", response)

    def link_responses_to_user(self, user: t.Any, session_key: str, *, commit: bool = True) -> None:
        """Assign a visitor's unclaimed responses to this referral to a user, as :meth:`.Referrals.link_user` does.

        :param session_key: the visitor key, as in ``ReferralResponse.session_key``.
        """
        if session_key == storable(session_key, 43):  # else no visitor has it
            logins.link_responses(current_state(), self.id, user, session_key, commit=commit)

    @property
    def url(self) -> str:
        """The absolute link, outside a request too.

        :raises ConfigurationError: there is neither ``REFERRALS_BASE_URL``, nor ``SERVER_NAME``, nor a request.
        """
        return referral_url(current_state().settings, self.code)

    @property
    def response_count(self) -> int:
        """How many clicks on this link are counted."""
        return reports.click_count(current_state(), self.id)

    def filtered_responses(self, limit: int | None = None) -> "Sequence[ReferralResponseMixin]":
        """Return the counted responses, newest first, as the host's ``responses_filter`` selects; at most a limit."""
        return reports.counted_responses(current_state(), referral=self, limit=limit)


class ReferralResponseMixin(RecordMixin, ResponseColumns):
    """A response: a click on a referral, or a later action that is credited to it."""

    def __str__(self) -> str:
        return self.action

    def void(self, reason: str, *, commit: bool = True) -> "ReferralResponseMixin":
        """Take this response and its repeats out of all counts and credit, for example after a refund.

        The row stays, with ``ignored`` set to ``void``. A second call changes nothing.

        :param reason: why, at most 200 characters.
        :param commit: as in :meth:`.ReferralMixin.record_response`.
        :return: the record of the voiding: a response with the action ``VOIDED`` and the reason in ``params``.
        :raises InvalidValueError: the reason is empty, too long, or not printable.
        """
        return t.cast("ReferralResponseMixin", actions.void_response(current_state(), self, reason, commit=commit))


def _start(request: Request | None) -> tuple[AppState, Request | None]:
    """Return the current state and the request to work on, whose ``?ref=`` link is followed first."""
    state, request = current_state(), resolve_request(request)
    if state.settings.query_param:
        follow_query(state, request)
        settle_deferred(request)
    return state, request


def _settled_actor(request: Request | None) -> tuple[AppState, Actor | Anonymous]:
    """Return the current state and who acts, after storing their pending clicks, which may earn the credit."""
    state, request = _start(request)
    database = state.database
    transaction = HostTransaction(database, flush=False) if is_in_transaction(database) else OwnTransaction(database)
    actor = current_actor(state, request)
    if read_pending(state, request):
        failure = partial(state.log_or_raise, "A visitor's queued clicks could not be stored early.")
        transaction.run(partial(settle_pending, state, transaction, request), on_failure=failure)
    return state, actor
