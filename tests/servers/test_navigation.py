"""Requests of Chromium for a link: each navigation counts once, and nothing that a page embeds counts.

A site and a forum are two names of one server. Neither is ``localhost``, so that on plain HTTP Chromium sends no Fetch
Metadata, as it does to other sites.
"""

import json
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from flask_referrals import Referral
from tests.conftest import MakeHost
from tests.databases import unavailable
from tests.host import Host
from tests.servers.chromium import open_browser
from tests.site.test_redirects import QuietHandler

pytestmark = pytest.mark.slow

#: How long to wait for a request, in seconds.
_PATIENCE = 20

#: Both ways in: the link itself, and a page with a code in its query.
WAYS_IN = ("/referrals/{}", "/tea?ref={}")

#: Parts of a page that send a GET. The name becomes the code. A form takes ``{action}`` and ``{inputs}`` instead of
#: ``{url}``, because its fields replace the query.
EMBEDDED = {
    "img": "<img src='{url}'>",
    "img-srcset": "<img srcset='{url} 1x'>",
    "css-background": "<p style='height: 9px; background: url({url})'></p>",
    "css-content": "<p style='content: url({url})'></p>",
    "css-mask": "<p style='height: 9px; mask-image: url({url})'></p>",
    "css-font": "<style>@font-face {{ font-family: f; src: url({url}) }}</style><p style='font-family: f'>text",
    "css-import": "<style>@import url({url});</style>",
    "table-background": "<table background='{url}'><tr><td>text</table>",
    "input-image": "<input type=image src='{url}'>",
    "svg-image": "<svg><image href='{url}'/></svg>",
    "svg-filter": "<svg><filter id=f><feImage href='{url}'/></filter><rect width=9 height=9 filter='url(#f)'/></svg>",
    "audio": "<audio preload=auto src='{url}'></audio>",
    "video": "<video preload=auto src='{url}'></video>",
    "video-poster": "<video poster='{url}'></video>",
    "source": "<audio preload=auto><source src='{url}'></audio>",
    "track": "<video controls crossorigin src='data:video/mp4,'><track default kind=subtitles src='{url}'></video>",
    "script": "<script src='{url}'></script>",
    "script-module": "<script type=module src='{url}'></script>",
    "import": "<script>import('{url}').catch(() => 0)</script>",
    "import-json": "<script>import('{url}', {{with: {{type: 'json'}}}}).catch(() => 0)</script>",
    "import-scripts": "<script>new Worker(URL.createObjectURL(new Blob([`importScripts('{url}')`])))</script>",
    "link-stylesheet": "<link rel=stylesheet href='{url}'>",
    "link-prefetch": "<link rel=prefetch href='{url}'>",
    "link-prefetch-page": "<link rel=prefetch as=document href='{url}'>",
    "link-preload": "<link rel=preload as=image href='{url}'>",
    "link-preload-fetch": "<link rel=preload as=fetch crossorigin href='{url}'>",
    "link-modulepreload": "<link rel=modulepreload href='{url}'>",
    "link-dictionary": "<link rel=compression-dictionary href='{url}'>",
    "fetch": "<script>fetch('{url}').catch(() => 0)</script>",
    "fetch-no-cors": "<script>fetch('{url}', {{mode: 'no-cors', credentials: 'include'}}).catch(() => 0)</script>",
    "fetch-keepalive": "<script>fetch('{url}', {{mode: 'no-cors', keepalive: true}}).catch(() => 0)</script>",
    "xhr": "<script>x = new XMLHttpRequest(); x.open('GET', '{url}'); x.send()</script>",
    "event-source": "<script>e = new EventSource('{url}'); e.onerror = () => e.close()</script>",
    "web-socket": "<script>new WebSocket('{url}'.replace('http', 'ws'))</script>",
}

#: More of them, which need a page of the link's origin.
EMBEDDED_BY_SITE = {
    "worker": "<script>new Worker('{url}')</script>",
    "shared-worker": "<script>new SharedWorker('{url}')</script>",
    "svg-use": "<svg><use href='{url}#a'/></svg>",
    "fetch-same-origin": "<script>fetch('{url}', {{mode: 'same-origin'}}).catch(() => 0)</script>",
}

