"""What templates are given: the form that makes a link, the lists, and the words for actions."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from flask import render_template, render_template_string
from flask.testing import FlaskClient
from flask_login import AnonymousUserMixin

from flask_referrals import InvalidValueError, Referral
from tests.conftest import MakeHost
from tests.host import Host, statements

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}&amp;"
FORM = "{{ create_referral_form(url, target, label) }}"


@pytest.fixture
def database_url(shared_sqlite_url: str) -> str:
    """A page is the same on every database."""
    return shared_sqlite_url


class Page(HTMLParser):
    """The elements of a page: their names, attributes, and the text in scripts and styles."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.code: list[str] = []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] in ("script", "style") and data.strip():
            self.code.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of all elements of one name."""
        return [attributes for name, attributes in self.elements if name == tag]

    def fields(self) -> dict[str | None, str | None]:
        """Return what the one form posts."""
        return {field.get("name"): field.get("value") for field in self.all("input")}


def form(host: Host, url: str = "/tea", target: Any = None, label: str = "") -> Page:
    with host.app.test_request_context():
        return Page(render_template_string(FORM, url=url, target=target, label=label))


class TestForm:
    """``create_referral_form``."""

    def test_it_posts_what_making_a_link_needs(self, host: Host) -> None:
        with host.app.app_context():
            host.user("mia")
            page = form(host, "/tea?a=1&b=2", host.add(host.Product(name="kettle")), "my blog")
        (element,) = page.all("form")
        assert (element["method"], element["action"]) == ("post", "/referrals/")
        (button,) = page.all("button")
        assert button["type"] == "submit"
        client = host.client()
        client.post("/login", data={"name": "mia"})
        answer = client.post("/referrals/", data=page.fields())
        assert answer.json is not None
        with host.app.app_context():
            (referral,) = host.db.session.scalars(host.db.select(Referral))
            assert answer.json["code"] == referral.code
            assert (referral.redirect_to, referral.label, referral.user.name) == ("/tea?a=1&b=2", "my blog", "mia")
            assert referral.target.name == "kettle"

    def test_fields_are_left_out_that_have_no_value(self, host: Host) -> None:
        assert form(host).fields() == {"redirect_to": "/tea"}

    def test_address_and_label_are_escaped(self, host: Host) -> None:
        page = form(host, f"/{HOSTILE}", label=HOSTILE)
        assert page.fields() == {"redirect_to": f"/{HOSTILE}", "label": HOSTILE}
        assert page.all("img") == []
        assert len(page.all("script")) == 1 and page.code == []

    def test_form_is_markup_and_not_escaped_twice(self, host: Host) -> None:
        with host.app.test_request_context():
            assert render_template_string(FORM, url="/", target=None, label="").startswith("<form ")

    def test_token_against_forgery_is_in_the_form_when_the_app_has_one(self, host: Host) -> None:
        host.app.add_template_global(lambda: 'a"token', "csrf_token")
        assert form(host).fields() == {"csrf_token": 'a"token', "redirect_to": "/tea"}

    def test_target_that_is_not_registered_is_an_error(self, host: Host) -> None:
        with host.app.app_context():
            user = host.user("mia")
            with pytest.raises(InvalidValueError, match=r"register_target\(User\)"):
                form(host, target=user)

    def test_target_that_is_not_stored_is_an_error(self, host: Host) -> None:
        with host.app.app_context(), pytest.raises(InvalidValueError, match="target has no primary key"):
            form(host, target=host.Product(name="kettle"))

    def test_form_is_where_the_app_has_the_extension(self, new_host: MakeHost) -> None:
        page = form(new_host(REFERRALS_URL_PREFIX="/r"))
        assert page.all("form")[0]["action"] == "/r/"
        assert page.all("script")[0]["src"] == "/r/static/referrals.js"

    def test_host_has_its_own_form(self, host: Host, tmp_path: Path) -> None:
        folder = tmp_path / "templates" / "referrals"
        folder.mkdir(parents=True)
        (folder / "_create_referral_form.html").write_text("<b>{{ redirect_to }} {{ label }}</b>")
        host.app.template_folder = str(tmp_path / "templates")
        with host.app.test_request_context():
            assert render_template_string(FORM, url="/<a>", target=None, label="x") == "<b>/&lt;a&gt; x</b>"

    def test_host_has_its_own_answer(self, host: Host, client: FlaskClient, tmp_path: Path) -> None:
        folder = tmp_path / "templates" / "referrals"
        folder.mkdir(parents=True)
        (folder / "created.html").write_text("page: {{ referral.redirect_to }}")
        (folder / "_referral.html").write_text("part: {{ referral.redirect_to }}")
        host.app.template_folder = str(tmp_path / "templates")
        client.post("/signup", data={"name": "mia"})
        answer = client.post("/referrals/", data={"redirect_to": "/tea"}, headers={"Accept": "text/html"})
        assert answer.text == "page: /tea"
        answer = client.post("/referrals/", data={"redirect_to": "/tea"})
        assert answer.json is not None and answer.json["html"] == "part: /tea"


class TestContentSecurityPolicy:
    """Every page works under ``default-src 'self'``."""

    def assert_no_inline_code(self, page: Page) -> None:
        assert page.code == []
        assert page.all("style") == []
        for script in page.all("script"):
            assert script["src"] is not None and script["src"].startswith("/referrals/static/")
        for _, attributes in page.elements:
            assert not any(name == "style" or name.startswith("on") for name in attributes)
            assert not any((value or "").startswith("javascript:") for value in attributes.values())

    def test_form(self, host: Host) -> None:
        self.assert_no_inline_code(form(host, label="x"))

    @pytest.mark.parametrize("name", ["created.html", "_referral.html"])
    def test_page_that_shows_the_link(self, host: Host, name: str) -> None:
        with host.app.test_request_context():
            referral = Referral.create("/tea")
            page = Page(render_template(f"referrals/{name}", referral=referral))
            assert page.all("input")[0]["value"] == referral.url
        self.assert_no_inline_code(page)

    def test_script_is_served(self, host: Host, client: FlaskClient) -> None:
        (script,) = form(host).all("script")
        assert script["type"] == "module"
        with client.get(str(script["src"])) as answer:
            assert (answer.status_code, answer.mimetype) == (200, "text/javascript")
            assert b"data-referral-form" in answer.get_data()


class TestResponses:
    """``referral_responses(user)``."""

    def rendered(self, host: Host, user: Any, limit: int | None = None) -> str:
        return render_template_string(
            "{% for each in referral_responses(user, limit) %}"
            "{{ each.action|action_display }} {{ each.referral.label }}; "
            "{% endfor %}",
            user=user,
            limit=limit,
        )

    @pytest.fixture
    def olga(self, host: Host) -> Any:
        """The key of a user with two links, which one visitor followed and then acted on; and somebody else's link."""
        with host.app.test_request_context():
            olga = host.user("olga")
            key = olga.id
            codes = [Referral.create("/", user=olga, label=label).code for label in ("blog", "mail")]
            Referral.create("/", user=host.user("else"), label="else").respond("SHARED")
        client = host.client()
        client.get(f"/referrals/{codes[0]}")
        client.get(f"/referrals/{codes[0]}")  # a repeat
        client.get(f"/referrals/{codes[1]}")
        client.post("/act/BOUGHT")
        return key

    def test_those_that_count_are_listed_newest_first(self, host: Host, olga: Any) -> None:
        with host.app.test_request_context():
            user = host.db.session.get(host.User, olga)
            assert self.rendered(host, user) == "BOUGHT mail; Clicked on the link mail; Clicked on the link blog; "
            assert self.rendered(host, user, limit=1) == "BOUGHT mail; "

    def test_list_with_its_links_is_one_statement(self, host: Host, olga: Any) -> None:
        with host.app.test_request_context():
            user = host.db.session.get(host.User, olga)
            with statements(host.db) as sent:
                self.rendered(host, user)
        assert len([statement for statement in sent if statement != "COMMIT"]) == 1

    def test_anonymous_user_has_none(self, host: Host, olga: Any) -> None:
        with host.app.test_request_context(), statements(host.db) as sent:
            assert self.rendered(host, None) == self.rendered(host, AnonymousUserMixin()) == ""
            assert render_template_string("{{ referral_responses(current_user) }}") == "[]"
        assert sent == []

    def test_user_without_links_has_none(self, host: Host, olga: Any) -> None:
        with host.app.test_request_context():
            assert self.rendered(host, host.user("mia")) == ""

    def test_host_narrows_the_list(self, host: Host, olga: Any) -> None:
        seen = []

        @host.referrals.responses_filter
        def only_bought(responses: Any, *, user: Any, referral: Any) -> Any:
            seen.append((user.name, referral))
            return responses.where(host.referrals.ReferralResponse.action == "BOUGHT")

        with host.app.test_request_context():
            assert self.rendered(host, host.db.session.get(host.User, olga)) == "BOUGHT mail; "
        assert seen == [("olga", None)]


