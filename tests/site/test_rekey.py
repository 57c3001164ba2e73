"""``flask referrals rekey``: an app with stored links gets a user model, and loses it again."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import Result
from flask import Flask
from flask_login import UserMixin
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event
from sqlalchemy.orm import Mapped, mapped_column

from flask_referrals import Referral, Referrals
from tests.conftest import NewApp
from tests.host import Host
from tests.pages import snippet
from tests.site.test_migrations import MIGRATE, Project, project

__all__ = ["project"]  # a fixture

#: Types of primary keys, and what makes one where the database does not.
KEYS = {"sa.Integer": "None", "sa.Uuid": "uuid.uuid4"}

#: Users whose get_id() is not their primary key, and a login.
USERS = """
import json

from flask import request
from flask_login import LoginManager, UserMixin, login_user


class User(UserMixin, db.Model):
    id = mapped_column({key}, primary_key=True, default={default})
    name = mapped_column(sa.String(50))
    token = mapped_column(sa.String(50))

    def get_id(self):
        return self.token


login = LoginManager(app)


@login.user_loader
def load_user(token):
    return db.session.scalar(sa.select(User).where(User.token == token))


def user(name):
    return db.session.scalars(sa.select(User).where(User.name == name)).one()


@app.post("/login/<name>")
def log_in(name):
    login_user(user(name))
    return ""


@app.post("/act/<action>")
def act(action):
    Referral.record_response(action, once="once" in request.args)
    return ""
"""

#: Commands that store something, and say what there is.
COMMANDS = """
@app.cli.command()
def seed():
    db.session.add_all(User(name=name, token=f"token of {name}") for name in ("olga", "mia", "zoe"))
    db.session.commit()
    Referral.create("/tea", user=user("olga"), code="tea")
    Referral.create("/tea", code="site")
    mia = app.test_client()
    mia.get("/referrals/tea")
    mia.post("/login/mia")
    mia.post("/act/SIGNED_UP")
    mia.post("/act/WELCOMED?once")


@app.cli.command()
def facts():
    olga, mia = user("olga"), user("mia")
    names = {str(key(each)): each.name for each in db.session.scalars(sa.select(User))}
    rows = [
        [row.action, names.get(str(row.user_id)), row.referral.code]
        for row in db.session.scalars(sa.select(ReferralResponse).order_by(ReferralResponse.created_at))
    ]
    owners = {link.code: names.get(str(link.user_id)) for link in db.session.scalars(sa.select(Referral))}
    links = [Referral.create("/tea", user=olga).code, Referral.create("/tea").code]
    welcomed = Referral.record_response("WELCOMED", user=mia, once=True)
    number = db.session.scalar(sa.select(sa.func.count()).select_from(ReferralResponse))
    credited = Referral.record_response("BOUGHT", user=mia, commit=False)
    print(json.dumps({
        "rows": rows,
        "owners": owners,
        "links": links,
        "once": [welcomed.action, number == len(rows)],
        "bound": Referral.referrer_of(mia).code,
        "brought": [names[str(key(each))] for each in Referral.referred_by(olga)],
        "credited": credited.referral.code,
    }))
"""
BEFORE = "def key(user):\n    return getattr(user, 'token', user)\n\n\nReferrals(app)\n"
AFTER = "def key(user):\n    return user.id\n\n\nReferrals(app, user_model=User)\n"
FACTS = {
    "rows": [["RESPONDED", "mia", "tea"], ["SIGNED_UP", "mia", "tea"], ["WELCOMED", "mia", "tea"]],
    "owners": {"tea": "olga", "site": None},
    "links": ["tea", "site"],
    "once": ["WELCOMED", True],
    "bound": "tea",
    "brought": ["mia"],
    "credited": "tea",
}
IMPORT = "from flask_referrals import ReferralResponse\n"


FOREIGN_KEYS = """
@sa.event.listens_for(sa.Engine, "connect")
def enforce_foreign_keys(connection, record):
    connection.execute("PRAGMA foreign_keys=ON")
