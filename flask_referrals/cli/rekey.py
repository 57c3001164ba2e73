"""``flask referrals rekey``.

The models say that the users' column has the type of the primary keys; the database still has text. So every statement
here takes the column as text.
"""

import secrets
import typing as t
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import click
import sqlalchemy as sa
from flask.cli import with_appcontext

from ..actors import parse_user_key, plain_key
from ..db.keys import digest, once_key
from ..db.transactions import Transaction, open_transaction
from ..exceptions import InvalidValueError
from ..state import AppState, current_state
from ..types import Actor
from .options import read_user_keys
from .output import printable

_BATCH = 1000
_TEXT = sa.String()


class _Key(t.NamedTuple):
    """The key of a user: as a column of text has it, and as the digests have it."""

    stored: str
    plain: str


class _Change(t.NamedTuple):
    before: _Key
    after: _Key


@dataclass
class _Report:
    """How many rows of a table have a new key, have the right one already, and are of unknown users, by their keys."""

    changed: int = 0
    right: int = 0
    unknown: Counter[str] = field(default_factory=Counter)


@click.command()
@click.option(
    "--users",
    type=click.File(encoding="utf-8-sig"),
    help="Read users whose get_id() has changed from this CSV file, such as 'old-id,7': an old key and a primary key.",
)
@click.option("--back", is_flag=True, help="Store get_id() again, after a downgrade of the migration.")
@click.option("--clear-unknown", is_flag=True, help="Remove the user from the rows of unknown users.")
@click.option("--dry-run", is_flag=True, help="Count the rows, but change nothing.")
@with_appcontext
@click.pass_context
def rekey(ctx: click.Context, users: t.TextIO | None, back: bool, clear_unknown: bool, dry_run: bool) -> None:
    """Replace get_id() by primary keys as the key of users.

    Use this to add 'user_model' to an app with stored links. Stop the site, pass 'user_model' to Referrals, and run
    this before the migration that changes the type of the column. Links, credit and unique actions stay those of the
    same users. If the command is interrupted, run it again.

    The command exits with status 1 if rows of unknown users are left. Name these users in the file of --users, or use
    --clear-unknown.
    """
    state = current_state()
    if users is not None and back:
        raise click.UsageError("--users names primary keys. Leave it out with --back.")
    if state.database.models.user is None:
        raise click.ClickException("This app has no user model. Pass user_model=... to Referrals first.")
    _check_columns(state)
    changes, right = _read_users(state, () if users is None else read_user_keys(users), back=back)
    rekeying = _Rekeying(state, changes, right, clears_unknown=clear_unknown, is_dry=dry_run)
    reports = {"Links": rekeying.rekey_links(), "Responses": rekeying.rekey_responses()}
    for name, report in reports.items():
        words = "to rekey" if dry_run else "rekeyed"
        unknown = "without a known user" if dry_run or not clear_unknown else "of unknown users cleared"
        click.echo(f"{name}: {report.changed} {words}, {report.right} right, {report.unknown.total()} {unknown}.")
    unknown_users = reports["Links"].unknown + reports["Responses"].unknown
    if unknown_users and (dry_run or not clear_unknown):
        for key, rows in sorted(unknown_users.items()):
            click.echo(f"Unknown user: {printable(key)} ({rows} rows)", err=True)
        ctx.exit(1)


def _check_columns(state: AppState) -> None:
    """Exit if the migration was applied already: then the columns hold primary keys."""
    inspector = sa.inspect(state.database.engine)
    for columns in (state.database.models.referrals, state.database.models.responses):
        name, table = columns.user_id.name, columns.user_id.table
        is_text = any(
            each["name"] == name and isinstance(each["type"], sa.String)
            for each in inspector.get_columns(table.name, table.schema)
        )
        has_foreign_key = any(
            name in each["constrained_columns"] for each in inspector.get_foreign_keys(table.name, table.schema)
        )
        if not is_text or has_foreign_key:
            raise click.ClickException(
                f"The column {table.name}.{name} refers to primary keys already. Run 'rekey' before the migration "
                "that changes the column, or after its downgrade."
            )


def _read_users(
    state: AppState, pairs: Iterable[tuple[str, str]], *, back: bool
) -> tuple[Mapping[str, _Change], set[str]]:
    """Return the changes of the stored keys by these keys, and those of them that are right already."""
    model: t.Any = state.database.models.user
    stored, (column,) = _stored_keys(state), sa.inspect(model).primary_key
    select = sa.select(model, sa.cast(column, _TEXT).label("stored_key")).options(sa.orm.lazyload("*"))
    changes: dict[str, _Change] = {}
    right: set[str] = set()

    def add(old: _Key, new: _Key) -> None:
        before, after = (new, old) if back else (old, new)
        if before.stored in stored and before != after:
            changes[before.stored] = _Change(before, after)
        if after.stored in stored:
            right.add(after.stored)

    with state.database.new_session() as session:
        for user, text in session.execute(select.execution_options(yield_per=_BATCH)):
            key = _Key(text, str(sa.inspect(user).identity[0]))
            with suppress(InvalidValueError):  # nothing is stored under such an id
                plain = plain_key(user) if hasattr(user, "get_id") else key.stored
                if plain is not None:
                    add(_Key(plain, plain), key)
        for old, new in pairs:
            key = parse_user_key(state, new)
            found = session.execute(select.where(column == key)).one_or_none() if key is not None else None
            if found is None:
                raise click.ClickException(f"There is no user with the key {new!r}. Give a primary key in --users.")
            add(_Key(old, old), _Key(found[1], str(key)))
    ambiguous = sorted(right & changes.keys())
    if ambiguous:
        raise click.ClickException(
            f"{ambiguous[0]!r} is the old key of one user and the new key of another, so that a second run could not "
            "tell their rows apart. Change these rows by hand."
        )
    return changes, right


