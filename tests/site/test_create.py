"""Making referrals."""

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from flask_referrals import CodeTakenError, InvalidValueError, Referral, ReferralsError
from tests.databases import on_sqlite
from tests.host import Host, in_parallel, statements
from tests.pages import snippet

pytestmark = pytest.mark.usefixtures("ctx")


def count(host: Host) -> int:
    host.db.session.rollback()
    return host.db.session.scalar(sa.select(sa.func.count()).select_from(Referral)) or 0


def test_same_arguments_give_the_same_referral(host: Host) -> None:
    olga, tea = host.user("olga"), host.add(host.Product(name="tea"))
    made = [Referral.create("/", user=olga, label="mail", target=tea) for _ in range(2)]
    assert made[0] is made[1]
    assert (made[0].user, made[0].label, made[0].redirect_to, made[0].target) == (olga, "mail", "/", tea)


def test_each_argument_makes_another_referral(host: Host) -> None:
    olga, tea, cup = host.user("olga"), host.add(host.Product(name="tea")), host.add(host.Product(name="cup"))
    variants: list[dict[str, Any]] = [
        {},
        {"user": olga},
        {"label": "mail"},
        {"label": "MAIL"},
        {"label": "mail "},
        {"target": tea},
        {"target": cup},
        {"user": olga, "target": tea},
    ]
    codes = {Referral.create("/", **variant).code for variant in variants}
    codes.add(Referral.create("/other").code)
    assert len(codes) == len(variants) + 1


def test_sixteen_threads_make_one_row(host: Host) -> None:
    olga = host.user("olga")
    user_id, user_model = olga.id, host.User
    codes: list[str] = []

    def create() -> None:
        with host.app.app_context():
            codes.append(Referral.create("/", user=host.db.session.get(user_model, user_id)).code)

    for _ in range(4):
        in_parallel([create] * 16)
        assert (count(host), len(codes), len(set(codes))) == (1, 16, 1)
        codes.clear()
        host.db.session.execute(sa.delete(Referral))
        host.db.session.commit()


def test_code_is_random_and_unambiguous() -> None:
    codes = [Referral.create("/", label=str(number)).code for number in range(20)]
    assert len(set(codes)) == 20
    assert all(len(code) == 12 and not set(code) - set("abcdefghjkmnpqrstuvwxyz23456789") for code in codes)


def test_code_can_be_chosen() -> None:
    assert Referral.create("/", code="Alice-1_x").code == "Alice-1_x"


@pytest.mark.parametrize("commit", [True, False])
def test_chosen_code_that_is_taken_is_an_error_and_loses_nothing(host: Host, commit: bool) -> None:
    Referral.create("/", code="alice")
    host.db.session.add(host.User(name="pending"))
    with pytest.raises(CodeTakenError):
        Referral.create("/other", code="alice", commit=commit)
    host.db.session.commit()
    assert host.db.session.scalar(sa.select(host.User.name)) == "pending"
    assert count(host) == 1


@pytest.mark.parametrize("code", ["alice", "ALICE"])
def test_code_that_differs_only_by_case_is_taken(host: Host, code: str) -> None:
    Referral.create("/a", code="Alice")
    with pytest.raises(CodeTakenError):
        Referral.create("/b", code=code)
    assert count(host) == 1


def test_migration_fills_the_folded_codes_as_documented(host: Host) -> None:
    for code in ("TeaLover", "x", "Cup"):
        Referral.create("/", label=code, code=code)
    table = Referral.__table__  # type: ignore[attr-defined]
    host.db.session.execute(sa.update(table).values(folded_code=None))
    host.db.session.execute(sa.update(table).where(table.c.code == "x").values(code="tealover"))
    fill = snippet("migrations.rst", "python", "UPDATE referral")
    exec(fill, {"op": SimpleNamespace(execute=lambda sql: host.db.session.execute(sa.text(sql)))})
    folded = sa.select(table.c.folded_code).order_by(table.c.id)
    assert host.db.session.scalars(folded).all() == ["tealover", None, "cup"]


def codes_from(*codes: str) -> Callable[[Referral], str]:
    remaining = list(codes)
    return lambda referral: remaining.pop(0) if len(remaining) > 1 else remaining[0]


def test_generated_code_is_never_reserved(host: Host) -> None:
    host.referrals.code_generator(codes_from("admin", "API", "tea"))
    assert Referral.create("/").code == "tea"
    host.referrals.code_generator(lambda referral: "Static")
    with pytest.raises(ReferralsError, match="reserved"):
        Referral.create("/tea")


