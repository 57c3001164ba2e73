"""What asks for a link and is no visit: it is not counted, and gets no cookie."""

import pytest
import sqlalchemy as sa
from flask import Response, request
from flask.testing import FlaskClient

from flask_referrals import Referral
from flask_referrals.web.agents import is_bot
from tests.host import BROWSER, Host, statements

#: Of crawlers, of what fetches a page for a preview, and of programs, as they are seen in logs.
PROGRAMS = [
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 (Linux; Android 6.0.1; Nexus 5X Build/MMB29P) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/120.0.6099.109 Mobile Safari/537.36 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Googlebot-Image/1.0",
    "AdsBot-Google (+http://www.google.com/adsbot.html)",
    "Mediapartners-Google",
    "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
    "Mozilla/5.0 (compatible; YandexBot/3.0; +http://yandex.com/bots)",
    "Mozilla/5.0 (compatible; Baiduspider/2.0; +http://www.baidu.com/search/spider.html)",
    "DuckDuckBot/1.1; (+http://duckduckgo.com/duckduckbot.html)",
    "Mozilla/5.0 (compatible; Yahoo! Slurp; http://help.yahoo.com/help/us/ysearch/slurp)",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_5) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/13.1.1 "
    "Safari/605.1.15 (Applebot/0.1; +http://www.apple.com/go/applebot)",
    "Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)",
    "Mozilla/5.0 (compatible; SemrushBot/7~bl; +http://www.semrush.com/bot.html)",
    "Mozilla/5.0 (compatible; MJ12bot/v1.4.8; http://mj12bot.com/)",
    "Mozilla/5.0 (compatible; DotBot/1.2; +https://opensiteexplorer.org/dotbot; help@moz.com)",
    "Mozilla/5.0 (compatible; PetalBot;+https://webmaster.petalsearch.com/site/petalbot)",
    "CCBot/2.0 (https://commoncrawl.org/faq/)",
    "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; GPTBot/1.2; +https://openai.com/gptbot)",
    "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; ClaudeBot/1.0; +claudebot@anthropic.com)",
    "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; Amazonbot/0.1; "
    "+https://developer.amazon.com/support/amazonbot) Chrome/119.0.6045.214 Safari/537.36",
    "Mozilla/5.0 (compatible; archive.org_bot +http://archive.org/details/archive.org_bot)",
    "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
    "Twitterbot/1.0",
    "LinkedInBot/1.0 (compatible; Mozilla/5.0; Apache-HttpClient +http://www.linkedin.com)",
    "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)",
    "Slack-ImgProxy (+https://api.slack.com/robots)",
    "TelegramBot (like TwitterBot)",
    "WhatsApp/2.23.20.0 A",
    "Mozilla/5.0 (compatible; Discordbot/2.0; +https://discordapp.com)",
    "Mozilla/5.0 (Windows NT 6.1; WOW64) SkypeUriPreview Preview/0.5 skype-url-preview@microsoft.com",
    "Mozilla/5.0 (compatible; Pinterestbot/1.0; +http://www.pinterest.com/bot.html)",
    "Mozilla/5.0 (compatible; redditbot/1.0; +http://www.reddit.com/feedback)",
    "Mozilla/5.0 (compatible; Embedly/0.2; +http://support.embed.ly/)",
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/120.0.0.0 Safari/537.36",
    "Mozilla/5.0+(compatible; UptimeRobot/2.0; http://www.uptimerobot.com/)",
    "Pingdom.com_bot_version_1.4_(http://www.pingdom.com/)",
    "curl/8.5.0",
    "Wget/1.21.4",
    "python-requests/2.31.0",
    "Go-http-client/2.0",
    "Java/17.0.9",
    "okhttp/4.12.0",
    "Apache-HttpClient/4.5.14 (Java/17.0.9)",
    "Scrapy/2.11.0 (+https://scrapy.org)",
]

