"""Requests that no browser sends, and those that it sends, mixed at random: none is answered with a server error.

::

    python -m tests.fuzz.http --requests 200000 --database sqlite postgresql mariadb

Hypothesis makes up the raw values of a WSGI request to a link, to the form that makes one, to a form in which a code is
typed, or to a page with a code in its query: method, path, query, headers, cookies and body. Codes come in the wrong
case, with punctuation around them, and as parts of whole links. Half of the requests go to a site that has the settings
which keep most of a request. A request is at fault when it is answered with 500 or takes a second, when a header of the
answer is more than a line, or when anything at all is logged as an error.
"""

import argparse
import io
import json
import logging
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flask import render_template_string, request
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import create_environ, run_wsgi_app

from flask_referrals import InvalidValueError, Referral, TooManyGuessesError
from tests.databases import NAMES, new_database
from tests.faults.statements import forget_durability
from tests.host import BROWSER, Host, make_host

#: So many requests are made up with one seed: the longer Hypothesis goes on, the slower it gets.
BATCH = 1000

#: How many seconds of the processor a request may take.
LONGEST = 1.0

#: Settings that keep all they can of a request, and look at all of it.
EVERYTHING: dict[str, Any] = {
    "REFERRALS_QUERY_PARAM": ("ref", "r"),
    "REFERRALS_FORWARD_QUERY": True,
    "REFERRALS_ALLOWED_REDIRECT_HOSTS": ["shop.example", "*.shop.example"],
    "REFERRALS_INTERNAL_NETWORKS": ["192.0.2.0/24", "2001:db8::/32"],
    "REFERRALS_ATTRIBUTION_WINDOW": 3600,
    "REFERRALS_IP_STORAGE": "full",
    "REFERRALS_REFERRER_STORAGE": "full",
    "REFERRALS_COOKIE": "visitor",
    "REFERRALS_RESPECT_GPC": True,
    "REFERRALS_LINK_LIMIT": None,
    "REFERRALS_GUESS_LIMIT": None,
}

# Bytes of a request are latin-1 texts in WSGI. No server lets a line break through.
RAW = st.binary(max_size=40).map(lambda raw: raw.decode("latin-1").translate({10: None, 13: None}))
ENCODED = st.text(max_size=20).map(
    lambda text: text.encode("utf-8", "ignore").decode("latin-1").translate({10: None, 13: None})
)
PIECES = ("a", "%", "/", "\xc3\xa9", "&a=", ";q=", "[", "\x80")
HUGE = st.builds(
    lambda piece, times: piece * times, st.sampled_from(PIECES), st.sampled_from([300] * 8 + [3000] * 3 + [70_000])
)
JUNK = st.one_of(RAW, ENCODED, HUGE)

CODES = ("good", "expired", "mias")
ADDRESSES = (
    "127.0.0.1",
    "192.0.2.7",
    "2001:db8::1",
    "::ffff:192.0.2.7",
    "fe80::1%eth0",
    "fe80::1%" + "x" * 60,
    "fe80::1%\0<b>",
    "",
    "1.2.3.4:80",
    "203.0.113.9:17085",
    "203.0.113.9:",
    "203.0.113.9:99999999",
    ":443",
    "unknown",
    "unix:",
    "_hidden",
    "[::1]",
    "[2001:db8::1]:443",
    "[2001:db8::1",
    "2001:db8::1]:443",
    "[fe80::1%eth0]:443",
    "[192.0.2.7]:80",
    "192.0.2.7, 203.0.113.9:80",
    "0x7f.1",
    "1" * 500,
)
URLS = (
    "/",
    "/tea?a=1#b",
    "//evil.example",
    "/\t/evil.example",
    "/%09/evil.example",
    "https://shop.example/",
    "https://evil.example",
    "http://[",
    "http://[::1]/",
    "https://a..b/",
    "https://user:pass@shop.example:99999/",
    "javascript:alert(1)",
    "index",
    "act",
    "\\\\evil",
    "/" + "a" * 2047,
    "/" + "a" * 2048,
    "/\xe2\x80\xae",
    "http://\xe2\x84\xa1.shop.example/",
    "https://shop.example\xff/",
    "/\xed\xa0\x80",
    "android-app://com.example.chat/",
    "ios-app://1234/chat",
)
AGENTS = (
    BROWSER,
    "",
    "curl/8.0",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "\xf0\x9f\xa4\x96" * 100,
    BROWSER + " \x1b[31m\x85\xe2\x80\xa8",
    "Mozilla/4.0 (compatible; ms-office; MSOffice 16)",
)

