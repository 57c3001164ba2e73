"""Making a referral, exactly once."""

import hashlib
import json
import re
import secrets
import typing as t
from datetime import datetime

import sqlalchemy as sa
from flask import current_app
from sqlalchemy.exc import IntegrityError

from . import signals
from . import targets
from .clients import storable
from .context import current_state
from .exceptions import CodeTakenError
from .exceptions import InvalidValueError
from .exceptions import ReferralsError
from .exceptions import TooManyLinksError
from .identity import user_id
from .redirects import MAX_LENGTH
from .transactions import Transaction
from .urls import target_location

if t.TYPE_CHECKING:
    from .models import ReferralMixin

#: What a code looks like, in a URL and in the database.
CODE = re.compile(r"[A-Za-z0-9_-]{1,64}")

# Lower case, as MariaDB and people take both cases for one, and without what is mistaken for another: i l o 0 1.
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
_CODE_LENGTH = 12  # 31 ** 12 is 59 bits
_ATTEMPTS = 10
_MAX_LABEL = 100


def create(
    redirect_to: str,
    user: t.Any = None,
    label: str = "",
    target: t.Any = None,
    *,
    code: str | None = None,
    expires_at: datetime | None = None,
    limit: int | None = None,
    commit: bool = True,
) -> "ReferralMixin":
    """Do what :meth:`.ReferralMixin.create` promises.

    :param limit: how many links the user may have.
    :raises TooManyLinksError: the user has that many; an existing link is returned all the same.
    """
    _check_text("redirect_to", redirect_to, MAX_LENGTH)
    _check_text("label", label, _MAX_LABEL)
    if target_location(redirect_to) is None:
        raise InvalidValueError(
            "redirect_to",
            "must be a path on this site, a URL on it or on a host in REFERRALS_ALLOWED_REDIRECT_HOSTS, or an endpoint",
        )
    if code is not None and not (isinstance(code, str) and CODE.fullmatch(code)):
        raise InvalidValueError("code", "must be 1 to 64 letters, digits, '-' or '_'")
    if code is not None and code.lower() in current_app.config["REFERRALS_RESERVED_CODES"]:
        raise InvalidValueError("code", "is reserved")
    if expires_at is not None and expires_at.tzinfo is None:
        raise InvalidValueError("expires_at", "must be an aware time: datetime.now(timezone.utc), not utcnow()")

    state = current_state()
    model = state.models.referral
    transaction = Transaction(state, model, commit=commit)
    owner = user_id(user)
    target_type, target_id = targets.reference(target)
    identity = identity_digest(owner, redirect_to, label, target_type, target_id)

    tried: list[str] = []

    def add() -> "ReferralMixin":
        if limit is not None:
            _check_limit(transaction, owner, limit)
        referral = model(
            user_id=owner,
            redirect_to=redirect_to,
            label=label,
            target_type=target_type,
            target_id=target_id,
            identity=identity,
            expired_at=expires_at,
        )
        referral.code = code or _new_code(referral)
        tried.append(referral.code)
        transaction.session.add(referral)
        transaction.session.flush()
        return referral

    def get_or_make() -> "tuple[ReferralMixin, bool]":
        find = sa.select(model).where(model.identity == identity)
        return transaction.get_or_add(find, add, attempts=1 if code else _ATTEMPTS)

    def get_or_make_own() -> "ReferralMixin":
        referral, is_new = get_or_make()
        if referral.user_id != owner:
            # A deleted user's, whose key was given out again: it must not pass to the new one.
            with transaction.write():
                referral.identity = secrets.token_hex(32)
                transaction.session.flush()
            referral, is_new = get_or_make()
        if is_new:
            signals.send_after_commit(transaction.session, signals.referral_created, referral=referral)
            transaction.commit()
        return referral

    try:
        return transaction.run(get_or_make_own)
    except IntegrityError as error:
        if (
            not tried
            or not (error.statement or "").startswith("INSERT")
            or transaction.session.scalar(sa.select(model.id).where(model.code == tried[-1])) is None
        ):
            raise
        if code is not None:
            raise CodeTakenError from error
        raise ReferralsError(f"The code generator made {_ATTEMPTS} codes that are all taken.") from error


def _check_limit(transaction: Transaction, owner: t.Any, limit: int) -> None:
    models = current_state().models
    # One after the other for each user. Without a user model, requests in parallel may each go one too far.
    transaction.begin()
    if models.user is not None:
        (key,) = sa.inspect(models.user).primary_key
        transaction.session.execute(sa.select(key).where(key == owner).with_for_update(key_share=True))
    links = sa.select(sa.func.count()).where(models.referral.user_id == owner)
    for dialect in ("mysql", "mariadb"):  # whose snapshot may be older than links that were made meanwhile
        links = links.suffix_with("LOCK IN SHARE MODE", dialect=dialect)
    if (transaction.session.scalar(links) or 0) >= limit:
        raise TooManyLinksError(f"You have {limit} links, and cannot make more.")


def _check_text(field: str, value: t.Any, length: int) -> None:
    if not isinstance(value, str):
        raise InvalidValueError(field, f"must be a string, not {type(value).__name__}")
    if len(value) > length:
        raise InvalidValueError(field, f"is longer than {length} characters")
    if value != storable(value, length):
        raise InvalidValueError(field, "has a NUL or half a surrogate pair in it")


def identity_digest(*parts: t.Any) -> str:
    """Return what makes a link the one it is.

    :param parts: the owner's key, the place, the label, the target's type name and key.
    """
    # One NOT NULL column: a unique key over nullable columns lets equal rows in on every database.
    canonical = json.dumps([part if part is None else str(part) for part in parts])
    return hashlib.sha256(canonical.encode()).hexdigest()


def _new_code(referral: "ReferralMixin") -> str:
    generator = current_state().extension.hooks.code_generator
    if generator is None:
        return "".join(secrets.choice(_ALPHABET) for _ in range(_CODE_LENGTH))
    code = generator(referral)
    if not (isinstance(code, str) and CODE.fullmatch(code)):
        raise ReferralsError(f"The code generator returned {code!r}, not 1 to 64 letters, digits, '-' or '_'.")
    return code