#: Of browsers, on computers, phones, tablets, a console and a television, and inside apps.
BROWSERS = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 "
    "Safari/537.36",
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36",
    "Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Windows NT 6.1; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/109.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "CriOS/131.0.6778.73 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (iPad; CPU OS 17_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/131.0.6778.73 "
    "Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:132.0) Gecko/20100101 Firefox/132.0",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 14.7; rv:132.0) Gecko/20100101 Firefox/132.0",
    "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Mozilla/5.0 (Android 14; Mobile; rv:132.0) Gecko/132.0 Firefox/132.0",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) FxiOS/132.0 "
    "Mobile/15E148 Safari/605.1.15",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 "
    "Safari/605.1.15",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_6_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.6 "
    "Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 15_8_3 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/15.6.6 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (iPad; CPU OS 17_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.6 "
    "Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36 "
    "Edg/131.0.0.0",
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Mobile "
    "Safari/537.36 EdgA/130.0.0.0",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_7_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.0 "
    "EdgiOS/130.2849.80 Mobile/15E148 Safari/605.1.15",
    "Mozilla/5.0 (Windows NT 10.0; WOW64; Trident/7.0; rv:11.0) like Gecko",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36 "
    "OPR/115.0.0.0",
    "Mozilla/5.0 (Linux; Android 14; SM-S921B) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.6723.103 Mobile "
    "Safari/537.36 OPR/85.0.0.0",
    "Opera/9.80 (Android; Opera Mini/36.2.2254/119.132; U; id) Presto/2.12.423 Version/12.16",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36 "
    "Vivaldi/7.0.3495.6",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/128.0.0.0 "
    "YaBrowser/24.10.0.0 Safari/537.36",
    "Mozilla/5.0 (Linux; Android 14; SAMSUNG SM-S918B) AppleWebKit/537.36 (KHTML, like Gecko) "
    "SamsungBrowser/26.0 Chrome/122.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (Linux; U; Android 13; en-US; RMX3261 Build/SP1A.210812.016) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Version/4.0 Chrome/100.0.4896.58 UCBrowser/13.6.2.1316 Mobile Safari/537.36",
    "Mozilla/5.0 (Linux; U; Android 12; zh-cn; M2012K11AC Build/SKQ1.211006.001) AppleWebKit/537.36 (KHTML, like "
    "Gecko) Version/4.0 Chrome/100.0.4896.127 Mobile Safari/537.36 XiaoMi/MiuiBrowser/17.1.0",
    "Mozilla/5.0 (Linux; Android 14; Pixel 8 Build/UQ1A.240205.004; wv) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Version/4.0 Chrome/121.0.6167.178 Mobile Safari/537.36 [FB_IAB/FB4A;FBAV/450.0.0.41.109;]",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148 "
    "[FBAN/FBIOS;FBAV/470.1.0.38.109;FBBV/620460190;FBDV/iPhone14,5;FBMD/iPhone;FBSN/iOS;FBSV/17.5;FBSS/3]",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/21F79 "
    "Instagram 339.0.3.30.105 (iPhone14,5; iOS 17_5; en_US; en; scale=3.00; 1170x2532; 620460190)",
    "Mozilla/5.0 (Linux; Android 13; SM-A536B Build/TP1A.220624.014; wv) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Version/4.0 Chrome/121.0.6167.178 Mobile Safari/537.36 Instagram 320.0.0.42.101 Android",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148 "
    "MicroMessenger/8.0.49(0x18003137) NetType/WIFI Language/en",
    "Mozilla/5.0 (Linux; Android 9; KFMAWI) AppleWebKit/537.36 (KHTML, like Gecko) Silk/128.5.2 like "
    "Chrome/128.0.6613.187 Safari/537.36",
    "Mozilla/5.0 (SMART-TV; LINUX; Tizen 6.5) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/4.0 "
    "Chrome/85.0.4183.93 TV Safari/537.36",
    "Mozilla/5.0 (PlayStation; PlayStation 5/6.50) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/15.4 "
    "Safari/605.1.15",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 "
    "Mobile/15E148 DuckDuckGo/7 Safari/605.1.15",
]

HTML = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
DEST, MODE = "Sec-Fetch-Dest", "Sec-Fetch-Mode"