def _stored_keys(state: AppState) -> set[str]:
    """Return the keys in both tables. MariaDB ignores trailing spaces unless a character follows."""
    found: set[str] = set()
    with state.database.engine.connect() as connection:
        for columns in (state.database.models.referrals, state.database.models.responses):
            exact = sa.type_coerce(columns.user_id, _TEXT).concat("|")
            found |= {text[:-1] for text in connection.scalars(sa.select(exact).distinct()) if text is not None}
    return found


@dataclass(frozen=True)
class _Rekeying:
    state: AppState
    changes: Mapping[str, _Change]
    right: set[str]
    clears_unknown: bool
    is_dry: bool

    def rekey_links(self) -> _Report:
        """Replace the owners, and the digests by which ``create`` finds their links."""
        links = self.state.database.models.referrals
        names = ("redirect_to", "label", "target_type", "target_id")

        def new_digests(transaction: Transaction, rows: Sequence[t.Any]) -> Iterator[dict[str, t.Any]]:
            wanted = {}
            for row, change in self._changed(rows):
                place = [getattr(row, name) for name in names]
                if row.identity == digest(change.before.plain, *place):
                    wanted[row.id] = digest(change.after.plain, *place)
            for key, identity in self._free(transaction, links, wanted):
                yield {"of": key, "new_identity": identity or secrets.token_hex(32)}

        return self._rekey(links, (*names, "identity"), new_digests)

    def rekey_responses(self) -> _Report:
        """Replace the users, and the keys of what they do once."""
        responses = self.state.database.models.responses

        def new_digests(transaction: Transaction, rows: Sequence[t.Any]) -> Iterator[dict[str, t.Any]]:
            wanted, keys = {}, {}
            for row, change in self._changed(rows):
                if row.key is not None and row.key == once_key(Actor(change.before.plain)):
                    keys[row.id] = once_key(Actor(change.after.plain))
                    wanted[row.id] = digest(row.action, keys[row.id])
            for key, identity in self._free(transaction, responses, wanted):
                yield {"of": key, "new_identity": identity, "new_key": keys[key] if identity else None}

        return self._rekey(responses, ("action", "key"), new_digests)

    def _changed(self, rows: Sequence[t.Any]) -> Iterator[tuple[t.Any, _Change]]:
        """Yield the rows whose digests change, too."""
        for row in rows:
            change = self.changes.get(row.user_id)
            if change is not None and change.before.plain != change.after.plain:
                yield row, change

    def _free(
        self, transaction: Transaction, columns: t.Any, wanted: Mapping[int, str]
    ) -> Iterator[tuple[int, str | None]]:
        """Yield each row's new digest, or ``None`` if another row has it: a user may have had two keys."""
        taken = set()
        if wanted:
            found = sa.select(columns.identity).where(columns.identity.in_(wanted.values()))
            taken = set(transaction.execute(found).scalars())
        for key, identity in wanted.items():
            yield key, None if identity in taken else identity
            taken.add(identity)

    def _rekey(
        self,
        columns: t.Any,
        names: Sequence[str],
        new_digests: Callable[[Transaction, Sequence[t.Any]], Iterator[dict[str, t.Any]]],
    ) -> _Report:
        """Replace the keys of a table's rows, in batches of a transaction each."""
        report, last = _Report(), 0
        user = sa.type_coerce(columns.user_id, _TEXT)
        select = sa.select(columns.id, user.label("user_id"), *(columns[name].label(name) for name in names))
        select = select.where(user.is_not(None)).order_by(columns.id).limit(_BATCH)

        def change(last: int, transaction: Transaction) -> Sequence[t.Any]:
            rows: Sequence[t.Any] = transaction.execute(select.where(columns.id > last)).all()
            if not self.is_dry:
                with transaction.write():
                    self._write(transaction, columns, rows, [*new_digests(transaction, rows)])
                transaction.has_written = True
            return rows

        while True:
            transaction = open_transaction(self.state.database, commit=True)
            rows = transaction.run(partial(change, last, transaction))
            if not rows:
                return report
            last = rows[-1].id
            for row in rows:
                report.changed += row.user_id in self.changes
                report.right += row.user_id in self.right
                if row.user_id not in self.changes and row.user_id not in self.right:
                    report.unknown[row.user_id] += 1

    def _write(
        self, transaction: Transaction, columns: t.Any, rows: Sequence[t.Any], digests: Sequence[dict[str, t.Any]]
    ) -> None:
        of_users: dict[str | None, list[int]] = {}
        for row in rows:
            if row.user_id in self.changes:
                of_users.setdefault(self.changes[row.user_id].after.stored, []).append(row.id)
            elif self.clears_unknown and row.user_id not in self.right:
                of_users.setdefault(None, []).append(row.id)
        update = sa.update(columns.id.table)
        for user, ids in of_users.items():
            text = sa.bindparam("new_user", user, _TEXT)
            transaction.execute(update.where(columns.id.in_(ids)).values({columns.user_id: text}))
        if digests:
            values: dict[t.Any, t.Any] = {columns.identity: sa.bindparam("new_identity")}
            if "new_key" in digests[0]:
                values[columns.key] = sa.bindparam("new_key")
            transaction.execute(update.where(columns.id == sa.bindparam("of")).values(values), digests)