"""


def write(project: Project, referrals: str, key: str) -> None:
    more = FOREIGN_KEYS if project.url.startswith("sqlite") else ""
    project.write(IMPORT, USERS.format(key=key, default=KEYS[key]), MIGRATE, referrals, COMMANDS, more)


def finish_revision(project: Project, key: str) -> None:
    """Put what the documentation shows into the newest revision: Alembic's own functions cannot be run."""
    path = max((project.folder / "migrations" / "versions").glob("*.py"), key=lambda path: path.stat().st_mtime_ns)
    head, _, _ = path.read_text().partition("def upgrade")
    functions = snippet("migrations.rst", "python", "def downgrade")
    if key != "sa.Integer":
        functions = functions.replace("sa.Integer()", f"{key}()").replace("integer", "uuid")
    path.write_text(f"{head}from sqlalchemy.dialects import mysql\n\n\n{functions}")


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_app_gets_a_user_model_and_loses_it_again(project: Project, key: str) -> None:
    write(project, BEFORE, key)
    *_, facts = project.flask("db init", "db migrate", "db upgrade", "seed", "facts")
    assert json.loads(facts) == FACTS

    write(project, AFTER, key)
    project.expected_warning = "Autogenerate rendered a drop_constraint"
    *outputs, _ = project.flask(
        "referrals rekey --dry-run", "referrals rekey", "referrals rekey", "db migrate -m users"
    )
    # Of links and of responses: to change or changed, right, of unknown users.
    assert [re.findall(r"\d+", output) for output in outputs] == [[*"100300"], [*"100300"], [*"010030"]]
    finish_revision(project, key)
    project.flask("db upgrade")  # in a process of its own: after it, Flask-Migrate would keep an empty revision
    commands = ["db migrate", "referrals check", "facts", "referrals rekey", "referrals rekey --back", "db downgrade"]
    results = project.try_flask(*commands, "referrals rekey --back")
    assert [code for code, _ in results] == [0, 0, 0, 1, 1, 0, 0], results
    assert len(project.revisions()) == 2  # there was nothing left for a third
    assert json.loads(results[2][1]) == FACTS

    write(project, BEFORE, key)
    facts, _ = project.flask("facts", "referrals check")
    assert json.loads(facts) == FACTS


Run = Callable[..., Result]


@pytest.fixture
def apps(new_app: NewApp) -> list[tuple[Flask, SQLAlchemy, Any]]:
    """An app that stores users by get_id(), and its next version with a user model, on one database."""
    apps = []
    for has_model in (False, True):
        app, db = new_app(TESTING=True)

        class User(UserMixin, db.Model):  # type: ignore[name-defined, misc]
            id: Mapped[int] = mapped_column(primary_key=True)
            token: Mapped[str] = mapped_column(sa.String(50))

            def get_id(self) -> str:
                return self.token

        Referrals(app, user_model=User if has_model else None)
        apps.append((app, db, User))
    app, db, Member = apps[0]
    with app.app_context():
        db.create_all()
        db.session.add_all(Member(id=key, token=f"token-{key}") for key in (1, 2))
        db.session.commit()
        for name in ("token-1", "old-1", "gone"):
            Referral.create("/tea", user=name, code=name)
            Referral.create("/", label=name).respond("CAME", user=name)
            assert Referral.record_response("WELCOMED", user=name, once=True) is not None
    return apps


@pytest.fixture
def run(apps: Any) -> Run:
    """Run ``flask referrals rekey`` in the next version."""

    def run(*arguments: str) -> Result:
        app: Flask = apps[1][0]
        return app.test_cli_runner().invoke(args=["referrals", "rekey", *arguments])

    return run


def stored(apps: Any) -> list[tuple[str, ...]]:
    """Return the users' keys in both tables, and the unique keys of their responses."""
    app, db, _ = apps[0]
    with app.app_context():
        links = db.session.scalars(sa.select(Referral.user_id).where(Referral.redirect_to == "/tea").order_by("id"))
        model = app.extensions["referrals"].database.models.response
        rows = db.session.execute(sa.select(model.user_id, model.key).where(model.action == "WELCOMED").order_by("id"))
        return [*((user,) for user in links), *((user, "once" if key else "") for user, key in rows)]