#: Navigations, as browsers and a service worker send them, over https and http.
NAVIGATIONS = [
    {DEST: "document", MODE: "navigate", "Sec-Fetch-User": "?1", "Accept": HTML},
    {DEST: "empty", MODE: "navigate", "Accept": HTML},
    {DEST: "empty", MODE: "same-origin", "Accept": HTML},
    {MODE: "navigate"},
    {DEST: "document"},
    {"Accept": HTML},
    {"Accept": "TEXT/HTML, */*"},
    {"Accept": "text/*;q=0.5"},
    {"Accept": ""},
]

#: Parts of other pages.
EMBEDDED = [
    *({DEST: dest, MODE: "no-cors", "Accept": "*/*"} for dest in ("image", "script", "style", "audio", "font")),
    *({DEST: dest, MODE: "navigate", "Accept": HTML} for dest in ("iframe", "frame", "object", "embed", "fencedframe")),
    *({DEST: "empty", MODE: mode, "Accept": HTML} for mode in ("cors", "no-cors")),
    {DEST: "empty", MODE: "same-origin", "Accept": "*/*"},
    {DEST: "empty", MODE: "navigate"},  # a download
    {DEST: "document", MODE: "cors"},
    {MODE: "no-cors"},
    {"Accept": "*/*"},
    {"Accept": "image/avif,image/webp,*/*;q=0.8"},
    {"Accept": "text/css,*/*;q=0.1"},
    {"Accept": "application/json"},
]

#: Programs of Microsoft Office, which follow a link before they let the browser open the last page.
OFFICE = [
    "Mozilla/4.0 (compatible; ms-office; MSOffice 16)",
    "Mozilla/4.0 (compatible; MSIE 7.0; Windows NT 10.0; Win64; x64; .NET4.0C; ms-office; MSOffice 16)",
    "Microsoft Office/16.0 (Windows NT 10.0; Microsoft Word 16.0.17328; Pro)",
    "Microsoft Office Existence Discovery",
]

PREFETCH_HEADERS = ["Sec-Purpose", "Purpose", "X-Purpose", "X-Sec-Purpose", "X-Moz"]
PREFETCH_VALUES = ["prefetch", "prerender", "preview", "prefetch;prerender", "Prefetch; anonymous-client-ip"]


@pytest.fixture
def database_url(shared_sqlite_url: str) -> str:
    """A visit is recognised in the same way on every database."""
    return shared_sqlite_url


@pytest.fixture
def code(host: Host) -> str:
    """The code of a link to /welcome."""
    with host.app.app_context():
        return Referral.create("/welcome").code


def counted(host: Host) -> int:
    """Return how many clicks on the link count."""
    with host.app.app_context():
        return host.db.session.scalars(sa.select(Referral)).one().response_count


def reasons(host: Host) -> list[str | None]:
    """Return why each stored click does not count."""
    with host.app.app_context():
        return [response.ignored for response in host.responses()]


def test_there_are_forty_of_each() -> None:
    assert len(set(PROGRAMS)) >= 40
    assert len(set(BROWSERS)) >= 40


def test_no_crawler_or_previewer_is_counted(host: Host, code: str) -> None:
    for agent in PROGRAMS:
        answer = host.client().get(f"/referrals/{code}", headers={"User-Agent": agent})
        assert (answer.status_code, answer.headers["Location"]) == (302, "/welcome"), agent
        assert "Set-Cookie" not in answer.headers, agent
    assert (counted(host), reasons(host)) == (0, ["bot"] * len(PROGRAMS))


def test_every_browser_is_counted(host: Host, code: str) -> None:
    for agent in BROWSERS:
        answer = host.client().get(f"/referrals/{code}", headers={"User-Agent": agent})
        assert (answer.status_code, answer.headers["Location"]) == (302, "/welcome"), agent
        assert "Set-Cookie" in answer.headers, agent
    assert (counted(host), reasons(host)) == (len(BROWSERS), [None] * len(BROWSERS))


def test_no_more_of_an_agent_is_read_than_browsers_need(host: Host, code: str) -> None:
    for spaces in (200, 2**20):
        agent = f"{BROWSER}{' ' * spaces}Googlebot/2.1"
        host.client().get(f"/referrals/{code}", headers={"User-Agent": agent})
    assert reasons(host) == ["bot", None]


