"""For forms with WTForms: a field for a referral's code."""

import typing as t

from wtforms import Field
from wtforms import Form
from wtforms.validators import ValidationError

from ..attaching import find
from ..exceptions import InvalidValueError
from ..exceptions import TooManyGuessesError
from ..visitors import resolve_request


class ReferralCode:
    """Validates that a field is empty or the code of a living referral; record it with ``Referral.attach``.

    :param message: what to say of any other.
    """

    def __init__(self, message: str | None = None) -> None:
        self.message = message

    def __call__(self, form: Form, field: Field) -> None:
        """Check a field.

        :raises ValidationError: there is no such code, or too many wrong ones came from this address.
        """
        typed: t.Any = field.data
        if not typed:
            return
        try:
            find(typed, resolve_request())
        except InvalidValueError:
            raise ValidationError(self.message or field.gettext("This code is not known.")) from None
        except TooManyGuessesError:
            raise ValidationError(field.gettext("Too many wrong codes: please try again in an hour.")) from None