HEADERS = {
    "HTTP_USER_AGENT": AGENTS,
    "HTTP_REFERER": URLS,
    "HTTP_ORIGIN": ("http://localhost", "null", "http://evil.example", "http://[", ""),
    "HTTP_SEC_FETCH_SITE": ("same-origin", "none", "cross-site", "same-site"),
    "HTTP_SEC_FETCH_DEST": ("document", "image", "empty", "iframe", "DOCUMENT", "document;q=1", "document, image", ""),
    "HTTP_SEC_FETCH_MODE": ("navigate", "no-cors", "cors", "same-origin", "websocket", "NAVIGATE", "navigate;a", ""),
    "HTTP_SEC_FETCH_USER": ("?1", "?0", "1", ""),
    "HTTP_SEC_PURPOSE": ("prefetch", "prefetch;prerender"),
    "HTTP_PURPOSE": ("prefetch", "preview"),
    "HTTP_UPGRADE": ("websocket", "WebSocket, h2c", "h2c"),
    "HTTP_UPGRADE_INSECURE_REQUESTS": ("1",),
    "SCRIPT_NAME": ("/shop", "/shop/", "//evil.example", "/s\xc3\xa9", "/\xff", "shop", "/%2f"),
    "HTTP_X_FORWARDED_PREFIX": ("/shop", "//evil.example", "/shop,/tea", "\xff"),
    "HTTP_SEC_GPC": ("1", "0"),
    "HTTP_X_FORWARDED_FOR": ADDRESSES,
    "HTTP_X_EDGE_ADDRESS": ADDRESSES,
    "HTTP_ACCEPT": (
        "text/html",
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8",
        "image/avif,image/webp,*/*;q=0.8",
        "text/css,*/*;q=0.1",
        "TEXT/*;level=1",
        "text/event-stream",
        "",
        "application/json",
        "*/*",
        "text/html;q=abc",
        "text/html;q=1e999,*/*;q=-1",
        ";;,,=",
        "a/b" * 500,
        "text/html;q=0.1," * 5000,
        ";" * 70_000,
        "a/b;c=" * 10_000,
    ),
    "HTTP_HOST": ("localhost", "LOCALHOST:80", "evil.example", "local host", "[", "a:b:c", ""),
    "REMOTE_ADDR": ADDRESSES,
    "CONTENT_LENGTH": ("0", "-1", "1", "5", "99999999999", "x", ""),
    "HTTP_TRANSFER_ENCODING": ("chunked",),
    "wsgi.url_scheme": ("http", "https"),
}

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "B\xe9")
TYPES = (
    "application/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=b",
    "multipart/form-data",
    'multipart/form-data; boundary="' + "b" * 300,
    "text/plain",
    "application/json; charset=utf-16",
    "application/x-www-form-urlencoded; charset=nothing",
    "APPLICATION/JSON",
    "",
)

NUMBERS = st.sampled_from(
    [0, -1, 1, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**400, 1.5, float("nan"), float("inf")]
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    st.sampled_from([url.encode("latin-1").decode("utf-8", "replace") for url in URLS]),
    st.text(max_size=30),
    st.text(st.characters(categories=["Cs", "Cc", "Mn", "So"]), max_size=120),
)
NESTED = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
# What differs from one log record of an error to the next.
_VALUE = re.compile(r"\b0x[0-9a-f]+|\d+(-\d+)?|(?<=: )(invalid|unexpected).*")

FIELDS = ("redirect_to", "label", "target", "more")


@dataclass
class Sent:
    """A request, as raw WSGI values.

    :param site: which site it goes to.
    :param environ: what is not as usual about it.
    """

    site: int
    environ: dict[str, str]
    body: bytes

    def __str__(self) -> str:
        environ = ", ".join(f"{name}={_short(value)}" for name, value in self.environ.items())
        return f"({self.site}: {environ}; {_short(self.body)})"


def _short(value: str | bytes) -> str:
    return repr(value) if len(value) <= 60 else f"{value[:60]!r} and {len(value) - 60:,} more"


@dataclass
class Outcome:
    """What came of requests."""

    statuses: Counter[int] = field(default_factory=Counter)
    faults: defaultdict[str, list[Sent]] = field(default_factory=lambda: defaultdict(list))

    def add(self, other: "Outcome") -> None:
        """Add what came of others."""
        self.statuses += other.statuses
        for what, requests in other.faults.items():
            self.faults[what] += requests


