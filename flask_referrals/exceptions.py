"""The errors this package raises; :exc:`ReferralsError` catches them all."""


class ReferralsError(Exception):
    """The root of every error raised by Flask-Referrals."""


class ConfigurationError(ReferralsError, RuntimeError):
    """The app is not set up so that referrals can work; the message names the cure."""


class InvalidValueError(ReferralsError, ValueError):
    """An argument cannot be accepted; the message starts with its name.

    :param field: the argument or form field at fault.
    :param reason: what is wrong with it, as the rest of a sentence.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field} {reason}")
        self.field = field


class TooManyGuessesError(ReferralsError):
    """Too many wrong codes came from one address: ask it to wait an hour, with HTTP 429."""


class TooManyLinksError(ReferralsError):
    """A user has made as many links with the form as ``REFERRALS_LINK_LIMIT`` allows."""


class CodeTakenError(InvalidValueError):
    """The code asked for belongs to another referral."""

    def __init__(self) -> None:
        super().__init__("code", "is already taken by another referral")
