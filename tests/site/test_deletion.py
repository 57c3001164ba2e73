"""Users, links and targets are deleted, where the database enforces foreign keys: on SQLite too."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from flask import render_template_string
from flask.testing import FlaskClient
from flask_admin import Admin
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError

from flask_referrals import Referral
from flask_referrals.contrib.admin import add_views
from tests.conftest import MakeHost
from tests.host import Host, statements

Delete = Callable[[Any], None]


@pytest.fixture
def host(new_host: MakeHost) -> Host:
    """The site with its admin, on a database that enforces foreign keys."""
    host = new_host()
    add_views(Admin(host.app))
    with host.app.app_context():
        if host.db.engine.dialect.name == "sqlite":
            event.listen(host.db.engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys=ON"))
            host.db.session.remove()
            host.db.engine.dispose()  # those that are open enforce none
    return host


@pytest.fixture(params=["the session", "a statement"])
def delete(request: pytest.FixtureRequest, host: Host) -> Delete:
    """Delete an object, by the session or behind its back."""

    def delete(obj: Any) -> None:
        session = host.db.session
        if request.param == "the session":
            session.delete(obj)
        else:
            model = type(obj)
            session.execute(sa.delete(model).where(model.id == obj.id))
        session.commit()
        session.remove()

    return delete


@pytest.fixture
def code(host: Host, client: FlaskClient) -> str:
    """The code of Olga's link to a kettle, by which Mia came, signed up, and bought."""
    with host.app.app_context():
        kettle = host.add(host.Product(name="kettle"))
        referral = Referral.create("/welcome", host.user("olga"), "mail", kettle)
        code = referral.code

        @host.app.post("/buy")
        def buy() -> str:
            kettle = host.db.session.scalars(sa.select(host.Product)).first()
            response = Referral.record_response("BOUGHT", target=kettle)
            return "" if response is None else response.referral.code

    client.get(f"/referrals/{code}")
    client.post("/signup", data={"name": "mia"})
    assert client.post("/buy").text == code
    return code


def by_name(host: Host, name: str) -> Any:
    return host.db.session.scalars(sa.select(host.User).where(host.User.name == name)).one()


def one(host: Host, model: Any) -> Any:
    return host.db.session.scalars(sa.select(model)).one()


def assert_lists_are_shown(host: Host, code: str | None) -> None:
    """Look at everything that lists links or responses."""
    browser = host.client()
    for page in ("/admin/referral/", "/admin/referralresponse/"):
        assert browser.get(page).status_code == 200
        assert browser.get(f"{page}details/?id=1").status_code == (200 if code else 302)
    commands = ["list", "list --json", "export referrals", "export responses", "export responses --format jsonl"]
    for command in [*commands, f"show {code}", f"show {code} --json"] if code else commands:
        result = host.app.test_cli_runner().invoke(args=["referrals", *command.split()], catch_exceptions=False)
        assert result.exit_code == 0, command
    with host.app.test_request_context():
        for user in host.db.session.scalars(sa.select(host.User)):
            template = (
                "{% for each in referral_responses(user) %}{{ each }} {{ each.user }} {{ each.target }}{% endfor %}"
            )
            render_template_string(template, user=user)
            Referral.referrer_of(user)
            Referral.referred_by(user)
            Referral.explain(user)
        for referral in host.db.session.scalars(sa.select(Referral)):
            assert str(referral) and referral.filtered_responses() is not None
            _ = referral.user, referral.target, referral.url, referral.response_count


def click_and_buy(host: Host, client: FlaskClient, code: str) -> str:
    """Follow the link in a new browser and act there, and act in the one that followed it before."""
    newcomer = host.client()
    assert newcomer.get(f"/referrals/{code}").headers["Location"] == "/welcome"
    credited = newcomer.post("/buy").text
    assert client.post("/buy").text == credited
    return credited


def test_foreign_keys_are_enforced(host: Host, ctx: None) -> None:
    with pytest.raises(IntegrityError):
        host.add(host.referrals.ReferralResponse(referral_id=404, action="RESPONDED"))
    host.db.session.rollback()
    with pytest.raises(IntegrityError):
        host.add(host.referrals.Referral(code="x", redirect_to="/", identity="x", user_id=404))


def test_link_of_a_deleted_user_redirects_without_an_owner(
    host: Host, client: FlaskClient, code: str, delete: Delete
) -> None:
    with host.app.app_context():
        delete(by_name(host, "olga"))
        link = one(host, Referral)
        assert (link.user_id, link.user, str(link)) == (None, None, code)
    assert click_and_buy(host, client, code) == code
    assert_lists_are_shown(host, code)
    with host.app.app_context():
        oscar = host.user("oscar")
        assert Referral.create("/welcome", oscar, "mail", one(host, host.Product)).code != code
        assert Referral.referred_by(oscar) == []


def test_responses_of_a_deleted_visitor_stay_and_count(
    host: Host, client: FlaskClient, code: str, delete: Delete
) -> None:
    with host.app.app_context():
        delete(by_name(host, "mia"))
        assert [(each.action, each.user_id, each.user) for each in host.responses()] == [
            ("RESPONDED", None, None),
            ("SIGNED_UP", None, None),
            ("BOUGHT", None, None),
        ]
        assert one(host, Referral).response_count == 1
    assert client.post("/buy").text == ""  # her login is no longer good
    assert client.get(f"/referrals/{code}").status_code == 302
    assert_lists_are_shown(host, code)
    with host.app.app_context():
        assert Referral.referred_by(by_name(host, "olga")) == []


def test_deleted_link_takes_its_responses_with_it_and_earns_nothing(
    host: Host, client: FlaskClient, code: str, delete: Delete
) -> None:
    with host.app.app_context():
        delete(one(host, Referral))
        assert host.responses() == []
    assert client.get(f"/referrals/{code}").status_code == 404
    assert client.post("/buy").text == ""
    assert_lists_are_shown(host, None)
    with host.app.app_context():
        assert host.responses() == []
        again = Referral.create("/welcome", by_name(host, "olga"), "mail", one(host, host.Product))
        assert again.code != code
        assert again.response_count == 0


def test_deleted_target_is_looked_up_once(host: Host, code: str, delete: Delete) -> None:
    with host.app.app_context():
        delete(one(host, host.Product))
        link = one(host, Referral)
        assert link.target is None
        with statements(host.db) as sent:
            assert (link.target, link.target) == (None, None)
        assert sent == []
        tea = host.add(host.Product(name="tea"))
        link.target = tea
        assert link.target is tea


def test_link_to_a_deleted_target_redirects_and_earns_credit(
    host: Host, client: FlaskClient, code: str, delete: Delete
) -> None:
    with host.app.app_context():
        delete(one(host, host.Product))
        assert one(host, Referral).target is None
        assert [response.target for response in host.responses()] == [None] * 3
    assert click_and_buy(host, client, code) == code
    assert_lists_are_shown(host, code)
