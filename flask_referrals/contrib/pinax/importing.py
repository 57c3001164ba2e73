"""Insert the links and responses of a dump, in any order, batch by batch.

Each batch is a transaction. Rows that refer to rows not read yet are deferred to the end of the dump. A second run
inserts only what is new.
"""

import secrets
import typing as t
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone, tzinfo
from functools import partial

import sqlalchemy as sa
from sqlalchemy.exc import DataError, IntegrityError

from ...actors import parse_user_key
from ...db.build import Models
from ...db.keys import digest
from ...db.totals import Counted, correct_totals
from ...db.transactions import OwnTransaction, Transaction
from ...state import AppState, current_state
from ...times import as_utc
from ...types import CLICK
from ...web.urls import target_location
from .dumps import CONTENT_TYPE, LINK, RESPONSE, Broken, Record
from .ledger import ImportedLink, Ledger
from .records import Link, Refused, Response, Row, read_link, read_response, read_text

_BATCH = 1000

#: Databases may round a time to this.
_ROUNDING = timedelta(seconds=1)

#: A remark on a record: where the record is, and the text.
Remark = tuple[str, str]


@dataclass
class Report:
    """The numbers of an import."""

    links_added: int = 0
    links_present: int = 0
    responses_added: int = 0
    responses_present: int = 0
    #: Links with the user, place, label and target of an earlier link.
    duplicates: int = 0
    #: Links to URLs that are not allowed here.
    not_allowed: int = 0
    #: Rows whose user does not exist here.
    without_user: int = 0
    refused: int = 0


@dataclass(frozen=True)
class Options:
    """How to read a dump, and which functions to call meanwhile.

    :param targets: the name of a registered target or of a table for each content type, ``"app.model"`` or its id.
    :param users: pairs of a user's key in the dump and here. ``None``: they are the same.
    :param zone: the zone of times that name none.
    :param refuse: called for each record that is refused, with where it is and the reason.
    :param note: called for each imported record with a peculiarity, with where it is and the words.
    :param progress: called after each batch.
    """

    targets: Mapping[str, str] = field(default_factory=dict)
    users: Iterable[tuple[str, str]] | None = None
    zone: tzinfo = timezone.utc
    refuse: Callable[[str, str], None] = lambda where, reason: None
    note: Callable[[str, str], None] = lambda where, words: None
    progress: Callable[[], None] = lambda: None


def import_pinax(records: Iterable[Record | Broken], options: Options | None = None) -> Report:
    """Add the links and responses of a dump to those of the current app, and commit.

    Codes, times, and the link of each response are kept. No signal is sent. If several links have the same user, place,
    label and target, all are added, because their codes are in use; :meth:`.ReferralMixin.create` finds the first.

    :param records: what :func:`.read_json` or :func:`.read_csv` yields.
    """
    run = _Import(current_state(), options or Options())
    try:
        run.add_all(records)
    finally:
        run.ledger.close()
    return Report(**run.counts)


