"""Reports are read on a replica; what decides something is not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Mapped, mapped_column, selectinload

from flask_referrals import Referral, ReferralResponse, Referrals
from flask_referrals.db import totals
from flask_referrals.exceptions import ConfigurationError
from flask_referrals.reports import counted_responses, latest_actions, links_of
from flask_referrals.state import current_state
from flask_referrals.stats import totals_of
from flask_referrals.times import EPOCH
from tests.conftest import MakeHost, NewApp
from tests.host import Host, follow, make_host

Report = Callable[[Host, Any], object]


def command(host: Host, *arguments: str) -> str:
    result = host.app.test_cli_runner().invoke(args=["referrals", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def page(host: Host, user: Any) -> str:
    template = (
        "{% for each in referral_responses(user, limit=5) %}{{ each.referral.code }}{{ each.user.name }}{% endfor %}"
    )
    return host.app.jinja_env.from_string(template).render(user=user)


REPORTS: dict[str, Report] = {
    "count": lambda host, olga: olga.referral_codes[0].response_count,
    "responses of a link": lambda host, olga: olga.referral_codes[0].filtered_responses(),
    "responses of a user": lambda host, olga: counted_responses(current_state(), user=olga),
    "a page": page,
    "links": lambda host, olga: links_of(current_state(), olga),
    "latest actions": lambda host, olga: latest_actions(current_state(), olga, since=EPOCH, limit=5),
    "statistics": lambda host, olga: host.referrals.stats(owner=olga, by="referral").funnel,
    "totals": lambda host, olga: totals_of(current_state(), olga.referral_codes),
    "referred": lambda host, olga: Referral.referred_by(olga),
    "list": lambda host, olga: command(host, "list"),
    "show": lambda host, olga: command(host, "show", olga.referral_codes[0].code),
    "export": lambda host, olga: command(host, "export", "responses"),
}


@contextmanager
def sent_to(host: Host, bind: str | None) -> Iterator[list[str]]:
    """Collect what is sent to one of the host's engines."""
    sent: list[str] = []

    def note(conn: Any, cursor: Any, statement: str, *args: Any) -> None:
        sent.append(statement)

    with host.app.app_context():
        engine = host.db.engines[bind]
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)


def fill(host: Host) -> None:
    """Let Olga bring Mia, who looks, signs up and buys."""
    with host.app.app_context():
        code = Referral.create("/", user=host.user("olga")).code
    client = host.client()
    client.get(f"/referrals/{code}")
    client.post("/signup", data={"name": "mia"})
    client.post("/act/BOUGHT")


def find_olga(host: Host) -> Any:
    """Return Olga with her link, as the host has read them."""
    olga = host.db.session.scalars(sa.select(host.User).where(host.User.name == "olga")).one()
    assert len(olga.referral_codes) == 1
    return olga


