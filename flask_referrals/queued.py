"""Clicks that are recorded off the request: each is handed to the host's recorder as an event, and stored later.

An event is a dict that is JSON: its own random ``id``, the link's ``code``, the ``time`` in UTC, the ``user`` as text,
the ``visitor``'s key, the reason code ``ignored`` that the request alone tells, what is kept of the request, and the
link's ``params``. What the other clicks and the link's owner say of it is found out when it is stored.
"""

import typing as t
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from datetime import timedelta
from datetime import timezone

import sqlalchemy as sa
from flask import Flask
from flask import current_app
from sqlalchemy.exc import IntegrityError

from . import config
from . import signals
from . import totals
from .after_commit import after_commit
from .attribution import CLICK
from .attribution import Visitor
from .attribution import unclaimed
from .context import current_state
from .creation import identity_digest
from .identity import unwrapped
from .identity import user_key
from .storing import columns_of
from .times import as_utc
from .times import parse_time
from .transactions import Transaction

Event = dict[str, t.Any]
Recorder = Callable[[Event], None]

#: Who clicked, as a user or by a key, and on which link.
_Followed = tuple[str, t.Any, int]

#: What tells of the client; unknown until the event comes.
_DESCRIPTION = ("ip_address", "http_referrer", "user_agent")

#: How often clicks are inserted, when others insert the same, or links and users are deleted meanwhile.
_ATTEMPTS = 5


def new_event(event_id: str, code: str, time: datetime, visitor: Visitor) -> Event:
    """Return a click of which nothing else is known.

    :param event_id: no other event has the same.
    """
    return {
        "id": event_id,
        "code": code,
        "time": time.isoformat(),
        "user": str(visitor.user_id) if visitor.user_id is not None else None,
        "visitor": visitor.key,
        "ignored": None,
        "params": None,
        **dict.fromkeys(_DESCRIPTION),
    }


def store(events: Sequence[Event]) -> None:
    """Store clicks in a few statements, however many, and commit; each is stored once, however often it comes.

    :param events: what the recorder was given.
    :raises Exception: none of them is stored, and all may be tried again.
    """
    state = current_state()
    transaction = Transaction(state, state.models.response, commit=True)

    def work() -> None:
        insert(transaction, events)
        transaction.commit()

    try:
        transaction.run(work)
    except Exception:
        transaction.recover()
        raise


def insert(transaction: Transaction, events: Sequence[Event]) -> None:
    """Insert the clicks that are not there yet.

    :param transaction: what to write in.
    :param events: the clicks.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with transaction.write():
                transaction.begin()
                _Batch(transaction).insert(events, is_contested=attempt > 1)
        except IntegrityError:
            if attempt == _ATTEMPTS:
                raise
        else:
            return


@dataclass
class _Click:
    """An event, and who made it as it turned out."""

    event: Event
    time: datetime
    user_id: t.Any
    key: str | None
    link: t.Any

    @property
    def who(self) -> list[tuple[str, t.Any]]:
        """By what clicks of the same visitor are found. A key that a user has claimed is the user's."""
        identities = [("user", self.user_id), ("key", self.key)]
        return [(kind, identity) for kind, identity in identities if identity is not None]


