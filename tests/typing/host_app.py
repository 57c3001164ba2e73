"""A typed host that uses every public name; mypy --strict and pyright must find nothing wrong with it."""

import typing as t
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

import sqlalchemy as sa
from flask import Flask, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from typing_extensions import assert_type
from werkzeug.wrappers import Request

from flask_referrals import (
    CodeTakenError,
    ConfigurationError,
    InvalidValueError,
    Referral,
    ReferralMixin,
    ReferralResponse,
    ReferralResponseMixin,
    Referrals,
    ReferralsError,
    TooManyGuessesError,
    current_referrals,
    referral_created,
    response_recorded,
    user_linked_to_response,
)
from flask_referrals.contrib.dashboard import create_blueprint
from flask_referrals.stats import Stats, Totals


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)
referrals = Referrals()


class User(db.Model):  # type: ignore[name-defined, misc]
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(50))


class Product(db.Model):  # type: ignore[name-defined, misc]
    id: Mapped[int] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(sa.String(50), unique=True)


class Invite(ReferralMixin, db.Model):  # type: ignore[name-defined, misc]
    __user_model__ = User
    campaign: Mapped[str | None] = mapped_column(sa.String(40))


class Answer(ReferralResponseMixin, db.Model):  # type: ignore[name-defined, misc]
    __user_model__ = User
    __referral_model__ = Invite
    score: Mapped[int | None]


def create_app(*, with_own_models: bool = False) -> Flask:
    app = Flask(__name__)
    db.init_app(app)
    if with_own_models:
        Referrals(app, user_model=User, referral_model=Invite, response_model=Answer, recorder=None, db=db)
    else:
        referrals.init_app(app, user_model=User, referral_model=None, response_model=None, recorder=None, db=None)
    referral_created.connect(thank, app)
    user_linked_to_response.connect(greet, app)
    app.register_blueprint(create_blueprint(allow=lambda user: user.name == "olga"), url_prefix="/referrals")
    app.register_blueprint(create_blueprint(), name="owners")
    return app


referrals.register_target(User)
referrals.register_target(
    Product,
    name="product",
    load=lambda slug: db.session.scalar(sa.select(Product).where(Product.slug == slug)),
    can_refer=lambda user, product: user.name != product.slug,
)


@referrals.user_loader
def load_user() -> User | None:
    return db.session.get(User, 1)


@referrals.code_generator
def make_code(referral: ReferralMixin) -> str:
    return f"{referral.label}-{referral.user_id}"


@referrals.client_ip
def client_ip(request: Request) -> str | None:
    return request.headers.get("X-Real-IP")


@referrals.classifier
def classify(request: Request) -> str | None:
    return "monitoring" if "probe" in request.args else None


@referrals.consent
def has_consent(request: Request) -> bool:
    return "consent" in request.cookies


@referrals.display_name
def display_name(user: User) -> str | None:
    return user.name or None


@referrals.responses_filter
def narrow(
    responses: sa.Select[tuple[ReferralResponseMixin]], *, user: User | None, referral: ReferralMixin | None
) -> sa.Select[tuple[ReferralResponseMixin]]:
    return responses.where(ReferralResponse.ip_address.is_not(None))


# What was decorated is what it was.
assert_type(load_user(), User | None)
assert_type(make_code(Referral(label="x")), str)


def thank(app: Flask, referral: ReferralMixin, **extra: object) -> None:
    app.logger.info("%s: %s", referral.user, referral.url)


def greet(app: Flask, response: ReferralResponseMixin, **extra: object) -> None:
    app.logger.info("%s", response.user)


@response_recorded.connect
def log_response(app: Flask, response: ReferralResponseMixin, **extra: object) -> None:
    app.logger.info("%s", response)


def sign_up(user: User) -> str:
    referral = Referral.create("/", user=user, label="welcome mail")
    assert_type(referral, Referral)
    referrals.link_user(user)
    referrals.link_user(user, commit=False)
    assert_type(Referral.record_response("SIGNED_UP"), ReferralResponseMixin | None)
    return referral.url


def make_links(user: User, product: Product) -> Referral | None:
    try:
        return Referral.create(
            "/tea",
            user,
            "blog",
            product,
            code="tea-time",
            expires_at=datetime.now(timezone.utc) + timedelta(days=30),
            commit=False,
        )
    except CodeTakenError:
        return make_links(user, product)
    except InvalidValueError as error:
        assert_type(error.field, str)
    except (ConfigurationError, ReferralsError):
        raise
    return None


