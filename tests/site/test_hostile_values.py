"""Hostile text is escaped: in every template, in the admin, in exports and on a terminal."""

import csv
import io
from html.parser import HTMLParser
from typing import Any

import pytest
import sqlalchemy as sa
from flask import render_template_string
from flask.testing import FlaskClient
from flask_admin import Admin

from flask_referrals import Referral
from flask_referrals.contrib.admin import add_views
from tests.conftest import MakeHost
from tests.host import Host
from tests.site.helpers import call_by_name, needs_flask_31

SHORT = "<script>pwned()</script>"
URL = "javascript:pwned()"
LONG = f"\"'><script>pwned()</script><img src=x onerror=pwned()><a href='{URL}'>{{{{ 7*7 }}}}&quot;"

#: What a spreadsheet takes for a formula when a cell begins with it.
FORMULAS = ["=", "+", "-", "@", "\t=", "\r="]


#: Attributes whose value a browser loads, or leads to.
FOLLOWED = {"href", "src", "action", "formaction", "data", "poster", "background", "xlink:href", "content"}


class Page(HTMLParser):
    """A page, and what a browser would run or follow of it."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.live: list[str] = []
        self.text = ""
        self._tag = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        for name, value in attrs:
            is_code = (value or "").strip().lower().startswith(("javascript:", "data:", "vbscript:"))
            if name.startswith("on") or name in ("srcdoc", "style") or (name in FOLLOWED and is_code):
                self.live.append(f"<{tag} {name}={value!r}>")

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._tag in ("script", "style"):
            self.live.append(data)
        else:
            self.text += data


def assert_harmless(markup: str, *shown: str) -> None:
    """Run no code that values contain, and read values as they are."""
    page = Page(markup)
    assert [each for each in page.live if "pwned" in each] == []
    assert "<img" not in markup
    for value in shown:
        assert value in page.text


@pytest.fixture
def database_url(shared_sqlite_url: str) -> str:
    """A page is the same on every database."""
    return shared_sqlite_url


@pytest.fixture
def host(new_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The site with its admin, where users and products are called by their names."""
    host = new_host()
    call_by_name(monkeypatch, host.User, host.Product)
    add_views(Admin(host.app))
    return host


@pytest.fixture
def member(host: Host, client: FlaskClient) -> FlaskClient:
    """The browser of a user with a hostile name."""
    client.post("/signup", data={"name": SHORT})
    return client


@pytest.fixture
def stored(host: Host, member: FlaskClient) -> None:
    """A link and a response of hostile values, past all checks; and the same with a URL that is code."""
    with host.app.app_context():
        user = host.db.session.scalars(sa.select(host.User)).one()
        product = host.add(host.Product(name=SHORT))
        for text, short, number in ((LONG, SHORT, 1), (URL, URL, 2)):
            link: Any = Referral.create("/", user, label=str(number), target=product)
            link.label, link.redirect_to = text[:100], text
            columns = dict.fromkeys(["http_referrer", "user_agent", "key"], text)
            host.add(
                host.referrals.ReferralResponse(
                    referral_id=link.id,
                    user_id=user.id,
                    action=text[:128],
                    ip_address=short,
                    target_type=short,
                    target_id=short,
                    ignored=None if number == 1 else "<b onclick=pwned()>",
                    value=1,
                    currency="<b>",
                    params={text: text},
                    **columns,
                )
            )


def test_form(host: Host) -> None:
    with host.app.test_request_context():
        for value in (LONG, URL):
            template = "{{ create_referral_form(value, label=value) }}"
            assert_harmless(render_template_string(template, value=value))


def test_page_and_part_that_show_a_new_link(host: Host, member: FlaskClient) -> None:
    fields = {"redirect_to": f"/{LONG}", "label": LONG[:100]}
    page = member.post("/referrals/", data=fields, headers={"Accept": "text/html"})
    assert page.status_code == 200
    assert_harmless(page.text)
    part = member.post("/referrals/", json=fields).json
    assert part is not None
    assert_harmless(part["html"])


@needs_flask_31
@pytest.mark.parametrize("name", ['"><script>pwned()</script>', "javascript:pwned()//", "x' onclick='pwned()"])
def test_host_name_of_a_request_in_a_new_link(member: FlaskClient, name: str) -> None:
    answer = member.post(
        "/referrals/",
        data={"redirect_to": "/"},
        headers={"Accept": "text/html"},
        environ_overrides={"HTTP_HOST": name},
    )
    assert answer.status_code < 500
    assert_harmless(answer.text)


@pytest.mark.parametrize(
    "fields", [{"redirect_to": LONG}, {"redirect_to": URL}, {"redirect_to": "/", "label": LONG * 9}, {LONG: LONG}]
)
def test_page_of_a_refusal(member: FlaskClient, fields: dict[str, str]) -> None:
    answer = member.post("/referrals/", data=fields, headers={"Accept": "text/html"})
    assert (answer.status_code, answer.mimetype) == (400, "text/html")
    assert_harmless(answer.text)


