"""Hosts' own migrations: what Flask-Migrate makes of our tables, ``flask referrals`` and the shape of the tables."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.databases import NAMES, new_database
from tests.host import Host, make_host

ROOT = Path(__file__).parents[2]

APP = """
import uuid

import sqlalchemy as sa
from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import relationship

from flask_referrals import Referral
from flask_referrals import ReferralMixin
from flask_referrals import ReferralResponseMixin
from flask_referrals import Referrals


class Base(DeclarativeBase):
    metadata = sa.MetaData(naming_convention={naming})


app = Flask(__name__)
app.config.from_mapping(SECRET_KEY="a test's secret", SQLALCHEMY_DATABASE_URI={url!r})
db = SQLAlchemy(app, model_class=Base)
{models}
"""

USER = """
class User(db.Model):
    id = mapped_column({key}, primary_key=True)
    name = mapped_column(sa.String(50))
"""

MIGRATE = "Migrate(app, db)\n"

# Runs each command as "flask …" does, in one process: starting one costs more than the command.
RUN = """
import json
import sys
import warnings

warnings.simplefilter("error")
# Flask-Migrate's env.py asks Flask-SQLAlchemy in its old way first.
warnings.filterwarnings("ignore", "'get_engine' is deprecated", DeprecationWarning)
warnings.filterwarnings("ignore", {expected_warning!r})

from host_app import app
from host_app import db

results = []
for command in sys.argv[1:]:
    result = app.test_cli_runner().invoke(args=command.split(" "))
    error = None if isinstance(result.exception, SystemExit) else result.exception
    results.append((result.exit_code, result.output + str(error or "")))
with app.app_context():
    for engine in db.engines.values():
        engine.dispose()
