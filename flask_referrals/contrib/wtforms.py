"""A WTForms validator for referral codes. Install ``Flask-Referrals[wtforms]``."""

import typing as t

from wtforms import Field, Form
from wtforms.validators import ValidationError

from ..exceptions import InvalidValueError, TooManyGuessesError
from ..links import find_typed_link
from ..state import current_state
from ..web.client import resolve_request


class ReferralCode:
    """Validate that a field is empty or holds the code of an active referral. Record it with ``Referral.attach``.

    :param message: the error message for an unknown or expired code.
    """

    def __init__(self, message: str | None = None) -> None:
        self.message = message

    def __call__(self, form: Form, field: Field) -> None:
        """Validate a field.

        :raises ValidationError: if the code is unknown or expired, or this address sent too many such codes.
        """
        typed: t.Any = field.data
        if not typed:
            return
        try:
            find_typed_link(current_state(), typed, resolve_request())
        except InvalidValueError:
            raise ValidationError(
                self.message or field.gettext("This code is not valid. Check the spelling.")
            ) from None
        except TooManyGuessesError:
            raise ValidationError(field.gettext("Too many wrong codes. Try again in an hour.")) from None