class _Import:
    """One run of :func:`import_pinax`."""

    def __init__(self, state: AppState, options: Options) -> None:
        self.state = state
        self.options = options
        self.ledger = Ledger(options.users)
        self.counts: Counter[str] = Counter()
        self._content_types: dict[str, str] = {}
        self._links: list[Link] = []
        self._responses: list[Response] = []
        #: Whether the whole dump has been read: what a row refers to is known by now, or is not in the dump.
        self._is_read = False

    def add_all(self, records: Iterable[Record | Broken]) -> None:
        self._add_each(records)
        self._is_read = True
        for kind in (LINK, RESPONSE):
            self._add_each(self.ledger.deferred(kind))

    def _add_each(self, records: Iterable[Record | Broken]) -> None:
        for record in records:
            try:
                self._add(record)
            except Refused as error:
                self._refuse(record.where, str(error))
            if len(self._links) >= _BATCH or len(self._responses) >= _BATCH:
                self._store_batches()
        self._store_batches()

    def _add(self, record: Record | Broken) -> None:
        if isinstance(record, Broken):
            raise Refused(record.reason)
        if record.kind == CONTENT_TYPE:
            name = f"{read_text(record, 'app_label', 100)}.{read_text(record, 'model', 100)}"
            self._content_types[record.pk] = name
        elif record.kind == LINK:
            link = read_link(record, self.options.zone)
            if link.code.lower() in self.state.settings.reserved_codes:
                raise Refused(f"code {link.code!r} is reserved")
            self._links.append(link)
        else:
            self._responses.append(read_response(record, self.options.zone, self.state.settings))

    def _refuse(self, where: str, reason: str) -> None:
        self.counts["refused"] += 1
        self.options.refuse(where, reason)

    def _store_batches(self) -> None:
        links, self._links = self._links, []
        self._store(self._select_ready(links))
        responses, self._responses = self._responses, []
        self._store(self._select_ready(responses))
        self.options.progress()

    def _select_ready(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Return the rows whose link and content type are known. Defer the others."""
        if self._is_read:
            return rows
        links = self.ledger.find_links(row.link for row in rows if isinstance(row, Response))
        ready = []
        for row in rows:
            has_type = row.content_type is None or self._type_name(row.content_type) is not None
            if has_type and (not isinstance(row, Response) or row.link in links):
                ready.append(row)
            else:
                self.ledger.defer(row.record)
        return ready

    def _store(self, rows: Sequence[Row]) -> None:
        """Store rows of one kind in a transaction. If the database refuses one of them, find out which."""
        if not rows:
            return
        self.state.database.session.commit()  # a batch in the host's transaction could not be retried
        transaction = OwnTransaction(self.state.database)
        try:
            batch = transaction.run(partial(self._insert, transaction, rows))
        except (DataError, IntegrityError) as error:
            if len(rows) == 1:
                self._refuse(rows[0].record.where, f"is refused by the database: {error.orig}")
            else:
                middle = len(rows) // 2
                self._store(rows[:middle])
                self._store(rows[middle:])
            return
        self.counts.update(batch.counts)
        self.ledger.add_links(batch.imported_links)
        for remark in batch.refusals:
            self._refuse(*remark)
        for remark in batch.notes:
            self.options.note(*remark)

    def _insert(self, transaction: Transaction, rows: Sequence[Row]) -> "_Batch":
        batch = _Batch(self, transaction)
        with transaction.write():
            transaction.lock()
            batch.insert(rows)
        return batch

    def target_of(self, row: Row) -> tuple[str | None, str | None]:
        """Return the type name and the key of a row's target."""
        if row.content_type is None:
            return None, None
        return (self._type_name(row.content_type) or f"contenttype-{row.content_type}")[:100], row.target_id

    def _type_name(self, content_type: str) -> str | None:
        """Return the name of a content type, which a dump with natural keys names, and others number."""
        name = content_type if "." in content_type else self._content_types.get(content_type)
        targets = self.options.targets
        return targets.get(content_type) or targets.get(name or "") or name


@dataclass
class _Batch:
    """The rows of a transaction. What it did is counted and reported after the commit."""

    _run: _Import
    _transaction: Transaction
    #: The keys of users here by their keys in the dump, and of those among them who exist.
    _keys: Mapping[str | None, t.Any] = field(default_factory=dict)
    _users: Mapping[str | None, t.Any] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    refusals: list[Remark] = field(default_factory=list)
    notes: list[Remark] = field(default_factory=list)
    imported_links: list[ImportedLink] = field(default_factory=list)

    @property
    def _models(self) -> Models:
        return self._run.state.database.models

    def insert(self, rows: Sequence[Row]) -> None:
        """Insert rows of one kind that are not stored yet."""
        self._users = self._find_users(rows)
        if isinstance(rows[0], Link):
            self._insert_links(t.cast("Sequence[Link]", rows))
        else:
            self._insert_responses(t.cast("Sequence[Response]", rows))

    def _find_users(self, rows: Sequence[Row]) -> dict[str | None, t.Any]:
        """Return the keys of the users here by their keys in the dump. Users who do not exist here are left out."""
        texts = self._run.ledger.find_users(row.user for row in rows if row.user is not None)
        self._keys = {old: parse_user_key(self._run.state, text) for old, text in texts.items()}
        existing = self._find_existing([key for key in self._keys.values() if key is not None])
        return {old: key for old, key in self._keys.items() if key in existing}

    def _find_existing(self, user_ids: Collection[t.Any]) -> Collection[t.Any]:
        """Return those of some users who exist. They may be in another database than the links."""
        model = self._models.user
        if model is None or not user_ids:
            return user_ids
        (column,) = sa.inspect(model).primary_key
        key = sa.inspect(model).get_property_by_column(column).class_attribute
        return set(self._transaction.session.scalars(sa.select(key).where(key.in_(user_ids))))

    def _insert_links(self, rows: Sequence[Link]) -> None:
        stored = self._find_links(row.code for row in rows)
        new = self._select_new(rows, stored)
        values = {code: self._link_columns(row) for code, row in new.items()}
        referrals = self._models.referrals
        holders = sa.select(referrals.identity, referrals.code).where(
            referrals.identity.in_([each["identity"] for each in values.values()])
        )
        code_of: dict[str, str] = {identity: code for identity, code in self._transaction.execute(holders)}
        folded = sa.select(referrals.folded_code).where(referrals.folded_code.in_([code.lower() for code in new]))
        taken = set(self._transaction.execute(folded).scalars())
        for code, row in new.items():
            values[code]["folded_code"] = None if code.lower() in taken else code.lower()
            if code.lower() in taken:
                self._note(row, f"link {code} is only found in exactly this case, because another has the code")
            taken.add(code.lower())
            identity = values[code]["identity"]
            if row.user is not None and values[code]["user_id"] is None:
                self.counts["without_user"] += 1
                values[code]["identity"] = secrets.token_hex(32)  # so that it is not the site's own link
            elif code_of.setdefault(identity, code) != code:
                self.counts["duplicates"] += 1
                self._note(row, f"link {code} is a duplicate of {code_of[identity]}; both codes work")
                values[code]["identity"] = secrets.token_hex(32)
            if target_location(self._run.state.settings, row.redirect_to) is None:
                self.counts["not_allowed"] += 1
                self._note(row, f"link {code} leads to {row.redirect_to!r}, which is not allowed now")
        self._insert_rows(referrals, list(values.values()))
        self.counts["links_added"] += len(values)
        stored |= self._find_links(new)
        refused = {where for where, _ in self.refusals}
        for row in rows:
            if row.record.where not in refused:
                link = stored[row.code]
                user_id = None if link.user_id is None else str(link.user_id)
                created_at = row.created_at.isoformat()
                self.imported_links.append(
                    ImportedLink(row.record.pk, link.id, row.code, row.user, user_id, created_at)
                )

    def _link_columns(self, row: Link) -> dict[str, t.Any]:
        values = self._common_columns(row)
        names = ("user_id", "redirect_to", "label", "target_type", "target_id")
        values |= {name: getattr(row, name) for name in ("code", "redirect_to", "label", "expired_at")}
        return {**values, "identity": digest(*(values[name] for name in names))}

    def _common_columns(self, row: Row) -> dict[str, t.Any]:
        target_type, target_id = self._run.target_of(row)
        return {
            "user_id": self._users.get(row.user),
            "target_type": target_type,
            "target_id": target_id,
            "created_at": row.created_at,
        }

    def _select_new(self, rows: Sequence[Link], stored: Mapping[str, t.Any]) -> dict[str, Link]:
        """Return the links that are not stored yet, by code. Refuse those whose code or key is another link's."""
        codes = {pk: link.code for pk, link in self._run.ledger.find_links(row.record.pk for row in rows).items()}
        new: dict[str, Link] = {}
        for row in rows:
            found = stored.get(row.code)
            if codes.setdefault(row.record.pk, row.code) != row.code:
                self._refuse(row, f"id {row.record.pk} is another link's; import one site at a time")
            elif found is not None and not self._is_stored(row, found):
                self._refuse(row, f"code {row.code!r} is another link's")
            elif row.code in new and not _is_equal(new[row.code].record, row.record):
                self._refuse(row, f"code {row.code!r} is there twice")
            elif found is not None or row.code in new:
                self.counts["links_present"] += 1
            else:
                new[row.code] = row
        return new

    def _is_stored(self, row: Link, found: t.Any) -> bool:
        """Return whether a stored link is that row, whose user may have been unknown or forgotten."""
        has_no_user = found.user_id is None
        return (
            _is_same_time(found.created_at, row.created_at)
            and found.redirect_to == row.redirect_to
            and (has_no_user or found.user_id == self._keys.get(row.user))
            and (found.label == row.label or (has_no_user and found.label == ""))
        )

    def _find_links(self, codes: Iterable[str]) -> dict[str, t.Any]:
        referrals = self._models.referrals
        names = ("code", "id", "user_id", "label", "redirect_to", "created_at")
        columns = [referrals[name].label(name) for name in names]
        select = sa.select(*columns).where(referrals.code.in_(list(codes)))
        return {row.code: row for row in self._transaction.execute(select)}

    def _insert_responses(self, rows: Sequence[Response]) -> None:
        links = self._run.ledger.find_links(row.link for row in rows)
        new: dict[str, dict[str, t.Any]] = {}
        rows_by_identity: dict[str, Response] = {}
        without_user = set()
        for row in rows:
            link = links.get(row.link)
            if link is None:
                self._refuse(row, f"its referral {row.link} was not imported")
                continue
            if row.created_at < datetime.fromisoformat(link.created_at) - _ROUNDING:
                self._refuse(row, f"created_at {row.created_at} is before its referral was created")
                continue
            key = f"pinax:{link.code}:{row.record.pk}"
            identity = digest(row.action, key)
            common = self._common_columns(row)
            user_id = common["user_id"]
            if row.user is not None and user_id is None:
                without_user.add(identity)
            has_same_owner = row.user is not None and row.user == link.owner
            is_own = has_same_owner or (user_id is not None and str(user_id) == link.user_id)
            new[identity] = {
                **common,
                "referral_id": link.id,
                "session_key": row.session_key,
                "action": row.action,
                "is_touch": row.action == CLICK,
                "ignored": "self" if is_own else None,
                "ip_address": row.ip_address,
                "http_referrer": row.http_referrer,
                "key": key,
                "identity": identity,
            }
            rows_by_identity[identity] = row
        responses = self._models.responses
        select = sa.select(responses.identity, responses.created_at).where(responses.identity.in_(list(new)))
        for identity, created_at in self._transaction.execute(select).all():
            if not _is_same_time(created_at, new.pop(identity)["created_at"]):
                self._refuse(rows_by_identity[identity], "is another response than the one that is stored")
        self._insert_rows(responses, list(new.values()))
        counted = [values for values in new.values() if values["ignored"] is None]
        if counted:
            changes = [[values.get(name) for name in Counted._fields] for values in counted]
            correct_totals(self._transaction, changes, 1)
        self.counts["responses_added"] += len(new)
        self.counts["responses_present"] += len(rows) - len(new) - len(self.refusals)
        self.counts["without_user"] += len(without_user & new.keys())

    def _insert_rows(self, columns: t.Any, rows: Sequence[Mapping[str, t.Any]]) -> None:
        """Insert rows, whose columns have the names of their attributes; a host may have renamed some."""
        if rows:
            values = [{columns[name].key: value for name, value in row.items()} for row in rows]
            self._transaction.execute(sa.insert(columns.id.table), values)

    def _refuse(self, row: Row, reason: str) -> None:
        self.refusals.append((row.record.where, reason))

    def _note(self, row: Row, words: str) -> None:
        self.notes.append((row.record.where, words))


def _is_equal(one: Record, other: Record) -> bool:
    return (one.pk, one.fields) == (other.pk, other.fields)


def _is_same_time(stored: datetime, imported: datetime) -> bool:
    return abs(as_utc(stored) - imported) <= _ROUNDING