print(json.dumps(results))
"""

CONVENTION = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


@dataclass
class Project:
    """A host's project in a folder of its own, on an empty database."""

    folder: Path
    url: str
    expected_warning: str = "no warning"

    def write(self, *models: str, naming: Any = None) -> None:
        """Write the host's app module: its models, and how it sets up the extensions."""
        app = APP.format(url=self.url, naming=naming, models="".join(map(textwrap.dedent, models)))
        (self.folder / "host_app.py").write_text(app)

    def try_flask(self, *commands: str) -> list[tuple[int, str]]:
        """Run commands with warnings as errors; return the exit code and output of each."""
        (self.folder / "run.py").write_text(RUN.format(expected_warning=self.expected_warning))
        done = subprocess.run(
            [sys.executable, "run.py", *commands],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return [(code, output) for code, output in json.loads(done.stdout.splitlines()[-1])]

    def flask(self, *commands: str) -> list[str]:
        """Run commands that all succeed; return the output of each."""
        results = self.try_flask(*commands)
        assert [code for code, _ in results] == [0] * len(commands), results
        return [output for _, output in results]

    def revisions(self) -> list[str]:
        """Return the revision files' texts, oldest first."""
        files = sorted((self.folder / "migrations" / "versions").glob("*.py"), key=lambda path: path.stat().st_mtime_ns)
        return [path.read_text() for path in files]

    def execute(self, *statements: str) -> None:
        """Change the database by hand."""
        engine = sa.create_engine(self.url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def tables(self) -> set[str]:
        """Return the names of the tables there are."""
        engine = sa.create_engine(self.url, poolclass=sa.NullPool)
        return set(sa.inspect(engine).get_table_names()) - {"alembic_version", "sqlite_sequence"}


@pytest.fixture(params=NAMES)
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Project]:
    with new_database(request.param, tmp_path) as url:
        yield Project(tmp_path, url)


@pytest.fixture
def on_mariadb(project: Project) -> bool:
    return project.url.startswith("mysql")


KEYS = ["sa.Integer", "sa.String(36)", "sa.Uuid"]


@pytest.mark.parametrize(
    "naming", [None, pytest.param(CONVENTION, marks=pytest.mark.slow)], ids=["unnamed", "convention"]
)
@pytest.mark.parametrize("key", ["sa.Integer", *(pytest.param(key, marks=pytest.mark.slow) for key in KEYS[1:])])
def test_migrations_are_complete(project: Project, on_mariadb: bool, key: str, naming: Any) -> None:
    project.write(USER.format(key=key), MIGRATE, "Referrals(app, user_model=User)", naming=naming)
    commands = ["db init", "db migrate -m first", "db upgrade", "db migrate -m second", "referrals check"]
    *results, downgrade, upgrade, check = project.try_flask(*commands, "db downgrade", "db upgrade", "referrals check")
    assert [code for code, _ in results] == [0] * len(commands), results
    assert len(project.revisions()) == 1  # there was nothing left for the second
    assert project.tables() == {"user", "referral", "referral_response", "referral_total"}
    if on_mariadb:
        # Alembic drops an index before its table, and InnoDB wants one under each foreign key.
        assert downgrade[0] == 1
        assert "1553" in downgrade[1]
    else:
        assert [downgrade[0], upgrade[0], check[0]] == [0, 0, 0]  # it could not upgrade if a table were left


@pytest.mark.slow
def test_host_without_user_model(project: Project) -> None:
    project.write(MIGRATE, "Referrals(app)")
    project.flask("db init", "db migrate", "db upgrade", "db migrate", "referrals check")
    assert len(project.revisions()) == 1


HOST_MODELS = """
class Invite(ReferralMixin, db.Model):
    __tablename__ = "invite"
    __user_model__ = User
    campaign: Mapped[str | None] = mapped_column(sa.String(40), index=True)


class Answer(ReferralResponseMixin, db.Model):
    __tablename__ = "answer"
    __user_model__ = User
    __referral_model__ = Invite
    score: Mapped[int | None]


Referrals(app)
"""


@pytest.mark.slow
def test_host_with_its_own_models(project: Project) -> None:
    project.write(USER.format(key="sa.Uuid"), MIGRATE, HOST_MODELS, naming=CONVENTION)
    project.flask("db init", "db migrate", "db upgrade", "db migrate", "referrals check")
    assert len(project.revisions()) == 1
    assert project.tables() == {"user", "invite", "answer", "invite_total"}
    project.execute("ALTER TABLE answer DROP COLUMN score")
    fix = "Run 'flask db migrate' or 'flask referrals revision', then 'flask db upgrade'."
    assert project.try_flask("referrals check") == [(1, f"Missing column: answer.score\n{fix}\n")]


REFERRAL_COLUMN = """\
    referral_id: Mapped[int | None] = mapped_column(sa.ForeignKey("referral.id", ondelete="SET NULL"{use_alter}))
    referral = relationship("Referral", foreign_keys=referral_id)
"""
WELCOME = """
@app.cli.command()
def welcome():
    user = User(name="olga")
    db.session.add(user)
    db.session.commit()
    user.referral = Referral.create("/", user=user)
    db.session.commit()
    db.session.expire_all()
    assert user.referral.user is user
    print(user.referral_codes[0] is user.referral)
"""


@pytest.mark.slow
@pytest.mark.parametrize("use_alter", [", use_alter=True", ""], ids=["use_alter", "plain"])
def test_user_with_a_column_that_names_a_referral(project: Project, use_alter: str) -> None:
    """An existing user table gets the column in the very revision that makes our tables."""
    project.write(USER.format(key="sa.Integer"), MIGRATE, naming=CONVENTION)
    project.flask("db init", "db migrate", "db upgrade")
    users = USER.format(key="sa.Integer") + REFERRAL_COLUMN.format(use_alter=use_alter)
    project.write(users, MIGRATE, "Referrals(app, user_model=User)\n", WELCOME, naming=CONVENTION)
    if not use_alter:
        project.expected_warning = "Cannot correctly sort tables"
    outputs = project.flask("db migrate", "db upgrade", "db migrate", "referrals check", "welcome")
    assert len(project.revisions()) == 2
    assert outputs[-1] == "True\n"


@pytest.mark.slow
class TestRevision:
    """``flask referrals revision``."""

    OPTIONS = (USER.format(key="sa.Uuid"), MIGRATE, "Referrals(app, user_model=User)")

    def test_holds_the_referral_tables_alone_in_the_style_of_the_host(self, project: Project) -> None:
        project.write(USER.format(key="sa.Uuid"), MIGRATE)
        project.flask("db init", "db migrate -m users", "db upgrade")
        unfinished = "class Draft(db.Model):\n    id = mapped_column(sa.Integer, primary_key=True)\n"
        project.write(*self.OPTIONS, "\n" + unfinished)
        project.flask("referrals revision -m welcome")
        first, second = project.revisions()
        assert first.split("revision = ")[1].split()[0] == second.split("down_revision = ")[1].split()[0]
        assert second.startswith('"""welcome')
        assert second.count("create_table") == 3
        assert "draft" not in second

        project.flask("db upgrade", "referrals check")
        assert project.tables() == {"user", "referral", "referral_response", "referral_total"}
        # What the host left for later is still found, and our filter is gone.
        project.flask("db migrate", "db upgrade")
        assert project.tables() == {"user", "draft", "referral", "referral_response", "referral_total"}

    def test_filter_is_taken_back_within_the_process(self, project: Project) -> None:
        project.write(*self.OPTIONS)
        project.flask("db init", "referrals revision", "db stamp head", "db migrate")
        assert "create_table('user'" in project.revisions()[1]

    def test_leaves_no_file_when_there_is_nothing_to_do(self, project: Project) -> None:
        project.write(*self.OPTIONS)
        outputs = project.flask("db init", "db migrate", "db upgrade", "referrals revision")
        assert outputs[-1] == "The referral tables match the models. No migration is needed.\n"
        assert len(project.revisions()) == 1

    def test_brings_back_what_is_missing(self, project: Project) -> None:
        project.write(*self.OPTIONS)
        project.flask("db init", "db migrate", "db upgrade")
        project.execute("ALTER TABLE referral DROP COLUMN label")
        project.flask("referrals revision")
        assert "add_column(sa.Column('label'" in project.revisions()[1]

    def test_host_filter_is_kept(self, project: Project) -> None:
        leave_out = "include_object=lambda obj, name, type_, reflected, other: type_ != 'index'"
        project.write(f"Migrate(app, db, {leave_out})\n", "Referrals(app)")
        project.flask("db init", "referrals revision", "db upgrade", "referrals check")
        assert "create_index" not in project.revisions()[0]

    def test_database_that_is_behind_is_an_error(self, project: Project) -> None:
        project.write(*self.OPTIONS)
        *_, (code, output) = project.try_flask("db init", "db migrate", "referrals revision")
        assert (code, len(project.revisions())) == (1, 1)
        assert output.endswith("Error: Target database is not up to date.\n")


class TestCheck:
    """``flask referrals check``."""

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ("ALTER TABLE referral DROP COLUMN label", "Missing column: referral.label"),
            ("ALTER TABLE referral ADD COLUMN extra INTEGER", "Unexpected column: referral.extra"),
            (
                "DROP INDEX ix_referral_response_session_key",
                "Missing index: referral_response (session_key, ignored, created_at, id)",
            ),
            ("CREATE INDEX by_label ON referral (label)", "Unexpected index: referral (label)"),
            ("DROP TABLE referral_response", "Missing table: referral_response"),
        ],
    )
    def test_says_what_differs(self, host: Host, change: str, words: str) -> None:
        assert check(host) == (0, ["The referral tables match the models."])
        if change.startswith("DROP INDEX") and "mysql" in host.app.config["SQLALCHEMY_DATABASE_URI"]:
            change += " ON referral_response"
        execute(host, change)
        code, (first, *_) = check(host)
        assert (code, first) == (1, words)

    @pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
    def test_says_which_types_and_constraints_differ(self, host: Host) -> None:
        execute(host, "ALTER TABLE referral ALTER COLUMN label TYPE varchar(50)")
        execute(host, "ALTER TABLE referral ALTER COLUMN label DROP NOT NULL")
        execute(host, "ALTER TABLE referral DROP CONSTRAINT referral_code_key")
        execute(host, "ALTER TABLE referral DROP CONSTRAINT referral_user_id_fkey")
        code, lines = check(host)
        assert code == 1
        assert set(lines) == {
            "Different type: referral.label has VARCHAR(length=50), not String(length=100)",
            "Different nullable: referral.label has True, not False",
            "Missing constraint: referral (code)",
            "Missing foreign key: referral (user_id)",
        }

    def test_does_not_look_at_the_tables_of_the_host(self, host: Host) -> None:
        execute(host, "ALTER TABLE product DROP COLUMN name")
        assert check(host)[0] == 0


