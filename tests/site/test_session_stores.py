"""Sessions that are kept elsewhere, or nowhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cachelib.file import FileSystemCache
from flask import Flask, session
from flask_login import login_user
from flask_session import Session
from flask_sqlalchemy import SQLAlchemy

from flask_referrals import Referral
from tests import login_hosts
from tests.conftest import MakeHost
from tests.login_hosts import Site, opened


@pytest.fixture(params=["cachelib", "sqlalchemy"])
def site(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Iterator[Site]:
    """A site with Flask-Login, whose sessions are files, or rows of its own database."""

    def give_users(app: Flask, db: SQLAlchemy) -> None:
        stores: dict[str, Any] = {
            "cachelib": {"SESSION_CACHELIB": FileSystemCache(str(tmp_path / "sessions"))},
            "sqlalchemy": {"SESSION_SQLALCHEMY": db},
        }
        app.config.update(SESSION_TYPE=request.param, **stores[request.param])
        Session(app)
        login_hosts.flask_login(app, db)

    with opened(give_users, database_url) as site:
        yield site


# Flask-Session 0.8 asks for the time with utcnow().
@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning:flask_session")
def test_visitor_who_signs_up_is_credited(site: Site) -> None:
    with site.app.app_context():
        code = Referral.create("/welcome").code
    client = site.app.test_client()
    assert client.get(f"/referrals/{code}").status_code == 302
    assert client.post("/act/LOOKED").text == code
    client.post("/signup", data={"name": "mia"})
    assert client.post("/act/BOUGHT").text == code
    client.post("/logout")
    assert client.post("/act/BOUGHT").text == ""


@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning:flask_session")
def test_login_does_not_flush_what_the_host_has_not_completed(site: Site) -> None:
    with site.app.app_context():
        User: Any = sa.inspect(Referral).relationships["user"].mapper.class_
        site.db.session.add(User(name="mia"))
        site.db.session.commit()

    @site.app.get("/basket")
    def fill_basket() -> str:
        session["basket"] = "tea"
        return ""

    @site.app.post("/enter")
    def enter() -> str:
        mia, user = site.db.session.scalars(sa.select(User)).one(), User()
        site.db.session.add(user)
        login_user(mia)
        user.name = "whole"
        site.db.session.commit()
        return "entered"

    client = site.app.test_client()
    client.get("/basket")
    assert client.post("/enter").text == "entered"


@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning:flask_session")
def test_program_leaves_no_session_in_the_store(site: Site) -> None:
    with site.app.app_context():
        code = Referral.create("/welcome").code
    answer = site.app.test_client().get(f"/referrals/{code}", headers={"User-Agent": "Googlebot/2.1"})
    assert answer.status_code == 302
    assert "Set-Cookie" not in answer.headers


def test_app_that_loses_its_secret_key_redirects_without_credit(new_host: MakeHost) -> None:
    host = new_host(with_login=False)
    with host.app.app_context():
        code = Referral.create("/welcome").code
    visitor = host.client()
    visitor.get(f"/referrals/{code}")
    host.app.secret_key = None
    for client in (visitor, host.client()):
        answer = client.get(f"/referrals/{code}")
        assert (answer.status_code, answer.headers["Location"]) == (302, "/welcome")
        assert client.post("/act/BOUGHT").text == ""
    with host.app.app_context():
        assert [response.action for response in host.responses()] == ["RESPONDED"] * 3
