"""Migrations by each kind of host's own tool: an existing application gets the referrals, and loses them again."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.databases import new_database

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

APP = """
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import DeclarativeBase, mapped_column, scoped_session, sessionmaker

from flask_referrals import Referrals

url = {url!r}
app = Flask(__name__)
app.config.from_mapping(
    SECRET_KEY="a test's secret of 32 characters",
    SQLALCHEMY_DATABASE_URI=url,
    SQLALCHEMY_ENGINES={{"default": url}},
    ALCHEMICAL_DATABASE_URL=url,
)


class Base(DeclarativeBase):
    pass

"""

USER = """

class User({base}):
    __tablename__ = "users"
    id = mapped_column(sa.Integer, primary_key=True)
    name = mapped_column(sa.String(50))

"""

FLASK_SQLALCHEMY = """
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy

db = SQLAlchemy(app, model_class=Base)
Migrate(app, db)
"""
FLASK_APPBUILDER = """
import logging
import warnings

from flask_migrate import Migrate

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from flask_appbuilder import AppBuilder, Model
    from flask_appbuilder.models.sqla.base import SQLA
    from flask_appbuilder.security.sqla.models import User

    app.config.update(FAB_UPDATE_PERMS=False, WTF_CSRF_ENABLED=False)
    db = SQLA(app, metadata=Model.metadata)
    with app.app_context():
        AppBuilder(app, db.session)
Migrate(app, db)
"""
FLASK_SQLALCHEMY_LITE = """
from flask_alembic import Alembic
from flask_sqlalchemy_lite import SQLAlchemy

db = SQLAlchemy(app)
Alembic(app, metadatas=Base.metadata)
"""
ALCHEMICAL = """
from alchemical.flask import Alchemical

db = Alchemical()
db.init_app(app)
"""
PLAIN_SQLALCHEMY = """
db_session = scoped_session(sessionmaker(sa.create_engine(url)))
"""

FLASK_MIGRATE = ("flask db init", "flask db migrate", "flask db upgrade", "flask db check", "flask db downgrade")
FLASK_ALEMBIC = ("flask db mkdir", "flask db revision x", "flask db upgrade", "flask db check", "flask db downgrade")
ALEMBIC = (
    "alembic init migrations",
    "alembic revision --autogenerate",
    "alembic upgrade head",
    "alembic check",
    "alembic downgrade -1",
)


# Starting a process for each command would take most of the time.
RUN = """
import contextlib, io, json, runpy, sys

results = []
for command in sys.argv[1:]:
    sys.argv = command.split(" ")
    output, code = io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        except SystemExit as error:
            code = error.code or 0
    results.append((code, output.getvalue()))
