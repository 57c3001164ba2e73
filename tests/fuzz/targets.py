"""Made-up targets on their way through a real link: where would a browser go?

::

    python -m tests.fuzz.targets --runs 1000000

Each is sent over a socket to ``/referrals/<code>?redirect_to=`` of a site; two of a hundred are stored as links of
their own, which are then followed. What comes back is judged by a parser of the WHATWG standard against a list of hosts
that is written down a second time: a browser must not leave them, nor go from https to http, and the header must be,
byte by byte, what ``safe_location`` says. After every fifth comes one by a grammar of targets that must be taken. A
third of the links are those of a site that is mounted under a path, where a target that is a path is put under it.

The link that takes the queries has expired, so that a click costs one SELECT and no row.
"""

import argparse
import random
import re
import socket
import string
import sys
import tempfile
import threading
import time
import typing as t
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote, unquote_plus, unquote_to_bytes
from wsgiref.handlers import SimpleHandler

from ada_url import URL
from sqlalchemy import event
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.serving import make_server

from flask_referrals import Referral
from flask_referrals.exceptions import InvalidValueError
from flask_referrals.redirects import MAX_LENGTH, safe_location
from tests.host import BROWSER, Host, make_host
from tests.site.test_redirects import QuietHandler
from tests.unit.test_redirects import ALLOWED_ORIGIN, HOSTS, LISTED, OWN_HOST, PIECES, REFUSED, SURROGATES, TAKEN

SEEDS = [*TAKEN, *REFUSED, *SURROGATES]
STORED = "/welcome"
#: Where the site is mounted for some of its visitors.
MOUNT_PATH = "/shop"
#: How long a check may take, in ms.
LONGEST_CHECK = 5

# The parts of a URL, right and wrong, with a blank between them; what comes twice is made more often.
SCHEMES = (
    " http: https: https: HTTPS: hTTp: https https:: http\u017f: https\uff1a https%3a ws: ftp: javascript: data: file:"
    " blob: view-source: java\tscript: \x01https:"
).split(" ")
SLASHES = (
    " / // // // /// //// \\\\ /\\ \\/ /\t/ \t// //\n /./ %2f%2f /%2f \uff0f\uff0f \u2215\u2215 /\u2044 /%09/ /%5c /;/"
).split(" ")
USERS = (
    "     user@ user:pass@ @ :@ shop.example@ shop.example:443@ shop.example\\@ %40 shop.example%2f@ shop.example#@"
    " shop.example?@ shop.example/@ \uff20 user\uff20 a@b@"
).split(" ")
OURS = (
    "site.example shop.example tea.example green.tea.example a.b.cups.example alt.example:8443 [2001:db8::1] 192.0.2.7"
    " xn--bcher-kva.example xn--caf-dma.tea.example"
).split(" ")
OTHERS = (
    "evil.example eviltea.example cups.example alt.example [::1] [::ffff:192.0.2.7] 127.0.0.1 0 2130706433 0x7f.1"
    " 0300.0.2.7 192.0.519 localhost b\u00fccher.example \uff45vil.example shop\u3002example sho\u0440.example"
    " evil%2eexample [2001:db8::1%25eth0] xn--a.example [:: ]"
).split(" ")
JOINTS = (
    " . \\. /. ?. #. @ :443. :. %2f. %5c. %23. %3f. %00. %40 \t. \0. \u3002 \uff0e \uff61 \u2024 \uff0f. \u2044."
    " \uff03. \uff1f. \uff20 \xad. \u200b. - , ; & ' _ .. |. ^. <. \u2100. \u2488"
).split(" ")
PORTS = (
    "    :80 :443 :8443 : :0 :0443 :000443 :65536 :65979 :x :-1 :+443 :4\t43 :443@evil.example :443\\ :443:443"
    " :443.evil.example :\u0664\u0664\u0663 :\uff14\uff14\uff13"
).split(" ")
TAILS = (
    "  / ? # /a /\u8336?\u00e4#\u00fc //evil.example /..//evil.example ?@evil.example #@evil.example /\\evil.example"
    " /\t/evil.example \\evil.example /%2f%2fevil.example /a\u3000 \n"
).split(" ")
#: What is mistaken for another character, or turned into it.
CONFUSABLES = {
    "/": "\uff0f\u2044\u2215\u29f8\u2571\\",
    "\\": "\uff3c\ufe68\u2216\u29f5/",
    ".": "\u3002\uff0e\uff61\u2024\ufe52\u00b7",
    ":": "\uff1a\u2236\ufe55\ua789;",
    "@": "\uff20\ufe6b",
    "%": "\uff05\ufe6a\u066a",
    "?": "\uff1f\ufe56\u037e",
    "#": "\uff03\ufe5f",
    "-": "\u2010\u2011\u2212\xad_",
    "[": "\uff3b\u2045",
    "]": "\uff3d\u2046",
    "a": "\u0430\uff41\u00e0\u24d0A",
    "e": "\u0435\uff45\u00e9\u212fE",
    "h": "\u04bb\uff48\u210e",
    "k": "\u212a\uff4bK",
    "o": "\u043e\u03bf\u2134O0",
    "p": "\u0440\uff50",
    "s": "\u017f\uff53\u24e2S\u00df",
    "t": "\uff54\U0001d531T",
    "x": "\u0445\u2179\uff58",
    "1": "\u0661\uff11\u2460\u00b9l",
    "4": "\u0664\uff14\u2463\u2074",
    "8": "\u0668\uff18\u2467",
}
#: What a path, a query and a fragment may hold.
WORDS = [
    *string.ascii_letters,
    *string.digits,
    *"-._~!$&'()*+,;=:@/%?#[]|<>\"{}^` ",
    *"\u00e9\u0301\u8336\U0001f375\u043f\u05e9\u00df\uff0f\uff3c\u3002\ufffd",
    *"%20 %2f %5C %0a %00 // evil.example https://evil.example/ javascript: <script>".split(" "),
]
LABEL = string.ascii_letters + string.digits + "_"


