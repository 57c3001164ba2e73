"""One user's data: ``flask referrals export-user`` and ``forget-user``, and what is never written down of anybody."""

import itertools
import json
import logging
import re
import shlex
import stat
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import flask
import flask_login
import pytest
import sqlalchemy as sa
from flask import Flask, request
from flask.testing import FlaskClient
from flask_sqlalchemy import SQLAlchemy

from flask_referrals import (
    InvalidValueError,
    Referral,
    ReferralResponseMixin,
    Referrals,
    privacy,
    referral_created,
    response_recorded,
    user_linked_to_response,
)
from flask_referrals.db.keys import once_key
from flask_referrals.settings import Settings
from flask_referrals.state import current_state
from flask_referrals.stats import totals_of
from flask_referrals.types import Actor
from flask_referrals.web.visitor_key import SESSION_KEY
from tests.conftest import MakeHost
from tests.host import BROWSER, Host, follow
from tests.pages import DOCS, snippets
from tests.site.test_retention import failing, run

_numbers = itertools.count(1)
#: What makes the keys of other users; functions of the module's, so that the tests share their models.
NEW_KEYS: dict[type, Callable[[], Any]] = {
    int: lambda: next(_numbers),
    str: lambda: str(next(_numbers)),
    uuid.UUID: uuid.uuid4,
}
NUMBER, WORD, UUID = 987654321, "key-marker", uuid.UUID("feedfeed-feed-4eed-8eed-feedfeedfeed")
KEYS: dict[str, tuple[Any, Any]] = {
    "int": (sa.Integer(), NUMBER),
    "str": (sa.String(36), WORD),
    "uuid": (sa.Uuid(), UUID),
}

#: What is to be found nowhere after the user with the key is forgotten; on SQLite a UUID has no hyphens.
OTHER_MARKERS = ("198.51.100.77", "agent-marker", "referrer-marker", "label-marker", "order-marker")
MARKERS = (str(NUMBER), WORD, str(UUID), UUID.hex, *OTHER_MARKERS)


PAGE = (DOCS / "privacy.rst").read_text()


def forget(host: Host, key: object) -> str:
    result = run(host, "forget-user", str(key), "--yes")
    assert result.exit_code == 0, result.output
    return result.stdout


def dump(host: Host, *tables: str) -> str:
    """Return all columns of our tables, or of some, as text."""
    host.db.session.rollback()
    rows: list[Any] = []
    for name in tables or ("referral", "referral_response"):
        table = host.db.metadata.tables[name]
        rows += host.db.session.execute(sa.select(sa.text("*")).select_from(table).order_by(table.c.id)).mappings()
    return "\n".join(str(dict(row)) for row in rows)


def markers_in(text: str) -> list[str]:
    return [marker for marker in MARKERS if marker in text]


def counts(host: Host) -> list[Any]:
    """Return what is counted: for each link its clicks, and its totals."""
    host.db.session.rollback()
    links = host.db.session.scalars(sa.select(Referral).order_by(Referral.id)).all()
    return [
        [(link.code, link.response_count) for link in links],
        totals_of(current_state(), links),
    ]


def browser(host: Host) -> FlaskClient:
    """A browser that gives away as much as it can."""
    client = host.client()
    client.environ_base |= {
        "REMOTE_ADDR": "198.51.100.77",
        "HTTP_USER_AGENT": f"{BROWSER} agent-marker",
        "HTTP_REFERER": "https://referrer-marker.example/page?token=1",
    }
    return client


def add_pages(host: Host) -> None:
    """Add what the site's users do."""

    @host.app.post("/buy")
    def buy() -> str:
        Referral.record_response("BOUGHT", key="order-marker 7")
        Referral.record_response("JOINED", once=True)
        refunded = Referral.record_response("REFUNDED")
        assert refunded is not None
        refunded.void("refunded")
        return ""

    @host.app.post("/profile")
    def look_at_a_profile() -> str:
        profile = host.db.session.scalars(sa.select(host.User).filter_by(name=request.form["name"])).one()
        response = Referral.record_response("LOOKED", target=profile)
        return "" if response is None else response.referral.code

    *_, delete_account = snippets("privacy.rst", "python")
    names = {"app": host.app, "db": host.db, "referrals": host.referrals}
    exec(delete_account, {**vars(flask), **vars(flask_login), **names})


