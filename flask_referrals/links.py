"""Links: create the one row there is for a user, place, label and target; find one by its code; expire it."""

import secrets
import typing as t
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from werkzeug.wrappers import Request

from .actors import user_key
from .db.conditions import is_exactly
from .db.keys import digest
from .db.tables import ReferralColumns
from .db.transactions import Transaction, open_transaction
from .delivery import send_after_commit
from .exceptions import CodeTakenError, InvalidValueError, ReferralsError, TooManyGuessesError, TooManyLinksError
from .redirects import MAX_LENGTH
from .signals import referral_created
from .state import AppState
from .targets import reference
from .times import require_aware
from .types import CODE, plain_text
from .web.client import client_network
from .web.urls import target_location

# Lower case, as people and MariaDB take both cases as equal, and without characters that look alike: i l o 0 1.
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
_CODE_LENGTH = 12  # 31 ** 12 is 59 bits
_CODE_ATTEMPTS = 10
_MAX_LABEL = 100


def create_link(
    state: AppState,
    redirect_to: str,
    user: t.Any = None,
    label: str = "",
    target: t.Any = None,
    *,
    code: str | None = None,
    expires_at: datetime | None = None,
    limit: int | None = None,
    commit: bool = True,
    transaction: Transaction | None = None,
) -> ReferralColumns:
    """Create a link as :meth:`.ReferralMixin.create` says.

    :param limit: the most links of the user; an existing link is returned all the same.
    :param transaction: the transaction of a caller, who runs it.
    """
    redirect_to = plain_text("redirect_to", redirect_to, MAX_LENGTH)
    label = plain_text("label", label, _MAX_LABEL)
    if code is not None:
        if not (isinstance(code, str) and CODE.fullmatch(code)):
            raise InvalidValueError("code", "must be 1 to 64 letters, digits, '-' or '_'")
        if code.casefold() in state.settings.reserved_codes:
            raise InvalidValueError("code", "is reserved")
        code = str.__str__(code)
    expires_at = require_aware("expires_at", expires_at)
    if target_location(state.settings, redirect_to) is None:
        raise InvalidValueError(
            "redirect_to",
            "must be a path on this site, a URL on it or on a host in REFERRALS_ALLOWED_REDIRECT_HOSTS, or an endpoint",
        )
    runs_itself = transaction is None
    transaction = transaction or open_transaction(state.database, commit=commit)
    owner = user_key(state, user)
    target_type, target_id = reference(state, target)
    values = {
        "user_id": owner,
        "redirect_to": redirect_to,
        "label": label,
        "target_type": target_type,
        "target_id": target_id,
        "identity": digest(owner, redirect_to, label, target_type, target_id),
        "expired_at": expires_at,
    }
    creation = _Creation(state, transaction, values, code, limit)
    return transaction.run(creation.get_or_insert) if runs_itself else creation.get_or_insert()


@dataclass
class _Creation:
    state: AppState
    transaction: Transaction
    values: dict[str, t.Any]
    code: str | None
    limit: int | None
    tried: str | None = None

    def get_or_insert(self) -> ReferralColumns:
        transaction = self.transaction
        referral, is_new = self._get_or_insert()
        if referral.user_id != self.values["user_id"]:
            # It belonged to a deleted user whose key was given out again: it must not pass to the new one.
            with transaction.write():
                referral.identity = secrets.token_hex(32)
                transaction.session.flush()
            referral, is_new = self._get_or_insert()
        if is_new:
            transaction.has_written = True
            send_after_commit(self.state, transaction, referral_created, [referral.id], payload="referral")
        return referral

    def _get_or_insert(self) -> tuple[ReferralColumns, bool]:
        database, attempts = self.state.database, 1 if self.code else _CODE_ATTEMPTS
        model = database.models.referral
        select = sa.select(model).where(model.identity == self.values["identity"])
        try:
            return self.transaction.get_or_insert(select, database.first_object, self._insert, attempts=attempts)
        except IntegrityError as error:
            taken = sa.select(database.models.referrals.id).where(model.code == self.tried)
            if not (error.statement or "").startswith("INSERT") or self.transaction.scalar(taken) is None:
                raise
            if self.code is not None:
                raise CodeTakenError from error
            raise ReferralsError(f"The code generator returned {attempts} codes that are all taken.") from error

    def _insert(self) -> ReferralColumns:
        if self.limit is not None:
            self._check_limit(self.limit)
        referral = self.state.database.models.referral(**self.values)
        referral.code = self.tried = self.code or self._new_code(referral)
        self.transaction.session.add(referral)
        self.transaction.session.flush()
        return referral

    def _check_limit(self, limit: int) -> None:
        transaction, models = self.transaction, self.state.database.models
        owner = self.values["user_id"]
        # The lock makes it exact for each user. Without a user model, parallel requests may each create one too many.
        transaction.lock()
        if models.user is not None:
            (key,) = sa.inspect(models.user).primary_key
            transaction.session.execute(sa.select(key).where(key == owner).with_for_update(key_share=True))
        links = sa.select(sa.func.count()).where(is_exactly(models.referrals.user_id, owner))
        for dialect in ("mysql", "mariadb"):  # whose snapshot may be older than links that others have made
            links = links.suffix_with("LOCK IN SHARE MODE", dialect=dialect)
        if (transaction.scalar(links) or 0) >= limit:
            raise TooManyLinksError(f"You have {limit} links, and cannot make more.")

    def _new_code(self, referral: ReferralColumns) -> str:
        generator = self.state.hooks.code_generator
        if generator is None:
            return "".join(secrets.choice(_ALPHABET) for _ in range(_CODE_LENGTH))
        code = generator(referral)
        if not (isinstance(code, str) and CODE.fullmatch(code)):
            raise ReferralsError(f"The code generator returned {code!r}, not 1 to 64 letters, digits, '-' or '_'.")
        return str.__str__(code)


def find_link(state: AppState, code: str) -> ReferralColumns | None:
    """Return the referral with a code, or ``None``."""
    if not CODE.fullmatch(code):
        return None
    model = state.database.models.referral
    return t.cast("ReferralColumns | None", state.database.first_object(sa.select(model).where(model.code == code)))


def find_typed_link(state: AppState, code: str, request: Request | None) -> ReferralColumns:
    """Return the active referral of a code that was typed. Blanks around it and its capitals do not matter.

    :raises InvalidValueError: the code is unknown or its referral has expired: the error is the same.
    :raises TooManyGuessesError: the address has sent too many wrong codes.
    """
    address, limit = client_network(request, state.hooks), state.settings.guess_limit
    if address is not None and limit is not None and state.guesses.count(address) >= limit:
        raise TooManyGuessesError
    typed = code.strip() if isinstance(code, str) else ""
    referral = find_link(state, typed) or find_link(state, typed.lower())
    if referral is None or not referral.is_active():
        if address is not None:
            state.guesses.add(address)
        raise InvalidValueError("code", "is not known")
    return referral