class _Batch:
    """Clicks on their way into the table."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self._session = transaction.session
        self._models = current_state().models

    def insert(self, events: Sequence[Event], *, is_contested: bool) -> None:
        """Insert those that are not there yet.

        :param is_contested: somebody else has just inserted some of them.
        """
        by_identity = {_identity(event): event for event in events}
        there = self._there(by_identity, is_contested)
        self._describe({row.id: by_identity[row.identity] for row in there if row.is_bare})
        missing = by_identity.keys() - {row.identity for row in there}
        clicks = self._clicks([by_identity[identity] for identity in missing])
        self._judge(clicks)
        if current_app.config["REFERRALS_IGNORED"] == "drop":
            clicks = [click for click in clicks if click.event["ignored"] is None]
        if clicks:
            self._insert(clicks)

    def _there(self, identities: Iterable[str], is_contested: bool) -> Sequence[t.Any]:
        response = self._models.response
        is_bare = sa.and_(*(getattr(response, name).is_(None) for name in _DESCRIPTION))
        there = sa.select(response.id, response.identity, is_bare.label("is_bare"))
        there = there.where(response.identity.in_(identities))
        # A locking read: MariaDB's snapshot may be older than the rows that were in the way.
        return self._session.execute(there.with_for_update(read=True) if is_contested else there).all()

    def _describe(self, events: Mapping[int, Event]) -> None:
        """Complete the rows that were stored before their event came."""
        response = self._models.response
        described = {key: event for key, event in events.items() if any(event[name] for name in _DESCRIPTION)}
        if not described:
            return
        values = {}
        for name in (*_DESCRIPTION, "params"):
            column = getattr(response, name)
            choices = [(response.id == key, sa.literal(event[name], column.type)) for key, event in described.items()]
            values[name] = sa.case(*choices)
        update = sa.update(response).where(response.id.in_(described)).values(values)
        self._session.execute(update.execution_options(synchronize_session=False))

    def _clicks(self, events: Sequence[Event]) -> list[_Click]:
        """Find link and visitor of each event, oldest first; those without a link that was alive are left out."""
        links = self._links({event["code"] for event in events})
        clicks = []
        for event in events:
            link, time = links.get(event["code"]), parse_time(event["time"])
            if link is None or (link.expired_at is not None and as_utc(link.expired_at) <= time):
                continue
            user_id = user_key(event["user"]) if event["user"] is not None else None
            clicks.append(_Click(dict(event), time, user_id, event["visitor"], link))
        claimed = self._claimed({click.key for click in clicks if click.key is not None})
        known = self._known({click.user_id for click in clicks if click.user_id is not None})
        for click in clicks:
            if click.event["user"] is not None and click.user_id not in known:
                # Of a user who is gone, nothing is kept but that somebody clicked.
                click.user_id = click.key = None
                click.event |= dict.fromkeys(_DESCRIPTION)
            elif click.user_id is None:
                click.user_id = claimed.get(click.key)
        return sorted(clicks, key=lambda click: (click.time, click.event["id"]))

    def _links(self, codes: set[str]) -> dict[str, sa.Row[t.Any]]:
        referral = self._models.referral
        links = sa.select(referral.id, referral.code, referral.user_id, referral.expired_at)
        return {row.code: row for row in self._session.execute(links.where(referral.code.in_(codes)))} if codes else {}

    def _claimed(self, keys: set[str]) -> dict[str | None, t.Any]:
        """Return whose each key turned out to be."""
        response = self._models.response
        claimed = sa.select(response.session_key, response.user_id).distinct()
        claimed = claimed.where(response.session_key.in_(keys), response.user_id.is_not(None))
        return {key: user_id for key, user_id in self._session.execute(claimed)} if keys else {}

    def _known(self, user_ids: set[t.Any]) -> set[t.Any]:
        """Return which users there are; without a user model nobody knows."""
        users = self._models.user
        if users is None or not user_ids:
            return user_ids
        mapper = sa.inspect(users)
        (key,) = mapper.primary_key
        known = sa.select(key).where(key.in_(user_ids))
        return set(self._session.scalars(known, bind_arguments={"mapper": mapper}))

    def _judge(self, clicks: Sequence[_Click]) -> None:
        """Say of each click that would count why it does not: it is the owner's, or a repeat."""
        window = config.duration("REFERRALS_REPEAT_WINDOW") or timedelta(0)
        judged = [click for click in clicks if click.event["ignored"] is None]
        counted = self._counted(judged, window)
        for click in judged:
            if click.user_id is not None and click.user_id == click.link.user_id:
                click.event["ignored"] = "self"
                continue
            found = [counted[kind, identity, click.link.id] for kind, identity in click.who]
            # On both sides: a later click may have been stored first.
            if any(abs(click.time - time) < window for times in found for time in times):
                click.event["ignored"] = "repeat"
            for times in found:
                if click.event["ignored"] is None:
                    times.append(click.time)

    def _counted(
        self, clicks: Sequence[_Click], window: timedelta | None
    ) -> dict[tuple[str, t.Any, int], list[datetime]]:
        """Return the times of the visitors' clicks that count already, near those that are new."""
        response = self._models.response
        found: dict[_Followed, list[datetime]] = defaultdict(list)
        for kind, column in (("user", response.user_id), ("key", response.session_key)):
            identities = {identity for click in clicks for each, identity in click.who if each == kind}
            if not identities or not window:
                continue
            near = sa.select(column, response.referral_id, response.created_at).where(
                column.in_(identities),
                response.is_touch == sa.true(),
                response.created_at > min(click.time for click in clicks) - window,
                response.created_at < max(click.time for click in clicks) + window,
                response.action == CLICK,
                response.ignored.is_(None),
            )
            if kind == "key":
                near = near.where(unclaimed(response))
            for identity, referral_id, time in self._session.execute(near):
                found[kind, identity, referral_id].append(as_utc(time))
        return found

    def _insert(self, clicks: Sequence[_Click]) -> None:
        columns = self._models.once(columns_of)
        rows = []
        for click in clicks:
            values = {
                "referral_id": click.link.id,
                "action": CLICK,
                "is_touch": True,
                "key": _key(click.event),
                "identity": _identity(click.event),
                "session_key": click.key,
                "user_id": click.user_id,
                "created_at": click.time,
                **{name: click.event[name] for name in (*_DESCRIPTION, "ignored", "params")},
            }
            rows.append({columns[name].key: value for name, value in values.items()})
        connection = self._transaction.connection
        table = t.cast(sa.Table, sa.inspect(self._models.response).local_table)
        into = sa.insert(table)
        if connection.dialect.insert_executemany_returning:
            # So that the rows go into one statement: drivers send one for each otherwise.
            connection.execute(into.returning(table.c.id), rows)
        else:
            connection.execute(into, rows)
        today = datetime.now(timezone.utc).date()
        late = [click for click in clicks if click.event["ignored"] is None and click.time.date() < today]
        if late:
            totals.correct(self._session, [(click.link.id, CLICK, click.time) for click in late], 1)
        self._announce([_identity(click.event) for click in clicks])

    def _announce(self, identities: Sequence[str]) -> None:
        app = t.cast(Flask, unwrapped(current_app))
        if not signals.response_recorded.has_receivers_for(app):
            return
        response = self._models.response
        stored = sa.select(response).where(response.identity.in_(identities))

        def announce() -> None:
            for each in self._session.scalars(stored.order_by(response.created_at, response.id)).all():
                signals.send(signals.response_recorded, app, response=each)

        after_commit(self._session, announce)


def _key(event: Event) -> str:
    return f"click:{event['id']}"


def _identity(event: Event) -> str:
    return identity_digest(CLICK, _key(event))
