"""Links: create one row for each user, page, label and target; find a link by its code."""

import secrets
import typing as t
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from werkzeug.wrappers import Request

from .actors import user_key
from .db.build import Models
from .db.conditions import is_active, is_exactly
from .db.keys import digest
from .db.tables import ReferralColumns
from .db.transactions import Transaction, get_statement, open_transaction
from .delivery import send_after_commit
from .exceptions import CodeTakenError, InvalidValueError, ReferralsError, TooManyGuessesError, TooManyLinksError
from .redirects import MAX_LENGTH
from .signals import referral_created
from .state import AppState
from .targets import reference
from .times import now, require_aware
from .types import CODE, plain_text
from .web.client import client_network
from .web.codes import find_codes
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
        if not _is_code(code):
            raise InvalidValueError("code", "must be 1 to 64 letters, digits, '-' or '_'")
        if code.lower() in state.settings.reserved_codes:
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
            # It belonged to a deleted user whose key the database has reused: the new user must not get it.
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
            tried = str(self.tried)
            taken = sa.select(model.id).where(sa.or_(model.code == tried, model.folded_code == tried.lower()))
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
        for _ in range(_CODE_ATTEMPTS):
            code = generator(referral)
            if not _is_code(code):
                raise ReferralsError(f"The code generator returned {code!r}, not 1 to 64 letters, digits, '-' or '_'.")
            if code.lower() not in self.state.settings.reserved_codes:
                return str.__str__(code)
        raise ReferralsError(f"The code generator returned {_CODE_ATTEMPTS} codes that are all reserved.")


def _is_code(value: object) -> bool:
    return isinstance(value, str) and CODE.fullmatch(value) is not None


class LinkQuery(t.NamedTuple):
    """Select the links that some codes may stand for, in upper or lower case."""

    is_object: bool = False

    def build(self, models: Models) -> t.Any:
        referrals: t.Any = models.referral if self.is_object else models.referrals
        columns = [referrals.code, referrals.folded_code, referrals.redirect_to, referrals.user_id]
        links = sa.select(referrals) if self.is_object else sa.select(*columns, is_active(referrals).label("is_active"))
        # Not OR, for which SQLite may read the whole table.
        found = sa.union_all(
            links.where(referrals.code.in_(sa.bindparam("codes", expanding=True))),
            links.where(referrals.folded_code.in_(sa.bindparam("folded", expanding=True))),
        )
        return sa.select(referrals).from_statement(found) if self.is_object else found


def link_parameters(codes: Sequence[str]) -> dict[str, t.Any]:
    """Return the parameters of a :class:`LinkQuery`."""
    folded = [code.lower() for code in codes]
    return {"codes": [*codes, *folded], "folded": folded, "now": now()}


def choose_link(links: Sequence[t.Any], codes: Sequence[str]) -> t.Any:
    """Return the first code's link, or that of the next code. An exact match comes first."""
    for code in codes:
        folded = code.lower()
        for link in sorted(links, key=lambda link: (link.code != code, link.folded_code != folded)):
            if link.code == code or folded in (link.folded_code, link.code):
                return link
    return None


def find_link(state: AppState, text: str) -> ReferralColumns | None:
    """Return the referral that a text stands for, or ``None``."""
    codes = find_codes(text, state.settings)
    select = get_statement(state.database.models, LinkQuery(is_object=True))
    links = state.database.objects(select, link_parameters(codes)) if codes else ()
    return t.cast("ReferralColumns | None", choose_link(links, codes))


def find_typed_link(state: AppState, code: str, request: Request | None) -> ReferralColumns:
    """Return the active referral that a typed text stands for.

    :raises InvalidValueError: the code is unknown or its referral has expired: the error is the same.
    :raises TooManyGuessesError: the address has sent too many wrong codes. A right one is accepted all the same.
    """
    referral = find_link(state, code) if isinstance(code, str) else None
    if referral is not None and referral.is_active():
        return referral
    address, limit = client_network(request, state.hooks), state.settings.guess_limit
    if address is not None and limit is not None and not state.guesses.allow(address, limit):
        raise TooManyGuessesError
    raise InvalidValueError("code", "is not known")
