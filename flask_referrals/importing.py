"""Moving over from pinax-referrals: its links and responses as rows of ours.

One pass over the dump, in any order, with a bounded number of rows in memory: which row has become which, and rows that
name one not seen yet, wait in a temporary database on disk. Every batch is a transaction; running it again adds only
what is new.
"""

import secrets
import typing as t
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from datetime import timedelta
from datetime import timezone
from datetime import tzinfo

import sqlalchemy as sa
from sqlalchemy.exc import DataError
from sqlalchemy.exc import IntegrityError

from . import totals
from .attribution import CLICK
from .context import current_state
from .creation import identity_digest
from .dumps import CONTENT_TYPE
from .dumps import LINK
from .dumps import RESPONSE
from .dumps import Broken
from .dumps import Record
from .identity import user_key
from .ledger import KnownLink
from .ledger import Ledger
from .pinax import Link
from .pinax import Refused
from .pinax import Response
from .pinax import Row
from .pinax import read_link
from .pinax import read_response
from .pinax import text_of
from .recording import key_identity
from .urls import target_location

_BATCH = 1000


@dataclass
class Report:
    """What an import has done, in numbers."""

    links_added: int = 0
    links_present: int = 0
    responses_added: int = 0
    responses_present: int = 0
    #: Links that are one with an earlier link by user, place, label and target.
    duplicates: int = 0
    #: Links whose place a click is not led to now.
    not_allowed: int = 0
    #: Rows whose user is not here.
    without_user: int = 0
    refused: int = 0


@dataclass(frozen=True)
class Options:
    """How a dump is to be read, and whom to tell.

    :param targets: what the objects of a content type are called here: ``{"app.model": name}``, or by its number.
    :param users: pinax's user keys and ours, pair by pair; ``None``: they are the same.
    :param zone: the zone of times that name none.
    :param refuse: told where a record is and why it was left out.
    :param note: told where a record is and what is peculiar about it; it was imported.
    :param progress: called after every batch.
    """

    targets: Mapping[str, str] = field(default_factory=dict)
    users: Iterable[tuple[str, str]] | None = None
    zone: tzinfo = timezone.utc
    refuse: Callable[[str, str], None] = lambda where, reason: None
    note: Callable[[str, str], None] = lambda where, words: None
    progress: Callable[[], None] = lambda: None


def import_pinax(records: Iterable[Record | Broken], options: Options | None = None) -> Report:
    """Add a dump's links and responses to the current app's.

    Codes, times, and which response belongs to which link are kept; users and content types are mapped. Of links that
    are one by our identity, the first holds it and :meth:`.ReferralMixin.create` finds that one; the others stay as
    they are, for their codes are in the world. No signal is sent.

    :param records: what :mod:`.dumps` read.
    :param options: how to map, and whom to tell.
    """
    run = _Import(options or Options())
    try:
        run.add_all(records)
    finally:
        run.close()
    return Report(**run.counts)


R = t.TypeVar("R", bound=Row)


