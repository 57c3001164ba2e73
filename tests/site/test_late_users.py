"""A click by a page's query belongs to the user that the host's hooks load, in any order of registration."""

from typing import Any

import pytest
from flask import Blueprint, g, request
from flask.testing import FlaskClient

from flask_referrals import Referral, user_linked_to_response
from tests.conftest import MakeHost
from tests.host import Host
from tests.site.helpers import Row, find_user, has_key, rows


@pytest.fixture(params=["app", "blueprint"])
def host(new_host: MakeHost, request: pytest.FixtureRequest) -> Host:
    """A site whose hooks are registered after the extension."""
    host = new_host(with_login=False, REFERRALS_QUERY_PARAM="ref")
    host.referrals.user_loader(lambda: g.user)
    pages = Blueprint("pages", __name__)
    before_request: Any = host.app.before_request if request.param == "app" else pages.before_app_request
    add_hooks(host, before_request)

    @pages.get("/invited")
    def invited() -> str:
        referral = Referral.referral_for_request()
        return referral.code if referral is not None else ""

    @pages.get("/buy")
    def buy() -> str:
        response = Referral.record_response("BOUGHT")
        return response.referral.code if response is not None else ""

    host.app.register_blueprint(pages)
    with host.app.app_context():
        Referral.create("/", user=host.user("olga"), code="tea")
        host.user("mia")
    return host


def add_hooks(host: Host, before_request: Any) -> None:
    """Add hooks that load the user named in a header, and close the site if a header says so."""

    @before_request  # type: ignore[untyped-decorator]
    def load_user() -> None:
        g.user = find_user(host, request.headers["X-User"]) if "X-User" in request.headers else None

    @before_request  # type: ignore[untyped-decorator]
    def close() -> str | None:
        return "closed" if "X-Closed" in request.headers else None


@pytest.mark.parametrize("more", [{}, {"X-Closed": "1"}], ids=["open", "closed"])
def test_owners_own_click_does_not_count(host: Host, client: FlaskClient, more: dict[str, str]) -> None:
    client.get("/?ref=tea", headers={"X-User": "olga", **more})
    assert rows(host) == [Row("RESPONDED", "olga", "self")]
    assert not has_key(client)


@pytest.mark.parametrize(("page", "actions"), [("invited", ["RESPONDED"]), ("buy", ["RESPONDED", "BOUGHT"])])
def test_view_finds_the_click_of_the_user(host: Host, client: FlaskClient, page: str, actions: list[str]) -> None:
    joined: list[str] = []
    with user_linked_to_response.connected_to(lambda app, response: joined.append(response.action), host.app):
        assert client.get(f"/{page}?ref=tea", headers={"X-User": "mia"}).text == "tea"
    assert rows(host) == [Row(action, "mia") for action in actions]
    assert joined == []
    assert not has_key(client)
