"""A refusal does not show what exists."""

import json
from typing import Any

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient
from itsdangerous import URLSafeSerializer

from flask_referrals import Referral
from flask_referrals.types import CODE
from tests.host import Host, statements
from tests.site.helpers import needs_flask_31

PAGE = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture
def member(host: Host, client: FlaskClient) -> FlaskClient:
    """The browser of Mia, who has logged in, and may refer to the pot but not to the cup."""
    host.referrals.register_target(host.Product, can_refer=lambda user, product: product.name == "pot")
    with host.app.app_context():
        for name in ("pot", "cup", "gone"):
            host.add(host.Product(name=name))
        host.db.session.execute(sa.delete(host.Product).where(host.Product.name == "gone"))
        host.db.session.commit()
    client.post("/signup", data={"name": "mia"})
    return client


def signed(host: Host, *payload: Any) -> str:
    """Return the value by which a form names a target, as the site signs it."""
    return str(URLSafeSerializer(str(host.app.secret_key), salt="flask-referrals.target").dumps(list(payload)))


def test_every_refused_target_gets_the_same_answer(host: Host, member: FlaskClient) -> None:
    """Of a type and key that are not signed the database is not even asked."""
    ids = range(1, 60)
    unsigned = [f"{kind}:{number}" for kind in ("user", "product", "nothing") for number in (1, 2, 404)]
    unsigned += [json.dumps([kind, str(number)]) for kind in ("user", "product") for number in (1, 2, 404)]
    unsigned += [str(number) for number in ids]
    with host.app.app_context(), statements(host.db) as sent:
        answers = {answer_to(member, target) for target in unsigned}
    assert not [statement for statement in sent if "product" in statement]
    refused = [
        signed(host, "product", "2"),  # not permitted
        signed(host, "product", "3"),  # gone
        signed(host, "product", "404"),  # never there
        signed(host, "product", "x"),
        signed(host, "product", "9" * 30),
        signed(host, "user", "1"),  # there, but not registered
        signed(host, "user", "404"),
        signed(host, "referral", "1"),
        signed(host, "nothing", "1"),
        signed(host, "product", "1")[:-1],
    ]
    answers |= {answer_to(member, target) for target in refused}
    assert len(answers) == 1
    ((status, body),) = answers
    assert (status, json.loads(body)) == (400, {"error": "target is not something you can refer to"})
    assert answer_to(member, signed(host, "product", "1"))[0] == 200


def answer_to(member: FlaskClient, target: str) -> tuple[int, str]:
    answer = member.post("/referrals/", data={"redirect_to": "/", "target": target})
    return answer.status_code, answer.text


@needs_flask_31
def test_unknown_code_looks_like_a_malformed_and_a_deleted_one(host: Host, client: FlaskClient) -> None:
    with host.app.app_context():
        deleted = Referral.create("/").code
        assert client.get(f"/referrals/{deleted}").status_code == 302
        host.db.session.execute(sa.delete(host.referrals.ReferralResponse))
        host.db.session.execute(sa.delete(host.referrals.Referral))
        host.db.session.commit()
    answers = set()
    for code in (
        "unknown",
        deleted,
        deleted.upper(),
        "x" * 64,
        "x" * 65,
        "no.code",
        "%00",
        "a%20b",
        "%F0%9F%8D%B5",
        "'",
    ):
        answer = host.client().get(f"/referrals/{code}")
        answers.add((answer.status_code, answer.text, str(sorted(answer.headers))))
    assert len(answers) == 1
    assert next(iter(answers))[0] == 404


def test_malformed_code_is_refused_before_any_query(host: Host, client: FlaskClient) -> None:
    malformed = [
        "x" * 65,
        "x" * 5000,
        "%00",
        "a.b",
        "%F0%9F%8D%B5",
        "%ff",
        "%ed%a0%80",
        "*",
    ]
    with host.app.app_context(), statements(host.db) as sent:
        for code in malformed:
            assert client.get(f"/referrals/{code}").status_code == 404, code
            assert client.get(f"/referrals/{code}/").status_code == 404, code
    assert sent == []


@pytest.mark.usefixtures("ctx")
def test_codes_hold_59_bits_and_show_no_bias() -> None:
    codes = [Referral.create("/", label=str(number), commit=False).code for number in range(200)]
    letters = "".join(codes)
    alphabet = set("abcdefghjkmnpqrstuvwxyz23456789")
    assert len(set(codes)) == 200
    assert all(CODE.fullmatch(code) and len(code) == 12 for code in codes)
    assert len(alphabet) ** 12 > 2**59
    assert set(letters) == alphabet
    # 77 of each are expected; six standard deviations are 52.
    assert all(25 <= letters.count(letter) <= 129 for letter in alphabet)


class TestForm:
    """Whatever it is sent as, a link is made from the site itself alone."""

    @pytest.fixture
    def database_url(self, shared_sqlite_url: str) -> str:
        """It is decided before the database is asked."""
        return shared_sqlite_url

    @pytest.mark.parametrize("accept", [{}, PAGE], ids=["program", "browser"])
    @pytest.mark.parametrize("kind", ["form", "multipart", "JSON", "text"])
    def test_link_is_made_from_the_site_itself_with_a_form_or_json(
        self, host: Host, member: FlaskClient, kind: str, accept: dict[str, str]
    ) -> None:
        own: list[dict[str, str]] = [{}, {"Sec-Fetch-Site": "same-origin"}]
        foreign = [
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Origin": "https://evil.example"},
        ]
        for headers in foreign:
            assert post(member, kind, {**accept, **headers}) == 403
        assert made(host) == []
        for headers in own:
            assert post(member, kind, {**accept, **headers}) == (415 if kind == "text" else 200)
        assert made(host) == ([] if kind == "text" else ["/tea"])


def post(member: FlaskClient, kind: str, headers: dict[str, str]) -> int:
    """Ask for a link to /tea in a body of some kind, and return the answer's status."""
    fields = {"redirect_to": "/tea"}
    bodies: dict[str, dict[str, Any]] = {
        "form": {"data": fields},
        "multipart": {"data": fields, "content_type": "multipart/form-data"},
        "JSON": {"json": fields},
        "text": {"data": json.dumps(fields), "content_type": "text/plain"},
    }
    return member.post("/referrals/", headers=headers, **bodies[kind]).status_code


def made(host: Host) -> list[str]:
    with host.app.app_context():
        return list(host.db.session.scalars(sa.select(Referral.redirect_to)))
