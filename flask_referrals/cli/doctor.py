"""``flask referrals doctor``: what is amiss in an app's set-up, and what to do about it."""

import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import asdict
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit

import click
import sqlalchemy as sa
from flask import current_app
from flask.cli import with_appcontext
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.sansio.utils import host_is_trusted

from .. import config
from ..context import current_state
from .migrations import differences_of_tables
from .migrations import in_words
from .output import as_json
from .output import echo_json

OK, WARNING, ERROR = "ok", "warning", "error"

_SHORTEST_KEY = 16
_GOOD_KEY = 32
#: After how many seconds application servers give a request up, by default: gunicorn's and nginx's are 30 and 60.
_LONG_WAIT = 10
_NEW_KEY = """make one with: python -c "import secrets; print(secrets.token_hex(32))\""""
_COLORS = {OK: "green", WARNING: "yellow", ERROR: "red"}


@dataclass(frozen=True)
class Finding:
    """A line of the report.

    :param level: :data:`OK`, :data:`WARNING` or :data:`ERROR`.
    :param check: what was looked at.
    :param found: how it is.
    :param cure: what to do.
    """

    level: str
    check: str
    found: str
    cure: str = ""


@click.command()
@as_json
@with_appcontext
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Look the set-up over, and say what to do; fail if something cannot work."""
    findings = list(examine())
    for finding in findings:
        if as_json:
            echo_json(asdict(finding))
        else:
            level = click.style(f"{finding.level:7}", fg=_COLORS[finding.level])
            click.echo(f"{level}  {finding.check}: {finding.found}")
            if finding.cure:
                click.echo(f"         {finding.cure}")
    if any(finding.level == ERROR for finding in findings):
        ctx.exit(1)


def examine() -> Iterator[Finding]:
    """Yield what was found, check by check."""
    for check in _CHECKS:
        yield from check()


def _tables() -> Iterator[Finding]:
    try:
        differences = differences_of_tables()
    except SQLAlchemyError as error:
        found = f"the database does not answer: {_reason(error)}"
        yield Finding(ERROR, "tables", found, "Look at SQLALCHEMY_DATABASE_URI.")
        return
    except ImportError:
        yield Finding(WARNING, "tables", "not compared, for Alembic is not installed", "Install Flask-Migrate.")
        return
    for difference in differences:
        cure = "Run 'flask db migrate' or 'flask referrals revision', then 'flask db upgrade'."
        yield Finding(ERROR, "tables", in_words(difference), cure)
    if not differences:
        yield Finding(OK, "tables", "as the models say")


def _engine() -> sa.Engine:
    state = current_state()
    bind_key = sa.inspect(state.models.response).local_table.metadata.info.get("bind_key")
    return state.db.engines[bind_key]


def _locks() -> Iterator[Finding]:
    engine = _engine()
    if engine.dialect.name == "sqlite":
        timeout = config.duration("REFERRALS_LOCK_TIMEOUT")
        found = (
            f"a click waits for at most {timeout.total_seconds():g} s"
            if timeout
            else "a click waits as the host set it"
        )
        yield Finding(OK, "locks", found)
        return
    is_postgresql = engine.dialect.name == "postgresql"
    sql = "SELECT setting::int / 1000.0 FROM pg_settings WHERE name = 'lock_timeout'"
    try:
        with engine.connect() as connection:
            seconds = float(
                connection.exec_driver_sql(sql if is_postgresql else "SELECT @@lock_wait_timeout").scalar_one()
            )
    except SQLAlchemyError:
        return  # the check of the tables has said so
    if 0 < seconds <= _LONG_WAIT:
        yield Finding(OK, "locks", f"a click waits for at most {seconds:g} s")
    else:
        found = (
            f"a click waits for {f'{seconds:g} s' if seconds else 'ever'} while a table is locked, as by a migration"
        )
        cure = "Set the timeouts of the engine's connections as docs/security.rst shows."
        yield Finding(WARNING, "locks", found, cure)


def _reports() -> Iterator[Finding]:
    key = current_app.config["REFERRALS_REPORT_BIND"]
    if key is None:
        return
    state = current_state()
    try:
        with state.db.engines[key].connect() as connection:
            connection.execute(sa.select(state.models.response.id).limit(1))
    except SQLAlchemyError as error:
        found = f"the bind {key!r} does not answer: {_reason(error)}"
        yield Finding(ERROR, "reports", found, "Look at SQLALCHEMY_BINDS.")
    else:
        yield Finding(OK, "reports", f"read on the bind {key!r}")


def _foreign_keys() -> Iterator[Finding]:
    engine = _engine()
    if engine.dialect.name != "sqlite":
        return
    with engine.connect() as connection:
        enforced = connection.exec_driver_sql("PRAGMA foreign_keys").scalar()
    if enforced:
        yield Finding(OK, "foreign keys", "SQLite enforces them")
    else:
        yield Finding(
            WARNING,
            "foreign keys",
            "SQLite does not enforce them: rows keep naming a deleted user, whose key the next user may get",
            "Send 'PRAGMA foreign_keys=ON' in a listener for the engine's 'connect' event.",
        )


def _secret_keys() -> Iterator[Finding]:
    keys = [("SECRET_KEY", current_app.secret_key)]
    keys += [("SECRET_KEY_FALLBACKS", key) for key in current_app.config.get("SECRET_KEY_FALLBACKS") or []]
    for name, key in keys:
        length = len(key or "")
        if length < _SHORTEST_KEY:
            found = f"only {length} characters: whoever guesses it can pass for any visitor, and any user"
            yield Finding(ERROR, name, found, f"Replace it: {_NEW_KEY}")
        elif length < _GOOD_KEY:
            found = f"{length} characters; {_GOOD_KEY} random ones cannot be guessed"
            yield Finding(WARNING, name, found, f"Unless it is random, {_NEW_KEY}")
        else:
            yield Finding(OK, name, f"{length} characters")


def _address() -> Iterator[Finding]:
    base_url, server_name = current_app.config["REFERRALS_BASE_URL"], current_app.config["SERVER_NAME"]
    trusted = current_app.config.get("TRUSTED_HOSTS")
    if base_url is None and server_name is None:
        yield Finding(
            WARNING,
            "address",
            "known from requests only: commands and mail workers cannot make links",
            "Set REFERRALS_BASE_URL = 'https://your.site'.",
        )
    else:
        yield Finding(OK, "address", f"links begin with {base_url or f'{_scheme()}://{server_name}'}")
    host = urlsplit(base_url).netloc if base_url else server_name
    if trusted and host and not host_is_trusted(host, trusted):
        found = f"{host}, where links lead, is not in it: every click gets 400"
        yield Finding(ERROR, "TRUSTED_HOSTS", found, f"Add {host!r} to TRUSTED_HOSTS.")
    elif trusted:
        yield Finding(OK, "TRUSTED_HOSTS", ", ".join(trusted))
    else:
        found = "not set: a request may call this site what it likes"
        if base_url is None:
            found += ", and links are made with that name"
        yield Finding(WARNING, "TRUSTED_HOSTS", found, "Set TRUSTED_HOSTS to the site's host names.")


def _cookie() -> Iterator[Finding]:
    scheme = _scheme()
    secure = current_app.config["SESSION_COOKIE_SECURE"]
    if secure and scheme == "http":
        cure = "Set PREFERRED_URL_SCHEME = 'https', or the scheme of REFERRALS_BASE_URL."
        found = "set, but links begin with http://, where the browser does not send the cookie back"
        yield Finding(WARNING, "SESSION_COOKIE_SECURE", found, cure)
    elif scheme == "https" and not secure:
        found = "not set, though the site is on https: the cookie goes over http as well"
        yield Finding(WARNING, "SESSION_COOKIE_SECURE", found, "Set SESSION_COOKIE_SECURE = True.")
    else:
        yield Finding(OK, "SESSION_COOKIE_SECURE", f"{bool(secure)}, and links begin with {scheme}://")

    same_site = str(current_app.config["SESSION_COOKIE_SAMESITE"] or "").lower()
    if same_site == "strict" and current_app.config["REFERRALS_COOKIE"] is None:
        yield Finding(
            ERROR,
            "SESSION_COOKIE_SAMESITE",
            "Strict: the browser withholds the cookie on a click from another site, and the answer replaces it: users "
            "are logged out, and earlier clicks forgotten",
            "Set REFERRALS_COOKIE to the name of a cookie for the visitor's key, or SESSION_COOKIE_SAMESITE = 'Lax'.",
        )
    elif same_site == "none" and not secure:
        found = "None without SESSION_COOKIE_SECURE: browsers refuse the cookie, and nobody is recognised"
        yield Finding(ERROR, "SESSION_COOKIE_SAMESITE", found, "Set SESSION_COOKIE_SAMESITE = 'Lax'.")
    else:
        yield Finding(OK, "SESSION_COOKIE_SAMESITE", same_site.capitalize() or "not set, which is Lax in most browsers")


def _lifetime() -> Iterator[Finding]:
    window, lifetime = config.duration("REFERRALS_ATTRIBUTION_WINDOW"), current_app.permanent_session_lifetime
    if window is not None and lifetime < window:
        yield Finding(
            WARNING,
            "attribution",
            f"visitors are forgotten with their session after {_days(lifetime)}, before the "
            f"REFERRALS_ATTRIBUTION_WINDOW of {_days(window)} is over",
            "Set PERMANENT_SESSION_LIFETIME to the window at least, and session.permanent = True in your views.",
        )
        return
    found = f"for {_days(window) if window is not None else 'ever'}; visitors' sessions live for {_days(lifetime)}"
    yield Finding(OK, "attribution", f"{found} if your views set session.permanent, else as long as the browser")


def _proxy() -> Iterator[Finding]:
    if current_state().extension.hooks.client_ip is not None:
        yield Finding(OK, "proxy", "the host's own client_ip reads addresses")
    elif _has_proxy_fix():
        yield Finding(OK, "proxy", "ProxyFix is there; its numbers must be those of your proxies")
    else:
        # An application server rarely speaks https itself.
        level = WARNING if _scheme() == "https" else OK
        found = (
            "ProxyFix is not there: behind a proxy, every visitor has the proxy's address, and https is taken for http"
        )
        cure = "Behind one proxy: app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1)."
        yield Finding(level, "proxy", found, cure)


def _users() -> Iterator[Finding]:
    state = current_state()
    has_login = hasattr(current_app, "login_manager")
    if state.extension.hooks.user_loader is None and not has_login:
        found = "nobody is ever logged in: there is neither Flask-Login nor a user_loader"
        cure = "Tell @referrals.user_loader who makes a request, and call referrals.link_user(user) at login."
        yield Finding(WARNING, "users", found, cure)
        return
    how = "Flask-Login" if state.extension.hooks.user_loader is None else "the host's user_loader"
    if state.models.user is None:
        found = f"{how} tells who is logged in; they are stored by get_id(), without a foreign key"
        yield Finding(OK, "users", found, "With user_model=User, rows follow the users when these are deleted.")
    else:
        yield Finding(OK, "users", f"{how} tells who is logged in, of {state.models.user.__name__}")


_CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _tables,
    _foreign_keys,
    _locks,
    _reports,
    _secret_keys,
    _address,
    _cookie,
    _lifetime,
    _proxy,
    _users,
)


def _scheme() -> str:
    base_url = current_app.config["REFERRALS_BASE_URL"]
    return urlsplit(base_url).scheme if base_url else t.cast(str, current_app.config["PREFERRED_URL_SCHEME"])


def _has_proxy_fix() -> bool:
    layer: t.Any = current_app.wsgi_app
    for _ in range(20):  # middlewares keep what they wrap under one of two names
        if isinstance(layer, ProxyFix):
            return True
        layer = getattr(layer, "app", None) or getattr(layer, "wsgi_app", None)
    return False


def _reason(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", error)).splitlines()[0]


def _days(duration: timedelta) -> str:
    return str(duration).removesuffix(", 0:00:00")