#: More of them, on HTTPS.
EMBEDDED_ON_HTTPS = {
    "object-image": "<object type=image/png data='{url}'></object>",
    "worklet": "<script>CSS.paintWorklet.addModule('{url}').catch(() => 0)</script>",
    "audio-worklet": "<script>new AudioContext().audioWorklet.addModule('{url}').catch(() => 0)</script>",
    "fetch-later": "<script>fetchLater('{url}', {{activateAfter: 0, mode: 'no-cors'}})</script>",
    # On plain HTTP, a script that asks for a page by this header cannot be told from a person.
    "fetch-html": "<script>fetch('{url}', {{mode: 'no-cors', headers: {{Accept: 'text/html'}}}})</script>",
}

#: Pages in pages. On plain HTTP their requests have the same headers as a click. They stand below what a page embeds,
#: because pages of the same origin use up what ``fetchLater`` may send.
FRAMES = {
    "iframe": "<iframe src='{url}'></iframe>",
    "iframe-sandbox": "<iframe sandbox src='{url}'></iframe>",
    "iframe-script": "<iframe id=i></iframe><script>i.contentWindow.location = '{url}'</script>",
    "iframe-refresh": """<iframe srcdoc='<meta http-equiv=refresh content="0; url={url}">'></iframe>""",
    "frame": """<iframe srcdoc='<frameset><frame src="{url}"></frameset>'></iframe>""",
    "object": "<object data='{url}'></object>",
    "embed": "<embed src='{url}'>",
    "embed-pdf": "<embed type=application/pdf src='{url}'>",
    "hidden-form": "<iframe name=g hidden></iframe><form id=get target=g action='{action}'>{inputs}</form>"
    "<script>document.getElementById('get').submit()</script>",
}

#: Parts of a page that send a POST.
POSTED = {
    "beacon": "<script>navigator.sendBeacon('{url}')</script>",
    "ping": "<a id=p ping='{url}' href='#here'>text</a><script>p.click()</script>",
    "hidden-post": "<iframe name=h hidden></iframe><form id=post method=post target=h action='{url}'></form>"
    "<script>document.getElementById('post').submit()</script>",
}

#: Pages on which a person clicks on the element ``go``.
CLICKED = {
    "link": "<a id=go href='{url}'>go</a>",
    "link-blank": "<a id=go target=_blank href='{url}'>go</a>",
    "link-named": "<a id=go target=named href='{url}'>go</a>",
    "link-opener": "<a id=go target=_blank rel=opener href='{url}'>go</a>",
    "link-noopener": "<a id=go target=_blank rel=noopener href='{url}'>go</a>",
    "link-noreferrer": "<a id=go target=_blank rel=noreferrer href='{url}'>go</a>",
    "link-no-referrer": "<meta name=referrer content=no-referrer><a id=go href='{url}'>go</a>",
    "link-svg": "<svg width=90 height=90><a href='{url}'><rect id=go width=90 height=90 /></a></svg>",
    "link-download": "<a id=go download href='{url}'>go</a>",
    "link-redirect": "<a id=go href='/redirect?{url}'>go</a>",
    "link-header": "<a id=go href='/refresh?{url}'>go</a>",
    "form": "<form action='{action}'>{inputs}<button id=go name=a value=b>go</button></form>",
    "form-blank": "<form target=_blank action='{action}'>{inputs}<button id=go name=a value=b>go</button></form>",
    "form-redirect": "<form method=post action='/redirect?{url}'><button id=go>go</button></form>",
    "open": """<button id=go onclick="window.open('{url}')">go</button>""",
    "open-noopener": """<button id=go onclick="window.open('{url}', '_blank', 'noopener')">go</button>""",
    "open-popup": """<button id=go onclick="window.open('{url}', '_blank', 'popup')">go</button>""",
    "open-empty": """<button id=go onclick="window.open('').location = '{url}'">go</button>""",
    "assign": """<button id=go onclick="location.assign('{url}')">go</button>""",
    "replace": """<button id=go onclick="location.replace('{url}')">go</button>""",
    "navigate": """<button id=go onclick="navigation.navigate('{url}')">go</button>""",
    "later": """<button id=go onclick="setTimeout(() => location.href = '{url}', 500)">go</button>""",
}

#: The same, with the element in a frame.
CLICKED_IN_FRAME = {
    "frame-top": """<iframe srcdoc='<a id=go target=_top href="{url}">go</a>'></iframe>""",
    "frame-sandbox": """<iframe sandbox="allow-popups" srcdoc='<a id=go target=_blank href="{url}">go</a>'></iframe>""",
}