print(json.dumps(results))
"""


@dataclass(frozen=True)
class Kind:
    """A kind of host: its module before it has referrals, and its tool."""

    module: str
    #: How to set up, to write a revision, to apply it, to compare, and to go back by one revision.
    commands: tuple[str, ...]
    options: str = ""
    #: A file, a text in it, and what the host writes instead.
    edit: tuple[str, str, str] | None = None
    add_user: str = "INSERT INTO users (name) VALUES ('olga')"
    users: str = "users"


KINDS = {
    "Flask-SQLAlchemy": Kind(FLASK_SQLALCHEMY + USER.format(base="db.Model"), FLASK_MIGRATE),
    "users beside db.Model": Kind(
        FLASK_SQLALCHEMY.replace("model_class=Base", "") + USER.format(base="Base"),
        FLASK_MIGRATE,
        edit=(
            "migrations/env.py",
            "    return target_db.metadata\n",
            "    return target_db.metadata\n\n\nfrom host_app import Base\n\nget_metadata = lambda: Base.metadata\n",
        ),
    ),
    "Flask-SQLAlchemy-Lite": Kind(FLASK_SQLALCHEMY_LITE + USER.format(base="Base"), FLASK_ALEMBIC),
    "Alchemical": Kind(
        ALCHEMICAL + USER.format(base="db.Model"),
        ("alchemical.alembic.cli init migrations", *ALEMBIC[1:]),
        options=", db=db",
        edit=("alembic.ini", "main:db", "host_app:db"),
    ),
    "plain SQLAlchemy": Kind(
        PLAIN_SQLALCHEMY + USER.format(base="Base"),
        ALEMBIC,
        options=", db=db_session",
        edit=(
            "migrations/env.py",
            "target_metadata = None\n",
            "from host_app import Base, url\n\ntarget_metadata = Base.metadata\n"
            "config.set_main_option('sqlalchemy.url', url.replace('%', '%%'))\n",
        ),
    ),
}
if find_spec("flask_appbuilder"):
    KINDS["Flask-AppBuilder"] = Kind(
        FLASK_APPBUILDER,
        FLASK_MIGRATE,
        add_user="INSERT INTO ab_user (id, first_name, last_name, username, email) VALUES (1, 'o', 'o', 'olga', 'o')",
        users="ab_user",
    )


@dataclass
class Project:
    """A host's project in a folder of its own."""

    folder: Path
    url: str
    kind: Kind

    def write(self, *, has_referrals: bool) -> None:
        referrals = f"Referrals(app, user_model=User{self.kind.options})\n" if has_referrals else ""
        (self.folder / "host_app.py").write_text(APP.format(url=self.url) + self.kind.module + referrals)

    def run(self, *commands: str) -> list[tuple[int, str]]:
        """Run commands of modules in one process; return the exit code and output of each."""
        done = subprocess.run(
            [sys.executable, "-c", RUN, *commands],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{self.folder}", "FLASK_APP": "host_app"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return [(code, output) for code, output in json.loads(done.stdout.splitlines()[-1])]

    def succeed(self, *commands: str) -> None:
        """Run commands that all succeed."""
        results = self.run(*commands)
        assert [code for code, _ in results] == [0] * len(commands), results

    def execute(self, statement: str) -> None:
        engine = sa.create_engine(self.url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            connection.exec_driver_sql(statement)

    def tables(self) -> set[str]:
        """Return the names of the extension's tables that exist."""
        engine = sa.create_engine(self.url, poolclass=sa.NullPool)
        return {name for name in sa.inspect(engine).get_table_names() if name.startswith("referral")}

    def count_users(self) -> int:
        engine = sa.create_engine(self.url, poolclass=sa.NullPool)
        with engine.connect() as connection:
            return int(connection.exec_driver_sql(f"SELECT count(*) FROM {self.kind.users}").scalar_one())


TABLES = {"referral", "referral_response", "referral_total"}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with new_database(request.param, tmp_path) as url:
        yield url


@pytest.mark.parametrize("name", KINDS)
def test_existing_application_is_upgraded_and_downgraded(tmp_path: Path, url: str, name: str) -> None:
    kind = KINDS[name]
    project = Project(tmp_path, url, kind)
    init, revise, upgrade, check, downgrade = kind.commands
    project.write(has_referrals=False)
    project.succeed(init)
    if kind.edit is not None:
        path = tmp_path / kind.edit[0]
        text = path.read_text()
        assert kind.edit[1] in text
        path.write_text(text.replace(kind.edit[1], kind.edit[2]))
    if name != "Flask-AppBuilder":  # it has created its tables itself
        project.succeed(revise, upgrade)
    project.execute(kind.add_user)

    project.write(has_referrals=True)
    (code, advice), *results = project.run("flask referrals check", revise, upgrade, "flask referrals check")
    assert code == 1
    assert f"'{' '.join(revise.split()[:3])}" in advice
    assert f"'{upgrade}'" in advice
    assert [code for code, _ in results] == [0, 0, 0], results
    assert project.tables() == TABLES

    project.succeed(check, downgrade)
    assert (project.tables(), project.count_users()) == (set(), 1)
    project.succeed(upgrade)
    assert (project.tables(), project.count_users()) == (TABLES, 1)
