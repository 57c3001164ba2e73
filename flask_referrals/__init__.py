"""Referral links for Flask: give users links to share, and see which links bring clicks, sign-ups and sales."""

from .exceptions import CodeTakenError, ConfigurationError, InvalidValueError, ReferralsError, TooManyGuessesError
from .extension import Referrals, current_referrals
from .models import ReferralMixin, ReferralResponseMixin
from .proxies import Referral, ReferralResponse
from .signals import referral_created, response_recorded, user_linked_to_response

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