#: Pages that navigate by themselves.
NAVIGATING = {
    "refresh": "<meta http-equiv=refresh content='0; url={url}'>",
    "script": "<script>location = '{url}'</script>",
}

#: How service workers answer a navigation: the statement after ``e.``.
SERVICE_WORKERS = {
    "fetch": "respondWith(fetch(e.request))",
    "options": "respondWith(fetch(e.request, {credentials: 'include'}))",
    "preload": "respondWith(e.preloadResponse.then(response => response || fetch(e.request)))",
}

_SERVICE_WORKER = """
    oninstall = () => skipWaiting();
    onactivate = e => e.waitUntil(registration.navigationPreload.{}().then(() => clients.claim()));
    onfetch = e => e.{};
"""

_REGISTER = """
    const done = arguments[0];
    navigator.serviceWorker.oncontrollerchange = () => done();
    navigator.serviceWorker.register("/worker.js");
"""


class Site:
    """The site and the forum.

    :param pages: what is on a path, under both names.
    :param requests: the code that each answered request asked for, and its purpose.
    """

    def __init__(self, scheme: str, host: Host, ssl_context: Any) -> None:
        self.host = host
        self.pages: dict[str, Response] = {}
        self.requests: list[tuple[str, str]] = []
        self.server = make_server("127.0.0.1", 0, self.answer, True, 1, QuietHandler, ssl_context=ssl_context)
        self.url, self.forum = (f"{scheme}://{name}.test:{self.server.server_port}" for name in ("site", "forum"))

        @host.app.get("/tea")
        def tea() -> str:
            return "tea"

    def answer(self, environ: Any, start_response: Any) -> Any:
        """Answer a request, as a WSGI app."""
        request = Request(environ)
        leads_to = request.query_string.decode()
        if request.path == "/redirect":
            return Response(status=303, headers={"Location": leads_to})(environ, start_response)
        if request.path == "/refresh":
            return Response("", headers={"Refresh": f"0; url={leads_to}"})(environ, start_response)
        if request.path in self.pages:
            return self.pages[request.path](environ, start_response)
        body = self.host.app(environ, start_response)
        found = re.search(r"(?:/referrals/|[?&]ref=)([\w-]+)", request.full_path)
        self.requests.append((found[1] if found else "", request.headers.get("Sec-Purpose", "")))
        return body

    def show(self, path: str, html: str, mimetype: str = "text/html") -> None:
        """Put a page on a path."""
        self.pages[path] = Response(html, mimetype=mimetype)

    def new_link(self, way_in: str, code: str) -> str:
        """Make a link, and return the URL that leads to it."""
        with self.host.app.app_context():
            Referral.create(f"/tea#{code}", code=code)
        return self.url + way_in.format(code)

    def fill_in(self, html: str, way_in: str, code: str) -> str:
        """Make a link, and put it into HTML."""
        url = self.new_link(way_in, code)
        action, _, query = url.partition("?")
        name, _, value = query.partition("=")
        inputs = f'<input type=hidden name="{name}" value="{value}">' if query else ""
        return html.format(url=url, action=action, inputs=inputs)

    def wait_for(self, codes: Iterable[str]) -> None:
        """Wait until all of some codes were asked for."""
        give_up = time.monotonic() + _PATIENCE
        missing = set(codes)
        while missing and time.monotonic() < give_up:
            time.sleep(0.02)
            missing -= {code for code, _ in list(self.requests)}
        assert missing == set()

    def clicks(self) -> Counter[str]:
        """Return how many clicks are counted, by code."""
        with self.host.app.app_context():
            return Counter(response.referral.code for response in self.host.responses() if response.ignored is None)


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """What a browser sends is the same with every database."""
    return sqlite_url


@pytest.fixture(params=["http", "https"])
def scheme(request: pytest.FixtureRequest) -> str:
    """Plain HTTP, or HTTPS."""
    return str(request.param)


@pytest.fixture
def site(scheme: str, new_host: MakeHost, tmp_path: Path) -> Iterator[Site]:
    """The site and the forum, while they answer."""
    host = new_host(with_login=False, REFERRALS_QUERY_PARAM="ref")
    site = Site(scheme, host, new_certificate(tmp_path) if scheme == "https" else None)
    thread = threading.Thread(target=site.server.serve_forever)
    thread.start()
    try:
        yield site
    finally:
        site.server.shutdown()
        thread.join()
        site.server.server_close()


