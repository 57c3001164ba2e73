"""The columns of the tables, as mixins without a database.

Stock types only: a type of our own would be a name that the host's migrations do not import.
"""

import typing as t
from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import (
    Mapped,
    MappedColumn,
    Mapper,
    attributes,
    backref,
    declared_attr,
    foreign,
    mapped_column,
    relationship,
    validates,
)
from sqlalchemy.types import TypeEngine

from ..times import as_utc, now, require_aware
from .conditions import newest_first

#: The longest user key of an app without a user model, in characters.
MAX_USER_ID = 255

#: The entry in the ``info`` of a column for which MariaDB needs a type of its own.
_PRECISE = "flask_referrals.precise"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def _money(digits: int) -> TypeEngine[t.Any]:
    # SQLite has no decimals. A float of 14 digits returns what was stored.
    return sa.Numeric(digits, 4).with_variant(sa.Float(asdecimal=True, decimal_return_scale=4), "sqlite")


def _precise(type_: TypeEngine[t.Any], **options: t.Any) -> MappedColumn[t.Any]:
    """Return a column that MariaDB stores to the microsecond, or compares byte for byte: 'a' and 'A' differ."""
    return mapped_column(type_, info={_PRECISE: True}, **options)


def _complete(table: sa.Table, indexes: Iterable[Sequence[t.Any]], unique: Iterable[Sequence[t.Any]] = ()) -> None:
    """Set MariaDB's types, and add the indexes that the table lacks.

    MariaDB's dialect is imported here, with the first model, because that takes some 8 ms.
    """
    from sqlalchemy.dialects import mysql

    # Ids are never used twice, so that the rows of a deleted referral cannot become another's.
    if len(table.primary_key.columns) == 1:
        table.dialect_kwargs["sqlite_autoincrement"] = True
    convention: t.Any = table.metadata.naming_convention
    template = str(convention.get("ix") or convention.get(sa.Index) or "%(constraint_name)s")
    for columns, is_unique in [*((each, False) for each in indexes), *((each, True) for each in unique)]:
        if not any([*index.columns] == [*columns] for index in table.indexes):
            name = f"ix_{table.name}_{columns[0].name}" if "constraint_name" in template else None
            sa.Index(name, *columns, unique=is_unique)
    for column in table.columns:
        if column.info.pop(_PRECISE, False):
            is_time, length = isinstance(column.type, sa.DateTime), getattr(column.type, "length", None)
            variant = mysql.DATETIME(fsp=6) if is_time else mysql.VARCHAR(length, collation="utf8mb4_bin")
            column.type = column.type.with_variant(variant, "mysql", "mariadb")


class RecordColumns:
    __user_model__: t.ClassVar[type[t.Any] | None] = None

    #: The attributes of each index. It is not in ``__table_args__``, which a host may replace.
    __indexes__: t.ClassVar[tuple[tuple[str, ...], ...]]
    #: The attributes of unique indexes. A unique constraint cannot be added to a table of SQLite without a name.
    __unique_indexes__: t.ClassVar[tuple[tuple[str, ...], ...]] = ()

    #: The name of the relationship from a user to these rows, if there is one. Two models cannot have the same.
    __user_backref__: t.ClassVar[str | None] = None

    if t.TYPE_CHECKING:
        metadata: t.ClassVar[sa.MetaData]

        def __init__(self, **columns: t.Any) -> None: ...

    # The sort orders put these columns before those that a host adds, the key first.
    id: Mapped[int] = mapped_column(KEY, primary_key=True, sort_order=-3)
    created_at: Mapped[datetime] = _precise(TIME, default=now, sort_order=-1)
    target_type: Mapped[str | None] = _precise(sa.String(100), sort_order=-1)
    target_id: Mapped[str | None] = _precise(sa.String(64), sort_order=-1)

    @declared_attr
    def user_id(cls) -> Mapped[t.Any]:
        if cls.__user_model__ is None:
            return _precise(sa.String(MAX_USER_ID), nullable=True, sort_order=-1)
        (key,) = sa.inspect(cls.__user_model__).primary_key
        if key.table.metadata is not cls.metadata:  # no foreign key leads into another database
            return mapped_column(key.type, nullable=True, sort_order=-1)
        return mapped_column(sa.ForeignKey(key, ondelete="SET NULL"), nullable=True, sort_order=-1)

    @declared_attr
    def user(cls) -> Mapped[t.Any]:
        """The user. ``None`` as well in an app without a user model."""
        if cls.__user_model__ is None:
            return t.cast("Mapped[t.Any]", None)
        (key,) = sa.inspect(cls.__user_model__).primary_key
        return relationship(
            cls.__user_model__,
            primaryjoin=lambda: foreign(t.cast(t.Any, cls.user_id)) == key,
            backref=backref(cls.__user_backref__) if cls.__user_backref__ else None,
        )

    @validates("created_at", "expired_at", include_backrefs=False)
    def _to_utc(self, name: str, value: datetime | None) -> datetime | None:
        return require_aware(name, value)


