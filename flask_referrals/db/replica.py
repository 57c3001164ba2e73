"""Where reports are read: in the host's session, or on a replica of its database.

Whatever decides something, such as credit or which rows are changed, never reads here: a replica is behind.
"""

import typing as t
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from .after_commit import Callback
from .database import Database
from .transactions import HostTransaction, T, Work


@dataclass(frozen=True)
class Reports:
    _database: Database
    #: The key of the replica's bind; ``None`` reads in the host's session.
    _bind: str | None

    def rows(self, select: sa.Executable) -> Sequence[t.Any]:
        """Return the rows of a select of columns."""
        with self.stream(select) as rows:
            return rows.all()

    @contextmanager
    def stream(self, select: sa.Executable) -> Iterator[sa.Result[t.Any]]:
        """Yield the rows of a select of columns, while its connection is held."""
        database = self._database
        if self._bind is None:
            with database.session.no_autoflush:
                yield database.session.execute(select, bind_arguments={"mapper": database.models.mapper})
        else:
            with self._replica(self._bind) as session:
                yield session.execute(select)

    def objects(self, select: sa.Select[t.Any]) -> Sequence[t.Any]:
        """Return the objects of a select of one model, or the values of one column.

        They belong to the host's session, which keeps its own object of a row as it is.
        """
        if self._bind is None:
            return self._database.objects(select)
        with self._replica(self._bind) as session:
            found = session.scalars(select).all()
            loaded = {sa.inspect(each).key: each for each in session}
            session.expunge_all()
        return _move(found, loaded, self._database.session)

    def run(self, read: Work[T], on_failure: Callback) -> T | None:
        """Read for a page that can do without. If that fails, the host's transaction stays as it is."""
        transaction = HostTransaction(self._database)
        has_part = transaction.session.in_transaction() and self._bind is None
        return transaction.run_guarded(read, transaction.read if has_part else nullcontext, on_failure)

    @contextmanager
    def _replica(self, bind: str) -> Iterator[Session]:
        """Yield a session that sends everything to the replica, except what is in another database of the host's.

        In the host's session the replica's transaction would last as long as the host's, and could fail its COMMIT.
        """
        engine, metadata = self._database.host.get_engine(bind), self._database.models.total.metadata
        with self._database.new_session() as session:
            get_bind = session.get_bind

            def route(mapper: t.Any = None, **options: t.Any) -> t.Any:
                is_here = mapper is None or sa.inspect(mapper).local_table.metadata is metadata
                return engine if is_here else get_bind(mapper, **options)

            session.get_bind = route  # type: ignore[method-assign]
            yield session


def _move(found: Sequence[t.Any], loaded: dict[t.Any, t.Any], session: Session) -> Sequence[t.Any]:
    """Add objects that are in no session to one, with everything that was loaded with them."""
    kept = {key: session.identity_map.get(key, each) for key, each in loaded.items()}

    def own(value: t.Any) -> t.Any:
        if isinstance(value, list):
            return [own(each) for each in value]
        state = sa.inspect(value, raiseerr=False)
        return kept.get(state.key, value) if isinstance(state, sa.orm.InstanceState) else value

    for each in loaded.values():
        state = sa.inspect(each)
        for name in state.mapper.relationships.keys() & state.dict.keys():
            set_committed_value(each, name, own(state.dict[name]))
    session.add_all(each for key, each in loaded.items() if kept[key] is each)
    return [own(each) for each in found]
