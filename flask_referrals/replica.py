"""Where reports are read: in the host's session, or on a replica of its database.

What decides something, who gets credit or which rows are changed, never asks here: a replica is behind.
"""

import typing as t
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager

import sqlalchemy as sa
from flask import current_app
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from .context import current_state


@contextmanager
def result_of(select: sa.Executable) -> Iterator[sa.Result[t.Any]]:
    """Yield the rows of a report, while its connection is held.

    :param select: asks for columns; for objects there is :func:`objects_of`.
    """
    state = current_state()
    if current_app.config["REFERRALS_REPORT_BIND"] is None:
        yield state.session.execute(select, bind_arguments={"mapper": sa.inspect(state.models.response)})
        return
    with _on_replica() as session:
        yield session.execute(select)


def objects_of(select: sa.Select[t.Any]) -> Sequence[t.Any]:
    """Return the objects of a report, which are the host's session's.

    Of a row that the session has already, it keeps its own object, as it is.

    :param select: asks for one model, or one column.
    """
    state = current_state()
    if current_app.config["REFERRALS_REPORT_BIND"] is None:
        return state.session.scalars(select).all()
    with _on_replica() as session:
        found = session.scalars(select).all()
        loaded = {sa.inspect(each).key: each for each in session}
        session.expunge_all()
    return _handed_over(found, loaded, state.session)


@contextmanager
def _on_replica() -> Iterator[Session]:
    """Yield a session of our own, of the host's kind, that sends everything to the replica.

    In the host's session, the replica would be part of its transaction: held until the end, which delays what it
    replays, and able to fail the host's COMMIT.
    """
    db = current_state().db
    engine = db.engines[current_app.config["REFERRALS_REPORT_BIND"]]
    with db.session.session_factory() as session:
        session.get_bind = lambda *args, **kwargs: engine  # type: ignore[method-assign]
        yield session


def _handed_over(found: Sequence[t.Any], loaded: dict[t.Any, t.Any], session: Session) -> Sequence[t.Any]:
    """Put objects that are in no session into one, with what was loaded along with them."""
    held = {key: session.identity_map.get(key, each) for key, each in loaded.items()}

    def own(value: t.Any) -> t.Any:
        if isinstance(value, list):
            return [own(each) for each in value]
        state = sa.inspect(value, raiseerr=False)
        return held.get(state.key, value) if isinstance(state, sa.orm.InstanceState) else value

    for each in loaded.values():
        state = sa.inspect(each)
        for name in state.mapper.relationships.keys() & state.dict.keys():
            set_committed_value(each, name, own(state.dict[name]))
    session.add_all(each for key, each in loaded.items() if held[key] is each)
    return [own(each) for each in found]
