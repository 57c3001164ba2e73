"""Referral links for Flask: pass on a link, and see who brought whom."""

from .exceptions import CodeTakenError
from .exceptions import ConfigurationError
from .exceptions import InvalidValueError
from .exceptions import ReferralsError
from .exceptions import TooManyGuessesError
from .extension import Referrals
from .models import ReferralMixin
from .models import ReferralResponseMixin
from .proxies import Referral
from .proxies import ReferralResponse
from .proxies import current_referrals
from .signals import referral_created
from .signals import response_recorded
from .signals import user_linked_to_response

__all__ = [
    "CodeTakenError",
    "ConfigurationError",
    "InvalidValueError",
    "Referral",
    "ReferralMixin",
    "ReferralResponse",
    "ReferralResponseMixin",
    "Referrals",
    "ReferralsError",
    "TooManyGuessesError",
    "current_referrals",
    "referral_created",
    "response_recorded",
    "user_linked_to_response",
]