class Maker:
    """Makes targets; the same seed makes the same ones.

    :param seed: any number.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._mutations = [
            self._put_in,
            self._put_in_place,
            self._leave_out,
            self._double,
            self._splice,
            self._confuse,
            self._escape,
            self._change_case,
            self._lengthen,
        ]

    def good(self) -> str:
        """Make a target that must be taken."""
        chance = self.random
        tail = "".join(chance.choices(WORDS, k=int(chance.expovariate(0.1))))
        if tail and chance.random() < 0.02:
            tail += "a" * MAX_LENGTH
        if chance.random() < 0.4:
            target = "/" + tail.lstrip("/")
        else:
            scheme, port = chance.choice([("http", 80), ("https", 443)])
            authority = self._authority(port)
            target = f"{self._any_case(scheme)}://{self._any_case(authority)}"
            target += chance.choice("/?#") + tail if tail else ""
        return target[:MAX_LENGTH].rstrip(" ")

    def _authority(self, default_port: int) -> str:
        chance = self.random
        hosts = "site.example shop.example 192.0.2.7 xn--bcher-kva.example [2001:db8::1] alt tea cups".split(" ")
        host = chance.choice(hosts)
        if host == "alt":
            return f"alt.example:{chance.choice(['', '0'])}8443"
        if host in ("tea", "cups"):
            host = f"{host}.example"
            for _ in range(chance.randint(0 if host == "tea.example" else 1, 3)):
                host = f"{self._label()}.{host}"
        return host + chance.choice(["", "", f":{default_port}", f":0{default_port}"])

    def _label(self) -> str:
        length = self.random.choice([1, 1, 2, 5, 10, 63])
        inner = "".join(self.random.choices(LABEL + "-", k=length))
        return (self.random.choice(LABEL) + inner[2:] + self.random.choice(LABEL))[-length:]

    def mutated(self) -> str:
        """Make any target, most of them near to one that is taken."""
        chance = self.random
        kind = chance.random()
        if kind < 0.35:
            target = chance.choice(SEEDS)
        elif kind < 0.7:
            target = self._composed()
        elif kind < 0.9:
            target = self.good()
        else:
            target = "".join(self._piece() for _ in range(chance.randint(0, 8)))
        for _ in range(chance.choice([0, 1, 1, 1, 2, 3, 5])):
            target = chance.choice(self._mutations)(target)
        return target

    def _composed(self) -> str:
        chance = self.random
        host = chance.choice(OURS if chance.random() < 0.6 else OTHERS)
        if chance.random() < 0.5:
            host = chance.choice(OTHERS) + chance.choice(JOINTS) + host
        scheme, slashes = (
            ("https:", "//") if chance.random() < 0.5 else (chance.choice(SCHEMES), chance.choice(SLASHES))
        )
        return scheme + slashes + chance.choice(USERS) + host + chance.choice(PORTS) + chance.choice(TAILS)

    def _piece(self) -> str:
        kind = self.random.random()
        if kind < 0.6:
            return self.random.choice(PIECES)
        if kind < 0.8:
            return chr(self.random.randrange(0xA1))
        if kind < 0.9:
            return chr(self.random.randrange(0x2000, 0x3100))
        return chr(self.random.randrange(sys.maxunicode + 1))  # halves of surrogate pairs too

    def _any_case(self, text: str) -> str:
        return text if self.random.random() < 0.7 else "".join(self.random.choice((c.lower(), c.upper())) for c in text)

    def _place(self, target: str) -> int:
        # What decides is at the beginning.
        return min(int(self.random.expovariate(0.06)), len(target))

    def _put_in(self, target: str) -> str:
        place = self._place(target)
        return target[:place] + self._piece() + target[place:]

    def _put_in_place(self, target: str) -> str:
        place = self._place(target)
        return target[:place] + self._piece() + target[place + self.random.randint(1, 4) :]

    def _leave_out(self, target: str) -> str:
        place = self._place(target)
        return target[:place] + target[place + self.random.randint(1, 3) :]

    def _double(self, target: str) -> str:
        place = self._place(target)
        part = target[place : place + self.random.randint(1, 12)]
        return target[:place] + part + target[place:]

    def _splice(self, target: str) -> str:
        other = self.random.choice(SEEDS)
        return target[: self._place(target)] + other[self._place(other) :]

    def _confuse(self, target: str) -> str:
        known = [place for place, char in enumerate(target[:100]) if char in CONFUSABLES]
        if not known:
            return target
        place = self.random.choice(known)
        return target[:place] + self.random.choice(CONFUSABLES[target[place]]) + target[place + 1 :]

    def _escape(self, target: str) -> str:
        place = self._place(target)
        escaped = "".join(f"%{byte:02x}" for byte in target[place : place + 1].encode(errors="surrogatepass"))
        if self.random.random() < 0.3:
            escaped = escaped.replace("%", "%25")
        return target[:place] + self._any_case(escaped) + target[place + 1 :]

    def _change_case(self, target: str) -> str:
        return self.random.choice([target.upper(), target.title(), target.swapcase(), target.casefold()])

    def _lengthen(self, target: str) -> str:
        place = self._place(target)
        filling = self.random.choice(["a", "/", ".", "a.", "@", "%2f", "\u00e9", "\u0301", " ", "0"])
        wanted = MAX_LENGTH + self.random.randint(-3, 3) if self.random.random() < 0.5 else self.random.randint(60, 300)
        return target[:place] + filling * max(0, (wanted - len(target)) // len(filling)) + target[place:]

    def as_query(self, target: str) -> str:
        """Spell a target as a query's value: few characters escaped, or all, or with bytes that are no text."""
        value = quote(target, safe=self.random.choice(["", "/:?@!$'()*,;=[]\\|^~`<>\"{}"]), errors="surrogatepass")
        if self.random.random() < 0.02:
            place = self._place(value)
            value = f"{value[:place]}%{self.random.randrange(0x80, 0x100):02x}{value[place:]}"
        return value