def new_certificate(folder: Path) -> tuple[str, str]:
    """Make a certificate that no browser trusts, and return the files of it and of its key."""
    if shutil.which("openssl") is None:
        unavailable("There is no openssl, which makes the certificate.")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=site.test"
    files = ["-out", str(certificate), "-keyout", str(key)]
    names = ["-addext", "subjectAltName=DNS:site.test,DNS:forum.test"]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    return str(certificate), str(key)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """A browser that finds both, and accepts the certificate."""
    resolve = "--host-resolver-rules=MAP *.test 127.0.0.1"
    with open_browser(tmp_path, resolve, "--ignore-certificate-errors", "--disable-features=HttpsUpgrades") as browser:
        yield browser


@pytest.mark.parametrize("way_in", WAYS_IN)
def test_nothing_that_a_page_embeds_is_a_click(site: Site, browser: webdriver.Chrome, scheme: str, way_in: str) -> None:
    is_secure = scheme == "https"
    ways = EMBEDDED | (EMBEDDED_ON_HTTPS if is_secure else {}) | FRAMES | POSTED
    embed(site, browser, site.forum, way_in, ways)
    assert site.clicks() == Counter([] if is_secure else [*FRAMES])
    browser.get(site.url)
    assert browser.get_cookies() == []  # so framing a link earns no credit


@pytest.mark.parametrize("way_in", WAYS_IN)
def test_nothing_that_the_site_embeds_is_a_click(
    site: Site, browser: webdriver.Chrome, scheme: str, way_in: str
) -> None:
    is_secure = scheme == "https"
    ways = EMBEDDED | EMBEDDED_BY_SITE | (EMBEDDED_ON_HTTPS if is_secure else {}) | FRAMES | POSTED
    embed(site, browser, site.url, way_in, ways)
    assert site.clicks() == Counter([] if is_secure else [*FRAMES])


def embed(site: Site, browser: webdriver.Chrome, address: str, way_in: str, ways: dict[str, str]) -> None:
    """Open a page that embeds a link in each of some ways, and wait until the site was asked for all of them."""
    html = [site.fill_in(snippet, way_in, way) for way, snippet in ways.items()]
    site.show("/page", "<!doctype html><link rel=icon href='data:,'>" + "\n".join(html))
    browser.get(f"{address}/page")
    site.wait_for(ways)


@pytest.mark.parametrize("way_in", WAYS_IN)
def test_each_navigation_is_one_click(site: Site, browser: webdriver.Chrome, way_in: str) -> None:
    first = browser.current_window_handle
    for way, html in (CLICKED | CLICKED_IN_FRAME | NAVIGATING).items():
        open_page(site, browser, way_in, way, html)
        if way in CLICKED_IN_FRAME:
            browser.switch_to.frame(0)
        if way not in NAVIGATING:
            browser.find_element(By.ID, "go").click()
        site.wait_for([way])
        close_others(browser, first)
    assert site.clicks() == Counter([*CLICKED, *CLICKED_IN_FRAME, *NAVIGATING])


@pytest.mark.parametrize("way_in", WAYS_IN)
def test_address_bar_and_keys_are_one_click_each(site: Site, browser: webdriver.Chrome, way_in: str) -> None:
    first = browser.current_window_handle
    browser.get(site.new_link(way_in, "address-bar"))
    for way, key in (("enter", Keys.ENTER), ("new-tab", Keys.CONTROL), ("new-window", Keys.SHIFT)):
        open_page(site, browser, way_in, way, CLICKED["link"])
        link = browser.find_element(By.ID, "go")
        if key == Keys.ENTER:
            link.send_keys(key)
        else:
            ActionChains(browser).key_down(key).click(link).key_up(key).perform()
        site.wait_for([way])
        close_others(browser, first)
    assert site.clicks() == Counter(["address-bar", "enter", "new-tab", "new-window"])


def open_page(site: Site, browser: webdriver.Chrome, way_in: str, code: str, html: str) -> None:
    """Open a page of the forum that has a link."""
    site.show("/page", "<!doctype html><link rel=icon href='data:,'>" + site.fill_in(html, way_in, code))
    browser.get(f"{site.forum}/page")