def test_generator_is_given_the_referral_and_asked_again_when_its_code_is_taken(host: Host) -> None:
    labels: list[str] = []
    for number in range(5):
        Referral.create("/", label=str(number), code=f"taken{number}")
    generate = codes_from("taken0", "taken1", "taken2", "taken3", "taken4", "free")

    @host.referrals.code_generator
    def generator(referral: Referral) -> str:
        labels.append(referral.label)
        return generate(referral)

    assert Referral.create("/", label="new").code == "free"
    assert labels == ["new"] * 6


def test_generator_that_never_ends_is_an_error(host: Host) -> None:
    Referral.create("/", code="taken")
    host.referrals.code_generator(codes_from("taken"))
    with pytest.raises(ReferralsError, match="10 codes"):
        Referral.create("/new")
    assert count(host) == 1


def test_generator_that_makes_no_code_is_an_error(host: Host) -> None:
    host.referrals.code_generator(lambda referral: "not a code")
    with pytest.raises(ReferralsError, match="'not a code'"):
        Referral.create("/")


@on_sqlite
@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"redirect_to": ""}, "redirect_to"),
        ({"redirect_to": "//evil.example"}, "redirect_to"),
        ({"redirect_to": "https://evil.example/"}, "redirect_to"),
        ({"redirect_to": "/" + "x" * 2048}, "redirect_to"),
        ({"redirect_to": "/\0"}, "redirect_to"),
        ({"redirect_to": None}, "redirect_to"),
        ({"label": "x" * 101}, "label"),
        ({"label": "\0"}, "label"),
        ({"label": "\ud800"}, "label"),
        ({"label": None}, "label"),
        ({"code": ""}, "code"),
        ({"code": "a b"}, "code"),
        ({"code": "x" * 65}, "code"),
        ({"code": 7}, "code"),
        ({"user": "olga"}, "user"),
        ({"target": "tea"}, "target"),
        ({"expires_at": datetime(2030, 1, 1)}, "expires_at"),
        ({"expires_at": datetime.max.replace(tzinfo=timezone.utc)}, "expires_at"),
        ({"expires_at": datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))}, "expires_at"),
    ],
)
def test_bad_argument_is_named_and_nothing_is_written(host: Host, arguments: dict[str, Any], field: str) -> None:
    with statements(host.db) as sent, pytest.raises(InvalidValueError, match=f"^{field} ") as raised:
        Referral.create(**{"redirect_to": "/", **arguments})
    assert raised.value.field == field
    assert sent == []


def test_longest_values_fit(host: Host) -> None:
    label, redirect_to = "🍵" * 100, "/" + "ü" * 2047
    referral = Referral.create(redirect_to, label=label, code="x" * 64)
    host.db.session.refresh(referral)
    assert (referral.label, referral.redirect_to) == (label, redirect_to)


def test_object_that_waits_in_the_session_is_stored_first(host: Host) -> None:
    user, product = host.User(name="new"), host.Product(name="new")
    host.db.session.add_all([user, product])
    referral = Referral.create("/", user=user, target=product)
    assert (referral.user, referral.target) == (user, product)


def test_object_outside_the_session_is_an_error(host: Host) -> None:
    with pytest.raises(InvalidValueError, match="user has no primary key"):
        Referral.create("/", user=host.User(name="new"))


def test_referral_expires_at_its_time(host: Host) -> None:
    now = datetime.now(timezone.utc)
    assert Referral.create("/").is_active()
    assert Referral.create("/a", expires_at=now + timedelta(hours=1)).is_active()
    assert not Referral.create("/b", expires_at=now).is_active()


def test_commit_false_leaves_the_transaction_to_the_host(host: Host) -> None:
    Referral.create("/", commit=False)
    host.db.session.rollback()
    assert count(host) == 0
    Referral.create("/", commit=False)
    host.db.session.commit()
    assert count(host) == 1


def test_link_of_a_deleted_user_does_not_pass_to_the_next_with_the_same_key(host: Host) -> None:
    olga = host.user("olga")
    old = Referral.create("/", user=olga)
    key = olga.id
    host.db.session.delete(olga)
    host.db.session.commit()
    oscar = host.add(host.User(id=key, name="oscar"))
    new = Referral.create("/", user=oscar)
    assert new.code != old.code
    assert (old.user, new.user) == (None, oscar)
    assert Referral.create("/", user=oscar) is new
