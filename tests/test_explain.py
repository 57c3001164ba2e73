"""Why a touch earns credit, or why not."""

from datetime import datetime
from datetime import timedelta
from datetime import timezone

import sqlalchemy as sa
from flask.testing import FlaskClient

from flask_referrals import Referral
from tests.conftest import MakeHost
from tests.host import Host
from tests.host import follow


def test_every_rule_says_what_it_took(new_host: MakeHost) -> None:
    host = new_host(REFERRALS_ATTRIBUTION_WINDOW=3600)
    client = host.client()
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
    client.post("/login", data={"name": "mia"})


def test_binding_is_told_first(host: Host, client: FlaskClient) -> None:
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