class _Batch:
    """What one transaction did: counted and told once it is durable."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.refusals: list[tuple[str, str]] = []
        self.notes: list[tuple[str, str]] = []
        self.links: list[KnownLink] = []


class _Import:
    """One run."""

    def __init__(self, options: Options) -> None:
        state = current_state()
        self._options = options
        self._session = state.session
        self._models = state.models
        self.counts: Counter[str] = Counter()
        self._types: dict[str, str] = {}
        self._links: list[Link] = []
        self._responses: list[Response] = []
        self._final = False
        self._ledger = Ledger(options.users)

    def close(self) -> None:
        self._ledger.close()
        self._session.rollback()

    def add_all(self, records: Iterable[Record | Broken]) -> None:
        self._add_each(records)
        # Now everything that is named has been seen, or never will be.
        self._final = True
        for kind in (LINK, RESPONSE):
            self._add_each(self._ledger.left(kind))

    def _add_each(self, records: Iterable[Record | Broken]) -> None:
        for record in records:
            if isinstance(record, Broken):
                self._refuse(record.where, record.reason)
                continue
            try:
                self._add(record)
            except Refused as error:
                self._refuse(record.where, str(error))
            if len(self._links) >= _BATCH or len(self._responses) >= _BATCH:
                self._flush()
        self._flush()

    def _add(self, record: Record) -> None:
        if record.kind == CONTENT_TYPE:
            self._types[record.pk] = f"{text_of(record, 'app_label', 100)}.{text_of(record, 'model', 100)}"
        elif record.kind == LINK:
            self._links.append(read_link(record, self._options.zone))
        else:
            self._responses.append(read_response(record, self._options.zone))

    def _refuse(self, where: str, reason: str) -> None:
        self.counts["refused"] += 1
        self._options.refuse(where, reason)

    # Batches.

    def _flush(self) -> None:
        links, self._links = self._links, []
        responses, self._responses = self._responses, []
        self._store(self._store_links, self._ready(links))
        self._store(self._store_responses, self._ready(responses))
        self._options.progress()

    def _store(self, store: Callable[[Sequence[R], _Batch], None], rows: Sequence[R]) -> None:
        """Store rows in one transaction; when the database refuses one, find out which."""
        if not rows:
            return
        batch = _Batch()
        try:
            store(rows, batch)
            self._session.commit()
        except (DataError, IntegrityError) as error:
            self._session.rollback()
            if len(rows) == 1:
                self._refuse(rows[0].record.where, f"is refused by the database: {error.orig}")
                return
            middle = len(rows) // 2
            self._store(store, rows[:middle])
            self._store(store, rows[middle:])
            return
        self.counts.update(batch.counts)
        self._ledger.add_links(batch.links)
        for where, reason in batch.refusals:
            self._refuse(where, reason)
        for where, words in batch.notes:
            self._options.note(where, words)

    def _ready(self, rows: Sequence[R]) -> list[R]:
        """Leave for the end what names a link or a content type that has not been seen."""
        links = self._ledger.links(row.link for row in rows if isinstance(row, Response))
        ready = []
        for row in rows:
            has_type = row.content_type is None or self._type_name(row.content_type) is not None
            has_link = not isinstance(row, Response) or row.link in links
            if self._final or (has_type and has_link):
                ready.append(row)
            else:
                self._ledger.leave(row.record)
        return ready

    def _type_name(self, content_type: str) -> str | None:
        """Return what a content type is called here; dumps with natural keys name it, others have its number."""
        name = content_type if "." in content_type else self._types.get(content_type)
        targets = self._options.targets
        return targets.get(content_type) or targets.get(name or "") or name

    def _target(self, row: Row) -> tuple[str | None, str | None]:
        if row.content_type is None:
            return None, None
        return (self._type_name(row.content_type) or f"contenttype-{row.content_type}")[:100], row.target_id

    def _store_links(self, rows: Sequence[Link], batch: _Batch) -> None:
        model = self._models.referral
        users = self._find_users(rows)
        there = self._codes(row.code for row in rows)
        seen = {pk: link.code for pk, link in self._ledger.links(row.record.pk for row in rows).items()}
        new: dict[str, Link] = {}
        for row in rows:
            found = there.get(row.code)
            if seen.setdefault(row.record.pk, row.code) != row.code:
                reason = f"id {row.record.pk} is another link's; import one site at a time"
                batch.refusals.append((row.record.where, reason))
            elif found is not None and abs(found.created_at - row.created_at) > timedelta(seconds=1):
                batch.refusals.append((row.record.where, f"code {row.code!r} is another link's"))
            elif row.code in new and new[row.code].record.pk != row.record.pk:
                batch.refusals.append((row.record.where, f"code {row.code!r} is there twice"))
            elif found is not None or row.code in new:
                batch.counts["links_present"] += 1
            else:
                new[row.code] = row

        targets = {code: self._target(row) for code, row in new.items()}
        identities = {
            code: identity_digest(users.get(row.user), row.redirect_to, row.label, *targets[code])
            for code, row in new.items()
        }
        select = sa.select(model.identity, model.code).where(model.identity.in_(set(identities.values())))
        holders: dict[str, str] = {identity: code for identity, code in self._session.execute(select)}
        values = []
        for code, row in new.items():
            identity = identities[code]
            user_id = users.get(row.user)
            if row.user is not None and user_id is None:
                batch.counts["without_user"] += 1
                identity = secrets.token_hex(32)  # nobody's, but not the site's own
            elif identity in holders:
                batch.counts["duplicates"] += 1
                words = f"link {code} is a duplicate of {holders[identity]}; both codes work"
                batch.notes.append((row.record.where, words))
                identity = secrets.token_hex(32)
            else:
                holders[identity] = code
            if target_location(row.redirect_to) is None:
                batch.counts["not_allowed"] += 1
                words = f"link {code} leads to {row.redirect_to!r}, which is not allowed now"
                batch.notes.append((row.record.where, words))
            target_type, target_id = targets[code]
            values.append(
                {
                    "code": code,
                    "user_id": user_id,
                    "label": row.label,
                    "redirect_to": row.redirect_to,
                    "identity": identity,
                    "target_type": target_type,
                    "target_id": target_id,
                    "created_at": row.created_at,
                    "expired_at": row.expired_at,
                }
            )
        if values:
            self._session.execute(sa.insert(_table(model)), values)
            there |= self._codes(new)
        batch.counts["links_added"] += len(values)
        refused = {where for where, _ in batch.refusals}
        for row in rows:
            if row.record.where not in refused:
                link = there[row.code]
                user_id = None if link.user_id is None else str(link.user_id)
                batch.links.append(KnownLink(row.record.pk, link.id, row.code, row.user, user_id))

    def _codes(self, codes: Iterable[str]) -> dict[str, t.Any]:
        model = self._models.referral
        select = sa.select(model).where(model.code.in_(list(codes)))
        # As objects, for their times are aware; they are not kept.
        return {link.code: link for link in self._session.scalars(select)}

    def _store_responses(self, rows: Sequence[Response], batch: _Batch) -> None:
        model = self._models.response
        links = self._ledger.links(row.link for row in rows)
        users = self._find_users(rows)
        without_user = set()
        new: dict[str, dict[str, t.Any]] = {}
        for row in rows:
            link = links.get(row.link)
            if link is None:
                batch.refusals.append((row.record.where, f"its referral {row.link} was not imported"))
                continue
            key = f"pinax:{link.code}:{row.record.pk}"
            identity = key_identity(row.action, key)
            user_id = users.get(row.user)
            if row.user is not None and user_id is None:
                without_user.add(identity)
            is_own = row.user is not None and row.user == link.owner
            is_own = is_own or (user_id is not None and str(user_id) == link.user_id)
            target_type, target_id = self._target(row)
            new[identity] = {
                "referral_id": link.id,
                "session_key": row.session_key,
                "user_id": user_id,
                "action": row.action,
                "is_touch": row.action == CLICK,
                "ignored": "self" if is_own else None,
                "ip_address": row.ip_address,
                "http_referrer": row.http_referrer,
                "key": key,
                "identity": identity,
                "target_type": target_type,
                "target_id": target_id,
                "created_at": row.created_at,
            }
        old = set(self._session.scalars(sa.select(model.identity).where(model.identity.in_(new))))
        new = {identity: values for identity, values in new.items() if identity not in old}
        if new:
            self._session.execute(sa.insert(_table(model)), list(new.values()))
            counted = [values for values in new.values() if values["ignored"] is None]
            changes = [(values["referral_id"], values["action"], values["created_at"]) for values in counted]
            totals.correct(self._session, changes, 1)
        batch.counts["responses_added"] += len(new)
        batch.counts["responses_present"] += len(rows) - len(new) - len(batch.refusals)
        batch.counts["without_user"] += len(without_user & new.keys())

    # What pinax's keys stand for.

    def _find_users(self, rows: Iterable[Row]) -> dict[str | None, t.Any]:
        """Return the users' keys here by those of pinax, without those who are not here."""
        texts = self._ledger.users(row.user for row in rows if row.user is not None)
        keys = {old: user_key(text) for old, text in texts.items()}
        found: dict[str | None, t.Any] = {old: key for old, key in keys.items() if key is not None}
        model = self._models.user
        if model is not None and found:
            (column,) = sa.inspect(model).primary_key
            attribute = sa.inspect(model).get_property_by_column(column).class_attribute
            select = sa.select(attribute).where(attribute.in_(set(found.values())))
            present = set(self._session.scalars(select))
            found = {user: key for user, key in found.items() if key in present}
        return found


def _table(model: type[t.Any]) -> sa.Table:
    return t.cast(sa.Table, sa.inspect(model).local_table)