def test_body_of_a_redirect_and_of_an_unknown_link(host: Host, client: FlaskClient) -> None:
    with host.app.app_context():
        code = Referral.create(f"/{LONG}").code
    for path in (f"/referrals/{code}", f"/referrals/{code}?redirect_to=/%22%3E{SHORT}", "/referrals/%22%3E<script>"):
        answer = client.get(path)
        assert answer.status_code in (302, 404)
        assert_harmless(answer.text)


@pytest.mark.usefixtures("stored")
def test_list_of_the_hosts_own(host: Host) -> None:
    template = """{% for each in referral_responses(user) %}
    <p>{{ each }} {{ each.action|action_display }} {{ each.http_referrer }} {{ each.user_agent }} {{ each.ip_address }}
    {{ each.user }} {{ each.referral }} {{ each.referral.label }} {{ each.referral.target }} {{ each.params }}</p>
    {% endfor %}"""
    with host.app.test_request_context():
        user = host.db.session.scalars(sa.select(host.User)).one()
        assert_harmless(render_template_string(template, user=user), LONG, SHORT)


@pytest.mark.usefixtures("stored")
def test_every_page_of_the_admin(host: Host, client: FlaskClient) -> None:
    for path in ("/admin/referral/", "/admin/referralresponse/"):
        assert_harmless(get(client, path), SHORT, URL)
        assert_harmless(get(client, f"{path}details/?id=1"), LONG, SHORT)
        assert_harmless(get(client, f"{path}details/?id=2"), URL)
    assert_harmless(get(client, "/admin/referral/edit/?id=1"))


@pytest.mark.parametrize(
    "argument", ["search", "sort", "desc", "page", "page_size", "flt0_0", "flt0_code_equals", "id", "url"]
)
@pytest.mark.usefixtures("stored")
def test_query_of_the_admin(client: FlaskClient, argument: str) -> None:
    for path in ("/admin/referral/", "/admin/referralresponse/"):
        for page in ("", "details/", "edit/"):
            for value in (LONG, URL):
                answer = client.get(f"{path}{page}", query_string={"id": "1", argument: value})
                assert answer.status_code < 500
                assert_harmless(answer.text)


@pytest.mark.usefixtures("stored")
def test_place_of_a_link_is_no_link_in_the_admin(client: FlaskClient) -> None:
    for number in (1, 2):
        page = get(client, f"/admin/referral/details/?id={number}")
        assert "pwned" not in "".join(part.partition('"')[0] for part in page.split('href="')[1:])


def get(client: FlaskClient, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200
    return answer.text


def export(host: Host, table: str) -> list[dict[str, str]]:
    """Return the rows of an export, as a spreadsheet reads them."""
    result = host.app.test_cli_runner().invoke(args=["referrals", "export", table], catch_exceptions=False)
    assert result.exit_code == 0
    return list(csv.DictReader(io.StringIO(result.stdout, newline="")))


@pytest.mark.parametrize("formula", FORMULAS, ids=ascii)
def test_no_cell_of_an_export_is_a_formula(host: Host, formula: str) -> None:
    text = f'{formula}HYPERLINK("http://evil.example/","x"),\n"{formula}1'
    with host.app.app_context():
        link: Any = Referral.create("/", code=None)
        link.label, link.redirect_to, link.target_type, link.target_id = text, text, text, text[:64]
        columns = dict.fromkeys(["action", "http_referrer", "user_agent", "key", "target_type"], text)
        host.add(
            host.referrals.ReferralResponse(
                referral_id=link.id,
                ip_address=text[:45],
                target_id=text[:64],
                ignored=text[:20],
                currency=formula.ljust(3, "1"),
                params={text: text},
                **columns,
            )
        )
    for table, hostile in (("referrals", 4), ("responses", 9)):
        (row,) = export(host, table)
        assert len([cell for cell in row.values() if cell.startswith(f"'{formula}")]) == hostile
        assert not [cell for cell in row.values() if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]


@pytest.mark.parametrize(
    "command",
    ["list", "list --json", "show code-1", "show code-1 --json", "explain --user 1", "export responses --format jsonl"],
)
@pytest.mark.usefixtures("stored")
def test_nothing_steers_a_terminal(host: Host, command: str) -> None:
    steering = "\x1b]0;pwned\x07\x1b[2J\r\u202e\x9b31m"
    with host.app.app_context():
        for response in host.responses():
            response.action, response.http_referrer, response.is_touch = f"{steering}{response.id}", steering, True
        for link in host.db.session.scalars(sa.select(host.referrals.Referral)):
            link.label, link.code = steering, f"code-{link.id}"
        host.db.session.commit()
    result = host.app.test_cli_runner().invoke(args=["referrals", *command.split()], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "pwned" in result.output
    assert all(character.isprintable() or character == "\n" for character in result.output)
