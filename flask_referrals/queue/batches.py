"""Storing many events at once, as if each had been stored when it happened."""

import typing as t
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from ..actors import parse_user_key
from ..credit import MAX_REPEATS
from ..db.build import Models
from ..db.conditions import oldest_first
from ..db.keys import digest, existing_users
from ..db.tombstones import find_tombstones
from ..db.totals import correct_totals, count_at_commit, is_day_over
from ..db.transactions import Transaction
from ..delivery import send_after_commit
from ..signals import response_recorded
from ..state import AppState
from ..times import as_utc, parse_time
from ..types import CLICK, VOID, Actor, Event
from .events import DESCRIPTION, event_digest, event_key

#: How often events are inserted while others insert the same ones, or delete links and users.
_ATTEMPTS = 5


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


@dataclass(eq=False)
class _Touch:
    """A touch in the order of time: a stored one, or an event.

    :param maker_id: the user who made it; ``None`` if it was a visitor.
    :param user_id: the user whose it is ``since`` a time: the maker, or who has claimed it.
    """

    key: t.Any
    time: datetime
    referral_id: int
    owner_id: t.Any
    maker_id: t.Any
    visitor_key: str | None
    user_id: t.Any
    since: datetime
    ignored: str | None
    event: Event | None = None
    is_click: bool = True
    voided_at: datetime | None = None
    was_counted: bool = False
    is_changed: bool = False
    is_kept: bool = True

    @property
    def reason(self) -> str | None:
        """The reason to store: at the claim, a counted click on the user's own link becomes ``self``."""
        is_own = self.ignored is None and self.user_id is not None and self.user_id == self.owner_id
        return "self" if is_own else self.ignored

    def sees(self, earlier: "_Touch") -> bool:
        """Return whether an earlier touch belonged to the same actor when this one was made."""
        if earlier.user_id is not None and (earlier.maker_id is not None or earlier.since < self.time):
            return bool(earlier.user_id == self.maker_id)
        return earlier.visitor_key is not None and earlier.visitor_key == self.visitor_key

    def judge(self, earlier: Sequence["_Touch"], *, drops: bool) -> None:
        """Decide whether it is a repeat, given the actor's touches within the repeat window before it."""
        same = [each for each in earlier if each.is_click and each.referral_id == self.referral_id]
        is_open = self.is_click and self.ignored != "void" and any(each.is_changed for each in same)
        if self.event is None and not is_open:
            return
        before = self.ignored
        counted = [each for each in same if each.ignored is None]
        if self.maker_id is not None and self.maker_id == self.owner_id:
            self.ignored = "self"
        elif counted:
            self.ignored = "repeat"
        elif any(each.voided_at is not None and each.voided_at > self.time for each in same):
            self.ignored = "void"
        else:
            self.ignored = None
        self.is_changed = self.event is not None or self.ignored != before
        if self.ignored == "repeat":
            touches = [each for each in earlier if each.ignored in (None, "repeat")]
            if drops:
                self.is_kept = max(touches, key=lambda each: each.time).referral_id != self.referral_id
            else:
                self.is_kept = sum(each.ignored == "repeat" for each in touches) < MAX_REPEATS


