"""The importable ``Referral`` and ``ReferralResponse``: classes that stand for the current app's."""

import pydoc
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import aliased, joinedload
from werkzeug.exceptions import NotFound

from flask_referrals import ConfigurationError, Referral, ReferralMixin, ReferralResponse, Referrals, current_referrals
from tests.databases import on_sqlite
from tests.host import Host, get_one, make_host


@pytest.fixture
def codes(host: Host, ctx: None) -> list[str]:
    """The codes of three links of Olga's, each with one response."""
    olga = host.user("olga")
    referrals = [Referral.create(f"/{number}", user=olga) for number in range(3)]
    for referral in referrals:
        referral.respond("CALLED")
    return [referral.code for referral in referrals]


def test_select(host: Host, codes: list[str]) -> None:
    found = host.db.session.scalars(sa.select(Referral).order_by(Referral.id)).all()
    assert [referral.code for referral in found] == codes
    assert host.db.session.execute(sa.select(Referral.code, Referral.redirect_to)).all()[0] == (codes[0], "/0")


def test_where(host: Host, codes: list[str]) -> None:
    second = sa.select(Referral).where(Referral.code == codes[1])
    assert host.db.session.scalars(second).one().redirect_to == "/1"
    assert host.db.session.scalars(sa.select(Referral).filter_by(redirect_to="/2")).one().code == codes[2]
    late = sa.select(Referral.code).where(Referral.code.in_(codes), Referral.redirect_to > "/0")
    assert set(host.db.session.scalars(late)) == set(codes[1:])


def test_get(host: Host, codes: list[str]) -> None:
    referral = host.db.session.scalars(sa.select(Referral)).first()
    assert referral is not None
    assert host.db.session.get(Referral, referral.id) is referral
    assert host.db.session.get(Referral, 10**6) is None
    assert get_one(host.db, Referral, referral.id) is referral


def test_get_or_404(host: Host, codes: list[str]) -> None:
    key = host.db.session.scalar(sa.select(Referral.id).where(Referral.code == codes[0]))
    assert host.db.get_or_404(Referral, key).code == codes[0]
    with pytest.raises(NotFound):
        host.db.get_or_404(Referral, 10**6)


def test_alias(host: Host, codes: list[str]) -> None:
    other = aliased(Referral)
    pairs = sa.select(Referral.code, other.code).join(other, other.id > Referral.id)
    assert len(host.db.session.execute(pairs).all()) == 3


def test_join(host: Host, codes: list[str]) -> None:
    actions = sa.select(ReferralResponse.action).join(Referral, Referral.id == ReferralResponse.referral_id)
    assert host.db.session.scalars(actions.where(Referral.code == codes[0])).all() == ["CALLED"]
    related = sa.select(Referral.code, ReferralResponse.action).join(ReferralResponse.referral)
    assert len(host.db.session.execute(related).all()) == 3
    outer = sa.select(Referral).outerjoin(ReferralResponse).where(ReferralResponse.id.is_(None))
    assert host.db.session.scalars(outer).all() == []


def test_eager_loading(host: Host, codes: list[str]) -> None:
    host.db.session.expunge_all()
    loaded = sa.select(ReferralResponse).options(joinedload(ReferralResponse.referral))
    responses = host.db.session.scalars(loaded).all()
    host.db.session.expunge_all()  # what was not loaded now cannot be any more
    assert {response.referral.code for response in responses} == set(codes)


def test_insert_update_and_delete(host: Host, codes: list[str]) -> None:
    session = host.db.session
    key = session.scalar(sa.select(Referral.id).where(Referral.code == codes[0]))
    session.execute(sa.insert(ReferralResponse), [{"referral_id": key, "action": "MAILED"}] * 2)
    mailed = sa.select(sa.func.count()).select_from(ReferralResponse).where(ReferralResponse.action == "MAILED")
    assert session.scalar(mailed) == 2
    session.execute(sa.update(ReferralResponse).where(ReferralResponse.referral_id == key).values(action="MAILED"))
    assert session.scalar(mailed) == 3
    session.execute(sa.delete(ReferralResponse).where(ReferralResponse.action == "MAILED"))
    assert session.scalar(mailed) == 0
    assert session.scalar(sa.select(sa.func.count(ReferralResponse.id))) == 2


def test_paginate(host: Host, codes: list[str]) -> None:
    page = host.db.paginate(sa.select(Referral).order_by(Referral.id), page=2, per_page=2)
    assert (page.total, page.pages) == (3, 2)
    assert [referral.code for referral in page] == codes[2:]