def test_other_method_than_get_asks_nothing_of_the_database(host: Host, client: FlaskClient, code: str) -> None:
    with host.app.app_context(), statements(host.db) as sent:
        for method in ("OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"):
            for path in (f"/referrals/{code}", f"/referrals/{code}/"):
                answer = client.open(path, method=method)
                assert answer.status_code == (200 if method == "OPTIONS" else 405), method
                assert "Set-Cookie" not in answer.headers, method
    assert sent == []
    assert (counted(host), reasons(host)) == (0, [])


def test_head_request_leaves_no_cookie(host: Host, client: FlaskClient, code: str) -> None:
    answer = client.head(f"/referrals/{code}")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/welcome")
    assert "Set-Cookie" not in answer.headers
    assert (counted(host), reasons(host)) == (0, ["head"])


def test_every_navigation_is_counted(host: Host, code: str) -> None:
    for headers in NAVIGATIONS:
        host.client().get(f"/referrals/{code}", headers=headers)
    assert reasons(host) == [None] * len(NAVIGATIONS)


def test_no_part_of_another_page_is_counted(host: Host, code: str) -> None:
    for headers in EMBEDDED:
        answer = host.client().get(f"/referrals/{code}", headers=headers)
        assert (answer.status_code, "Set-Cookie" in answer.headers) == (302, False)
    assert reasons(host) == ["embedded"] * len(EMBEDDED)


@pytest.mark.parametrize("agent", OFFICE)
def test_office_gets_a_page_so_that_the_browser_opens_the_link(host: Host, code: str, agent: str) -> None:
    for method in ("HEAD", "GET"):
        answer = host.client().open(f"/referrals/{code}", method=method, headers={"User-Agent": agent})
        assert (answer.status_code, "Location" in answer.headers, "Set-Cookie" in answer.headers) == (200, False, False)
    assert '<meta http-equiv="refresh" content="0; url=/welcome">' in answer.text
    assert counted(host) == 0
    assert host.client().get(f"/referrals/{code}").location == "/welcome"
    assert counted(host) == 1


@pytest.mark.parametrize("header", PREFETCH_HEADERS)
def test_prefetch_under_each_name_leaves_the_count_to_the_click(
    host: Host, client: FlaskClient, code: str, header: str
) -> None:
    for value in PREFETCH_VALUES:
        with host.app.app_context(), statements(host.db) as sent:
            answer = client.get(f"/referrals/{code}", headers={header: value})
        assert (answer.status_code, answer.headers["Cache-Control"]) == (503, "no-store"), value
        assert "Set-Cookie" not in answer.headers, value
        assert sent == [], value
    assert counted(host) == 0
    assert client.get(f"/referrals/{code}").status_code == 302
    assert (counted(host), reasons(host)) == (1, [None])


@pytest.mark.parametrize("code", ["unknown", "x" * 64, "no.code", "%00"])
def test_unknown_code_leaves_no_cookie(host: Host, client: FlaskClient, code: str) -> None:
    answer = client.get(f"/referrals/{code}")
    assert answer.status_code == 404
    assert "Set-Cookie" not in answer.headers


def test_fifty_refreshes_are_one_click(host: Host, client: FlaskClient, code: str) -> None:
    for _ in range(51):
        assert client.get(f"/referrals/{code}").status_code == 302
    assert (counted(host), reasons(host)) == (1, [None] + ["repeat"] * 50)


def test_crawler_gets_no_cookie_and_is_kept_out_of_the_counts(host: Host) -> None:
    with host.app.app_context():
        code = Referral.create("/").code
    crawler, browser = host.client(), host.client()
    for client, agent in ((crawler, "WhatsApp/2.23.20.0 A"), (browser, BROWSER)):
        assert client.get(f"/referrals/{code}", headers={"User-Agent": agent}).status_code == 302
    assert crawler.get_cookie("session") is None
    assert browser.get_cookie("session") is not None
    with host.app.app_context():
        assert [response.ignored for response in host.responses()] == ["bot", None]
        assert host.responses()[0].referral.response_count == 1


def test_flasks_test_client_is_a_person(host: Host) -> None:
    with FlaskClient(host.app, Response) as client:
        client.get("/")
        agent = request.user_agent.string
    assert agent.startswith("Werkzeug/")
    assert not is_bot(agent)
