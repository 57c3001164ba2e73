"""The routes, and what templates can ask for."""

import re
import typing as t
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import flask
from flask import Blueprint, Response, abort, current_app, render_template
from flask.typing import ResponseReturnValue
from markupsafe import Markup

from ...actors import current_user, user_key
from ...db.tables import ReferralColumns
from ...db.totals import midnight
from ...exceptions import InvalidValueError
from ...reports import latest_actions, links_of
from ...state import AppState, current_state
from ...stats import Stats, Totals, get_stats, load_users, today, totals_of
from ...web.client import unwrapped
from .charts import draw_chart
from .periods import DEFAULT, UNITS, last_days, quick_choices, read_period
from .tables import display_name, name_owners, name_user, table_names, write_csv

Allow = Callable[[t.Any], bool]

#: How many links of their own a user sees on a page, how many actions, and how many rows an operator of a table.
_LINKS, _ACTIONS, _ROWS = 20, 10, 20
#: The number of a page, within what every database takes as an offset.
_PAGE = re.compile("[1-9][0-9]{0,5}")


def create_blueprint(allow: Allow | None = None) -> Blueprint:
    """Return a blueprint with the pages ``/mine`` for the owners of links and ``/insight`` for the site's operators.

    Register it after ``referrals.init_app(app)``; give it a ``url_prefix`` if you like. It adds ``referral_stats`` and
    ``referral_chart`` to the templates of the app.

    :param allow: ``allow(user)`` returns whether a logged-in user may see the numbers of all links. Without it there is
        no page ``/insight``.
    """
    # The app's own static files are at /static.
    blueprint = Blueprint(
        "referrals_dashboard",
        __name__,
        template_folder="templates",
        static_folder="static",
        static_url_path="/dashboard-static",
    )
    blueprint.add_url_rule("/mine", "mine", show_own)
    blueprint.add_url_rule("/mine.csv", "mine_csv", download_own)
    if allow is not None:
        blueprint.add_url_rule("/insight", "insight", partial(show_all, allow))
        blueprint.add_url_rule("/insight.csv", "insight_csv", partial(download_all, allow))
    blueprint.after_request(_keep_private)
    blueprint.add_app_template_global(referral_stats)
    blueprint.add_app_template_global(referral_chart)
    return blueprint


def referral_stats(user: t.Any, days: int = DEFAULT) -> Stats | None:
    """Return the statistics of a user's links by day, today included.

    Within a request, a database failure is logged and the result is ``None``, except in debug and testing mode.

    :param user: the owner; for ``None`` and Flask-Login's anonymous user the result is ``None``.
    :param days: how many days.
    """
    state = current_state()
    owner = user_key(state, user)
    if owner is None:
        return None
    since = last_days(today(state), days).since
    read = partial(get_stats, state, owner_key=owner, since=since, by="day")
    return state.reports.run(read, on_failure=partial(state.log_or_raise, "Could not read the statistics of a user."))


def referral_chart(stats: Stats | None) -> Markup:
    """Render ``referrals/_chart.html``: the steps of ``REFERRALS_FUNNEL`` in a period.

    :param stats: statistics by day, week or month; for ``None`` the chart is empty text.
    :raises InvalidValueError: the statistics are by something else.
    """
    if stats is None:
        return Markup()
    return _render_chart(stats)


def _render_chart(stats: Stats, unit: str | None = None) -> Markup:
    chart = draw_chart(stats, current_state().settings.funnel, unit)
    return Markup(render_template("referrals/_chart.html", chart=chart))  # noqa: S704 (the template escapes)


def show_own() -> str:
    """Show the statistics of the logged-in user's links."""
    state, user, page = current_state(), _require_owner(), _read_page()
    since, owner = last_days(today(state), DEFAULT).since, user_key(state, user)
    stats = get_stats(state, owner_key=owner, since=since, by="day")
    links = links_of(state, user, limit=_LINKS + 1, offset=(page - 1) * _LINKS)
    if not links and page > 1:
        abort(404)
    actions = latest_actions(state, user, since=midnight(since, state.database.zone), limit=_ACTIONS)
    return render_template(
        "referrals/mine.html",
        stats=stats,
        ever=get_stats(state, owner_key=owner),
        steps=state.settings.funnel,
        chart=_render_chart(stats),
        links=_with_totals(state, links[:_LINKS]),
        zone=state.database.zone,
        page=page,
        has_more=len(links) > _LINKS,
        actions=list(zip(actions, _name_friends(state, actions), strict=True)),
    )