def check(host: Host) -> tuple[int, list[str]]:
    result = host.app.test_cli_runner().invoke(args=["referrals", "check"])
    return result.exit_code, result.stdout.splitlines()


def execute(host: Host, statement: str) -> None:
    with host.app.app_context(), host.db.engine.begin() as connection:
        connection.exec_driver_sql(statement)


@pytest.mark.slow
class TestSetUp:
    """What is missing is named."""

    @pytest.fixture
    def project(self, tmp_path: Path) -> Project:
        return Project(tmp_path, f"sqlite:///{tmp_path / 'test.db'}")

    def test_revision_needs_an_extension_for_migrations(self, project: Project) -> None:
        project.write("Referrals(app)")
        expected = (
            "Error: This app uses neither Flask-Migrate nor Flask-Alembic. "
            "Write the revision with 'alembic revision --autogenerate'.\n"
        )
        assert project.try_flask("referrals revision") == [(1, expected)]

    def test_revision_needs_a_migrations_folder(self, project: Project) -> None:
        project.write(MIGRATE, "Referrals(app)")
        ((code, output),) = project.try_flask("referrals revision")
        assert code == 1
        assert "Error: Path doesn't exist" in output

    def test_tables_on_a_bind(self, project: Project) -> None:
        bound = """
        class Invite(ReferralMixin, db.Model):
            __bind_key__ = "other"


        class Answer(ReferralResponseMixin, db.Model):
            __bind_key__ = "other"
            __referral_model__ = Invite


        Migrate(app, db)
        Referrals(app)
        """
        project.write(bound)
        app = project.folder / "host_app.py"
        other = f"SQLALCHEMY_BINDS={{'other': 'sqlite:///{project.folder / 'other.db'}'}}"
        app.write_text(app.read_text().replace("SECRET_KEY=", f"{other}, SECRET_KEY="))
        _, (code, output) = project.try_flask("db init", "referrals revision")
        assert (code, project.revisions()) == (1, [])
        assert "--multidb" in output
        shutil.rmtree(project.folder / "migrations")
        project.flask("db init --multidb", "referrals revision", "db upgrade", "referrals check", "referrals revision")
        assert len(project.revisions()) == 1