class ReferralColumns(RecordColumns):
    __user_backref__: t.ClassVar[str | None] = "referral_codes"
    __indexes__: t.ClassVar[tuple[tuple[str, ...], ...]] = (("user_id",),)
    __unique_indexes__: t.ClassVar[tuple[tuple[str, ...], ...]] = (("folded_code",),)

    code: Mapped[str] = _precise(sa.String(64), unique=True, sort_order=-2)
    #: The code in lower case; ``None`` if another referral has it.
    folded_code: Mapped[str | None] = _precise(sa.String(64), sort_order=-2)
    label: Mapped[str] = _precise(sa.String(100), default="", sort_order=-2)
    redirect_to: Mapped[str] = mapped_column(sa.String(2048), sort_order=-2)
    #: The digest of user, target and the two columns above, by which ``create`` finds the one row.
    identity: Mapped[str] = _precise(sa.String(64), unique=True, sort_order=-2)
    #: From this time on the link still redirects but is no longer tracked.
    expired_at: Mapped[datetime | None] = _precise(TIME, sort_order=-2)

    @validates("code", include_backrefs=False)
    def _fold_code(self, name: str, code: str) -> str:
        self.folded_code = code and code.lower()
        return code

    def is_active(self) -> bool:
        """Return whether the link is still tracked: it has not expired."""
        return self.expired_at is None or self.expired_at > now()


class ResponseColumns(RecordColumns):
    __referral_model__: t.ClassVar[type[t.Any]]
    #: The name of the relationship from a referral to these rows, if there is one. Two models cannot have the same.
    __referral_backref__: t.ClassVar[str | None] = "responses"
    # Repeats are apart in them, so that nothing gets slower with their number.
    __indexes__: t.ClassVar[tuple[tuple[str, ...], ...]] = (
        ("session_key", "ignored", "created_at", "id"),
        ("user_id", "is_touch", "ignored", "created_at", "id"),
        ("referral_id", "created_at", "id"),
    )

    #: The visitor key. Never the id of a session.
    session_key: Mapped[str | None] = _precise(sa.String(43), sort_order=-2)
    action: Mapped[str] = _precise(sa.String(128), sort_order=-2)
    #: Whether this is a touch: a click, or what ``respond()`` recorded. Attribution chooses from touches.
    is_touch: Mapped[bool] = mapped_column(default=False, sort_order=-2)
    #: The reason code of an ignored response; ``None`` when it is counted.
    ignored: Mapped[str | None] = _precise(sa.String(20), sort_order=-2)
    ip_address: Mapped[str | None] = mapped_column(sa.String(45), sort_order=-2)
    http_referrer: Mapped[str | None] = _precise(sa.String(1024), sort_order=-2)
    user_agent: Mapped[str | None] = mapped_column(sa.String(255), sort_order=-2)
    key: Mapped[str | None] = _precise(sa.String(128), sort_order=-2)
    #: The digest of action and key; ``None`` without a key. Galera would take all rows without a key as equal under a
    #: unique key over both columns, and two clicks at the same time as a conflict.
    identity: Mapped[str | None] = _precise(sa.String(64), unique=True, sort_order=-2)
    value: Mapped[Decimal | None] = mapped_column(_money(14), sort_order=-2)
    currency: Mapped[str | None] = mapped_column(sa.String(3), sort_order=-2)
    params: Mapped[dict[str, t.Any] | None] = mapped_column(sa.JSON(none_as_null=True), sort_order=-2)

    @declared_attr
    def referral_id(cls) -> Mapped[int]:
        return mapped_column(sa.ForeignKey(cls.__referral_model__.id, ondelete="CASCADE"), sort_order=-2)

    @declared_attr
    def referral(cls) -> Mapped[t.Any]:
        back = cls.__referral_backref__ and backref(
            cls.__referral_backref__,
            lazy="dynamic",
            cascade="all, delete-orphan",
            passive_deletes=True,
            order_by=lambda: newest_first(cls),
        )
        return relationship(cls.__referral_model__, foreign_keys=t.cast(t.Any, cls.referral_id), backref=back)


def new_total_table(referrals: sa.Table) -> sa.Table:
    """Declare the table of the rolled-up counts beside that of the referrals.

    The second index has all columns of a leaderboard, so that PostgreSQL need not read the table.
    """
    total = sa.Table(
        f"{referrals.name}_total",
        referrals.metadata,
        sa.Column("id", KEY, primary_key=True),
        sa.Column("referral_id", sa.ForeignKey(referrals.c.id, ondelete="SET NULL")),
        sa.Column("action", sa.String(128), nullable=False, info={_PRECISE: True}),
        sa.Column("day", TIME, nullable=False, info={_PRECISE: True}),
        sa.Column("count", KEY, nullable=False),
        sa.Column("value", _money(20)),
        sa.Column("currency", sa.String(3)),
        schema=referrals.schema,
    )
    columns = total.c
    _complete(
        total,
        [[columns.referral_id, columns.day], [columns.action, columns.day, columns.referral_id, columns["count"]]],
    )
    return total


@event.listens_for(RecordColumns, "after_mapper_constructed", propagate=True)
def _on_new_model(mapper: Mapper[t.Any], model: type[RecordColumns]) -> None:
    if mapper.inherits is None:
        indexes, unique = (
            [[mapper.columns[name] for name in names] for names in each]
            for each in (model.__indexes__, model.__unique_indexes__)
        )
        _complete(t.cast(sa.Table, mapper.local_table), indexes, unique)


@event.listens_for(RecordColumns, "load", propagate=True)
@event.listens_for(RecordColumns, "refresh", propagate=True)
def _read_as_utc(record: RecordColumns, *args: t.Any) -> None:
    """Make times aware. SQLite and MariaDB return them without a zone, PostgreSQL in that of the connection."""
    for name in ("created_at", "expired_at"):
        value = record.__dict__.get(name)
        if value is not None:
            attributes.set_committed_value(record, name, as_utc(value))
    record.__dict__.pop("_loaded_target", None)
