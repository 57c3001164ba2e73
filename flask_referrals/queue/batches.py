"""Storing many events at once."""

import typing as t
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from ..actors import parse_user_key
from ..db.build import Models
from ..db.conditions import unclaimed
from ..db.keys import existing_users
from ..db.totals import correct_totals
from ..db.transactions import Transaction
from ..delivery import send_after_commit
from ..signals import response_recorded
from ..state import AppState
from ..times import as_utc, now, parse_time
from ..types import CLICK, Event
from .events import DESCRIPTION, event_digest, event_key

#: How often events are inserted while others insert the same ones, or delete links and users.
_ATTEMPTS = 5

#: The actor of clicks, by the name of the column, and the key of their link.
_Followed = tuple[str, t.Any, int]


def store_events(state: AppState, events: Sequence[Event], transaction: Transaction) -> None:
    """Store events in a transaction that is not running yet."""
    transaction.run(partial(insert_events, state, transaction, events))


def insert_events(state: AppState, transaction: Transaction, events: Sequence[Event]) -> None:
    """Insert the clicks that are not stored yet."""
    for attempt in range(1, _ATTEMPTS + 1) if events else ():
        try:
            with transaction.write():
                transaction.lock()
                _Batch(state, transaction, state.database.models).insert(events, is_contested=attempt > 1)
        except IntegrityError:
            if attempt == _ATTEMPTS:
                raise
        else:
            transaction.has_written = True
            return


@dataclass
class _Click:
    """An event, with its link and its actor."""

    event: Event
    time: datetime
    user_id: t.Any
    visitor_key: str | None
    link: t.Any

    @property
    def actors(self) -> list[tuple[str, t.Any]]:
        """The columns and values by which other clicks of the same actor are found."""
        keys = [("user_id", self.user_id), ("session_key", self.visitor_key)]
        return [(name, key) for name, key in keys if key is not None]