DIALECTS = [
    sa.create_mock_engine(f"{name}://", lambda *args: None).dialect
    for name in ("sqlite", "postgresql+psycopg", "mariadb+pymysql")
]


def exact(length: int) -> tuple[str, str, str]:
    text = f"VARCHAR({length})"
    return text, text, f"{text} COLLATE utf8mb4_bin"


def text(length: int) -> tuple[str, str, str]:
    return (f"VARCHAR({length})",) * 3


KEY_TYPE = ("INTEGER", "BIGINT", "BIGINT")
TIME_TYPE = ("DATETIME", "TIMESTAMP WITH TIME ZONE", "DATETIME(6)")

#: Name, nullable, and the type on SQLite, PostgreSQL and MariaDB. A change here is a migration for every host.
COLUMNS = {
    "referral": {
        "id": (False, KEY_TYPE),
        "code": (False, exact(64)),
        "folded_code": (True, exact(64)),
        "user_id": (True, ("INTEGER",) * 3),
        "label": (False, exact(100)),
        "redirect_to": (False, text(2048)),
        "target_type": (True, exact(100)),
        "target_id": (True, exact(64)),
        "identity": (False, exact(64)),
        "created_at": (False, TIME_TYPE),
        "expired_at": (True, TIME_TYPE),
    },
    "referral_response": {
        "id": (False, KEY_TYPE),
        "referral_id": (False, KEY_TYPE),
        "session_key": (True, exact(43)),
        "user_id": (True, ("INTEGER",) * 3),
        "action": (False, exact(128)),
        "target_type": (True, exact(100)),
        "target_id": (True, exact(64)),
        "is_touch": (False, ("BOOLEAN", "BOOLEAN", "BOOL")),
        "ignored": (True, exact(20)),
        "ip_address": (True, text(45)),
        "http_referrer": (True, exact(1024)),
        "user_agent": (True, text(255)),
        "key": (True, exact(128)),
        "identity": (True, exact(64)),
        "value": (True, ("FLOAT", "NUMERIC(14, 4)", "NUMERIC(14, 4)")),
        "currency": (True, text(3)),
        "params": (True, ("JSON",) * 3),
        "created_at": (False, TIME_TYPE),
    },
    "referral_total": {
        "id": (False, KEY_TYPE),
        "referral_id": (True, KEY_TYPE),
        "action": (False, exact(128)),
        "day": (False, TIME_TYPE),
        "count": (False, KEY_TYPE),
        "value": (True, ("FLOAT", "NUMERIC(20, 4)", "NUMERIC(20, 4)")),
        "currency": (True, text(3)),
    },
}
INDEXES = {
    "referral": {
        "UNIQUE (code)",
        "ix_referral_folded_code (folded_code)",
        "UNIQUE (identity)",
        "user_id -> user.id SET NULL",
        "ix_referral_user_id (user_id)",
    },
    "referral_response": {
        "UNIQUE (identity)",
        "referral_id -> referral.id CASCADE",
        "user_id -> user.id SET NULL",
        "ix_referral_response_session_key (session_key, ignored, created_at, id)",
        "ix_referral_response_user_id (user_id, is_touch, ignored, created_at, id)",
        "ix_referral_response_referral_id (referral_id, created_at, id)",
    },
    "referral_total": {
        "referral_id -> referral.id SET NULL",
        "ix_referral_total_referral_id (referral_id, day)",
        "ix_referral_total_action (action, day, referral_id, count)",
    },
}


@pytest.mark.parametrize("name", COLUMNS)
def test_tables_do_not_change_by_accident(sqlite_url: str, name: str) -> None:
    table = make_host(sqlite_url).db.metadata.tables[name]
    columns = {
        column.name: (column.nullable, tuple(column.type.compile(dialect) for dialect in DIALECTS))
        for column in table.columns
    }
    assert columns == COLUMNS[name]

    indexes = {f"{index.name} ({', '.join(column.name for column in index.columns)})" for index in table.indexes}
    for constraint in table.constraints:
        if isinstance(constraint, sa.UniqueConstraint):
            indexes.add(f"UNIQUE ({', '.join(column.name for column in constraint.columns)})")
        elif isinstance(constraint, sa.ForeignKeyConstraint):
            (key,) = constraint.elements
            indexes.add(f"{key.parent.name} -> {key.target_fullname} {key.ondelete}")
    assert indexes == INDEXES[name]
    assert [column.name for column in table.primary_key] == ["id"]
    assert table.dialect_options["sqlite"]["autoincrement"] is True
