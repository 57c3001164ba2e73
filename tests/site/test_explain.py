"""Why a touch earns credit, or why not."""

import json
import re
from datetime import datetime, timedelta, timezone

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient

from flask_referrals import Referral
from tests.conftest import MakeHost
from tests.host import Host, follow


def test_every_rule_is_explained(new_host: MakeHost) -> None:
    host = new_host(REFERRALS_ATTRIBUTION_WINDOW=3600)
    with host.app.app_context():
        mia = host.user("mia")
        links = {path: Referral.create(path) for path in ("/old", "/expired", "/lost", "/won", "/void")}
        links["/own"] = Referral.create("/own", user=mia)
        for referral in links.values():
            referral.respond("CAME", user=mia)
        links["/won"].respond("RESPONDED", user=mia).ignored = "repeat"
        responses = {response.referral.redirect_to: response for response in host.responses()}
        responses["/old"].created_at = datetime.now(timezone.utc) - timedelta(hours=2)
        links["/expired"].expired_at = datetime.now(timezone.utc)
        responses["/void"].void("a fraud")
        host.db.session.commit()
        verdicts = [(verdict.response.referral.redirect_to, verdict.rule) for verdict in Referral.explain(mia)]
    assert verdicts == [
        ("/won", "won"),
        ("/own", "self"),
        ("/void", "void"),
        ("/won", "lost"),
        ("/lost", "lost"),
        ("/expired", "expired"),
        ("/old", "window"),
    ]


def test_binding_is_explained_first(host: Host, client: FlaskClient) -> None:
    follow(host, client, "/a")
    client.post("/signup", data={"name": "mia"})
    follow(host, client, "/b")
    with host.app.app_context():
        mia = host.db.session.scalars(sa.select(host.User)).one()
        verdicts = [(verdict.response.action, verdict.rule) for verdict in Referral.explain(mia)]
    assert verdicts == [("SIGNED_UP", "won"), ("RESPONDED", "bound"), ("RESPONDED", "bound")]


def test_request_is_explained(host: Host, client: FlaskClient) -> None:
    @host.app.get("/why")
    def why() -> str:
        return " ".join(verdict.rule for verdict in Referral.explain())

    assert client.get("/why").text == ""
    follow(host, client)
    assert client.get("/why").text == "won"


class TestCommands:
    """flask referrals explain | simulate."""

    def run(self, host: Host, *arguments: str, fails: bool = False) -> str:
        result = host.app.test_cli_runner().invoke(args=["referrals", *arguments])
        assert (result.exit_code != 0) is fails, result.output
        return result.output

    def test_explain_a_user_and_the_visitor_of_a_response(self, host: Host, client: FlaskClient) -> None:
        code = follow(host, client)
        with host.app.app_context():
            click_id = host.responses()[0].id
        (row,) = map(json.loads, self.run(host, "explain", "--response", str(click_id), "--json").splitlines())
        assert (row["code"], row["rule"]) == (code, "won")
        client.post("/signup", data={"name": "mia"})
        with host.app.app_context():
            user_id = host.db.session.scalar(sa.select(host.User.id))
        table = self.run(host, "explain", "--user", str(user_id))
        assert re.search(rf"SIGNED_UP +{code} +won\n", table)
        assert re.search(rf"RESPONDED +{code} +bound\n", table)

    def test_explain_without_touches(self, host: Host) -> None:
        assert "no user" in self.run(host, "explain", "--user", "999", fails=True)
        assert "no response" in self.run(host, "explain", "--response", "999", fails=True)
        self.run(host, "explain", fails=True)

    @pytest.mark.parametrize(
        ("options", "outcome"),
        [
            ([], {"status": 302, "counts": True, "reason": None, "location": "/tea"}),
            (["--user-agent", "Twitterbot/1.0"], {"status": 302, "counts": False, "reason": "bot", "location": "/tea"}),
            (["--header", "Sec-Fetch-Dest: image"], {"counts": False, "reason": "embedded"}),
            (["--header", "Sec-Purpose: prefetch"], {"status": 503, "counts": False, "reason": "prefetch"}),
            (["--method", "HEAD"], {"counts": False, "reason": "head"}),
            (["--query", "redirect_to=/cup"], {"counts": True, "location": "/cup"}),
        ],
    )
    def test_simulate_tries_a_click_and_writes_nothing(
        self, host: Host, options: list[str], outcome: dict[str, object]
    ) -> None:
        with host.app.app_context():
            Referral.create("/tea", code="alice")
        told = json.loads(self.run(host, "simulate", "alice", "--json", *options))
        assert {name: told[name] for name in outcome} == outcome
        with host.app.app_context():
            assert host.responses() == []

    def test_simulate_of_an_unknown_or_expired_link_says_so(self, host: Host) -> None:
        with host.app.app_context():
            Referral.create("/tea", code="alice", expires_at=datetime.now(timezone.utc))
        assert "reason: expired" in self.run(host, "simulate", "alice")
        assert "404" in self.run(host, "simulate", "nobody", fails=True)
        assert "404" in self.run(host, "simulate", "no.code", fails=True)

    @pytest.mark.parametrize(
        "option", [["--header", "no colon"], ["--header", "Sec-GPC: 1\nDNT: 1"], ["--user-agent", "Firefox\r\n"]]
    )
    def test_simulate_names_a_header_that_cannot_be_sent(self, host: Host, option: list[str]) -> None:
        result = host.app.test_cli_runner().invoke(args=["referrals", "simulate", "alice", *option])
        assert (result.exit_code, "is not a header. Write NAME:VALUE" in result.stderr) == (2, True)