def pay(user: User, product: Product) -> None:
    response = Referral.record_response(
        "PURCHASED",
        target=product,
        user=user,
        request=request,
        key="order-7",
        value=Decimal("8.50"),
        currency="GBP",
        once=False,
        commit=False,
    )
    if response is None:
        return
    assert_type(response.void("refunded", commit=False), ReferralResponseMixin)
    assert_type(response.id, int)
    assert_type(response.action, str)
    assert_type(response.referral_id, int)
    assert_type(response.is_touch, bool)
    assert_type(response.ignored, str | None)
    assert_type(response.session_key, str | None)
    assert_type(response.ip_address, str | None)
    assert_type(response.http_referrer, str | None)
    assert_type(response.user_agent, str | None)
    assert_type(response.key, str | None)
    assert_type(response.value, Decimal | None)
    assert_type(response.currency, str | None)
    assert_type(response.params, dict[str, t.Any] | None)
    assert_type(response.created_at, datetime)
    response.target = product
    owner: User | None = response.referral.user
    assert owner is None or response.user_id != owner.id


def delete_account(user: User) -> None:
    referrals.forget_user(user, commit=False)
    referrals.drop_visitor_key()


def insight(user: User, referral: Referral) -> None:
    day = date(2026, 3, 1)
    found = referrals.stats(
        owner=user,
        referral=referral,
        label="blog",
        since=day,
        until=datetime.now(timezone.utc),
        by="day",
        compare=True,
        limit=20,
    )
    assert_type(found.totals["PAID"].count, int)
    assert_type(found.totals["PAID"].value, Mapping[str | None, Decimal])
    assert_type(found.totals.value, dict[str | None, Decimal])
    assert_type(found.totals + found.totals, Totals)
    assert_type(found.rows, Sequence[tuple[t.Any, Totals]])
    assert_type(found.conversion("PAID"), float | None)
    assert_type(found.funnel, list[tuple[str, int]])
    assert_type(found.previous, Stats | None)
    assert_type(found.since, datetime | None)
    assert_type(found.until, datetime | None)
    board = referrals.leaderboard("value:EUR", since=day, until=day, limit=3)
    assert_type(board, list[tuple[t.Any, int | Decimal]])
    db.session.delete(user)
    db.session.commit()


def type_in(user: User, code: str) -> str:
    try:
        response = Referral.attach(code, user=user, request=request, join=True, commit=True)
        return response.action if response is not None else "please try again"
    except TooManyGuessesError:
        return "please wait"


def look(user: User) -> None:
    assert_type(Referral.referrer_of(user), Referral | None)
    for referred in Referral.referred_by(user):
        assert_type(referred, t.Any)
    for verdict in [*Referral.explain(), *Referral.explain(user)]:
        assert_type(verdict.response, ReferralResponseMixin)
        assert_type(verdict.rule, str)
    credited = Referral.referral_for_request()
    assert_type(credited, Referral | None)
    assert_type(Referral.for_request(request), Referral | None)
    assert_type(Referral.referral_for_request(request=request), Referral | None)
    assert_type(Referral.referral_responses_for_request(request=request), Sequence[ReferralResponseMixin])
    if credited is None:
        return
    assert_type(credited.id, int)
    assert_type(credited.code, str)
    assert_type(credited.label, str)
    assert_type(credited.redirect_to, str)
    assert_type(credited.identity, str)
    assert_type(credited.folded_code, str | None)
    assert_type(credited.expired_at, datetime | None)
    assert_type(credited.created_at, datetime)
    assert_type(credited.target_type, str | None)
    assert_type(credited.target_id, str | None)
    assert_type(credited.url, str)
    assert_type(credited.is_active(), bool)
    assert_type(credited.response_count, int)
    assert_type(credited.filtered_responses(), Sequence[ReferralResponseMixin])
    for response in credited.filtered_responses(limit=10):
        assert_type(response, ReferralResponseMixin)
    for response in credited.responses.limit(10):
        assert_type(response, ReferralResponseMixin)
        if response.session_key is not None:
            credited.link_responses_to_user(user, response.session_key, commit=False)
    answer = credited.respond(
        "CALLED",
        user=user,
        target=credited.target,
        request=request,
        key="call-1",
        value=3,
        currency="EUR",
        commit=False,
    )
    assert_type(answer, ReferralResponseMixin)


def query(code: str) -> int:
    """SQLAlchemy takes the names as the classes that they stand for."""
    found = sa.select(Referral).where(Referral.code == code).order_by(Referral.created_at.desc())
    assert_type(db.session.scalar(found), Referral | None)
    assert_type(db.session.get(Referral, 1), Referral | None)
    actions = sa.select(ReferralResponse.action).join(Referral, ReferralResponse.referral_id == Referral.id)
    names: Sequence[str] = db.session.scalars(actions).all()
    db.session.add(ReferralResponse(referral_id=1, action="IMPORTED"))
    return len(names)


def query_own_models() -> str | None:
    invite = Invite.create("/")
    assert_type(invite, Invite)
    assert_type(Invite.for_request(), Invite | None)
    db.session.add(Answer(referral=invite, action="CALLED", score=3))
    return invite.campaign


def extension_of_the_app() -> tuple[type[ReferralMixin], type[ReferralResponseMixin]]:
    assert_type(current_referrals, Referrals)
    return current_referrals.Referral, current_referrals.ReferralResponse
