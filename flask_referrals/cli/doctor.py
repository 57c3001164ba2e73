"""``flask referrals doctor``."""

import typing as t
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from urllib.parse import SplitResult, urlsplit

import click
import sqlalchemy as sa
from flask import Flask
from flask.cli import with_appcontext
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.sansio.utils import host_is_trusted

from ..actors import classes_with_own_id
from ..failures import reason_of
from ..state import AppState, current_state
from ..web.visitor_key import MAX_LIFETIME
from .migrations import find_differences, how_to_migrate, in_words
from .options import as_json
from .output import echo_json

_COLORS = {"ok": "green", "warning": "yellow", "error": "red"}

_MIN_KEY_LENGTH, _GOOD_KEY_LENGTH = 16, 32
_NEW_KEY = """the output of: python -c "import secrets; print(secrets.token_hex(32))\""""

#: Application servers give up a request after 30 seconds (gunicorn) or 60 (nginx).
_MAX_LOCK_SECONDS = 10


@dataclass(frozen=True)
class Finding:
    """What a check found, and how to fix it; an error means that something cannot work."""

    level: str
    message: str
    fix: str = ""


ok: partial[Finding] = partial(Finding, "ok")
warning: partial[Finding] = partial(Finding, "warning")
error: partial[Finding] = partial(Finding, "error")

Check = Callable[[AppState], Finding | None]
_CHECKS: dict[str, Check] = {}


def check(name: str) -> Callable[[Check], Check]:
    """Register a check under the name that the report shows. It returns ``None`` if it does not apply."""

    def register(function: Check) -> Check:
        _CHECKS[name] = function
        return function

    return register