class Errors(logging.Handler):
    """Keeps what is logged as an error, by whomever."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.texts.append(self.format(record))


@contextmanager
def new_sites(url: str) -> Iterator["Sites"]:
    """Make two sites on a database; their tables are dropped at the end."""
    sites, root = Sites(url), logging.getLogger()
    root.addHandler(sites.errors)
    try:
        yield sites
    finally:
        root.removeHandler(sites.errors)
        sites.close()


class Sites:
    """A site as its README says, and one that keeps and looks at everything."""

    def __init__(self, url: str) -> None:
        self.errors = Errors()
        self.hosts = [make_host(url, PROPAGATE_EXCEPTIONS=False, **options) for options in ({}, EVERYTHING)]
        self.hosts[1].referrals.client_ip(lambda request: request.headers.get("X-Edge-Address") or request.remote_addr)
        self.hosts[1].app.wsgi_app = ProxyFix(self.hosts[1].app.wsgi_app, x_prefix=1)  # type: ignore[method-assign]
        for host in self.hosts:
            host.app.add_url_rule("/typed", view_func=attach, methods=["POST"])
            with host.app.app_context():
                forget_durability(host.db.engine)
                host.db.create_all()
        host = self.hosts[0]
        with host.app.app_context():
            mia, kettle = host.user("mia"), host.add(host.Product(name="kettle"))
            Referral.create("/good", code="good")
            Referral.create("/mias", user=mia, code="mias")
            Referral.create("/expired", code="expired", expires_at=datetime.now(timezone.utc))
            with host.app.test_request_context():
                form = render_template_string("{{ create_referral_form('/', target=target) }}", target=kettle)
        self.token = form.split('name="target" value="')[1].split('"')[0]
        self.cookies = _cookies(self.hosts[1])
        self.requests = _requests(self.cookies, self.token)

    def close(self) -> None:
        """Drop the tables, and close all connections."""
        for host in self.hosts:
            with host.app.app_context():
                host.db.session.remove()
                host.db.drop_all()
                host.db.engine.dispose()

    def adopt(self, cookies: list[str]) -> None:
        """Store clicks of the visitors of other sites with the same secret key."""
        for each in cookies:
            self.hosts[1].app.test_client(use_cookies=False).get("/referrals/good", headers={"Cookie": each})

    def send(self, sent: Sent) -> Outcome:
        """Send a request, and tell what came of it."""
        self.errors.texts.clear()
        environ = create_environ("/", "http://localhost")
        environ |= {"REMOTE_ADDR": "127.0.0.1", "wsgi.input": io.BytesIO(sent.body), **sent.environ}
        if "HTTP_TRANSFER_ENCODING" in environ:
            environ["wsgi.input_terminated"] = True
        else:
            environ.setdefault("CONTENT_LENGTH", str(len(sent.body)))
        started = time.thread_time()  # other programs do not count
        # The test client would send nothing as raw as this.
        body, status, headers = run_wsgi_app(self.hosts[sent.site].app, environ, buffered=True)
        list(body)
        seconds = time.thread_time() - started
        code = int(status.split()[0])
        outcome = Outcome(Counter([code]))
        if code == 500:
            outcome.faults["500"].append(sent)
        if seconds > LONGEST:
            outcome.faults["slow"].append(sent)
        for name, value in headers:
            if not value.isprintable():
                outcome.faults[f"the header {name}"].append(sent)
        for text in self.errors.texts:
            outcome.faults[f"logged: {_VALUE.sub('…', text.splitlines()[-1])}"].append(sent)
        return outcome

    def run(self, number: int, first_seed: int = 1, others: Sequence["Sites"] = ()) -> list[Outcome]:
        """Send a number of requests, and tell what came of them here and on other sites.

        :param number: how many.
        :param first_seed: makes them the same again.
        :param others: sites on other databases, which get the same requests: it takes longer to make one up.
        """
        everywhere = [self, *others]
        for each in others:
            each.adopt(self.cookies)
        outcomes = [Outcome() for _ in everywhere]

        def send(sent: Sent) -> None:
            for sites, outcome in zip(everywhere, outcomes, strict=True):
                outcome.add(sites.send(sent))

        batch_seed = first_seed
        while (left := number - outcomes[0].statuses.total()) > 0:
            limits = settings(
                max_examples=min(BATCH, left),
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            seed(batch_seed)(limits(given(self.requests)(send)))()
            batch_seed += 1
        return outcomes


def attach() -> tuple[str, int]:
    """Answer the form in which a code is typed."""
    try:
        response = Referral.attach(request.form.get("code", ""))
    except InvalidValueError as error:
        return str(error), 400
    except TooManyGuessesError as error:
        return str(error), 429
    return "" if response is None else response.referral.code, 200


def _cookies(host: Host) -> list[str]:
    """Return the Cookie headers of a visitor, of Mia, and of Mia with what she did before."""
    visitor, mia = host.client(), host.client()
    visitor.get("/referrals/good")
    mia.post("/login", data={"name": "mia", "remember": "1"})
    names = ("session", "visitor", "remember_token")
    jars = [{name: cookie.value for name in names if (cookie := client.get_cookie(name))} for client in (visitor, mia)]
    jars.append({**jars[0], **jars[1]})
    return ["; ".join(f"{name}={value}" for name, value in jar.items()) for jar in jars]


@st.composite
def _requests(draw: st.DrawFn, cookies: list[str], token: str) -> Sent:
    environ = dict(draw(_headers))
    environ.setdefault("HTTP_USER_AGENT", BROWSER)
    paths = draw(st.sampled_from([_link_paths] * 4 + [_form_paths] * 3 + [_typed_paths] * 2))
    is_form = paths is not _link_paths
    environ["REQUEST_METHOD"] = draw(st.sampled_from(["POST" if is_form else "GET"] * 40 + [*METHODS]))
    environ["PATH_INFO"] = draw(paths)
    environ["QUERY_STRING"] = draw(_queries)
    cookie = draw(st.none() | _cookie(cookies))
    if paths is _form_paths and draw(st.integers(0, 9)):
        cookie = draw(st.sampled_from(cookies[1:]))
        for name in ("HTTP_ORIGIN", "HTTP_SEC_FETCH_SITE"):  # else hardly any gets as far as its body
            environ.pop(name, None)
    if cookie is not None:
        environ["HTTP_COOKIE"] = cookie
    content_type, body = "", b""
    if paths is _typed_paths and draw(st.integers(0, 9)):
        content_type, body = TYPES[1], f"code={quote(draw(_typed), safe='%', encoding='latin-1')}".encode()
    elif is_form or not draw(st.integers(0, 9)):
        content_type, body = draw(_bodies(token))
    if content_type:
        environ["CONTENT_TYPE"] = content_type
    return Sent(draw(st.integers(0, 1)), environ, body)


def _mostly(values: tuple[str, ...]) -> st.SearchStrategy[str]:
    return st.one_of(st.sampled_from(values), st.sampled_from(values), JUNK)


_headers = st.lists(
    st.one_of([st.tuples(st.just(name), _mostly(values)) for name, values in HEADERS.items()]), max_size=10
)
# A code as it arrives: of another case, and with what programs and people put around it.
_spelled = st.sampled_from([spelled for code in CODES for spelled in (code, code, code, code.upper(), code.title())])
_before = st.sampled_from(
    ["", "", "(", "<", " ", "_", "@", ".", "%20", "\xe2\x80\x9c", "\xe2\x80\x8b", "http://", "ref="]
)
_after = st.sampled_from(
    [
        *("", "", ".", ")", ",", "!", ">", "...", "_", "*", "%20", "%", "%ff", "\xe2\x80\xa6", "\xe2\x80\x8b", "\xff"),
        *("&utm_source=x", "&amp;ref=mias", "?utm_source=x", "?ref=mias", "/?a", "#b", " and text", "%0d%0aand text"),
        *(").", "." * 3000, "_" * 3000, " " * 3000, ".a" * 1000, "/" * 3000),
    ]
)
_glued = st.builds("{}{}{}".format, _before, _spelled, _after)
_codes = st.one_of(
    st.sampled_from(CODES),
    st.sampled_from(CODES),
    _glued,
    st.from_regex(r"[A-Za-z0-9_-]{1,70}", fullmatch=True),
    st.sampled_from(
        ["", "%00", "\0", "good\0", "a%2Fb", "..", "static/referrals.js", "GOOD", "go\xc3\xb6d", "x" * 64, "x" * 65]
    ),
    JUNK,
)
_link_paths = st.one_of(
    st.builds("/referrals/{}{}".format, _codes, st.sampled_from(["", "", "/", "//"])),
    st.sampled_from(["/", "/", "/referrals", "/referrals/", "//referrals/good"]),
)
_form_paths = st.sampled_from(["/referrals/", "/referrals"])
_typed_paths = st.just("/typed")
_links = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["http://localhost", "https://shop.example", "//shop.example", "shop.example", "HTTP://[", "a:b"]),
    st.sampled_from(["/referrals/", "/referrals//", "/r/", "/tea?ref=", "/tea?a=b&ref=", "/?r=x&amp;ref=", "?ref="]),
    _glued,
    st.sampled_from(["", "", "/", "?utm_source=x", "&utm_source=x", " https://shop.example/"]),
)
_typed = st.one_of(_glued, _glued, _links, _links, _codes)
_arguments = st.tuples(
    st.sampled_from(["redirect_to", "ref", "ref", "r", "amp;ref", "REF", "utm_source", "sub", "a", "", "\xff", "%00"]),
    st.one_of(st.sampled_from(URLS), _glued, _links.map(lambda link: quote(link, encoding="latin-1")), JUNK),
)
_queries = st.one_of(
    st.just(""),
    st.builds(
        lambda pairs, joint: joint.join("=".join(pair) for pair in pairs),
        st.lists(_arguments, max_size=6),
        st.sampled_from(["&", "&", "&", "&amp;", ";", "?"]),
    ),
    JUNK,
)


def _cookie(cookies: list[str]) -> st.SearchStrategy[str]:
    """A good cookie, one with a character changed, or anything."""

    def change(cookie: str, place: int, character: str) -> str:
        place %= len(cookie)
        return cookie[:place] + character + cookie[place + 1 :]

    good = st.sampled_from(cookies)
    return st.one_of(
        good, good, st.builds(change, good, st.integers(0, 2000), RAW), st.builds("session={}".format, JUNK), JUNK
    )


@st.composite
def _bodies(draw: st.DrawFn, token: str) -> tuple[str, bytes]:
    """A body, of the kind that its content type says or of another."""
    values = st.one_of(st.sampled_from(["/", "/tea", token, "index"]), NESTED)
    fields = [(name, draw(values)) for name in FIELDS if draw(st.booleans())]
    if draw(st.integers(0, 3)):
        fields.insert(0, ("redirect_to", "/tea"))
    kind = draw(st.integers(0, 5))
    if kind <= 1:  # JSON, where a name may come twice
        members = ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in fields)
        text = "{" + members + "}" if draw(st.integers(0, 5)) else json.dumps(draw(NESTED))
        body = text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "utf-32", "utf-8-sig"])))
        content_type = TYPES[0]
    elif kind == 2:
        body = "&".join(f"{name}={draw(JUNK)}" for name, _ in fields).encode("latin-1")
        content_type = TYPES[1]
    elif kind == 3:
        parts = (f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{draw(JUNK)}\r\n' for name, _ in fields)
        body = ("".join(parts) + draw(st.sampled_from(["--b--\r\n", "--b", "", "--b\r\n"]))).encode("latin-1")
        content_type = TYPES[2]
    elif kind == 4:
        body = draw(
            st.sampled_from(
                [
                    b"",
                    b"{",
                    b"[" * 16_000,
                    b'{"a":' * 3000,
                    b'{"redirect_to": "\xff"}',
                    b'{"redirect_to": "\\ud800"}',
                    b'{"redirect_to": ' + b"9" * 5000 + b"}",
                    b'{"redirect_to": NaN}',
                    b"a" * 20_000,
                    b"&" * 1500,
                ]
            )
        )
        content_type = draw(st.sampled_from(TYPES))
    else:
        body = draw(JUNK).encode("latin-1")
        content_type = draw(st.sampled_from(TYPES))
    if not draw(st.integers(0, 9)):
        content_type = draw(_mostly(TYPES))
    return content_type, body


def main() -> int:
    """Send all requests to each database, and print what came of them."""
    parser = argparse.ArgumentParser(description="Send made-up requests.")
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--database", choices=NAMES, nargs="+", default=["sqlite"])
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        urls = [stack.enter_context(new_database(name, Path(folder))) for name in options.database]
        sites, *others = (stack.enter_context(new_sites(url)) for url in urls)
        outcomes = sites.run(options.requests, options.seed, others)
    print(f"{options.requests} requests to each database in {time.perf_counter() - started:.0f} s")
    for name, outcome in zip(options.database, outcomes, strict=True):
        show(name, outcome)
    return 1 if any(outcome.faults for outcome in outcomes) else 0


def show(name: str, outcome: Outcome) -> None:
    """Print what came of the requests to a database."""
    by_status = ", ".join(f"{count} x {status}" for status, count in sorted(outcome.statuses.items()))
    classes = Counter(f"{status // 100}xx" for status in outcome.statuses.elements())
    by_class = ", ".join(f"{count} x {name}" for name, count in sorted(classes.items()))
    for what, requests in outcome.faults.items():
        print(f"{len(requests)} x {what}, such as {min(map(str, requests), key=len)}")
    print(f"{name}: {outcome.statuses.total()} requests: {by_class}")
    print(f"  {by_status}")
    print(f"  {outcome.statuses[500]} x 500, {len(outcome.faults)} faults")


if __name__ == "__main__":
    sys.exit(main())