class TestActionDisplay:
    """The filter ``action_display``."""

    @pytest.mark.parametrize(
        ("action", "words"),
        [("RESPONDED", "Clicked on the link"), ("BOUGHT", "BOUGHT"), ("", ""), ("<b>", "&lt;b&gt;")],
    )
    def test_action_without_words_is_shown_as_it_is(self, host: Host, action: str, words: str) -> None:
        with host.app.app_context():
            assert render_template_string("{{ action|action_display }}", action=action) == words

    def test_host_has_its_own_words(self, new_host: MakeHost) -> None:
        host = new_host(REFERRALS_ACTION_DISPLAY={"RESPONDED": "Clicked", "BOUGHT": "Bought & <paid>", "N": 5})
        with host.app.app_context():
            words = render_template_string(
                "{% for a in ('RESPONDED', 'BOUGHT', 'N') %}{{ a|action_display }},{% endfor %}"
            )
        assert words == "Clicked,Bought &amp; &lt;paid&gt;,5,"

    def test_words_of_the_host_extend_the_defaults(self, new_host: MakeHost) -> None:
        host = new_host(REFERRALS_ACTION_DISPLAY={"BOUGHT": "Bought"})
        with host.app.app_context():
            template = "{% for action in ('RESPONDED', 'BOUGHT') %}{{ action|action_display }},{% endfor %}"
            assert render_template_string(template) == "Clicked on the link,Bought,"