class TestSecondBind:
    """A second bind to the same database: what is sent where."""

    @pytest.fixture
    def host(self, new_host: MakeHost, database_url: str) -> Host:
        """The site, with somebody who has come by a link."""
        host = new_host(SQLALCHEMY_BINDS={"replica": database_url}, REFERRALS_REPORT_BIND="replica")
        fill(host)
        return host

    @pytest.mark.parametrize("report", [name for name in REPORTS if name != "show"])
    def test_report_is_read_on_the_replica_alone(self, host: Host, report: str) -> None:
        with host.app.app_context():
            olga = find_olga(host)
            with sent_to(host, None) as primary, sent_to(host, "replica") as replica:
                REPORTS[report](host, olga)
        assert replica
        # A user's row belongs to the host, as it was before.
        assert [statement for statement in primary if "referral" in statement] == []

    def test_what_decides_is_read_where_it_is_written(self, host: Host) -> None:
        with sent_to(host, "replica") as replica:
            client = host.client()
            follow(host, client)
            client.post("/signup", data={"name": "max"})
            client.post("/act/BOUGHT")
            client.post("/login", data={"name": "olga"})
            client.post("/referrals/", json={"redirect_to": "/"})
            with host.app.app_context():
                olga = find_olga(host)
                Referral.referrer_of(olga)
                Referral.explain(olga)
                totals.roll_up(current_state().database)
                host.referrals.forget_user(olga)
        assert replica == []

    @pytest.mark.parametrize("report", ["count", "a page", "export"])
    def test_nothing_is_held_afterwards(self, host: Host, report: str) -> None:
        with host.app.app_context():
            olga = find_olga(host)
            host.db.session.commit()
            olga.referral_codes  # noqa: B018 (read again)
            REPORTS[report](host, olga)
            assert host.db.engines["replica"].pool.checkedout() == 0  # type: ignore[attr-defined]

    def test_objects_are_the_hosts(self, host: Host) -> None:
        with host.app.app_context():
            olga = find_olga(host)
            link = olga.referral_codes[0]
            responses = counted_responses(current_state(), user=olga, limit=5)
            assert all(response in host.db.session for response in responses)
            assert {id(response.referral) for response in responses} == {id(link)}
            with sent_to(host, "replica") as replica:
                assert responses[0].user.name == "mia"  # loaded when it is asked for
                responses[0].void("refund")
            assert replica == []
            assert [response.action for response in link.filtered_responses()] == ["SIGNED_UP", "RESPONDED"]

    def test_collections_that_were_loaded_with_them_hold_the_hosts_objects(self, host: Host) -> None:
        @host.referrals.responses_filter
        def with_links(responses: sa.Select[Any], **of: Any) -> sa.Select[Any]:
            owner = selectinload(ReferralResponse.referral).selectinload(host.referrals.Referral.user)
            return responses.options(owner.selectinload(host.User.referral_codes))

        with host.app.app_context():
            link = host.db.session.scalars(sa.select(Referral)).one()
            with sent_to(host, None) as sent:
                (response, *_) = link.filtered_responses()
                assert [each is link for each in response.referral.user.referral_codes] == [True]
            assert sent == []

    def test_what_the_host_has_changed_stays_changed(self, host: Host) -> None:
        with host.app.app_context():
            olga = find_olga(host)
            with host.db.session.no_autoflush:
                response = host.db.session.scalars(sa.select(ReferralResponse).limit(1)).one()
                response.params = {"note": "the host's"}
                listed = counted_responses(current_state(), user=olga)
            assert response in listed
            assert response.params == {"note": "the host's"}
            host.db.session.commit()
            assert response.params == {"note": "the host's"}

    def test_bind_must_be_there(self, sqlite_url: str) -> None:
        with pytest.raises(ConfigurationError, match=r"REFERRALS_REPORT_BIND is 'replica', but .*BINDS is empty"):
            make_host(sqlite_url, REFERRALS_REPORT_BIND="replica")
        with pytest.raises(ConfigurationError, match=r"is \['a'\], but SQLALCHEMY_BINDS has only 'a', 'b'\."):
            binds = {"a": sqlite_url, "b": sqlite_url}
            make_host(sqlite_url, REFERRALS_REPORT_BIND=["a"], SQLALCHEMY_BINDS=binds)


def test_users_in_another_database_are_read_there(new_app: NewApp, database_url: str, tmp_path: Path) -> None:
    binds = {"replica": database_url, "people": f"sqlite:///{tmp_path / 'people.db'}"}
    app, db = new_app(SQLALCHEMY_BINDS=binds, REFERRALS_REPORT_BIND="replica")

    class User(db.Model):  # type: ignore[name-defined, misc]
        __bind_key__ = "people"
        id: Mapped[int] = mapped_column(primary_key=True)

    referrals = Referrals(app, user_model=User)
    with app.app_context():
        db.create_all()
        olga = User()
        db.session.add(olga)
        db.session.commit()
        Referral.create("/", olga).respond("TRIED")
        assert referrals.leaderboard("TRIED") == [(olga, 1)]
        assert [owner for owner, _ in referrals.stats(by="owner").rows] == [olga]