def test_unknown_users_are_named_and_kept(apps: Any, run: Run) -> None:
    for options, words in (["--dry-run"], "to rekey"), ([], "rekeyed"):
        result = run(*options)
        assert result.exit_code == 1
        assert result.stdout.splitlines() == [
            f"Links: 1 {words}, 0 right, 2 without a known user.",
            f"Responses: 2 {words}, 0 right, 4 without a known user.",
        ]
        assert result.stderr.splitlines() == ["Unknown user: gone (3 rows)", "Unknown user: old-1 (3 rows)"]
    assert [user for user, *_ in stored(apps)] == ["1", "old-1", "gone"] * 2


def test_file_names_users_and_the_rest_is_cleared(apps: Any, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "keys.csv"
    path.write_text("old-1,1\n")
    result = run("--users", str(path), "--clear-unknown")
    assert (result.exit_code, result.stdout.splitlines()) == (
        0,
        [
            "Links: 2 rekeyed, 0 right, 1 of unknown users cleared.",
            "Responses: 4 rekeyed, 0 right, 2 of unknown users cleared.",
        ],
    )
    # Of what the user had twice, under two keys, the first is found by its unique key.
    welcomed = [("1", "once"), ("1", ""), (None, "once")]
    assert stored(apps) == [("1",), ("1",), (None,), *welcomed]
    with apps[0][0].app_context():
        assert Referral.create("/tea", user="1").code == "token-1"
        assert Referral.record_response("WELCOMED", user="1", once=True) is not None
    assert stored(apps) == [("1",), ("1",), (None,), *welcomed]


def test_interrupted_run_is_completed_by_the_next(apps: Any, run: Run) -> None:
    app, db, _ = apps[1]

    def fail(conn: Any, cursor: Any, statement: str, *args: Any) -> None:
        if statement.startswith("UPDATE referral_response"):
            raise KeyboardInterrupt

    with app.app_context():
        engine = db.engine
    event.listen(engine, "before_cursor_execute", fail)
    assert run().exit_code != 0
    event.remove(engine, "before_cursor_execute", fail)
    assert [user for user, *_ in stored(apps)] == ["1", "old-1", "gone", "token-1", "old-1", "gone"]
    assert run("--clear-unknown").exit_code == 0
    assert [user for user, *_ in stored(apps)] == ["1", None, None] * 2


def test_keys_that_a_second_run_could_not_tell_apart_are_refused(apps: Any, run: Run) -> None:
    app, db, User = apps[0]
    with app.app_context():
        db.session.add(User(id=3, token="1"))
        db.session.commit()
        Referral.create("/", user="1")
    result = run()
    assert (result.exit_code, "'1' is the old key of one user" in result.stderr) == (1, True)
    assert [user for user, *_ in stored(apps)] == ["token-1", "old-1", "gone"] * 2


@pytest.mark.parametrize(
    ("line", "words"), [("old-1,7", "There is no user with the key '7'"), ("old-1", "Give two columns")]
)
def test_mistakes_in_the_file_are_named(apps: Any, run: Run, tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "keys.csv"
    path.write_text(line)
    result = run("--users", str(path))
    assert result.exit_code != 0 and words in result.stderr
    assert [user for user, *_ in stored(apps)] == ["token-1", "old-1", "gone"] * 2


def test_user_model_is_needed(apps: Any) -> None:
    result = apps[0][0].test_cli_runner().invoke(args=["referrals", "rekey"])
    assert (result.exit_code, "Pass user_model" in result.stderr) == (1, True)


def test_columns_that_refer_to_primary_keys_are_left_alone(host: Host) -> None:
    result = host.app.test_cli_runner().invoke(args=["referrals", "rekey"])
    assert (result.exit_code, "refers to primary keys already" in result.stderr) == (1, True)