@pytest.fixture(params=KEYS)
def key(request: pytest.FixtureRequest) -> Any:
    """The key of the user who wants to be forgotten, of each type."""
    return KEYS[request.param][1]


@pytest.fixture
def host(new_host: MakeHost, key: Any) -> Host:
    """A site that keeps all it may, and has told much of the user."""
    (key_type,) = (key_type for key_type, of_type in KEYS.values() if of_type == key)
    host = new_host(
        key_type=key_type,
        new_key=NEW_KEYS[type(key)],
        REFERRALS_IP_STORAGE="full",
        REFERRALS_REFERRER_STORAGE="full",
        REFERRALS_BASE_URL="https://shop.example",
    )
    add_pages(host)
    return host


@pytest.fixture
def story(host: Host, key: Any) -> FlaskClient:
    """The user comes by a link, buys, makes links; others follow these, and make one about the user."""
    with host.app.app_context():
        olga = host.user("olga")
        mia = host.add(host.User(id=key, name="mia"))
        host.user("nils")
        codes = [Referral.create("/", olga, code=code, label=code).code for code in ("one", "two")]
        Referral.create("/about", olga, "about", mia, code="about-her")
        Referral.create("/own", mia, "label-marker", mia, code="hers")
        Referral.create(
            "/old", mia, "label-marker", code="old", expires_at=datetime.now(timezone.utc) - timedelta(days=9)
        )
        Referral.create("/own", olga, "olga's", code="olgas")
        Referral.create("/tea", mia, "label-marker", host.add(host.Product(name="tea")), code="tea")
    client = browser(host)
    for code in codes:
        client.get(f"/referrals/{code}?utm_source=mail")
    client.post("/act/TRIED")
    client.post("/login", data={"name": "mia"})
    client.post("/buy")
    client.post("/profile", data={"name": "mia"})
    made: Any = client.post("/referrals/", json={"redirect_to": "/tea", "label": "label-marker"})
    client.get(made.json["url"].removeprefix("https://shop.example"))  # her own: "self"
    nils = host.client()
    for code in ("hers", "about-her"):
        nils.get(f"/referrals/{code}")
    nils.post("/login", data={"name": "nils"})
    nils.post("/profile", data={"name": "mia"})
    return client


def link(host: Host, code: str) -> Any:
    return host.db.session.scalars(sa.select(Referral).where(Referral.code == code)).one()


