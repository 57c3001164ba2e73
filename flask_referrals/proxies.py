"""The names that a host imports: they stand for the current app's models, as ``flask.request`` does for the request."""

import typing as t

from sqlalchemy import inspect, inspection

from .models import ReferralMixin, ReferralResponseMixin
from .state import current_state

if t.TYPE_CHECKING:

    @t.final
    class Referral(ReferralMixin):
        """The current app's referral model."""

    @t.final
    class ReferralResponse(ReferralResponseMixin):
        """The current app's response model."""

else:

    class _ModelProxy(type):
        """Forwards everything to the current app's model."""

        def _resolve(cls) -> type[t.Any]:
            return getattr(current_state().database.models, cls._attribute)

        def __getattr__(cls, name: str) -> t.Any:
            # Python and its tools look for private names on any class. Only SQLAlchemy's are the model's.
            if name.startswith("_") and name not in ("__table__", "__tablename__", "__mapper__", "__clause_element__"):
                raise AttributeError(name)
            return getattr(cls._resolve(), name)

        def __call__(cls, *args: t.Any, **kwargs: t.Any) -> t.Any:
            return cls._resolve()(*args, **kwargs)

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, cls._resolve())

        def __subclasscheck__(cls, subclass: type) -> bool:
            return issubclass(subclass, cls._resolve())

    # The one private name of SQLAlchemy here: it makes select(Referral) and session.get(Referral, 1) work.
    inspection._inspects(_ModelProxy)(lambda proxy: inspect(proxy._resolve()))

    class Referral(metaclass=_ModelProxy):
        """The current app's referral model. It has what :class:`.ReferralMixin` has."""

        _attribute = "referral"

    class ReferralResponse(metaclass=_ModelProxy):
        """The current app's response model. It has what :class:`.ReferralResponseMixin` has."""

        _attribute = "response"