@dataclass(frozen=True)
class _Batch:
    state: AppState
    transaction: Transaction
    models: Models

    def insert(self, events: Sequence[Event], *, is_contested: bool) -> None:
        """Insert those that are not stored yet. They are contested if another transaction has just inserted some."""
        by_digest = {event_digest(event): event for event in events}
        stored = self._find_stored(by_digest, is_contested)
        self._describe({row.id: by_digest[row.identity] for row in stored if row.is_bare})
        new = self._resolve([by_digest[each] for each in by_digest.keys() - {row.identity for row in stored}])
        earlier = self._find_touches(new) if new else []
        self._judge([*earlier, *(touch for touch in new if touch.ignored is None)])
        if self.state.settings.ignored == "drop":
            new = [touch for touch in new if touch.ignored in (None, "repeat")]
        self._insert(sorted((touch for touch in new if touch.is_kept), key=lambda each: each.time))
        self._change([touch for touch in earlier if touch.is_changed])

    def _find_stored(self, digests: Iterable[str], is_contested: bool) -> Sequence[t.Any]:
        responses = self.models.responses
        # A row without a key has been made anonymous.
        is_bare = sa.and_(responses.key.is_not(None), *(responses[name].is_(None) for name in DESCRIPTION))
        select = sa.select(responses.id.label("id"), responses.identity.label("identity"), is_bare.label("is_bare"))
        select = select.where(responses.identity.in_(list(digests)))
        if is_contested:  # MariaDB's snapshot may be older than the rows that were in the way
            select = select.with_for_update(read=True)
        rows: Sequence[t.Any] = self.transaction.execute(select).all()
        return rows

    def _describe(self, events: Mapping[int, Event]) -> None:
        """Complete the rows that were stored before their event came."""
        responses = self.models.responses
        for key, event in events.items():
            if any(event[name] for name in DESCRIPTION):
                values = {responses[name]: event[name] for name in (*DESCRIPTION, "params")}
                self.transaction.execute(
                    sa.update(self.models.response_table).where(responses.id == key).values(values)
                )

    def _resolve(self, events: Sequence[Event]) -> list[_Touch]:
        """Find the link and the actor of each event. Events without a link active then are left out."""
        links = self._find_links({event["code"] for event in events})
        touches = []
        for event in events:
            link, time = links.get(event["code"]), parse_time(event["time"])
            if link is not None and (link.expired_at is None or as_utc(link.expired_at) > time):
                user_id = parse_user_key(self.state, event["user"]) if event["user"] is not None else None
                actor = (user_id, event["visitor"], user_id)
                touches.append(_Touch(event["id"], time, link.id, link.user_id, *actor, time, event["ignored"], event))
        return touches

    def _find_links(self, codes: set[str]) -> dict[str, t.Any]:
        referrals = self.models.referrals
        names = ("id", "code", "user_id", "expired_at")
        links = sa.select(*(referrals[name].label(name) for name in names)).where(referrals.code.in_(list(codes)))
        return {row.code: row for row in self.transaction.execute(links)} if codes else {}

    def _find_touches(self, new: Sequence[_Touch]) -> list[_Touch]:
        """Find the stored touches of the same actors from the repeat window before the first on, and their claims."""
        responses, rows = self.models.responses, {}
        names = ("id", "created_at", "referral_id", "user_id", "session_key", "ignored", "action", "is_touch")
        first = min(each.time for each in new) - (self.state.settings.repeat_window or timedelta(0))
        select = sa.select(*(responses[name].label(name) for name in names)).where(responses.created_at >= first)
        users, visitors = {each.maker_id for each in new} - {None}, {each.visitor_key for each in new} - {None}
        # A visitor's click that is "self" now was counted before the login.
        for keys, reasons, is_theirs in (
            (users, ("repeat", "void"), sa.and_(responses.user_id.in_(users), responses.is_touch == sa.true())),
            (visitors, ("repeat", "void", "self"), responses.session_key.in_(visitors)),
        ):
            if keys:
                near = select.where(is_theirs, sa.or_(responses.ignored.is_(None), responses.ignored.in_(reasons)))
                rows.update({row.id: row for row in self.transaction.execute(near)})
        owners, touches = {each.referral_id: each.owner_id for each in new}, []
        claims: dict[str | None, dict[t.Any, datetime]] = defaultdict(dict)
        for row in sorted(rows.values(), key=lambda each: as_utc(each.created_at)):
            time, ignored = as_utc(row.created_at), None if row.ignored == "self" else row.ignored
            actor = (row.user_id if row.session_key is None else None, row.session_key, row.user_id)
            if row.session_key is not None and row.user_id is not None:
                claims[row.session_key][row.user_id] = time
            if row.is_touch:
                owner_id = owners.get(row.referral_id)
                touches.append(_Touch(row.id, time, row.referral_id, owner_id, *actor, time, ignored))
                touches[-1].is_click = row.action == CLICK and row.referral_id in owners
                touches[-1].was_counted = row.ignored is None
        voidings = self._find_voidings([each.key for each in touches if each.ignored == "void"])
        for touch in touches:
            touch.since = claims[touch.visitor_key].get(touch.user_id, touch.time)
            touch.voided_at = voidings.get(touch.key)
        for touch in new:
            # A key's clicks before the last one that a user claimed are the user's. Later ones are not: the key was
            # joined, and somebody has kept it.
            claimed = claims[touch.visitor_key].items() if touch.maker_id is None else ()
            claim = next(((user_id, until) for user_id, until in claimed if touch.time <= until), None)
            touch.user_id, touch.since = claim or (touch.user_id, touch.since)
        return touches

    def _judge(self, touches: Sequence[_Touch]) -> None:
        """Decide which touches are repeats or clicks on an own link, in the order of time."""
        window, drops = self.state.settings.repeat_window or timedelta(0), self.state.settings.ignored == "drop"
        seen: dict[tuple[str, t.Any], list[_Touch]] = defaultdict(list)
        for touch in sorted(touches, key=lambda each: (each.time, str(each.key))):
            earlier = [*seen["user", touch.maker_id], *seen["visitor", touch.visitor_key]]
            near = [each for each in earlier if touch.time - each.time < window and touch.sees(each)]
            touch.judge(near, drops=drops)
            for key in (("user", touch.user_id), ("visitor", touch.visitor_key)):
                if key[1] is not None:
                    seen[key].append(touch)

    def _find_voidings(self, ids: Sequence[int]) -> dict[int, datetime]:
        """Return when touches were voided that were counted before."""
        responses, identities = self.models.responses, {digest(VOID, f"response:{each}"): each for each in ids}
        columns = (responses.identity, responses.created_at, responses.params)
        records = sa.select(*columns).where(responses.identity.in_(list(identities)))
        rows = self.transaction.execute(records).all() if ids else ()
        return {identities[each]: as_utc(time) for each, time, params in rows if params and params["ignored"] is None}

    def _insert(self, touches: Sequence[_Touch]) -> None:
        if not touches:
            return
        responses, transaction = self.models.responses, self.transaction
        known = existing_users(transaction, {each.maker_id for each in touches if each.maker_id is not None})
        makers = {actor for each in touches for actor in (Actor(each.maker_id), Actor(None, each.visitor_key))}
        forgotten = find_tombstones(transaction, makers - {Actor()})
        rows = []
        for touch in touches:
            event = t.cast(Event, touch.event)
            until = [forgotten.get(Actor(touch.maker_id)), forgotten.get(Actor(None, touch.visitor_key))]
            is_known = event["user"] is None or touch.maker_id in known
            is_known = is_known and not any(each is not None and touch.time <= each for each in until)
            values = {
                "referral_id": touch.referral_id,
                "action": CLICK,
                "is_touch": True,
                "key": event_key(event) if is_known else None,
                "identity": event_digest(event),
                "session_key": touch.visitor_key if is_known else None,
                "user_id": touch.user_id if is_known else None,
                "created_at": touch.time,
                "ignored": touch.reason,
                "params": event["params"],
                **{name: event[name] if is_known else None for name in DESCRIPTION},
            }
            rows.append({responses[name].key: value for name, value in values.items()})
        insert = sa.insert(self.models.response_table)
        if transaction.database.dialect.insert_executemany_returning:
            insert = insert.returning(responses.id)  # in one statement; drivers send one for each row otherwise
        transaction.execute(insert, rows)
        counted = [touch for touch in touches if touch.reason is None]
        self._correct_totals(counted, 1)
        timely = [touch for touch in counted if not is_day_over(transaction.database, touch.time)]
        if timely and not transaction.commit:
            written = responses.identity.in_([event_digest(t.cast(Event, touch.event)) for touch in timely])
            count_at_commit(transaction, written, min(touch.time for touch in timely))
        if response_recorded.has_receivers_for(self.state.app):
            digests = [event_digest(t.cast(Event, touch.event)) for touch in touches]
            ids = sa.select(responses.id).where(responses.identity.in_(digests))
            found = transaction.execute(ids.order_by(*oldest_first(responses))).scalars().all()
            send_after_commit(self.state, transaction, response_recorded, found)

    def _change(self, touches: Sequence[_Touch]) -> None:
        """Store the new judgements of the touches that followed the new ones."""
        responses, table = self.models.responses, self.models.response_table
        is_dropping = self.state.settings.ignored == "drop"
        for touch in touches:
            if touch.is_kept or not is_dropping:
                change: t.Any = sa.update(table).values({responses.ignored: touch.reason})
            else:
                change = sa.delete(table)
            self.transaction.execute(change.where(responses.id == touch.key))
        self._correct_totals([touch for touch in touches if touch.reason is None and not touch.was_counted], 1)
        self._correct_totals([touch for touch in touches if touch.reason is not None and touch.was_counted], -1)

    def _correct_totals(self, touches: Sequence[_Touch], by: int) -> None:
        late = [
            (touch.referral_id, CLICK, touch.time)
            for touch in touches
            if is_day_over(self.transaction.database, touch.time)
        ]
        if late:
            correct_totals(self.transaction, late, by)