def close_others(browser: webdriver.Chrome, first: str) -> None:
    """Close all windows but the first."""
    for window in browser.window_handles:
        if window != first:
            browser.switch_to.window(window)
            browser.close()
    browser.switch_to.window(first)


@pytest.mark.parametrize("scheme", ["https"], indirect=True)  # plain HTTP has no service workers
@pytest.mark.parametrize("worker", SERVICE_WORKERS)
def test_click_through_a_service_worker_counts(site: Site, browser: webdriver.Chrome, worker: str) -> None:
    register(site, browser, worker)
    for number, way_in in enumerate(WAYS_IN):
        open_page(site, browser, way_in, f"link-{number}", CLICKED["link"])
        browser.find_element(By.ID, "go").click()
        site.wait_for([f"link-{number}"])
        browser.get(site.new_link(way_in, f"address-bar-{number}"))
    assert site.clicks() == Counter(["link-0", "link-1", "address-bar-0", "address-bar-1"])


@pytest.mark.parametrize("scheme", ["https"], indirect=True)
def test_download_is_no_click(site: Site, browser: webdriver.Chrome) -> None:
    for number, way_in in enumerate(WAYS_IN):
        url = site.new_link(way_in, f"download-{number}")
        site.show("/page", f"<!doctype html><link rel=icon href='data:,'><a id=go download href='{url}'>go</a>")
        browser.get(f"{site.url}/page")
        browser.find_element(By.ID, "go").click()
        site.wait_for([f"download-{number}"])
    assert site.clicks() == Counter()


@pytest.mark.parametrize("scheme", ["https"], indirect=True)
@pytest.mark.parametrize("worker", SERVICE_WORKERS)
def test_nothing_embedded_through_a_service_worker_counts(site: Site, browser: webdriver.Chrome, worker: str) -> None:
    """The site's own frames are left out: the worker sends their requests on with the headers of a click."""
    register(site, browser, worker)
    ways = EMBEDDED | EMBEDDED_BY_SITE | EMBEDDED_ON_HTTPS | POSTED
    for number, way_in in enumerate(WAYS_IN):
        embed(site, browser, site.url, way_in, {f"{way}-{number}": html for way, html in ways.items()})
        embed(site, browser, site.forum, way_in, {f"{way}-{number}": html for way, html in FRAMES.items()})
    assert site.clicks() == Counter()


def register(site: Site, browser: webdriver.Chrome, worker: str) -> None:
    """Let a service worker control the site."""
    preload = "enable" if worker == "preload" else "disable"
    script = _SERVICE_WORKER.format(preload, SERVICE_WORKERS[worker])
    site.show("/worker.js", script, "text/javascript")
    browser.get(site.url)
    browser.execute_async_script(_REGISTER)


@pytest.mark.parametrize("scheme", ["https"], indirect=True)
@pytest.mark.parametrize(
    ("page", "kind", "worker"),
    [
        ("site", "prefetch", None),
        ("site", "prerender", None),
        ("forum", "prefetch", None),
        ("site", "prefetch", "fetch"),
        ("site", "prerender", "fetch"),
        ("site", "prefetch", "preload"),
        ("site", "prerender", "preload"),
    ],
)
def test_click_on_what_the_browser_has_loaded_ahead_counts_once(
    site: Site, browser: webdriver.Chrome, page: str, kind: str, worker: str | None
) -> None:
    if worker is not None:
        register(site, browser, worker)
    for way_in, code in zip(WAYS_IN, ("link", "query"), strict=True):
        url = site.new_link(way_in, code)
        rules = json.dumps({kind: [{"source": "list", "urls": [url], "eagerness": "immediate"}]})
        html = f"<!doctype html><script type=speculationrules>{rules}</script><a id=go href='{url}'>go</a>"
        site.show("/page", html)
        browser.get(f"{site.forum if page == 'forum' else site.url}/page")
        site.wait_for([code])
        assert [purpose[:8] for asked, purpose in site.requests if asked == code] == ["prefetch"]
        browser.find_element(By.ID, "go").click()
        WebDriverWait(browser, _PATIENCE).until(lambda _: browser.current_url.startswith(f"{site.url}/tea"))
        browser.delete_all_cookies()  # no other site may load ahead what is opened with cookies
    assert site.clicks() == Counter(["link", "query"])