def test_count_and_group(host: Host, codes: list[str]) -> None:
    grouped = sa.select(ReferralResponse.action, sa.func.count()).group_by(ReferralResponse.action)
    assert host.db.session.execute(grouped).all() == [("CALLED", 3)]


def test_legacy_query(host: Host, codes: list[str]) -> None:
    assert host.db.session.query(Referral).filter_by(code=codes[0]).one().redirect_to == "/0"
    assert host.db.session.query(ReferralResponse).count() == 3


def test_construction_and_instance(host: Host, ctx: None) -> None:
    referral = Referral(code="mine", redirect_to="/", identity="mine")
    host.add(referral)
    assert type(referral) is host.referrals.Referral
    assert isinstance(referral, Referral)
    assert isinstance(referral, ReferralMixin)
    assert not isinstance(referral, ReferralResponse)
    assert not isinstance(None, Referral)
    assert (referral.label, referral.created_at.utcoffset()) == ("", Referral.create("/").created_at.utcoffset())


def test_subclass(host: Host, ctx: None) -> None:
    assert issubclass(host.referrals.Referral, Referral)
    assert not issubclass(host.referrals.ReferralResponse, Referral)
    assert not issubclass(ReferralMixin, Referral)


def test_table_and_inspection(host: Host, ctx: None) -> None:
    assert sa.inspect(Referral).class_ is host.referrals.Referral
    assert Referral.__table__ is host.db.metadata.tables["referral"]  # type: ignore[attr-defined]
    assert ReferralResponse.__tablename__ == "referral_response"  # type: ignore[attr-defined]


def test_unknown_names_are_errors(ctx: None) -> None:
    for name in ("nothing", "__wrapped__"):
        with pytest.raises(AttributeError):
            getattr(Referral, name)


USES: dict[str, Any] = {
    "attribute": lambda: Referral.code,
    "call": lambda: Referral(code="x"),
    "select": lambda: sa.select(Referral),
    "isinstance": lambda: isinstance(object(), Referral),
    "create": lambda: Referral.create("/"),
    "record_response": lambda: ReferralResponse(action="x"),
    "extension": lambda: current_referrals.Referral,
}


@on_sqlite
@pytest.mark.parametrize("use", USES)
def test_outside_an_app_context_the_usual_error(host: Host, use: str) -> None:
    with pytest.raises(RuntimeError, match=r"^Working outside of application context\."):
        USES[use]()


@pytest.mark.parametrize("use", USES)
def test_error_of_an_app_without_referrals_names_the_call(sqlite_url: str, use: str) -> None:
    host = make_host(sqlite_url)
    del host.app.extensions["referrals"]
    with host.app.app_context(), pytest.raises(ConfigurationError, match=r"referrals\.init_app\(app\)"):
        USES[use]()


def test_tools_can_look_at_the_classes_without_an_app() -> None:
    """Test runners, documentation and debuggers ask classes for special names."""
    for model in (Referral, ReferralResponse):
        assert f"class {model.__name__}" in pydoc.plain(pydoc.render_doc(model))
        assert not hasattr(model, "__wrapped__")
        assert model.__doc__
        assert model.__module__ == "flask_referrals.proxies"
        assert model.__name__ in repr(model)


def test_current_referrals(host: Host, ctx: None) -> None:
    assert current_referrals == host.referrals
    assert isinstance(current_referrals, Referrals)
    assert current_referrals.Referral is host.referrals.Referral


def test_two_apps_on_two_databases(tmp_path: Path) -> None:
    own_models: dict[str, Any] = {"declare": lambda db, User: None}
    hosts = [make_host(f"sqlite:///{tmp_path / name}", **own_models) for name in ("one.db", "two.db")]
    for host in hosts:
        with host.app.app_context():
            host.db.create_all()
    one, two = hosts
    with one.app.app_context():
        Referral.create("/one")
        assert sa.inspect(Referral).class_ is one.referrals.Referral
        with two.app.app_context():  # an app that calls another
            Referral.create("/two")
            assert current_referrals == two.referrals
            assert host.db.session.scalars(sa.select(Referral.redirect_to)).all() == ["/two"]
        assert one.db.session.scalars(sa.select(Referral.redirect_to)).all() == ["/one"]
        referral = one.db.session.scalars(sa.select(Referral)).one()
        assert isinstance(referral, Referral)
        with two.app.app_context():
            assert not isinstance(referral, Referral)
    for host in hosts:
        with host.app.app_context():
            host.db.engine.dispose()
