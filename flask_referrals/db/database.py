"""The host's database, as plain SQLAlchemy objects."""

import typing as t
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import tzinfo
from functools import cached_property

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ..exceptions import ConfigurationError
from .after_commit import Callback, is_closing
from .build import Base, Models


class SettingNames(t.NamedTuple):
    """What the host's settings are called in messages: its named engines, their URLs, and their options."""

    binds: str
    urls: str
    options: str


@dataclass(frozen=True)
class Host:
    """What a database extension gives to a host's models and queries."""

    #: The extension, or what stands for it. Its ``session`` is a ``scoped_session``, which a test may replace.
    extension: t.Any
    setting_names: SettingNames
    #: The names of the engines that the host can choose from, and what returns such an engine.
    engine_names: Sequence[str]
    get_engine: Callable[[str], sa.Engine]
    #: The base class of models without a base of their own; ``None``: there is none.
    model: type[t.Any] | None = None
    #: What stands for it where its subclasses would be dataclasses.
    plain_model: type[t.Any] = object
    #: The ``get_bind`` of sessions that choose an engine by the bind of a table only.
    plain_get_bind: Callable[..., t.Any] = Session.get_bind
    #: Whether the extension creates its engines later, when all models are declared.
    is_late: bool = False


@dataclass(frozen=True)
class Database:
    """What ``init_app`` found out about the host's database."""

    base: Base
    models: Models
    host: Host
    #: Logs the exception that is being handled, under a message with placeholders.
    log_failure: Callable[..., None]
    #: The time zone of the days that are rolled up.
    zone: tzinfo
    #: A session that is never used, by the class and the bind of the host's sessions, which the host may change. It has
    #: the binds and the event listeners of all the host's sessions.
    probes: dict[t.Any, Session] = field(default_factory=dict, init=False, compare=False)

    @property
    def session(self) -> Session:
        """The host's session. It is created on first access."""
        return t.cast(Session, self.host.extension.session())

    @property
    def engine(self) -> sa.Engine:
        """The engine of the extension's tables."""
        return self.new_session().get_bind(**self.route).engine

    @cached_property
    def dialect(self) -> sa.Dialect:
        """The dialect of the extension's tables."""
        self.check_engine()
        return self.engine.dialect

    @cached_property
    def can_insert_selected(self) -> bool:
        """Whether one INSERT … SELECT can choose, write and return a row.

        MySQL does not return what it wrote, and MariaDB locks everything that an INSERT … SELECT reads.
        """
        return self.dialect.name in ("postgresql", "sqlite") and self.dialect.insert_returning

    @cached_property
    def route(self) -> dict[str, t.Any]:
        """The ``bind_arguments`` of a statement about the responses: the host's session sends it where INSERTs go."""
        return {"mapper": self.models.mapper, "clause": sa.insert(self.models.response_table)}

    def check_engine(self) -> None:
        """Raise an error if the engine of the extension's tables cannot roll back."""
        options: t.Any = self.engine.get_execution_options()
        # SQLAlchemy keeps the argument of create_engine() in a private attribute only.
        level = options.get("isolation_level") or getattr(self.engine.dialect, "_on_connect_isolation_level", None)
        if str(level).upper() == "AUTOCOMMIT":
            raise ConfigurationError(
                "The engine has isolation_level='AUTOCOMMIT', so that nothing can be rolled back. Remove it from the "
                "engine's options, or put the models of the referrals on a bind without it."
            )

    def without_flush(self) -> AbstractContextManager[t.Any]:
        """Return a block in which no query flushes what the host has pending, also one in the host's code."""
        return self.session.no_autoflush

    def objects(self, select: t.Any, parameters: t.Any = None) -> Sequence[t.Any]:
        """Return the objects of a select in the host's session, whose pending changes are not flushed for it."""
        with self.without_flush():
            return self.session.scalars(select, parameters).all()

    def first_object(self, select: t.Any, parameters: t.Any = None) -> t.Any:
        """Return the first of these objects, or ``None``."""
        return next(iter(self.objects(select, parameters)), None)

    def new_session(self) -> Session:
        """Return a session of the extension's own, of the host's kind."""
        return t.cast(Session, self.host.extension.session.session_factory())

    def guard(self, callback: Callback) -> Callback:
        """Return the callback as one that logs its errors instead of raising them."""

        def call() -> None:
            try:
                callback()
            except Exception:
                self.log_failure("A callback failed after a commit.")

        return call

    @contextmanager
    def usable_session(self) -> Iterator[None]:
        """Let the host's receivers use the host's session in the block.

        A session takes no work while it is being closed, and at the end of a ``with session.begin()`` block: another
        session takes its place then.
        """
        if self._accepts_work():
            yield
            return
        registry = self.host.extension.session.registry
        replaced = registry()
        with self.new_session() as session:
            registry.set(session)
            try:
                yield
            finally:
                registry.set(replaced)

    def _accepts_work(self) -> bool:
        if is_closing():
            return False
        try:
            if not self.session.in_transaction():
                self.session.begin().close()
        except sa.exc.InvalidRequestError:
            return False
        return True