@click.command()
@as_json
@with_appcontext
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check the set-up, and say how to fix problems.

    The command exits with status 1 if something cannot work.
    """
    has_error = False
    for name, finding in run_checks(current_state()):
        has_error |= finding.level == "error"
        if as_json:
            echo_json({"check": name, **asdict(finding)})
            continue
        click.echo(f"{click.style(f'{finding.level:7}', fg=_COLORS[finding.level])}  {name}: {finding.message}")
        if finding.fix:
            click.echo(f"         {finding.fix}")
    if has_error:
        ctx.exit(1)


def run_checks(state: AppState) -> Iterator[tuple[str, Finding]]:
    """Run all checks, and yield the name and finding of each. What the database raises again is left out."""
    raised = set()
    for name, function in _CHECKS.items():
        try:
            finding = function(state)
        except SQLAlchemyError as failure:
            reason = reason_of(failure)
            if reason in raised:
                continue
            raised.add(reason)
            finding = error(
                f"The database raised an error: {reason}",
                fix=f"Check {state.database.host.setting_names.urls}, and that the database runs.",
            )
        if finding is not None:
            yield name, finding


@check("tables")
def _check_tables(state: AppState) -> Finding:
    differences = find_differences(state)
    if differences:
        return error(
            f"They differ from the models. {'; '.join(map(in_words, differences))}.", fix=how_to_migrate(state)
        )
    return ok("They match the models.")


@check("codes")
def _check_codes(state: AppState) -> Finding | None:
    referrals, others = state.database.models.referrals, sa.orm.aliased(state.database.models.referral)
    if not sa.inspect(state.database.engine).has_table(referrals.id.table.name, referrals.id.table.schema):
        return None
    has_other = sa.exists().where(others.folded_code == sa.func.lower(referrals.code))
    unfolded = sa.select(sa.func.count(referrals.id)).where(referrals.folded_code.is_(None), ~has_other)
    with state.database.engine.connect() as connection:
        count = connection.scalar(unfolded)
    if count:
        return warning(
            f"{count} links have no folded_code: their codes are found in exactly their case only.",
            fix="Fill the column as 'Codes and case' in the documentation of migrations shows.",
        )
    return ok("They are found in any case.")


@check("foreign keys")
def _check_foreign_keys(state: AppState) -> Finding | None:
    engine = state.database.engine
    if engine.dialect.name != "sqlite":
        return None
    with engine.connect() as connection:
        if connection.exec_driver_sql("PRAGMA foreign_keys").scalar():
            return ok("SQLite enforces them.")
    return warning(
        "SQLite does not enforce them. Rows keep the key of a deleted user, and the next user may get that key.",
        fix="Run 'PRAGMA foreign_keys=ON' in a listener for the engine's 'connect' event.",
    )


@check("transactions")
def _check_transactions(state: AppState) -> Finding:
    with state.database.engine.connect() as connection:
        if not _commits_each_statement(connection):
            return ok("The database rolls back what is not committed.")
    return error(
        "The driver commits each statement by itself, so that nothing can be rolled back.",
        fix=f"Remove autocommit from {state.database.host.setting_names.options} and from listeners for 'connect'.",
    )


def _commits_each_statement(connection: sa.Connection) -> bool:
    if connection.dialect.name == "sqlite":
        connection.begin()
        driver_connection: t.Any = connection.connection.dbapi_connection
        return driver_connection.isolation_level is None and not driver_connection.in_transaction
    try:
        connection.begin_nested().rollback()  # there is no savepoint outside of a transaction
    except DBAPIError:
        return True
    return False


@check("locks")
def _check_locks(state: AppState) -> Finding | None:
    engine = state.database.engine
    if engine.dialect.name == "sqlite":
        timeout = state.settings.lock_timeout
        limit = f"at most {timeout.total_seconds():g} s" if timeout else "as long as the engine's timeout"
        return ok(f"A click waits {limit} for a lock.")
    if engine.dialect.name == "postgresql":
        sql = "SELECT setting::int / 1000.0 FROM pg_settings WHERE name = 'lock_timeout'"
        arguments = {"options": "-c lock_timeout=2s"}
    elif engine.dialect.name in ("mariadb", "mysql"):
        sql = "SELECT @@lock_wait_timeout"
        arguments = {"init_command": "SET lock_wait_timeout=2, innodb_lock_wait_timeout=2"}
    else:
        return None
    with engine.connect() as connection:
        seconds = float(connection.exec_driver_sql(sql).scalar_one())
    if 0 < seconds <= _MAX_LOCK_SECONDS:
        return ok(f"A click waits at most {seconds:g} s for a lock.")
    limit = f"up to {seconds:g} s" if seconds else "without limit"
    return warning(
        f"A click waits {limit} for a lock, for example while a migration changes a table.",
        fix=f"Add 'connect_args': {arguments} to {state.database.host.setting_names.options}.",
    )


@check("reports")
def _check_reports(state: AppState) -> Finding | None:
    bind = state.settings.report_bind
    if bind is None:
        return None
    with state.database.host.get_engine(bind).connect() as connection:
        connection.execute(sa.select(state.database.models.response.id).limit(1))
    return ok(f"They are read on the bind {bind!r}.")


@check("SECRET_KEY")
def _check_secret_key(state: AppState) -> Finding:
    return _check_key(state.app.secret_key or "")


@check("SECRET_KEY_FALLBACKS")
def _check_fallbacks(state: AppState) -> Finding | None:
    keys = state.app.config.get("SECRET_KEY_FALLBACKS")
    return _check_key(min(keys, key=len)) if keys else None


def _check_key(key: str | bytes) -> Finding:
    if len(key) < _MIN_KEY_LENGTH:
        message = f"It has only {len(key)} characters. Someone who guesses it can act as any visitor or user."
        return error(message, fix=f"Replace it with {_NEW_KEY}")
    if len(key) < _GOOD_KEY_LENGTH:
        message = f"It has {len(key)} characters, which can be guessed unless they are random."
        return warning(message, fix=f"If they are not random, replace the key with {_NEW_KEY}")
    return ok(f"It has {len(key)} characters.")


@check("base URL")
def _check_base_url(state: AppState) -> Finding:
    site = _site(state)
    if site.scheme == "http" and site.hostname not in (None, "localhost", "127.0.0.1"):
        return warning(
            f"Links start with {site.geturl()}. Over http, browsers do not tell a page in a frame from a click.",
            fix="Serve the site over https, and set REFERRALS_BASE_URL to its https URL.",
        )
    if site.netloc:
        return ok(f"Links start with {site.geturl()}.")
    return warning(
        "Links can only be built during a request; commands and mail workers will fail.",
        fix="Set REFERRALS_BASE_URL, for example to 'https://shop.example'.",
    )


@check("TRUSTED_HOSTS")
def _check_trusted_hosts(state: AppState) -> Finding:
    trusted, host = state.app.config.get("TRUSTED_HOSTS"), _site(state).netloc
    if not trusted:
        message = "It is not set, so a request can name any host."
        if state.settings.base_url is None:
            message += " Links start with the host that the request names."
        return warning(message, fix="Set TRUSTED_HOSTS to the host names of the site.")
    if host and not host_is_trusted(host, trusted):
        return error(f"It lacks {host}, so every click on a link gets 400.", fix=f"Add {host!r} to TRUSTED_HOSTS.")
    return ok(f"It is {', '.join(trusted)}.")


@check("SESSION_COOKIE_SECURE")
def _check_secure(state: AppState) -> Finding:
    is_secure, scheme = state.app.config["SESSION_COOKIE_SECURE"], _site(state).scheme
    if is_secure and scheme == "http":
        return warning(
            "It is True, but links start with http://, where browsers do not send the cookie.",
            fix="Set PREFERRED_URL_SCHEME = 'https', or use https in REFERRALS_BASE_URL.",
        )
    if scheme == "https" and not is_secure:
        message = "It is not set, so browsers also send the session cookie over http."
        return warning(message, fix="Set SESSION_COOKIE_SECURE = True.")
    return ok(f"It is {bool(is_secure)}, and links start with {scheme}://.")


@check("SESSION_COOKIE_SAMESITE")
def _check_same_site(state: AppState) -> Finding:
    same_site = str(state.app.config["SESSION_COOKIE_SAMESITE"] or "").capitalize()
    if same_site == "Strict" and state.settings.cookie is None:
        return error(
            "It is Strict: a click from another site arrives without the session cookie, and the response replaces "
            "that cookie. Users are logged out, and earlier clicks are lost.",
            fix="Set REFERRALS_COOKIE to the name of a cookie for the visitor key, or SESSION_COOKIE_SAMESITE = 'Lax'.",
        )
    if same_site == "None" and not state.app.config["SESSION_COOKIE_SECURE"]:
        return error(
            "It is None without SESSION_COOKIE_SECURE: browsers refuse the cookie, so no visitor is recognised.",
            fix="Set SESSION_COOKIE_SAMESITE = 'Lax'.",
        )
    return ok(f"It is {same_site}." if same_site else "It is not set, which means Lax in most browsers.")


@check("attribution")
def _check_attribution(state: AppState) -> Finding:
    window, lifetime = state.settings.attribution_window, state.app.permanent_session_lifetime
    limit = _days(window) if window is not None else "unlimited"
    if state.settings.cookie is not None:
        kept = _days(min(window or MAX_LIFETIME, MAX_LIFETIME))
        consent = "" if state.hooks.consent else " If your visitors must agree to it first, use @referrals.consent."
        return ok(
            f"The attribution window is {limit}. The cookie {state.settings.cookie!r} keeps the visitor key for {kept} "
            f"after the last click, also when the browser is closed.{consent}"
        )
    if window is not None and lifetime < window:
        return warning(
            f"The attribution window is {_days(window)}, but visitors are forgotten after {_days(lifetime)}, when "
            "their session ends.",
            fix="Set REFERRALS_COOKIE to the name of a cookie that keeps the visitor key.",
        )
    return ok(
        f"The attribution window is {limit}. Sessions last {_days(lifetime)} if your views set session.permanent, and "
        "otherwise until the browser is closed."
    )


@check("proxy")
def _check_proxy(state: AppState) -> Finding:
    if state.hooks.client_ip is not None:
        return ok("The client_ip function of the app reads the addresses.")
    if _has_proxy_fix(state.app):
        return ok("ProxyFix is set up. Its numbers must match your proxies.")
    # An application server rarely speaks https itself.
    return (warning if _site(state).scheme == "https" else ok)(
        "ProxyFix is not set up. Behind a proxy, visitors have the address of the proxy, and https looks like http.",
        fix="Behind one proxy, set app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1).",
    )


@check("admin")
def _check_admin(state: AppState) -> Finding | None:
    views = [
        view for admin in state.app.extensions.get("admin", ()) for view in admin._views if hasattr(view, "is_open")
    ]
    if not views:
        return None
    names = ", ".join(view.name for view in views if view.is_open())
    if not names:
        return ok("Its pages check who may open them.")
    return error(
        f"Everybody can open the pages {names}: neither they nor the index page of the admin check the user.",
        fix="Give Admin an index_view whose is_accessible() checks the user.",
    )


@check("users")
def _check_users(state: AppState) -> Finding:
    if state.hooks.user_loader is not None:
        return ok(
            "The user_loader of the app returns the current user. Login and logout must call link_user() and "
            "drop_visitor_key(), unless Flask-Login does them."
        )
    if hasattr(state.app, "login_manager"):
        return ok("Flask-Login returns the current user.")
    return warning(
        "All visitors are anonymous, because there is neither Flask-Login nor a user_loader.",
        fix="Return the current user from @referrals.user_loader, and call referrals.link_user(user) at login.",
    )


@check("user keys")
def _check_user_keys(state: AppState) -> Finding:
    user_model = state.database.models.user
    if user_model is not None:
        return ok(f"Users are stored by the primary key of {user_model.__name__}.")
    names = sorted(classes_with_own_id(state))
    if not names:
        return ok("Users are stored by get_id(), without a foreign key.")
    return warning(
        f"Users are stored by {names[0]}.get_id(). When its value changes, for example when Flask-Security "
        "changes a password, users lose their links and responses.",
        fix=f"Pass user_model={names[0]} to Referrals before the first migration, or see 'flask referrals rekey'.",
    )


def _site(state: AppState) -> SplitResult:
    """Return the URL that links start with; it has no host if only requests know that."""
    config = state.app.config
    return urlsplit(state.settings.base_url or f"{config['PREFERRED_URL_SCHEME']}://{config['SERVER_NAME'] or ''}")


def _has_proxy_fix(app: Flask) -> bool:
    layer: t.Any = app.wsgi_app
    for _ in range(20):  # middlewares keep what they wrap under one of two names
        if isinstance(layer, ProxyFix):
            return True
        layer = getattr(layer, "app", None) or getattr(layer, "wsgi_app", None)
    return False


def _days(length: timedelta) -> str:
    return str(length).removesuffix(", 0:00:00")
