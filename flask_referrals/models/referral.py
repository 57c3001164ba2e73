"""The referral: a link that is passed on, and everything that can be asked of it."""

import typing as t
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import DynamicMapped
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import Mapper
from sqlalchemy.orm import declared_attr
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import validates
from werkzeug.wrappers import Request

from .. import attaching
from .. import attribution
from .. import creation
from .. import explaining
from .. import joining
from .. import pending
from .. import recording
from .. import reporting
from .. import totals
from .. import urls
from .. import visitors
from ..clients import storable
from ..columns import TIME
from ..columns import exact
from ..context import current_state
from ..identity import user_id as id_of_user
from ..transactions import Transaction
from .records import RecordMixin
from .records import now
from .records import to_utc

if t.TYPE_CHECKING:
    from typing_extensions import Self

    from .response import ReferralResponseMixin


class ReferralMixin(RecordMixin):
    """A link that a user passes on."""

    __user_backref__: t.ClassVar[str | None] = "referral_codes"

    code: Mapped[str] = mapped_column(exact(64), unique=True, sort_order=-2)
    label: Mapped[str] = mapped_column(sa.String(100), default="", sort_order=-2)
    redirect_to: Mapped[str] = mapped_column(sa.String(2048), sort_order=-2)
    #: A digest of user, target and the two above: what makes :meth:`create` find the one row there is.
    identity: Mapped[str] = mapped_column(exact(64), unique=True, sort_order=-2)
    #: From this moment on the link leads on, but records nothing and earns nothing.
    expired_at: Mapped[datetime | None] = mapped_column(TIME, sort_order=-2)

    @declared_attr.directive
    def __table_args__(cls) -> t.Any:
        return (sa.Index(None, "user_id"), RecordMixin.__table_args__)

    if t.TYPE_CHECKING:
        responses: DynamicMapped["ReferralResponseMixin"]

    def __str__(self) -> str:
        return f"{self.user} ({self.code})" if self.user else self.code

    @validates("expired_at")
    def _expired_at_in_utc(self, name: str, value: datetime | None) -> datetime | None:
        return to_utc(name, value)

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
        """Return the referral for a user, place, label and target: the one there is, or a new one.

        However many callers race, there is one row.

        :param redirect_to: where the link leads: a path on this site, a URL on it or on a host in
            ``REFERRALS_ALLOWED_REDIRECT_HOSTS``, or the name of an endpoint without arguments;
            at most 2,048 characters.
        :param user: who passes it on; ``None`` for a link of the site's own.
        :param label: tells a user's links apart, at most 100 characters.
        :param target: the object the link is about, an instance of a model.
        :param code: the code of a new referral, 1 to 64 letters, digits, ``-`` or ``_``; random when left out.
        :param expires_at: when a new referral expires, an aware time.
        :param commit: commit the session when a referral was made; ``False`` flushes only, inside the host's
            transaction.
        :raises InvalidValueError: an argument cannot be accepted; nothing was written.
        :raises CodeTakenError: another referral has the code.
        """
        return t.cast(
            "Self",
            creation.create(redirect_to, user, label, target, code=code, expires_at=expires_at, commit=commit),
        )

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
        commit: bool = True,
    ) -> "ReferralResponseMixin | None":
        """Record what a visitor does under the referral that gets credit for it.

        Whoever came without a link costs nothing: no statement, no cookie. A visitor who has become a user since the
        click is joined to that user first.

        :param action: what was done, at most 128 characters.
        :param target: the object it was done to, an instance of a model.
        :param user: who did it, when it is not the user who is logged in, as in a payment's webhook.
        :param request: the request, by default the current one.
        :param key: makes it happen once: a second call with the same action and key returns the first response.
        :param value: what it was worth, a decimal with at most 10 digits before the point and 4 behind it.
        :param currency: the value's currency, as in ISO 4217.
        :param once: make it happen once for this user (or visitor): a second call returns the first response.
        :param commit: commit the session; ``False`` flushes only, inside the host's transaction.
        :return: the response, or ``None`` when nobody gets credit.
        :raises InvalidValueError: an argument cannot be accepted; nothing was written.
        """
        return recording.record_action(
            recording.Action(action, target, key, value, currency, once), user=user, request=request, commit=commit
        )

    @classmethod
    def attach(
        cls, code: str, *, user: t.Any = None, request: Request | None = None, commit: bool = True
    ) -> "ReferralResponseMixin":
        """Record that somebody typed a code into a form: it counts like having followed the link.

        :param code: what was typed; blanks around it and, for a code of lower case, capitals do not matter.
        :param user: who typed it, when it is not the user who is logged in.
        :param request: the request, by default the current one.
        :param commit: commit the session.
        :return: the response, with the action ``ATTACHED``.
        :raises InvalidValueError: there is no such code, or its referral has expired.
        :raises TooManyGuessesError: too many wrong codes came from this address lately.
        """
        referral = attaching.find(code, visitors.resolve_request(request))
        return referral.respond(attaching.ATTACH, user=user, request=request, commit=commit)

    @classmethod
    def explain(cls, who: t.Any = None) -> "list[explaining.Verdict]":
        """Tell of every touch why it earns the credit now, or why not.

        :param who: a user or a request, by default the current request.
        :return: a verdict on each touch, newest first; before them one on the action that binds a user, if one does.
        """
        return explaining.explain(who)

    @classmethod
    def referral_for_request(cls, request: Request | None = None) -> "Self | None":
        """Return the referral that gets credit for what this request does, or ``None``.

        :param request: the request, by default the current one.
        """
        visitor = pending.identify(visitors.resolve_request(request))
        return t.cast("Self | None", attribution.credited(visitor)) if visitor else None

    @classmethod
    def for_request(cls, request: Request | None = None) -> "Self | None":
        """Return the same, under the name it also has in pinax-referrals."""
        return cls.referral_for_request(request)

    @classmethod
    def referrer_of(cls, user: t.Any) -> "Self | None":
        """Return the referral that brought a user, or ``None``: that of their first credited action.

        Later actions of theirs follow it, whatever links they click on then.

        :param user: the user.
        """
        return t.cast("Self | None", attribution.referrer_of(id_of_user(user)))

    @classmethod
    def referred_by(cls, user: t.Any) -> Sequence[t.Any]:
        """Return the users whom a user's referrals brought, in the order in which they came.

        :param user: the user who passed the links on.
        :return: the users; in an app without a user model what is stored for them.
        """
        return attribution.referred_by(id_of_user(user))

    @classmethod
    def referral_responses_for_request(cls, request: Request | None = None) -> "Sequence[ReferralResponseMixin]":
        """Return everything recorded for whoever makes this request, newest first.

        :param request: the request, by default the current one.
        """
        visitor = pending.identify(visitors.resolve_request(request))
        if not visitor:
            return []
        state = current_state()
        newest_first = attribution.newest_first(state.models.response)
        return state.session.scalars(attribution.responses_of(visitor).order_by(*newest_first)).all()

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
        commit: bool = True,
    ) -> "ReferralResponseMixin":
        """Record a response to this referral, whoever else may deserve credit.

        It counts like a click of its own: later actions of the same visitor are credited to this referral. The
        parameters and errors are those of :meth:`record_response`.

        :return: the response; the owner's own has ``ignored`` set.
        """
        return recording.respond(
            self,
            recording.Action(action, target, key, value, currency),
            user=user,
            request=request,
            commit=commit,
        )

    def link_responses_to_user(self, user: t.Any, session_key: str, *, commit: bool = True) -> None:
        """Give a user the responses to this referral that a visitor's key left and that nobody has claimed.

        ``user_linked_to_response`` is sent for each.

        :param user: the user.
        :param session_key: the visitor's key, as in :attr:`ReferralResponseMixin.session_key`.
        :param commit: commit the session.
        """
        state = current_state()
        transaction = Transaction(state, state.models.response, commit=commit)
        visitor = attribution.Visitor(id_of_user(user), session_key)
        if session_key != storable(session_key, 43):
            return  # no visitor has it
        referral_id = self.id

        def work() -> None:
            joining.claim(transaction, visitor, referral_id=referral_id)
            transaction.commit()

        transaction.run(work)

    @property
    def url(self) -> str:
        """The absolute link, outside a request too.

        :raises ConfigurationError: there is neither ``REFERRALS_BASE_URL``, nor ``SERVER_NAME``, nor a request.
        """
        return urls.referral_url(self.code)

    def is_active(self) -> bool:
        """Whether the link still records and earns: it has not expired."""
        return self.expired_at is None or self.expired_at > now()

    @property
    def response_count(self) -> int:
        """How many clicks on this link counted."""
        return reporting.click_count(self.id)

    def filtered_responses(self, limit: int | None = None) -> "Sequence[ReferralResponseMixin]":
        """Return the responses that count, newest first, as the host's ``responses_filter`` lets them through.

        :param limit: the most to return.
        """
        return reporting.filtered_responses(referral=self, limit=limit)


@event.listens_for(ReferralMixin, "before_delete", propagate=True)
def _delete_responses(mapper: Mapper[t.Any], connection: sa.Connection, referral: ReferralMixin) -> None:
    """Do what ON DELETE CASCADE does, for SQLite enforces foreign keys only when the host asks for it."""
    responses = t.cast(sa.Table, mapper.relationships["responses"].mapper.local_table)
    total = totals.table_of(t.cast(sa.Table, mapper.local_table))
    for table in (responses, total):
        connection.execute(sa.delete(table).where(table.c.referral_id == referral.id))
