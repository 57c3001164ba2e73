"""Reports: lists of responses, and their counts. They may be read from a replica."""

import typing as t
from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from .actors import user_key
from .db.conditions import actor_parameters, history_of, is_exactly, newest_first
from .db.tables import ReferralColumns
from .db.totals import count_responses, watermark
from .state import AppState
from .times import EPOCH, as_utc
from .types import CLICK, Actor

#: For how many links the newest responses are read at once; SQLite takes 500 at most.
_LINKS = 100


def click_count(state: AppState, referral_id: int) -> int:
    """Return how many clicks on a referral are counted."""
    models = state.database.models
    until = [row.day for row in state.reports.rows(watermark(models))]
    ((number,),) = state.reports.rows(count_responses(models, referral_id, CLICK, as_utc(until[0]) if until else EPOCH))
    return int(number)


def counted_responses(
    state: AppState, *, user: t.Any = None, referral: ReferralColumns | None = None, limit: int | None = None
) -> Sequence[t.Any]:
    """Return the counted responses to a user's referrals, or to one, newest first, as ``responses_filter`` selects."""
    models, select = state.database.models, state.hooks.responses_filter
    response: t.Any = models.response
    found = sa.select(response).where(response.ignored.is_(None)).order_by(*newest_first(response))
    if referral is not None:
        found = found.where(response.referral_id == referral.id)
    else:
        owner = user_key(state, user)
        if owner is None:
            return []
        if limit is not None and select is None:
            found = found.where(response.id.in_(_newest_ids(state, owner, limit)))
            found = found.options(sa.orm.selectinload(response.referral))
        else:
            found = found.join(models.referral, response.referral_id == models.referral.id)
            found = found.where(is_exactly(models.referral.user_id, owner))
            found = found.options(sa.orm.contains_eager(response.referral))
    found = found.limit(limit)
    return state.reports.objects(found if select is None else select(found, user=user, referral=referral))


def _newest_ids(state: AppState, owner: t.Any, limit: int) -> Sequence[int]:
    """Return the ids of the newest counted responses to a user's links. A join would read and sort all responses."""
    referrals, responses = state.database.models.referrals, state.database.models.responses
    links = [row.id for row in state.reports.rows(sa.select(referrals.id).where(is_exactly(referrals.user_id, owner)))]
    newest: list[tuple[t.Any, int]] = []
    for start in range(0, len(links), _LINKS):
        of_each = [
            sa.select(responses.created_at.label("created_at"), responses.id.label("id"))
            # As literals: PostgreSQL plans a prepared statement for a link of average size.
            .where(responses.referral_id == sa.bindparam(None, each, literal_execute=True), responses.ignored.is_(None))
            .order_by(*newest_first(responses))
            .limit(limit)
            .subquery()
            .select()
            for each in links[start : start + _LINKS]
        ]
        found = state.reports.rows(sa.union_all(*of_each))
        newest = sorted([*newest, *((row.created_at, row.id) for row in found)], reverse=True)[:limit]
    return [key for _, key in newest]


def latest_actions(state: AppState, user: t.Any, *, since: datetime, limit: int) -> Sequence[t.Any]:
    """Return the newest counted actions on a user's links since a time, as ``responses_filter`` selects; no clicks."""
    models, select = state.database.models, state.hooks.responses_filter
    response: t.Any = models.response
    found = sa.select(response).join(models.referral, response.referral_id == models.referral.id)
    found = found.where(is_exactly(models.referral.user_id, user_key(state, user)))
    found = found.where(response.ignored.is_(None), response.action != CLICK, response.created_at >= since)
    found = found.options(sa.orm.contains_eager(response.referral)).order_by(*newest_first(response)).limit(limit)
    return state.reports.objects(found if select is None else select(found, user=user, referral=None))


def links_of(state: AppState, user: t.Any, *, limit: int | None = None, offset: int = 0) -> Sequence[t.Any]:
    """Return a user's links, the newest first.

    :param limit: how many at most.
    :param offset: how many to leave out.
    """
    referral: t.Any = state.database.models.referral
    found = sa.select(referral).where(is_exactly(referral.user_id, user_key(state, user)))
    return state.reports.objects(found.order_by(*newest_first(referral)).limit(limit).offset(offset or None))


def responses_of(state: AppState, actor: Actor) -> Sequence[t.Any]:
    """Return all responses of an actor, newest first. They are read in the host's session, for they may be new."""
    return state.database.objects(history_of(state.database.models.response, actor), actor_parameters(actor))
