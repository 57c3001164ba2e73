"""The response: a click on a referral, or something that was done later because of it."""

import typing as t
from decimal import Decimal

import sqlalchemy as sa
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import backref
from sqlalchemy.orm import declared_attr
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import relationship

from .. import attribution
from .. import recording
from ..columns import MONEY
from ..columns import exact
from .records import RecordMixin


class ReferralResponseMixin(RecordMixin):
    """A click on a referral, or something that was done later because of it."""

    __referral_model__: t.ClassVar[type[t.Any]]

    #: The visitor's random key; never a session's id.
    session_key: Mapped[str | None] = mapped_column(exact(43), sort_order=-2)
    action: Mapped[str] = mapped_column(exact(128), sort_order=-2)
    #: Whether the visitor answered the link itself: a click, or :meth:`ReferralMixin.respond`. Credit rests on these.
    is_touch: Mapped[bool] = mapped_column(default=False, sort_order=-2)
    #: The reason code why it does not count; ``None``: it counts.
    ignored: Mapped[str | None] = mapped_column(exact(20), sort_order=-2)
    ip_address: Mapped[str | None] = mapped_column(sa.String(45), sort_order=-2)
    http_referrer: Mapped[str | None] = mapped_column(sa.String(1024), sort_order=-2)
    user_agent: Mapped[str | None] = mapped_column(sa.String(255), sort_order=-2)
    key: Mapped[str | None] = mapped_column(exact(128), sort_order=-2)
    #: A digest of action and key; ``None`` without a key. A unique key over both would be the same in all rows without
    #: a key, to Galera, and two clicks at the same time a conflict.
    identity: Mapped[str | None] = mapped_column(exact(64), unique=True, sort_order=-2)
    value: Mapped[Decimal | None] = mapped_column(MONEY, sort_order=-2)
    currency: Mapped[str | None] = mapped_column(sa.String(3), sort_order=-2)
    params: Mapped[dict[str, t.Any] | None] = mapped_column(sa.JSON(none_as_null=True), sort_order=-2)

    @declared_attr
    def referral_id(cls) -> Mapped[int]:
        """The referral's key."""
        return mapped_column(sa.ForeignKey(cls.__referral_model__.id, ondelete="CASCADE"), sort_order=-2)

    @declared_attr
    def referral(cls) -> Mapped[t.Any]:
        """The referral this answers."""
        back = backref(
            "responses",
            lazy="dynamic",
            cascade="all, delete-orphan",
            passive_deletes=True,
            order_by=lambda: attribution.newest_first(t.cast("type[ReferralResponseMixin]", cls)),
        )
        return relationship(cls.__referral_model__, foreign_keys=t.cast(t.Any, cls.referral_id), backref=back)

    @declared_attr.directive
    def __table_args__(cls) -> t.Any:
        return (
            sa.Index(None, "session_key", "created_at", "id"),
            sa.Index(None, "user_id", "is_touch", "created_at", "id"),
            sa.Index(None, "referral_id", "created_at", "id"),
            RecordMixin.__table_args__,
        )

    def __str__(self) -> str:
        return self.action

    def void(self, reason: str, *, commit: bool = True) -> "ReferralResponseMixin":
        """Take this response out of all counts and credit, as after a refund or a fraud.

        The row stays, with ``ignored`` set to ``void``, and the voiding is recorded as a response of its own, with the
        action ``VOIDED`` and the reason in ``params``. A second call changes nothing.

        :param reason: why, at most 200 characters.
        :param commit: commit the session.
        :return: the record of the voiding.
        """
        return recording.void(self, reason, commit=commit)
