"""The two models, as mixins without a database.

A host that needs more columns or another table declares its own::

    class Invite(ReferralMixin, db.Model):
        __tablename__ = "invite"
        __user_model__ = User
        campaign: Mapped[str | None] = mapped_column(String(40))
"""

from .referral import ReferralMixin
from .response import ReferralResponseMixin

__all__ = ["ReferralMixin", "ReferralResponseMixin"]