class TestForgetUser:
    """``flask referrals forget-user`` and ``Referrals.forget_user``."""

    def test_no_row_and_no_log_names_the_user(
        self, host: Host, story: FlaskClient, key: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        with host.app.app_context():
            planted = [str(key), *OTHER_MARKERS]
            text, before = dump(host), counts(host)
            assert [marker for marker in planted if marker.replace("-", "") not in text.replace("-", "")] == []
            digests = [row.identity for row in host.db.session.execute(sa.select(Referral.identity, Referral.code))]
            assert forget(host, key) == "Forgotten: 5 links, 10 responses.\n"
            assert markers_in(dump(host)) == []
            assert markers_in(caplog.text) == []
            assert counts(host) == before
            # A digest of the user is soon undone: there are not that many users.
            once = once_key(Actor(key))
            assert once in text
            assert once not in dump(host)
            assert [digest in dump(host) for digest in digests].count(False) == 5
            assert forget(host, key) == "Forgotten: 0 links, 0 responses.\n"

    def test_links_redirect_without_an_owner(self, host: Host, story: FlaskClient, key: Any) -> None:
        with host.app.app_context():
            expired_before = link(host, "old").expired_at
            forget(host, key)
            recorded = len(host.responses())
            for code, place in (("hers", "/own"), ("old", "/old"), ("olgas", "/own")):
                assert host.client().get(f"/referrals/{code}").location == place
            assert len(host.responses()) == recorded + 1  # the last of them is olga's
            hers = link(host, "hers")
            assert (hers.user_id, hers.label, hers.target_type, hers.target_id) == (None, "", None, None)
            assert not hers.is_active()
            assert link(host, "tea").target.name == "tea"
            assert (link(host, "old").user_id, link(host, "old").expired_at) == (None, expired_before)

    @pytest.mark.parametrize("key", [NUMBER])
    def test_what_is_others_stays(self, host: Host, story: FlaskClient, key: Any) -> None:
        with host.app.app_context():
            others = sa.select(host.referrals.ReferralResponse).filter_by(action="LOOKED").order_by("id").offset(1)
            before = [(each.user.name, each.ip_address) for each in host.db.session.scalars(others)]
            forget(host, key)
            (looked,) = host.db.session.scalars(others).all()
            assert [(looked.user.name, looked.ip_address)] == before == [("nils", "127.0.0.1")]
            assert (looked.target_type, looked.target_id) == (None, None)
            about, olgas = link(host, "about-her"), link(host, "olgas")
            assert (about.user.name, about.label, about.target, about.is_active()) == ("olga", "about", None, True)
            assert (olgas.user.name, olgas.label, olgas.is_active()) == ("olga", "olga's", True)
            assert Referral.create("/own", olgas.user, "olga's") is olgas

    def test_user_who_stays_begins_anew(self, host: Host, story: FlaskClient, key: Any) -> None:
        with host.app.app_context():
            mia = host.db.session.get(host.User, key)
            assert Referral.referrer_of(mia) is not None
            forget(host, key)
            assert Referral.referrer_of(mia) is None
            assert Referral.create("/own", mia, "label-marker", mia).code not in ("hers", "olgas")
        assert story.post("/act/MORE").text == ""
        code = follow(host, story, "/anew")
        assert story.post("/act/MORE").text == code

    def test_account_is_deleted_with_it(self, host: Host, story: FlaskClient, key: Any) -> None:
        with host.app.app_context():
            before = counts(host)
            assert story.post("/delete-account").location == "/"
            assert markers_in(dump(host)) == []
            assert counts(host) == before
            assert host.db.session.get(host.User, key) is None
        assert story.post("/act/MORE").text == ""

    @pytest.mark.parametrize("key", [NUMBER])
    def test_objects_in_hand_are_up_to_date(self, host: Host, story: FlaskClient, key: Any) -> None:
        with host.app.app_context():
            text, mia = dump(host), host.db.session.get(host.User, key)
            response, hers = host.responses()[0], link(host, "hers")
            assert (response.user, hers.user) == (mia, mia)
            host.referrals.forget_user(mia, commit=False)
            assert (response.user, response.ip_address) == (None, None)
            assert (hers.user, hers.label, hers.target) == (None, "", None)
            host.db.session.rollback()
            assert (response.user, hers.user) == (mia, mia)
            assert dump(host) == text

    @pytest.mark.parametrize("key", [NUMBER])
    @pytest.mark.parametrize("number", [1, 5, 9, 13, 17, 21])
    def test_interrupted_run_is_run_again(
        self, host: Host, story: FlaskClient, key: Any, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        monkeypatch.setattr(privacy, "_BATCH", 2)
        with host.app.app_context():
            before, counted = dump(host).splitlines(), counts(host)
            with failing(host, "UPDATE", number):
                assert run(host, "forget-user", str(key), "--yes").exit_code == 1
            between = dump(host).splitlines()
            forget(host, key)
            after = dump(host).splitlines()
            # Each row is as it was, or as it is going to be.
            assert all(row in rows for row, *rows in zip(between, before, after, strict=True))
            assert between != after
            assert (between == before) is (number == 1)
            assert markers_in("\n".join(after)) == []
            assert counts(host) == counted

    @pytest.mark.parametrize("key", [NUMBER])
    def test_what_the_browser_left_unclaimed_is_forgotten_too(self, host: Host, story: FlaskClient, key: Any) -> None:
        with host.app.app_context():
            click = host.responses()[0]
            nils = host.db.session.scalars(sa.select(host.User).filter_by(name="nils")).one()
            for user in (None, nils):
                values = {"referral": click.referral, "session_key": click.session_key, "user": user}
                host.add(host.referrals.ReferralResponse(action="LEFT", ip_address="198.51.100.77", **values))
            assert forget(host, key) == "Forgotten: 5 links, 11 responses.\n"
            left = sa.select(host.referrals.ReferralResponse).filter_by(action="LEFT").order_by("id")
            unclaimed, claimed = host.db.session.scalars(left)
            assert (unclaimed.session_key, unclaimed.ip_address) == (None, None)
            assert (claimed.user, claimed.ip_address) == (nils, "198.51.100.77")

    @pytest.mark.parametrize("key", [NUMBER])
    @pytest.mark.parametrize("name", ["user", "person"])
    def test_nothing_is_about_the_user_any_more(
        self, host: Host, story: FlaskClient, key: Any, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(privacy, "_BATCH", 2)
        with host.app.app_context():
            if name != "user":
                host.referrals.register_target(host.User, name)
            olga, mia = link(host, "olgas").user, host.db.session.get(host.User, key)
            for target in (mia, mia, mia, mia, olga, mia, host.add(host.Product(id=key, name="tea"))):
                link(host, "one").respond("SEEN", user=olga, target=target)
            seen = sa.select(host.referrals.ReferralResponse).filter_by(action="SEEN").order_by("id")
            assert {each.target_type for each in host.db.session.scalars(seen)} == {name, "product"}
            forget(host, key)
            targets = [(each.target_type, each.target_id) for each in host.db.session.scalars(seen)]
            assert targets == [(None, None)] * 4 + [(name, str(olga.id)), (None, None), ("product", str(key))]

    def testonce_key_is_forgotten_after_the_user_is_gone(self, host: Host, story: FlaskClient, key: Any) -> None:
        with host.app.app_context():
            host.db.session.execute(sa.update(host.referrals.ReferralResponse).values(user_id=None))
            host.db.session.commit()
            forget(host, key)
            assert once_key(Actor(key)) not in dump(host)
            (joined,) = (response for response in host.responses() if response.action == "JOINED")
            assert joined.ip_address is None

    @pytest.mark.parametrize("key", [NUMBER])
    def test_it_asks_first(self, host: Host, story: FlaskClient, key: Any) -> None:
        with host.app.app_context():
            text = dump(host)
            assert run(host, "forget-user", str(key), input="n\n").exit_code == 1
            assert dump(host) == text

    @pytest.mark.parametrize("key", [NUMBER])
    def test_anonymous_user_is_refused(self, host: Host, story: FlaskClient) -> None:
        with host.app.app_context():
            text = dump(host)
            for nobody in (None, host.app.login_manager.anonymous_user()):  # type: ignore[attr-defined]
                with pytest.raises(InvalidValueError, match="user is anonymous"):
                    host.referrals.forget_user(nobody)
            with pytest.raises(InvalidValueError, match="user must be a User"):
                host.referrals.forget_user(Referral())
            assert dump(host) == text


@pytest.mark.parametrize("command", ["export-user", "forget-user"])
def test_text_that_is_no_key_is_refused(new_host: MakeHost, command: str) -> None:
    options = ["--yes"] if command == "forget-user" else []
    result = run(new_host(), command, "mia", *options)
    assert result.exit_code == 1
    assert result.output.startswith("Error: There is no user with the key 'mia', nor anything stored of one. Give")


@pytest.fixture
def directory(database_url: str) -> Iterator[Host]:
    """A site without a user model: who is there comes with the request."""
    app = Flask(__name__)
    app.config.from_mapping(SECRET_KEY="a test's secret", SQLALCHEMY_DATABASE_URI=database_url, TESTING=True)
    db = SQLAlchemy(app)
    referrals = Referrals(app)
    referrals.user_loader(lambda: request.headers.get("X-User"))

    @app.post("/act/<action>")
    def act(action: str) -> str:
        Referral.record_response(action, once=True)
        return ""

    with app.app_context():
        db.create_all()
    yield Host(app, db, referrals, None, None)
    with app.app_context():
        db.session.remove()
        db.drop_all()
        db.engine.dispose()


def test_user_of_no_model_is_forgotten(directory: Host) -> None:
    host = directory
    with host.app.app_context():
        Referral.create("/own", WORD, "label-marker")
        Referral.create("/", "olga", code="olgas")
    client = browser(host)
    client.get("/referrals/olgas")
    client.post("/act/JOINED", headers={"X-User": WORD})
    with host.app.app_context():
        assert WORD in dump(host)
        before = counts(host)
        assert run(host, "export-user", WORD).stderr == "Exported: 1 links, 2 responses.\n"
        assert forget(host, WORD) == "Forgotten: 1 links, 2 responses.\n"
        assert markers_in(dump(host)) == []
        assert once_key(Actor(WORD)) not in dump(host)
        assert counts(host) == before
        assert link(host, "olgas").user_id == "olga"


class TestExportUser:
    """``flask referrals export-user``."""

    def test_everything_of_theirs(self, host: Host, story: FlaskClient, key: Any) -> None:
        result = run(host, "export-user", str(key))
        assert (result.exit_code, result.stderr) == (0, "Exported: 4 links, 9 responses.\n")
        data = json.loads(result.stdout)
        assert list(data) == ["referrals", "responses"]
        assert [row["label"] for row in data["referrals"]] == ["label-marker"] * 4
        assert {row["user_id"] for table in data.values() for row in table} == {key if key == NUMBER else str(key)}
        actions = ["RESPONDED", "RESPONDED", "TRIED", "BOUGHT", "JOINED", "REFUNDED", "VOIDED", "LOOKED", "RESPONDED"]
        assert [row["action"] for row in data["responses"]] == actions
        click, _, _, bought = data["responses"][:4]
        assert (click["referral"], click["ip_address"]) == ("one", "198.51.100.77")
        assert (click["http_referrer"], click["params"]) == (
            "https://referrer-marker.example/page?token=1",
            {"utm_source": "mail"},
        )
        assert bought["key"] == "order-marker 7"
        with host.app.app_context():
            visitors = {response.session_key for response in host.responses()} - {None}
        assert visitors
        assert [visitor for visitor in visitors if visitor and visitor in result.stdout] == []

    @pytest.mark.parametrize("key", [NUMBER])
    def test_file(self, host: Host, story: FlaskClient, key: Any, tmp_path: Path) -> None:
        file = tmp_path / "mia.json"
        result = run(host, "export-user", str(key), "-o", str(file))
        assert (result.exit_code, result.stdout) == (0, "")
        assert file.read_text(encoding="utf-8") == run(host, "export-user", str(key)).stdout
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    @pytest.mark.parametrize("key", [NUMBER])
    def test_existing_file_or_symbolic_link_is_not_written(
        self, host: Host, story: Any, key: Any, tmp_path: Path
    ) -> None:
        there, link = tmp_path / "there", tmp_path / "link"
        there.write_text("mine")
        link.symlink_to(there)
        for path in (there, link):
            result = run(host, "export-user", str(key), "-o", str(path))
            assert result.exit_code == 1 and "File exists" in result.stderr
        assert there.read_text() == "mine" and sorted(tmp_path.iterdir()) == [link, there]

    @pytest.mark.parametrize("key", [NUMBER])
    def test_nothing_is_left_after_they_were_forgotten(self, host: Host, story: FlaskClient, key: Any) -> None:
        with host.app.app_context():
            forget(host, key)
        assert json.loads(run(host, "export-user", str(key)).stdout) == {"referrals": [], "responses": []}


def test_no_cookie_token_or_password_is_written_down(new_host: MakeHost, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in a table, nor in a log, nor in what a model or a signal shows of itself; failures included."""
    caplog.set_level(logging.DEBUG)
    host, told, secrets = new_host(), list[str](), {"password-marker"}
    add_pages(host)
    client = host.client()

    def tell(app: Flask, **payload: Any) -> None:
        for obj in payload.values():
            columns = {name: getattr(obj, name) for name in sa.inspect(obj).attrs.keys()}
            told.extend([repr(obj), str(obj), str(columns)])

    def visit(method: str, path: str, **options: Any) -> None:
        client.open(path, method=method, **options)
        cookies = [client.get_cookie(name) for name in ("session", "remember_token")]
        secrets.update(cookie.value for cookie in cookies if cookie is not None)
        with client.session_transaction() as session:
            secrets.update([session[SESSION_KEY]] if SESSION_KEY in session else [])

    for signal in (referral_created, response_recorded, user_linked_to_response):
        signal.connect(tell, host.app)
    with host.app.app_context():
        host.user("mia")
        olga = host.user("olga")
        codes = [Referral.create("/", olga, code=code).code for code in ("one", "two")]
    form = {"name": "mia", "password": "password-marker", "remember": "yes"}

    for code in codes:
        visit("GET", f"/referrals/{code}")
    with host.app.app_context(), failing(host, "INSERT", 1):
        visit("GET", f"/referrals/{codes[0]}")
    visit("POST", "/act/TRIED")
    with host.app.app_context(), failing(host, "UPDATE", 1):
        visit("POST", "/login", data=form)
    visit("POST", "/logout")
    visit("GET", f"/referrals/{codes[1]}")
    visit("POST", "/login", data=form)
    visit("POST", "/buy")
    visit("POST", "/referrals/", json={"redirect_to": "/tea", "label": "mail"})

    assert len(caplog.records) == 2
    assert len(told) > 20
    assert len(secrets) > 4
    with host.app.app_context():
        responses = host.responses()
        shown = [f"{obj!r} {obj}" for obj in (*responses, *host.db.session.scalars(sa.select(Referral)))]
        keys = {response.session_key for response in responses} - {None}
        written = [dump(host, *host.db.metadata.tables), caplog.text, *map(repr, caplog.records), *shown, *told]
    assert [secret for secret in secrets if any(secret in text for text in written)] == []
    # The visitor's key alone lets nobody in. Still, logs are read by more people than the database.
    assert len(keys) == 2
    assert [key for key in keys if key and key in caplog.text + str(shown)] == []


class TestPage:
    """``docs/privacy.rst``; its view is used by :class:`TestForgetUser`."""

    def test_settings(self, new_host: MakeHost) -> None:
        app = Flask(__name__)
        exec(snippets("privacy.rst", "python")[0], {"app": app})
        host = new_host(**{name: value for name, value in app.config.items() if name.startswith("REFERRALS_")})
        client = browser(host)
        code = follow(host, client, "/")
        client.get(f"/referrals/{code}?utm_source=mail", headers={"User-Agent": "curl/8"})
        host.client().get(f"/referrals/{code}?utm_source=mail", headers={"Sec-GPC": "1"})
        with host.app.app_context():
            assert link(host, code).response_count == 2
            stored = [(each.ip_address, each.http_referrer, each.params) for each in host.responses()]
            assert stored == [(None, None, None)] * 2
            visitor, opted_out = host.responses()
            assert (visitor.user_agent, opted_out.user_agent) == (f"{BROWSER} agent-marker", None)
            assert (visitor.session_key is None, opted_out.session_key) == (False, None)

    @pytest.mark.parametrize(("kept", "reasons"), [("flag", ["no-consent", None]), ("drop", [None])])
    def test_consent(self, new_host: MakeHost, kept: str, reasons: list[str | None]) -> None:
        host = new_host(REFERRALS_IGNORED=kept)
        exec(snippets("privacy.rst", "python")[1], {"referrals": host.referrals})
        client = host.client()
        code = follow(host, client)
        assert client.get_cookie("session") is None
        client.set_cookie("consent", "yes")
        client.get(f"/referrals/{code}")
        assert client.get_cookie("session") is not None
        with host.app.app_context():
            assert [(each.ignored, each.ip_address) for each in host.responses()] == [
                (reason, "127.0.0.0") for reason in reasons
            ]

    def test_commands(self, new_host: MakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        host = new_host()
        with host.app.app_context():
            host.add(host.User(id=7, name="mia"))
        monkeypatch.chdir(tmp_path)
        commands = [line for block in snippets("privacy.rst", "text") for line in block.splitlines() if line]
        assert len(commands) == 4
        for command in commands:
            flask, referrals, *arguments = shlex.split(command)
            assert (flask, referrals) == ("flask", "referrals")
            assert run(host, *arguments).exit_code == 0
        assert json.loads((tmp_path / "user-7.json").read_text()) == {"referrals": [], "responses": []}

    def test_names(self) -> None:
        assert set(re.findall(r"REFERRALS_\w+", PAGE)) <= set(Settings.defaults())
        columns = re.findall(r"^``(\w+)``  ", PAGE, re.MULTILINE)
        assert len(columns) == 8
        assert set(columns) - set(dir(ReferralResponseMixin)) == set()