class KeepAliveHandler(QuietHandler):
    """Leaves the connection open, and writes the answer by means of ``wsgiref``.

    Werkzeug's own way waits 10 ms at the end of each answer, and closes.
    """

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def run_wsgi(self) -> None:
        streams = t.cast("tuple[t.IO[bytes], t.IO[bytes]]", (self.rfile, self.wfile))
        handler = SimpleHandler(*streams, sys.stderr, self.make_environ(), multithread=False)
        handler.http_version = "1.1"
        handler.os_environ = {}
        handler.run(self.server.app)


class Trial(t.NamedTuple):
    """A target on its way.

    :param target: as the site receives it.
    :param secure: whether the link is followed by https.
    :param is_good: whether it was made to be taken.
    :param path: where it is sent to; ``None`` when no link to it could be made.
    :param root: where the site is mounted.
    """

    target: str
    secure: bool
    is_good: bool
    path: str | None
    root: str


class Answer(t.NamedTuple):
    """What came over the wire.

    :param status: the code; 0 when the connection broke.
    :param locations: all the values of ``Location``.
    """

    status: int
    locations: list[str]


class Wire:
    """A connection to a site, opened again when it was closed.

    :param port: the site's on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None

    def send(self, trial: Trial) -> Answer:
        """Send a target, and return the answer."""
        proto = "https" if trial.secure else "http"
        head = f"Host: {OWN_HOST}\r\nUser-Agent: {BROWSER}\r\nX-Forwarded-Proto: {proto}\r\n"
        head += f"X-Forwarded-Prefix: {trial.root}\r\n\r\n" if trial.root else "\r\n"
        try:
            if self._socket is None:
                self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=30)
                self._file = self._socket.makefile("rb")
            self._socket.sendall(f"GET {trial.path} HTTP/1.1\r\n{head}".encode())
            answer = self._receive()
        except (OSError, ValueError):
            answer = Answer(0, [])
        if answer.status != 302:
            self.close()
        return answer

    def _receive(self) -> Answer:
        _, status, _ = self._file.readline().split(b" ", 2)
        locations, length = [], -1
        while (line := self._file.readline()) != b"\r\n":
            name, value = line.removesuffix(b"\r\n").split(b": ", 1)
            if name.lower() == b"location":
                locations.append(value.decode("ascii"))
            elif name.lower() == b"content-length":
                length = int(value)
        if len(self._file.read(length)) != length:
            raise ValueError("The answer ends in its midst.")
        return Answer(int(status), locations)

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._file.close()
            self._socket.close()
            self._socket = None


@dataclass
class Tally:
    """What came of the targets.

    :param runs: how many there were, good ones not counted.
    :param good: how many good ones there were.
    :param accepted: those that were taken.
    :param refused: those that gave way to another.
    :param escapes: headers by which a browser leaves the allowed hosts, or goes nowhere.
    :param downgrades: headers by which a browser goes from https to http.
    :param errors: answers that are no 302 with one header.
    :param broken: connections that were lost.
    :param changed: headers that are not what ``safe_location`` says.
    :param strayed: headers by which a browser goes to another page than by the target itself.
    :param good_refused: targets that must be taken, and were not.
    :param examples: some targets of which something was wrong, with what it was.
    """

    runs: int = 0
    good: int = 0
    accepted: int = 0
    refused: int = 0
    escapes: int = 0
    downgrades: int = 0
    errors: int = 0
    broken: int = 0
    changed: int = 0
    strayed: int = 0
    good_refused: int = 0
    examples: list[str] = field(default_factory=list)

    def faults(self) -> int:
        """Return how much was wrong."""
        kinds = (self.escapes, self.downgrades, self.errors, self.broken, self.changed, self.strayed, self.good_refused)
        return sum(kinds)

    def fault(self, kind: str, *what: object) -> None:
        """Count one thing that was wrong."""
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.examples) < 20:
            self.examples.append(f"{kind}: {', '.join(ascii(item)[:300] for item in what)}")


def wrong_with(location: str, *, secure: bool) -> Iterator[str]:
    """Tell what a browser does with a header that it must not do.

    :param location: the header.
    :param secure: whether the link was followed by https.
    """
    try:
        url = URL(location, base=page(secure))
    except ValueError:
        yield "escapes"
        return
    if not ALLOWED_ORIGIN.fullmatch(url.origin) or url.username or url.password:
        yield "escapes"
    if secure and url.protocol != "https:":
        yield "downgrades"


def destination(target: str, *, secure: bool) -> tuple[str, ...] | None:
    """Return where a browser goes that is given a target; escaped or not, it is the same page."""
    try:
        url = URL(target, base=page(secure))
    except ValueError:
        return None
    return (
        url.origin,
        *(unquote_to_bytes(part).decode(errors="backslashreplace") for part in (url.pathname, url.search, url.hash)),
    )


def page(secure: bool) -> str:
    """Return the address of a link."""
    return f"{'https' if secure else 'http'}://{OWN_HOST}/referrals/code"


class Site:
    """A site that listens, and a link of it.

    :param host: the site.
    :param port: where it listens.
    """

    def __init__(self, host: Host, port: int) -> None:
        self.host = host
        self.wire = Wire(port)
        with host.app.app_context():
            self.code = Referral.create(STORED, expires_at=datetime.now(timezone.utc)).code

    def trial(self, maker: Maker, target: str, is_good: bool) -> Trial:
        """Prepare to send a target: in the query of the link, or, two of a hundred, as a link of its own."""
        chance = maker.random
        secure, root = chance.random() < 0.5, MOUNT_PATH if chance.random() < 0.33 else ""
        if chance.random() < 0.02:
            return Trial(target, secure, is_good, self._new_link(target, secure), root)
        query = quote(target, safe="") if is_good else maker.as_query(target)
        received = unquote_plus(query, errors="werkzeug.url_quote")
        return Trial(received, secure, is_good, f"/referrals/{self.code}?redirect_to={query}", root)

    def _new_link(self, target: str, secure: bool) -> str | None:
        with self.host.app.test_request_context(base_url=page(secure)):
            try:
                return f"/referrals/{Referral.create(target).code}"
            except InvalidValueError:
                return None


@contextmanager
def listening(folder: Path) -> Iterator[Site]:
    """Make a site that listens on 127.0.0.1.

    :param folder: where its database is to be.
    """
    host = make_host(f"sqlite:///{folder / 'targets.db'}", with_login=False, REFERRALS_ALLOWED_REDIRECT_HOSTS=LISTED)
    host.app.wsgi_app = ProxyFix(host.app.wsgi_app, x_for=0, x_proto=1, x_prefix=1)  # type: ignore[method-assign]
    with host.app.app_context():
        # Thousands of commits: none waits for the disk.
        event.listen(host.db.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
        host.db.create_all()
    server = make_server("127.0.0.1", 0, host.app, request_handler=KeepAliveHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    site = Site(host, server.port)
    try:
        yield site
    finally:
        site.wire.close()
        server.shutdown()
        thread.join()
        server.server_close()
        with host.app.app_context():
            host.db.engine.dispose()


def under_root(location: str, root: str) -> str:
    """Return where a header leads if the site is mounted: a path that does not name the mount path is put under it."""
    is_inside = re.match(rf"{root}(?![^/?#])", location) is not None
    return root + location if location.startswith("/") and not is_inside else location


def judge(tally: Tally, trial: Trial, answer: Answer | None) -> None:
    """Count what came of a target.

    :param tally: where it is counted.
    :param trial: the target.
    :param answer: what came back; ``None`` when nothing could be sent.
    """
    target, secure = trial.target, trial.secure
    # The name of an endpoint leads to its page.
    expected = "/" if target == "index" else safe_location(target, hosts=HOSTS, require_https=secure)
    tally.runs += not trial.is_good
    tally.good += trial.is_good
    tally.accepted += expected is not None
    tally.refused += expected is None
    if trial.is_good and expected is None and not (secure and target[:5].lower() == "http:"):
        tally.fault("good_refused", target, secure)
    if answer is None:
        if expected is not None:
            tally.fault("changed", target, secure, expected)
        return
    if answer.status != 302 or len(answer.locations) != 1:
        tally.fault("errors" if answer.status else "broken", target, secure, answer)
        return
    (location,) = answer.locations
    if location != under_root(expected or STORED, trial.root):
        tally.fault("changed", target, secure, expected, location)
    for kind in wrong_with(location, secure=secure):
        tally.fault(kind, target, secure, location)
    wanted = under_root(target, trial.root)
    if expected is not None and destination(wanted, secure=secure) != destination(location, secure=secure):
        tally.fault("strayed", target, secure, location)


def made_up(maker: Maker, number: int) -> Iterator[tuple[str, bool]]:
    """Make a number of any targets, with a good one after every fifth, and tell which is good."""
    for index in range(1, number + 1):
        yield maker.mutated(), False
        if index % 5 == 0:
            yield maker.good(), True


def run(site: Site, runs: int, seed: int) -> Tally:
    """Send made-up targets through a site.

    :param site: the site, listening.
    :param runs: how many, the good ones not counted.
    :param seed: makes the same ones again.
    """
    maker, tally = Maker(seed), Tally()
    for target, is_good in made_up(maker, runs):
        trial = site.trial(maker, target, is_good)
        judge(tally, trial, None if trial.path is None else site.wire.send(trial))
    return tally


def slowest_checks() -> dict[str, tuple[float, float]]:
    """Measure how long a check takes of what is all one character, behind several beginnings.

    :return: by character, the longest time in ms for a million of them, and for as many as are read at all.
    """
    found = {}
    for char in ("/", "@", "\\", "%", ".", "\u0301", "\ufdfa"):
        slowest = []
        for length in (1_000_000, MAX_LENGTH):
            times = []
            for start in ("", "/", "https://", "https://shop.example/", "https://shop.example:") * 5:
                target = start + char * (length if length > MAX_LENGTH else length - len(start))
                started = time.thread_time()  # other programs do not count
                safe_location(target, hosts=HOSTS)
                times.append((time.thread_time() - started) * 1000)
            slowest.append(max(times))
        found[char] = (slowest[0], slowest[1])
    return found


def main() -> int:
    """Send the targets, measure the checks, and print what came of both."""
    parser = argparse.ArgumentParser(description="Send made-up targets through a link.")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    checks = slowest_checks()
    print(f"{'Check of one character':<24}{'1,000,000':>12}{MAX_LENGTH:>12,}")
    for char, times in checks.items():
        print(f"{char!a:<24}" + "".join(f"{ms:>9.4f} ms" for ms in times))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, listening(Path(folder)) as site:
        tally = run(site, options.runs, options.seed)
    seconds = time.perf_counter() - started
    for example in tally.examples:
        print(example)
    print(
        f"runs {tally.runs:,}, good ones {tally.good:,}, accepted {tally.accepted:,}, refused {tally.refused:,},"
        f" escapes {tally.escapes:,}, downgrades {tally.downgrades:,}, 500s {tally.errors:,},"
        f" lost connections {tally.broken:,}, changed headers {tally.changed:,}, other pages {tally.strayed:,},"
        f" good refused {tally.good_refused:,}, {seconds:,.0f} seconds"
    )
    too_slow = any(ms >= LONGEST_CHECK for times in checks.values() for ms in times)
    return 1 if tally.faults() or too_slow else 0


if __name__ == "__main__":
    sys.exit(main())
