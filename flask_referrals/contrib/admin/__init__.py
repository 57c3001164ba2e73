"""Pages for Flask-Admin. Install ``Flask-Referrals[admin]``.

::

    class OnlyForStaff(InsightIndexView):
        def is_accessible(self):
            return current_user.is_staff

    admin = Admin(app, index_view=OnlyForStaff())
    add_views(admin)
"""

import typing as t

from ...exceptions import ConfigurationError
from .insight import InsightIndexView
from .links import ReferralAdmin
from .responses import ReferralResponseAdmin

__all__ = ["InsightIndexView", "ReferralAdmin", "ReferralResponseAdmin", "add_views"]


def add_views(admin: t.Any, category: str = "Referrals") -> None:
    """Add both lists to an admin. To customise a view, add your own subclass with ``admin.add_view`` instead.

    :param admin: the admin of an app with ``referrals.init_app(app)``.
    :param category: the menu that contains the views.
    :raises ConfigurationError: if the admin has no app, or the app has no referrals.
    """
    if admin.app is None:
        raise ConfigurationError("This admin has no app. Call 'admin.init_app(app)' before you add the views.")
    for view in (ReferralAdmin, ReferralResponseAdmin):
        admin.add_view(view(admin.app, category=category))
