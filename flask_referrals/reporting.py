"""The lists and counts that people look at."""

import typing as t
from collections.abc import Sequence

import sqlalchemy as sa

from . import totals
from .attribution import CLICK
from .attribution import newest_first
from .context import current_state
from .identity import user_id
from .replica import objects_of
from .replica import result_of

#: For how many links the newest responses are asked for at once; SQLite takes 500 at most.
_LINKS = 100

if t.TYPE_CHECKING:
    from .models import ReferralMixin
    from .models import ReferralResponseMixin


def click_count(referral_id: int) -> int:
    """Return how many clicks on a referral counted.

    :param referral_id: the referral's key.
    """
    model = current_state().models.referral
    clicks, _ = counts_of(sa.select(model).where(model.id == referral_id)).get(referral_id, (0, 0))
    return clicks


def filtered_responses(
    *, user: t.Any = None, referral: "ReferralMixin | None" = None, limit: int | None = None
) -> "Sequence[ReferralResponseMixin]":
    """Return the responses that count, newest first, as the host's ``responses_filter`` lets them through.

    :param user: those to this user's referrals; nobody has none.
    :param referral: those to this referral.
    :param limit: the most to return.
    """
    state = current_state()
    link, response = state.models.referral, state.models.response
    narrow = state.extension.hooks.responses_filter
    found = sa.select(response).where(response.ignored.is_(None)).order_by(*newest_first(response))
    if referral is not None:
        found = found.where(response.referral_id == referral.id)
    else:
        owner = user_id(user)
        if owner is None:
            return []
        if limit is not None and narrow is None:
            found = found.where(response.id.in_(_newest_ids(owner, limit)))
            found = found.options(sa.orm.selectinload(response.referral))
        else:
            found = found.join(link, response.referral_id == link.id).where(link.user_id == owner)
            found = found.options(sa.orm.contains_eager(response.referral))
    found = found.limit(limit)
    if narrow is not None:
        found = narrow(found, user=user, referral=referral)
    return objects_of(found)


def _newest_ids(owner: t.Any, limit: int) -> Sequence[int]:
    """Return the keys of the newest counted responses to a user's links.

    Each link's newest are the end of an index; a join would have the database read all responses to all of them, and
    sort.
    """
    state = current_state()
    link, response = state.models.referral, state.models.response
    with result_of(sa.select(link.id).where(link.user_id == owner)) as owned:
        links = owned.scalars().all()
    newest: list[tuple[t.Any, int]] = []
    for start in range(0, len(links), _LINKS):
        of_each = [
            sa.select(response.created_at, response.id)
            # As literals: PostgreSQL plans a prepared statement for a link of average size.
            .where(response.referral_id == sa.bindparam(None, each, literal_execute=True), response.ignored.is_(None))
            .order_by(*newest_first(response))
            .limit(limit)
            .subquery()
            .select()
            for each in links[start : start + _LINKS]
        ]
        with result_of(sa.union_all(*of_each)) as rows:
            newest += [(row.created_at, row.id) for row in rows]
        newest = sorted(newest, reverse=True)[:limit]
    return [key for _, key in newest]


def counts_of(links: sa.Select[t.Any]) -> dict[int, tuple[int, int]]:
    """Return how many clicks and how many later actions counted, for each of some referrals that has any.

    :param links: a select of referrals, with its order and limit.
    """
    models = current_state().models
    with result_of(totals.bookmark(models)) as found_until:
        until = found_until.scalar_one_or_none()
    counted = totals.counts(models, links.with_only_columns(models.referral.id), until)
    found: dict[int, tuple[int, int]] = {}
    with result_of(counted) as rows:
        for row in rows:
            clicks, actions = found.get(row.referral_id, (0, 0))
            is_click, number = row.action == CLICK, int(row.number)
            found[row.referral_id] = (clicks + number * is_click, actions + number * (not is_click))
    return found
