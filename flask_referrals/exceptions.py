"""The errors that this package raises. :exc:`ReferralsError` is their common base class."""


class ReferralsError(Exception):
    """Base class of every error that Flask-Referrals raises."""


class ConfigurationError(ReferralsError, RuntimeError):
    """The app is not set up correctly. The message says what to change."""


class InvalidValueError(ReferralsError, ValueError):
    """An argument or form field is invalid. The message starts with its name.

    :param field: the name of the argument or form field.
    :param reason: what is wrong with it, as the rest of a sentence.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field} {reason}")
        self.field = field


class TooManyGuessesError(ReferralsError):
    """One address sent too many wrong codes. Answer with HTTP 429; it may try again after an hour."""


class TooManyLinksError(ReferralsError):
    """A user has as many links as ``REFERRALS_LINK_LIMIT`` allows."""


class CodeTakenError(InvalidValueError):
    """Another referral already has the requested code."""

    def __init__(self) -> None:
        super().__init__("code", "is already taken by another referral")
