"""What both tables have in common: times in UTC, the user, and the object they are about."""

import typing as t
from datetime import datetime
from datetime import timezone

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import attributes
from sqlalchemy.orm import backref
from sqlalchemy.orm import declared_attr
from sqlalchemy.orm import foreign
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import relationship
from sqlalchemy.orm import validates

from .. import targets
from ..columns import KEY
from ..columns import TIME
from ..columns import exact
from ..exceptions import InvalidValueError
from ..identity import MAX_USER_ID
from ..times import as_utc


def now() -> datetime:
    """Return the time, aware, in UTC."""
    return datetime.now(timezone.utc)


class RecordMixin:
    """What both tables have: a key, a time, a user, and an object they are about."""

    __user_model__: t.ClassVar[type[t.Any] | None] = None

    #: Never used twice, so that the rows of a deleted referral cannot become another's.
    __table_args__: t.Any = {"sqlite_autoincrement": True}

    #: The name under which a user lists these rows, if at all.
    __user_backref__: t.ClassVar[str | None] = None

    if t.TYPE_CHECKING:
        metadata: t.ClassVar[sa.MetaData]

        def __init__(self, **columns: t.Any) -> None: ...

    # The sort orders put our columns before those a host adds, the key first.
    id: Mapped[int] = mapped_column(KEY, primary_key=True, sort_order=-3)
    created_at: Mapped[datetime] = mapped_column(TIME, default=now, sort_order=-1)
    target_type: Mapped[str | None] = mapped_column(exact(100), sort_order=-1)
    target_id: Mapped[str | None] = mapped_column(exact(64), sort_order=-1)

    @declared_attr
    def user_id(cls) -> Mapped[t.Any]:
        """The user's key, of the type it has in the host's user model."""
        if cls.__user_model__ is None:
            return mapped_column(exact(MAX_USER_ID), nullable=True, sort_order=-1)
        (key,) = sa.inspect(cls.__user_model__).primary_key
        if key.table.metadata is not cls.metadata:  # in another database, where no foreign key leads
            return mapped_column(key.type, nullable=True, sort_order=-1)
        return mapped_column(sa.ForeignKey(key, ondelete="SET NULL"), nullable=True, sort_order=-1)

    @declared_attr
    def user(cls) -> Mapped[t.Any]:
        """The user; ``None`` as well in an app without a user model."""
        if cls.__user_model__ is None:
            return t.cast("Mapped[t.Any]", None)
        (key,) = sa.inspect(cls.__user_model__).primary_key
        return relationship(
            cls.__user_model__,
            primaryjoin=lambda: foreign(t.cast(t.Any, cls.user_id)) == key,
            backref=backref(cls.__user_backref__) if cls.__user_backref__ else None,
        )

    @validates("created_at")
    def _created_at_in_utc(self, name: str, value: datetime | None) -> datetime | None:
        return to_utc(name, value)

    @property
    def target(self) -> t.Any:
        """The object this is about, or ``None``, also when it has been deleted."""
        of, target = self.__dict__.get("_held_target", (None, None))
        if of != (self.target_type, self.target_id) or (target is not None and not _is_current(target)):
            target = targets.load(self.target_type, self.target_id)
            # Held here, for the session holds its objects weakly: asking again costs no statement.
            self._target = target
        return target

    @target.setter
    def target(self, target: t.Any) -> None:
        self.target_type, self.target_id = targets.reference(target)

    def _hold_target(self, target: t.Any) -> None:
        """Take an object that was loaded for many records at once as the target of this one.

        :param target: the object, or ``None`` when there is none any more.
        """
        self._held_target = ((self.target_type, self.target_id), target)


def _is_current(obj: t.Any) -> bool:
    """Whether an object is still as its session has it: neither deleted nor from before a commit."""
    state = sa.inspect(obj)
    return state.persistent and not state.expired


def to_utc(name: str, value: datetime | None) -> datetime | None:
    """Return a time as it is stored; SQLite and MariaDB drop the zone without looking at it.

    :param name: how to call it in an error.
    :param value: an aware time.
    :raises InvalidValueError: it has no zone, so nobody knows when it was.
    """
    if value is not None and value.tzinfo is None:
        raise InvalidValueError(name, "must be an aware time: datetime.now(timezone.utc), not utcnow()")
    return value if value is None else value.astimezone(timezone.utc)


@event.listens_for(RecordMixin, "load", propagate=True)
@event.listens_for(RecordMixin, "refresh", propagate=True)
def _read_as_utc(record: RecordMixin, *args: t.Any) -> None:
    """SQLite and MariaDB give times back without their zone, PostgreSQL in that of the connection."""
    for name in ("created_at", "expired_at"):
        value = record.__dict__.get(name)
        if value is not None:
            attributes.set_committed_value(record, name, as_utc(value))