@dataclass(frozen=True)
class _Batch:
    """Events on their way into the table."""

    state: AppState
    transaction: Transaction
    models: Models

    def insert(self, events: Sequence[Event], *, is_contested: bool) -> None:
        """Insert those that are not stored yet. They are contested if another transaction has just inserted some."""
        by_digest = {event_digest(event): event for event in events}
        stored = self._find_stored(by_digest, is_contested)
        self._describe({row.id: by_digest[row.identity] for row in stored if row.is_bare})
        missing = by_digest.keys() - {row.identity for row in stored}
        clicks = self._resolve([by_digest[each] for each in missing])
        self._judge(clicks)
        if self.state.settings.ignored == "drop":
            clicks = [click for click in clicks if click.event["ignored"] is None]
        if clicks:
            self._insert(clicks)

    def _find_stored(self, digests: Iterable[str], is_contested: bool) -> Sequence[t.Any]:
        responses = self.models.responses
        is_bare = sa.and_(*(responses[name].is_(None) for name in DESCRIPTION))
        select = sa.select(responses.id.label("id"), responses.identity.label("identity"), is_bare.label("is_bare"))
        select = select.where(responses.identity.in_(list(digests)))
        if is_contested:  # MariaDB's snapshot may be older than the rows that were in the way
            select = select.with_for_update(read=True)
        rows: Sequence[t.Any] = self.transaction.execute(select).all()
        return rows

    def _describe(self, events: Mapping[int, Event]) -> None:
        """Complete the rows that were stored before their event came."""
        responses = self.models.responses
        described = {key: event for key, event in events.items() if any(event[name] for name in DESCRIPTION)}
        if not described:
            return
        for key, event in described.items():
            values = {responses[name]: event[name] for name in (*DESCRIPTION, "params")}
            self.transaction.execute(sa.update(self.models.response_table).where(responses.id == key).values(values))

    def _resolve(self, events: Sequence[Event]) -> list[_Click]:
        """Find the link and the actor of each event, oldest first. Events without a link active then are left out."""
        links = self._find_links({event["code"] for event in events})
        clicks = []
        for event in events:
            link, time = links.get(event["code"]), parse_time(event["time"])
            if link is None or (link.expired_at is not None and as_utc(link.expired_at) <= time):
                continue
            user_id = parse_user_key(self.state, event["user"]) if event["user"] is not None else None
            clicks.append(_Click(dict(event), time, user_id, event["visitor"], link))
        claims = self._find_claims({click.visitor_key for click in clicks if click.visitor_key is not None})
        known = existing_users(self.transaction, {click.user_id for click in clicks if click.user_id is not None})
        for click in clicks:
            if click.event["user"] is not None and click.user_id not in known:
                # The user is deleted: only the click itself is stored.
                click.user_id = click.visitor_key = None
                click.event |= dict.fromkeys(DESCRIPTION)
            elif click.user_id is None:
                click.user_id = next((user for until, user in claims[click.visitor_key] if click.time <= until), None)
        return sorted(clicks, key=lambda click: (click.time, click.event["id"]))

    def _find_links(self, codes: set[str]) -> dict[str, t.Any]:
        referrals = self.models.referrals
        names = ("id", "code", "user_id", "expired_at")
        links = sa.select(*(referrals[name].label(name) for name in names)).where(referrals.code.in_(list(codes)))
        return {row.code: row for row in self.transaction.execute(links)} if codes else {}

    def _find_claims(self, keys: set[str]) -> dict[str | None, list[tuple[datetime, t.Any]]]:
        """Return the users who claimed each visitor key, each with the time of the last row that they claimed.

        Earlier events of the key are that user's. Later ones are not: the key was joined, and somebody has kept it.
        """
        responses = self.models.responses
        claims: dict[str | None, list[tuple[datetime, t.Any]]] = defaultdict(list)
        latest = sa.func.max(responses.created_at)
        claimed = sa.select(responses.session_key, responses.user_id, latest)
        claimed = claimed.where(responses.session_key.in_(list(keys)), responses.user_id.is_not(None))
        claimed = claimed.group_by(responses.session_key, responses.user_id).order_by(latest)
        for key, user_id, until in self.transaction.execute(claimed) if keys else ():
            claims[key].append((as_utc(until), user_id))
        return claims

    def _judge(self, clicks: Sequence[_Click]) -> None:
        """Set the reason of each click that is the owner's, or a repeat."""
        window = self.state.settings.repeat_window or timedelta(0)
        judged = [click for click in clicks if click.event["ignored"] is None]
        counted = self._find_counted(judged, window)
        for click in judged:
            if click.user_id is not None and click.user_id == click.link.user_id:
                click.event["ignored"] = "self"
                continue
            found = [counted[name, key, click.link.id] for name, key in click.actors]
            # On both sides: a later click may have been stored first.
            if any(abs(click.time - time) < window for times in found for time in times):
                click.event["ignored"] = "repeat"
            for times in found:
                if click.event["ignored"] is None:
                    times.append(click.time)

    def _find_counted(self, clicks: Sequence[_Click], window: timedelta) -> dict[_Followed, list[datetime]]:
        """Return the times of the actors' counted clicks that are stored, near the new ones."""
        responses = self.models.responses
        found: dict[_Followed, list[datetime]] = defaultdict(list)
        for name in ("user_id", "session_key"):
            keys = {key for click in clicks for each, key in click.actors if each == name}
            if not keys or not window:
                continue
            near = sa.select(responses[name], responses.referral_id, responses.created_at).where(
                responses[name].in_(list(keys)),
                responses.is_touch == sa.true(),
                responses.created_at > min(click.time for click in clicks) - window,
                responses.created_at < max(click.time for click in clicks) + window,
                responses.action == CLICK,
                responses.ignored.is_(None),
            )
            if name == "session_key":
                near = near.where(unclaimed(responses))
            for key, referral_id, time in self.transaction.execute(near):
                found[name, key, referral_id].append(as_utc(time))
        return found

    def _insert(self, clicks: Sequence[_Click]) -> None:
        responses, transaction = self.models.responses, self.transaction
        rows = []
        for click in clicks:
            values = {
                "referral_id": click.link.id,
                "action": CLICK,
                "is_touch": True,
                "key": event_key(click.event),
                "identity": event_digest(click.event),
                "session_key": click.visitor_key,
                "user_id": click.user_id,
                "created_at": click.time,
                **{name: click.event[name] for name in (*DESCRIPTION, "ignored", "params")},
            }
            rows.append({responses[name].key: value for name, value in values.items()})
        insert = sa.insert(self.models.response_table)
        if transaction.database.dialect.insert_executemany_returning:
            insert = insert.returning(responses.id)  # in one statement; drivers send one for each row otherwise
        transaction.execute(insert, rows)
        today = now().date()
        late = [click for click in clicks if click.event["ignored"] is None and click.time.date() < today]
        if late:
            correct_totals(transaction, [(click.link.id, CLICK, click.time) for click in late], 1)
        if response_recorded.has_receivers_for(self.state.app):
            digests = [event_digest(click.event) for click in clicks]
            ids = sa.select(responses.id).where(responses.identity.in_(digests))
            found = transaction.execute(ids.order_by(responses.created_at, responses.id)).scalars().all()
            send_after_commit(self.state, transaction, response_recorded, found)