def download_own() -> Response:
    """Return all links of the logged-in user with their counts as CSV."""
    state = current_state()
    links = links_of(state, _require_owner())
    text = write_csv(state, "referral", _with_totals(state, links), with_owner=False)
    return _as_file(text, f"links-{today(state)}.csv")


def show_all(allow: Allow) -> ResponseReturnValue:
    """Show the statistics of all links in a period."""
    _require_operator(allow)
    state, query = current_state(), flask.request.args
    day, names, error = today(state), table_names(state), None
    by = query.get("by", names[0])
    period = last_days(day, DEFAULT)
    try:
        if by not in names:
            by = names[0]
            raise InvalidValueError("by", f"must be one of {', '.join(names)}")
        period = read_period(query, day)
    except InvalidValueError as invalid:
        error = invalid
    since, until = period.since, period.until
    stats = get_stats(state, since=since, until=until, by="day", compare=period.compare)
    rows = get_stats(state, since=since, until=until, by=by, limit=_ROWS).rows
    owners = name_owners(state, [link for link, _ in rows]) if by == "referral" else {}
    page = render_template(
        "referrals/insight.html",
        stats=stats,
        steps=state.settings.funnel,
        chart=_render_chart(stats, period.unit),
        by=by,
        names=names,
        rows=rows,
        most=_ROWS,
        owners=owners,
        name_user=partial(name_user, state),
        period=period,
        quick={name: replace(each, compare=period.compare) for name, each in quick_choices(day).items()},
        units=UNITS,
        error=error,
    )
    return page, 400 if error is not None else 200


def download_all(allow: Allow) -> Response:
    """Return a table as CSV with all its rows."""
    _require_operator(allow)
    state, query = current_state(), flask.request.args
    by = query.get("by", "day")
    try:
        period = read_period(query, today(state))
        rows = get_stats(state, since=period.since, until=period.until, by=by).rows
    except InvalidValueError as error:
        abort(400, str(error))
    return _as_file(write_csv(state, by, rows), f"referrals-{by}-{period.since}-{period.until}.csv")


def _require_user() -> t.Any:
    """Return the logged-in user, or ask for a login."""
    user = current_user(current_state(), unwrapped(flask.request), of_any_model=True)
    if user is None:
        login_manager = getattr(current_app, "login_manager", None)
        if login_manager is None:
            abort(401)
        abort(current_app.make_response(login_manager.unauthorized()))
    return user


def _require_owner() -> t.Any:
    """Return the logged-in user, who may have links."""
    user, model = _require_user(), current_state().database.models.user
    if model is not None and not isinstance(user, model):
        abort(403)
    return user


def _require_operator(allow: Allow) -> None:
    if not allow(_require_user()):
        abort(403)


def _read_page() -> int:
    text = flask.request.args.get("page", "1")
    if not _PAGE.fullmatch(text):
        abort(404)
    return int(text)


def _with_totals(state: AppState, links: Sequence[ReferralColumns]) -> list[tuple[ReferralColumns, Totals]]:
    totals = totals_of(state, links)
    return [(link, totals[link.id]) for link in links]


def _name_friends(state: AppState, actions: t.Any) -> list[str | None]:
    """Return the names of those who did some actions; only those that ``display_name`` shows."""
    if state.hooks.display_name is None:
        return [None for _ in actions]
    users = load_users(state, [*{each.user_id for each in actions}])
    return [display_name(state, users.get(each.user_id, each.user_id)) for each in actions]


def _as_file(text: str, name: str) -> Response:
    # Excel reads a file without a byte order mark in the encoding of the system.
    response = Response(f"\N{BYTE ORDER MARK}{text}", mimetype="text/csv")
    response.headers.set("Content-Disposition", "attachment", filename=name)
    return response


def _keep_private(response: Response) -> Response:
    """Keep the pages out of all caches."""
    if flask.request.endpoint != f"{flask.request.blueprint}.static":
        response.headers["Cache-Control"] = "private, no-store"
        response.vary.add("Cookie")
    return response
