"""Which targets a link may lead to, judged by the header that is sent and a browser's own parser."""

import json
import re
import threading
from collections.abc import Iterator
from email.message import Message
from html.parser import HTMLParser
from http.client import HTTPConnection
from typing import Any
from typing import NamedTuple
from urllib.parse import quote
from urllib.parse import urlencode

import pytest
from ada_url import URL
from flask import redirect
from flask import request
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from sqlalchemy import event
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.serving import WSGIRequestHandler
from werkzeug.serving import make_server
from werkzeug.test import create_environ
from werkzeug.urls import iri_to_uri

from flask_referrals import Referral
from flask_referrals.redirects import parse_host_pattern
from flask_referrals.redirects import safe_location
from flask_referrals.urls import target_location
from tests.host import BROWSER
from tests.host import Host
from tests.host import make_host

OWN_HOST = "site.example"
LISTED = [
    "shop.example",
    ".tea.example",
    "*.cups.example",
    "alt.example:8443",
    "[2001:db8::1]",
    "192.0.2.7",
    "xn--bcher-kva.example",
]
HOSTS = [OWN_HOST, *LISTED]
#: The same list once more, as origins in the form that a browser gives them.
ALLOWED_ORIGIN = re.compile(
    r"https?://(site\.example|shop\.example|([a-z0-9_-]+\.)*tea\.example|([a-z0-9_-]+\.)+cups\.example"
    r"|\[2001:db8::1\]|192\.0\.2\.7|xn--bcher-kva\.example)|https?://alt\.example:8443"
)

LONG_LABEL = "a" * 63
LONG_HOST = ".".join([LONG_LABEL] * 3 + ["b" * 49, "tea.example"])  # 253 characters
GOOD = {
    # paths of this site
    "/": "/",
    "/a": "/a",
    "/a/b/": "/a/b/",
    "/a//b": "/a//b",
    "/a///evil.example": "/a///evil.example",
    "/?a=1&b=2": "/?a=1&b=2",
    "/?next=https://evil.example/": "/?next=https://evil.example/",
    "/?u=//evil.example": "/?u=//evil.example",
    "/#top": "/#top",
    "/a?b#c?d": "/a?b#c?d",
    "/search?q=red shoes": "/search?q=red%20shoes",
    "/search?q=red+shoes": "/search?q=red+shoes",
    "/red shoes": "/red%20shoes",
    "/red%20shoes": "/red%20shoes",
    "/red  shoes": "/red%20%20shoes",
    "/caf\u00e9": "/caf%C3%A9",
    "/caf%C3%A9": "/caf%C3%A9",
    "/caf%c3%a9": "/caf%c3%a9",
    "/\u8336?\u00e4=\u00f6#\u00fc": "/%E8%8C%B6?%C3%A4=%C3%B6#%C3%BC",
    "/\U0001f375": "/%F0%9F%8D%B5",
    "/cafe\u0301": "/cafe%CC%81",
    "/\u2215evil.example": "/%E2%88%95evil.example",
    "/\uff0fevil.example": "/%EF%BC%8Fevil.example",
    "/@evil.example": "/@evil.example",
    "/user@evil.example": "/user@evil.example",
    "/a:b": "/a:b",
    "/:80": "/:80",
    "/https://evil.example/": "/https://evil.example/",
    "/.": "/.",
    "/..": "/..",
    "/../a": "/../a",
    "/./a": "/./a",
    "/%2e%2e/a": "/%2e%2e/a",
    "/%2Fevil.example": "/%2Fevil.example",
    "/%2f%2fevil.example": "/%2f%2fevil.example",
    "/%5Cevil.example": "/%5Cevil.example",
    "/%09/evil.example": "/%09/evil.example",
    "/a%0d%0aSet-Cookie:%20x=1": "/a%0d%0aSet-Cookie:%20x=1",
    "/a%00b": "/a%00b",
    "/100%": "/100%",
    "/%zz": "/%zz",
    "/%": "/%",
    "/a%2": "/a%2",
    "/[a]": "/%5Ba%5D",
    "/?a[]=1": "/?a%5B%5D=1",
    "/a|b": "/a%7Cb",
    "/a'b": "/a'b",
    '/a"b': "/a%22b",
    "/<script>": "/%3Cscript%3E",
    "/{a}": "/%7Ba%7D",
    "/^`": "/%5E%60",
    "/a;b,c!d$e*f(g)~h=i": "/a;b,c!d$e*f(g)~h=i",
    "/javascript:alert(1)": "/javascript:alert(1)",
    "/data:text/html,x": "/data:text/html,x",
    "/shop.example": "/shop.example",
    "/a.b:443/c": "/a.b:443/c",
    "/~olga": "/~olga",
    "/-": "/-",
    "/_": "/_",
    "/+": "/+",
    "/;": "/;",
    "/&": "/&",
    "/=": "/=",
    "/,": "/,",
    "/*": "/*",
    "/#": "/",
    "/?": "/",
    "/a?#": "/a",
    "/#a#b": "/#a#b",
    "/#//evil.example": "/#//evil.example",
    "/#<b>": "/#%3Cb%3E",
    "/?//evil.example": "/?//evil.example",
    "/?/a//b": "/?/a//b",
    "/?a=b?c=d": "/?a=b?c=d",
    "/?a@b:c": "/?a@b:c",
    "/?next=https%3A%2F%2Fevil.example": "/?next=https%3A%2F%2Fevil.example",
    "/?next=%5C%5Cevil.example": "/?next=%5C%5Cevil.example",
    "/?q=50%": "/?q=50%",
    "/?q=tea&amp;cake": "/?q=tea&amp;cake",
    "/?q=\u8336 \u676f": "/?q=%E8%8C%B6%20%E6%9D%AF",
    "/?q=a\u0301": "/?q=a%CC%81",
    "/?q='a'&r=\"b\"": "/?q='a'&r=%22b%22",
    "/?q={{7*7}}": "/?q=%7B%7B7*7%7D%7D",
    "/?q=</a><script>alert(1)</script>": "/?q=%3C/a%3E%3Cscript%3Ealert(1)%3C/script%3E",
    "/a' onclick='alert(1)": "/a'%20onclick='alert(1)",
    "/\u043f\u0443\u0442\u044c/": "/%D0%BF%D1%83%D1%82%D1%8C/",
    "/\u05e9\u05dc\u05d5\u05dd": "/%D7%A9%D7%9C%D7%95%D7%9D",
    "/\u00df\u0130\u017f": "/%C3%9F%C4%B0%C5%BF",
    "/\ufffd": "/%EF%BF%BD",
    "/\u0661": "/%D9%A1",
    "/\u2044evil.example": "/%E2%81%84evil.example",
    "/\u29f8evil.example": "/%E2%A7%B8evil.example",
    "/\uff3cevil.example": "/%EF%BC%BCevil.example",
    "/\ufe68evil.example": "/%EF%B9%A8evil.example",
    "/\uff20evil.example": "/%EF%BC%A0evil.example",
    "/\u3002evil.example": "/%E3%80%82evil.example",
    "/.//evil.example": "/.//evil.example",
    "/..//evil.example": "/..//evil.example",
    "/a/..//evil.example": "/a/..//evil.example",
    "/%2e//evil.example": "/%2e//evil.example",
    "/;//evil.example": "/;//evil.example",
    "/ /evil.example": "/%20/evil.example",
    "/%20/evil.example": "/%20/evil.example",
    "/%0a/evil.example": "/%0a/evil.example",
    "/%252f%252fevil.example": "/%252f%252fevil.example",
    "/%u002fevil.example": "/%u002fevil.example",
    "/%c0%af%c0%afevil.example": "/%c0%af%c0%afevil.example",
    "/%ff": "/%ff",
    "/" + "a" * 2047: "/" + "a" * 2047,
    "/?" + "/" * 2046: "/?" + "/" * 2046,
    "/" + "\u00e9" * 2047: "/" + "%C3%A9" * 2047,
    # this site, by its name
    "http://site.example": "http://site.example",
    "http://site.example/a?b#c": "http://site.example/a?b#c",
    "http://site.example:80/": "http://site.example:80/",
    "https://site.example/a": "https://site.example/a",
    "https://site.example:443/a": "https://site.example:443/a",
    "HTTP://SITE.example/A": "http://site.example/A",
    "http://site.example:080/": "http://site.example:80/",
    "http://site.example//evil.example": "http://site.example//evil.example",
    "https://site.example#@evil.example": "https://site.example#@evil.example",
    "https://site.example?": "https://site.example",
    # hosts in the list
    "https://shop.example": "https://shop.example",
    "https://shop.example/": "https://shop.example/",
    "http://shop.example/": "http://shop.example/",
    "https://shop.example?a=1": "https://shop.example?a=1",
    "https://shop.example#a": "https://shop.example#a",
    "https://Shop.Example/A": "https://shop.example/A",
    "https://shop.example//evil.example": "https://shop.example//evil.example",
    "https://shop.example/@evil.example": "https://shop.example/@evil.example",
    "https://shop.example?@evil.example": "https://shop.example?@evil.example",
    "https://shop.example#@evil.example": "https://shop.example#@evil.example",
    "https://shop.example/red shoes": "https://shop.example/red%20shoes",
    "https://shop.example/caf\u00e9?\u00e9": "https://shop.example/caf%C3%A9?%C3%A9",
    "https://shop.example:443/": "https://shop.example:443/",
    "http://shop.example:80/": "http://shop.example:80/",
    "https://shop.example:0443/": "https://shop.example:443/",
    "hTTpS://sHOP.eXAMPLE/a": "https://shop.example/a",
    "https://shop.example?q=red shoes": "https://shop.example?q=red%20shoes",
    "https://shop.example#red shoes": "https://shop.example#red%20shoes",
    "https://shop.example/#\u00fc": "https://shop.example/#%C3%BC",
    "https://shop.example/?next=https://evil.example": "https://shop.example/?next=https://evil.example",
    "https://shop.example/https://evil.example": "https://shop.example/https://evil.example",
    "https://shop.example/..//evil.example": "https://shop.example/..//evil.example",
    "https://shop.example/:80@evil.example": "https://shop.example/:80@evil.example",
    "https://shop.example/%2f%2fevil.example": "https://shop.example/%2f%2fevil.example",
    "https://shop.example/%5cevil.example": "https://shop.example/%5cevil.example",
    "https://shop.example/%0d%0aa:b": "https://shop.example/%0d%0aa:b",
    "https://shop.example:443": "https://shop.example:443",
    "https://shop.example:443?:80@evil.example": "https://shop.example:443?:80@evil.example",
    "https://shop.example:443#:80@evil.example": "https://shop.example:443#:80@evil.example",
    "https://alt.example:8443/": "https://alt.example:8443/",
    "http://alt.example:8443/": "http://alt.example:8443/",
    "https://[2001:db8::1]/": "https://[2001:db8::1]/",
    "https://[2001:DB8::1]/": "https://[2001:db8::1]/",
    "https://[2001:db8::1]:443/": "https://[2001:db8::1]:443/",
    "http://[2001:db8::1]?a#b": "http://[2001:db8::1]?a#b",
    "https://192.0.2.7/": "https://192.0.2.7/",
    "http://192.0.2.7:80/a": "http://192.0.2.7:80/a",
    "https://xn--bcher-kva.example/": "https://xn--bcher-kva.example/",
    "HTTPS://XN--BCHER-KVA.EXAMPLE/": "https://xn--bcher-kva.example/",
    "https://alt.example:08443/": "https://alt.example:8443/",
    "https://ALT.example:8443?a": "https://alt.example:8443?a",
}
#: By ``.tea.example`` and ``*.cups.example``.
GOOD_SUBDOMAINS = {
    "https://tea.example": "https://tea.example",
    "https://tea.example/": "https://tea.example/",
    "http://tea.example:80/": "http://tea.example:80/",
    "https://Tea.Example:443/": "https://tea.example:443/",
    "https://green.tea.example/": "https://green.tea.example/",
    "http://green.tea.example": "http://green.tea.example",
    "https://GREEN.tea.EXAMPLE/A": "https://green.tea.example/A",
    "https://green.tea.example:443/": "https://green.tea.example:443/",
    "https://green.tea.example?evil.example": "https://green.tea.example?evil.example",
    "https://green.tea.example#evil.example": "https://green.tea.example#evil.example",
    "https://green.tea.example/@evil.example": "https://green.tea.example/@evil.example",
    "https://green.tea.example//evil.example": "https://green.tea.example//evil.example",
    "https://a.b.c.tea.example/": "https://a.b.c.tea.example/",
    "https://tea.example.tea.example/": "https://tea.example.tea.example/",
    "https://evil.example.tea.example/": "https://evil.example.tea.example/",
    "https://cups.example.tea.example/": "https://cups.example.tea.example/",
    "https://127.0.0.1.tea.example/": "https://127.0.0.1.tea.example/",
    "https://0x7f.tea.example/": "https://0x7f.tea.example/",
    "https://1.tea.example/": "https://1.tea.example/",
    "https://a-b.tea.example/": "https://a-b.tea.example/",
    "https://a--b.tea.example/": "https://a--b.tea.example/",
    "https://a_b.tea.example/": "https://a_b.tea.example/",
    "https://_.tea.example/": "https://_.tea.example/",
    "https://xn--caf-dma.tea.example/": "https://xn--caf-dma.tea.example/",
    "https://XN--caf-DMA.tea.example/": "https://xn--caf-dma.tea.example/",
    f"https://{LONG_LABEL}.tea.example/": f"https://{LONG_LABEL}.tea.example/",
    f"https://{LONG_HOST}/": f"https://{LONG_HOST}/",
    f"https://{'a.' * 121}tea.example/": f"https://{'a.' * 121}tea.example/",  # 253 characters
    "https://blue.cups.example/": "https://blue.cups.example/",
    "http://blue.cups.example/": "http://blue.cups.example/",
    "https://Blue.Cups.Example/": "https://blue.cups.example/",
    "https://a.b.cups.example/": "https://a.b.cups.example/",
    "https://cups.example.cups.example/": "https://cups.example.cups.example/",
    "https://tea.example.cups.example/": "https://tea.example.cups.example/",
    "https://xn--ls8h.cups.example/": "https://xn--ls8h.cups.example/",
    "https://blue.cups.example/caf\u00e9 noir": "https://blue.cups.example/caf%C3%A9%20noir",
}
BAD = [
    # nothing, or blank
    "",
    " ",
    "  ",
    "\t",
    "\n",
    # leading slashes and backslashes
    "//",
    "///",
    "////",
    "//evil.example",
    "//evil.example/",
    "///evil.example",
    "////evil.example",
    "/////evil.example",
    "//shop.example/",
    "///shop.example/",
    "//user@evil.example",
    "//evil.example:80/",
    "//[::1]/",
    "//localhost",
    "//site.example/",
    "//.",
    "//..",
    "//?a",
    "//#a",
    "//@",
    "//:80",
    "//%2fevil.example",
    "//https://shop.example/",
    "//\uff0fevil.example",
    "//evil.example\\@shop.example",
    "\\",
    "\\\\evil.example",
    "\\/evil.example",
    "/\\evil.example",
    "/\\/evil.example",
    "\\\\\\evil.example",
    "/\\",
    "//\\evil.example",
    "/\\\\evil.example",
    "\\/\\/evil.example",
    "\\a",
    "\\t/evil.example",
    "/a/..\\\\evil.example",
    "/#\\",
    "/?\\\\evil.example",
    "/%2f\\evil.example",
    "https:\\\\shop.example/",
    "https://\\shop.example/",
    "https:///\\evil.example",
    "/a\\b",
    "/a?b\\c",
    "https:\\\\evil.example",
    "https:/\\evil.example",
    "https:\\/shop.example",
    "https://evil.example\\@shop.example/",
    "https://shop.example\\evil",
    "https://shop.example/\\evil",
    # controls, and white space other than the space
    "/\t/evil.example",
    "/\t\t/evil.example",
    "\t//evil.example",
    "\t/a",
    "/a\t",
    "/\n/evil.example",
    "/\r/evil.example",
    "/\r\n/evil.example",
    "/a\r\nSet-Cookie: x=1",
    "/a\nb",
    "/a\0",
    "\0/a",
    "/\x0b/evil.example",
    "/\x0c/evil.example",
    "/\x1f/evil.example",
    "\x01//evil.example",
    "/a\x7f",
    "/a\x85b",
    "/a\xa0b",
    "/a\u2028b",
    "/a\u2029b",
    "/a\u3000b",
    "ht\ttps://evil.example",
    "https\t://shop.example",
    "https:\t//shop.example",
    "https://shop\t.example/",
    "https://sh\nop.example/",
    "https://shop.example\t/",
    "https://shop.example/\t",
    "java\tscript:alert(1)",
    "\x01javascript:alert(1)",
    "\r\n/a",
    "/a\r\n\r\n<script>alert(1)</script>",
    "/\t\n\r/evil.example",
    "/\x1b[2J",
    "/\x80",
    "/\x9f/evil.example",
    "/\x85/evil.example",
    "/\xa0/evil.example",
    "/\u1680",
    "/\u2003a",
    "/\u202f",
    "/\u205f/evil.example",
    "/a\u3000",
    "ht\ntp://shop.example/",
    "https:/\t/evil.example/",
    "https://\tshop.example/",
    "https://\r\nshop.example/",
    "https://shop.example:4\t43/",
    "https://shop.example:443\n/",
    "https://shop.example\0.evil.example/",
    "https://shop.example/\r\nLocation: https://evil.example/",
    "https://shop.example/?a\x7f",
    "https://shop.example/#\u2028",
    # blanks around
    " /a",
    "/a ",
    " //evil.example",
    " https://shop.example/",
    "https://shop.example/ ",
    # format characters
    "/a\u200bb",
    "/a\u200d",
    "/\u202egnp",
    "/\u2066a",
    "/\xada",
    "\ufeff/a",
    "/\ufeff/evil.example",
    "/a\U000e0001",
    "https://shop\u200b.example/",
    "https://shop\xad.example/",
    "/\u180e",
    "/\u200e",
    "/\u2060/evil.example",
    "/\ufff9",
    "/\U000e0061",
    "/\ue000",  # private use
    "/\uffff",  # no character
    "\u200b//evil.example",
    "https://\u2060shop.example/",
    "https://shop.example/\u202egnp.exe",
    # relative to the page
    "a",
    "a/b",
    ".",
    "..",
    "./a",
    "../a",
    "?a=1",
    "#a",
    "shop.example",
    "shop.example/a",
    "www.shop.example",
    "site.example:80",
    "@evil.example",
    "%2F%2Fevil.example",
    "%2fa",
    "%252fa",
    "%20/a",
    "%09//evil.example",
    "&#47;&#47;evil.example",
    "\uff0f\uff0fevil.example",
    "\u2215a",
    "*",
    "~",
    "-",
    "&a",
    ";a",
    "./",
    "../../a",
    "a//b",
    "a:b",
    "index.html",
    "localhost",
    "127.0.0.1",
    "[::1]",
    "a@shop.example",
    "shop.example:443/a",
    ":443/a",
    "caf\u00e9",
    # other schemes
    "javascript:alert(1)",
    "JavaScript:alert(1)",
    "javascript://shop.example/%0aalert(1)",
    "javascript:/a",
    "data:text/html,<script>alert(1)</script>",
    "vbscript:x",
    "mailto:a@shop.example",
    "file:///etc/passwd",
    "ftp://shop.example/",
    "ws://shop.example/",
    "wss://shop.example/",
    "blob:https://shop.example/1",
    "view-source:https://shop.example/",
    "about:blank",
    "javascript:%0aalert(1)",
    "javascript:https://shop.example/",
    "javascript:alert(1)//https://shop.example/",
    "JAVASCRIPT:/a",
    "java%73cript:alert(1)",
    "javascript&colon;alert(1)",
    "&#106;avascript:alert(1)",
    "data:,a",
    "data:text/html;base64,PHNjcmlwdD4=",
    "DATA:text/html,a",
    "data://shop.example/,a",
    "livescript:x",
    "feed:https://shop.example/",
    "jar:https://shop.example!/a",
    "filesystem:https://shop.example/a",
    "intent://shop.example/#Intent;scheme=https;end",
    "chrome://settings",
    "tel:+1",
    "urn:a",
    "ssh://shop.example/",
    "gopher://shop.example/",
    "url:https://shop.example/",
    "h://shop.example/",
    "http2://shop.example/",
    "1https://shop.example/",
    "https.://shop.example/",
    "http-s://shop.example/",
    "http%73://shop.example/",
    "https%3A%2F%2Fshop.example%2F",
    "https%3a//shop.example/",
    "https;//shop.example/",
    "https//shop.example/",
    "https ://shop.example/",
    "https: //shop.example/",
    "https:// shop.example/",
    "httpss://shop.example/",
    "xhttps://shop.example/",
    "https+x://shop.example/",
    # a scheme without its two slashes, or with more
    "https:",
    "https:/",
    "https://",
    "https:///",
    "https:evil.example",
    "https:shop.example",
    "https:/evil.example",
    "https:/shop.example",
    "https:///evil.example",
    "https:///shop.example",
    "https:////shop.example",
    "https:/a",
    "http:a",
    "http:",
    "http:/",
    "http://",
    "http:////evil.example",
    "https:?a",
    "https:#a",
    "https:@shop.example/",
    "https://?a",
    "https://#a",
    "https:///a",
    "https://:443/",
    "https:https://shop.example/",
    "https://https://shop.example/",
    "http:https://shop.example/",
    "https:\uff0f\uff0fshop.example/",
    "https:\u2215\u2215shop.example/",
    "https:/.//shop.example/",
    "://shop.example/",
    ":",
    ":80",
    # another host
    "https://evil.example",
    "https://evil.example/",
    "http://evil.example/",
    "https://evil.example?shop.example",
    "https://evil.example#shop.example",
    "https://evil.example/shop.example",
    "https://shop.example.evil.example/",
    "https://evilshop.example/",
    "https://shop/",
    "https://shop-example/",
    "https://shopxexample/",
    "https://shop,example/",
    "https://shop.example,evil.example/",
    "https://shop.example;evil.example/",
    "https://shop.example&evil.example/",
    "https://shop.example'evil.example/",
    "https://192.0.2.8/",
    "https://3221225991/",
    "https://0xc0000207/",
    "https://192.0.519/",
    "https://0300.0.2.7/",
    "https://127.0.0.1/",
    "https://localhost/",
    "https://site/",
    "https://0/",
    "https://192.0.2.263/",
    "https://192.0.2.07/",
    "https://192.0.2.7.evil.example/",
    "https://0xc0.0.2.7/",
    "https://3221225991.example/",
    "https://shop.exampl/",
    "https://shop.examplee/",
    "https://shop.example.com/",
    "https://shop_example/",
    "https://evil.example/https://shop.example/",
    "https://evil.example/?https://shop.example/",
    "https://evil.example/\u2025/shop.example",
    "https://shop.example!.evil.example/",
    "https://shop.example$.evil.example/",
    "https://shop.example(.evil.example/",
    "https://shop.example=.evil.example/",
    "https://shop.example+.evil.example/",
    "https://shop.example~.evil.example/",
    "https://shop.example|.evil.example/",
    "https://shop.example^.evil.example/",
    "https://shop.example`.evil.example/",
    "https://shop.example{.evil.example/",
    'https://shop.example".evil.example/',
    "https://shop.example<.evil.example/",
    # userinfo
    "https://user@evil.example/",
    "https://shop.example@evil.example/",
    "https://shop.example:443@evil.example/",
    "https://shop.example%40evil.example/",
    "https://user@shop.example/",
    "https://user:pass@shop.example/",
    "https://@shop.example/",
    "https://:@shop.example/",
    "https://evil.example@shop.example/",
    "http://site.example@evil.example/",
    "https://a@b@shop.example/",
    "https://user:pass@shop.example:443/",
    "https://user@[2001:db8::1]/",
    "https://user@192.0.2.7/",
    "https://user%40shop.example/",
    "https://%40shop.example/",
    "https://:pass@shop.example/",
    "https://shop.example:@evil.example/",
    "https://shop.example%2f@evil.example/",
    "https://shop.example&@evil.example/",
    "https://shop.example;@evil.example/",
    "https://shop.example\uff20evil.example/",
    "https://[2001:db8::1]@evil.example/",
    # percent signs, blanks and letters beyond ASCII in the host
    "https://shop%2eexample/",
    "https://%73hop.example/",
    "https://sh op.example/",
    "https://shop.example /",
    "https://b\u00fccher.example/",
    "https://\uff53hop.example/",
    "https://shop\u3002example/",
    "https://shop\uff0eexample/",
    "https://\u017fhop.example/",
    "https\uff1a//shop.example/",
    "\uff48ttps://shop.example/",
    "http\u017f://shop.example/",
    "https://sho\u0440.example/",
    "https://\u24e2hop.example/",
    "https://\U0001d530hop.example/",
    "https://shop\uff61example/",
    "https://shop\u2024example/",
    "https://shop\u00b7example/",
    "https://shop.example\u2215evil.example/",
    "https://shop.example\uff1fevil.example/",
    "https://shop.example\uff03evil.example/",
    "https://shop.example\uff1a443/",
    "https://bu\u0308cher.example/",
    "https://B\u00dcCHER.example/",
    "https://xn--bcher-kva\u3002example/",
    "https://192\u30020\u30022\u30027/",
    "https://\u2460\u2468\u2461.0.2.7/",
    "https://shop.example%/",
    "https://shop.example%zz/",
    "https://shop.example%20/",
    "https://shop.example%0d%0a/",
    # dots and labels
    "https://shop.example./",
    "https://shop.example../",
    "https://.shop.example/",
    "https://./",
    "https://../",
    "https://shop..example/",
    "https://-shop.example/",
    "https://shop.example-/",
    "https://site.example./",
    "https://192.0.2.7./",
    "https://shop.example./@evil.example",
    # ports
    "https://shop.example:/",
    "https://shop.example:0/",
    "https://shop.example:80/",
    "http://shop.example:443/",
    "https://shop.example:8443/",
    "https://shop.example:65535/",
    "https://shop.example:65536/",
    "https://shop.example:65979/",
    "https://shop.example:99999/",
    "https://shop.example:000443/",
    "https://shop.example:4294967739/",
    "https://shop.example:-443/",
    "https://shop.example:+443/",
    "https://shop.example:443a/",
    "https://shop.example:abc/",
    "https://shop.example:44 3/",
    "https://shop.example:\u0664\u0664\u0663/",
    "https://shop.example:443:443/",
    "https://alt.example/",
    "https://alt.example:443/",
    "https://alt.example:8444/",
    "https://alt.example:008443/",
    "http://alt.example/",
    "http://site.example:443/",
    "http://site.example:81/",
    "https://site.example:80/",
    "https://shop.example::443/",
    "https://shop.example:443 /",
    "https://shop.example:443%20/",
    "https://shop.example:443.evil.example/",
    "https://shop.example:4_43/",
    "https://shop.example:0x1bb/",
    "https://shop.example:443.0/",
    "https://shop.example:\uff14\uff14\uff13/",
    "https://shop.example:443@evil.example:443/",
    # brackets
    "https://[::1]/",
    "https://[2001:db8::2]/",
    "https://[2001:db8::1/",
    "https://2001:db8::1]/",
    "https://[2001:db8::1]evil.example/",
    "https://[2001:db8::1].evil.example/",
    "https://evil.example[2001:db8::1]/",
    "https://[2001:db8::1%25eth0]/",
    "https://[2001:db8:0::1]/",
    "https://[shop.example]/",
    "https://[v1.shop]/",
    "https://[]/",
    "https://[/",
    "https://]/",
    "https://[2001:db8::1]:0/",
    "https://[2001:db8::1]:x/",
    "https://[2001:db8::1]:/",
    "https://[2001:db8::1]:8443/",
    "https://[2001:db8::1]443/",
    "https://[2001:db8::1]]/",
    "https://[[2001:db8::1]]/",
    "https://[2001:db8::1%eth0]/",
    "https://[2001:db8:0:0:0:0:0:1]/",
    "https://[2001:db8::0001]/",
    "https://[::ffff:192.0.2.7]/",
    "https://2001:db8::1/",
    "https://%5B2001:db8::1%5D/",
    "https://\uff3b2001:db8::1\uff3d/",
    "https://shop.example]/",
    "https://[shop.example/",
    "https://shop.example[/",
    "https://sh[op].example/",
    # too long
    "/" + "a" * 2048,
    "https://shop.example/" + "a" * 2048,
    "https://shop.example/?" + "/" * 2048,
    "/" + "\u00e9" * 2048,
    "/" * 2048,
    "https://" + "a." * 1015 + "tea.example/",
]
#: By ``.tea.example`` and ``*.cups.example``.
BAD_SUBDOMAINS = [
    # not below them
    "https://cups.example/",
    "https://cups.example:443/",
    "https://Cups.Example/",
    "https://eviltea.example/",
    "https://evil-tea.example/",
    "https://evil_tea.example/",
    "https://evilcups.example/",
    "https://tea.example.evil.example/",
    "https://green.tea.example.evil.example/",
    "https://blue.cups.example.evil.example/",
    "https://green.tea-example/",
    "https://green.teaxexample/",
    "https://green.tea.examples/",
    "https://green.tea.exampl/",
    "https://green.tea/",
    "https://example/",
    "https://www.site.example/",
    "https://www.shop.example/",
    "https://www.alt.example:8443/",
    "https://a.192.0.2.7/",
    "https://a.xn--bcher-kva.example/",
    # what ends a host for one reader, and not for another
    "https://evil\\.tea.example/",
    "https://evil.example\\.tea.example/",
    "https://evil.example\\.cups.example/",
    "https://evil.example\\@green.tea.example/",
    "https://evil.example/.tea.example/",
    "https://evil.example/green.tea.example",
    "https://evil.example?.tea.example/",
    "https://evil.example#.tea.example/",
    "https://evil.example#@green.tea.example/",
    "https://evil.example@.tea.example/",
    "https://green.tea.example@evil.example/",
    "https://user@green.tea.example/",
    "https://evil.example:443.tea.example/",
    "https://evil.example:.tea.example/",
    "https://evil.example:443@green.tea.example/",
    "https://evil.example;.tea.example/",
    "https://evil.example,.tea.example/",
    "https://evil.example&.tea.example/",
    "https://evil.example'.cups.example/",
    "https://evil.example!.cups.example/",
    "https://evil.example$.cups.example/",
    "https://evil.example=.cups.example/",
    "https://evil.example~.cups.example/",
    "https://evil.example|.cups.example/",
    "https://evil.example^.cups.example/",
    "https://evil.example<.cups.example/",
    "https://evil.example .cups.example/",
    "https://evil.example\t.cups.example/",
    "https://evil.example\n.cups.example/",
    "https://evil.example\0.cups.example/",
    "https://evil.example%2f.tea.example/",
    "https://evil.example%3f.tea.example/",
    "https://evil.example%23.tea.example/",
    "https://evil.example%40.tea.example/",
    "https://evil.example%3a.tea.example/",
    "https://evil.example%00.tea.example/",
    "https://evil.example%0a.tea.example/",
    "https://evil.example%5c.tea.example/",
    "https://evil.example%20.tea.example/",
    "https://evil%2eexample.tea.example/",
    "https://green%2etea.example/",
    "https://evil.example%252f.tea.example/",
    # letters beyond ASCII, which turn into others
    "https://evil.example\uff0f.tea.example/",
    "https://evil.example\u2044.tea.example/",
    "https://evil.example\u2215.cups.example/",
    "https://evil.example\uff3c.tea.example/",
    "https://evil.example\uff1f.tea.example/",
    "https://evil.example\uff03.tea.example/",
    "https://evil.example\uff20green.tea.example/",
    "https://evil.example\uff1a.tea.example/",
    "https://evil.example\u2100.tea.example/",
    "https://evil.example\u2048.tea.example/",
    "https://green\u3002tea.example/",
    "https://green\uff61tea.example/",
    "https://green\u2024tea.example/",
    "https://green.tea\uff0eexample/",
    "https://caf\u00e9.tea.example/",
    "https://fa\u00df.tea.example/",
    "https://\u0130.tea.example/",
    "https://\u212aetchup.tea.example/",
    "https://gr\u0435en.tea.example/",
    "https://\u2488tea.example/",
    "https://\xad.tea.example/",
    "https://a\u200d.tea.example/",
    "https://\U0001f375.cups.example/",
    # labels
    "https://.tea.example/",
    "https://..tea.example/",
    "https://.cups.example/",
    "https://..cups.example/",
    "https://green..tea.example/",
    "https://a..b.cups.example/",
    "https://green.tea.example./",
    "https://green.tea..example/",
    "https://tea.example./",
    "https://-.tea.example/",
    "https://-green.tea.example/",
    "https://green-.tea.example/",
    "https://a.-b.cups.example/",
    "https://xn--.tea.example/",
    "https://xn--a-.tea.example/",
    "https://*.tea.example/",
    "https://*.cups.example/",
    "https://a.*.cups.example/",
    f"https://{LONG_LABEL}a.tea.example/",
    f"https://{LONG_HOST.replace('bb', 'bbb', 1)}/",
    f"https://{'a.' * 122}tea.example/",
    # ports and brackets
    "https://green.tea.example:80/",
    "http://green.tea.example:443/",
    "https://green.tea.example:8443/",
    "https://green.tea.example:0/",
    "https://green.tea.example:/",
    "https://green.tea.example:65979/",
    "https://blue.cups.example:444/",
    "https://[green.tea.example]/",
    "https://[::1].tea.example/",
    "https://[::1]green.tea.example/",
    "https://[2001:db8::1].cups.example/",
]
TAKEN = GOOD | GOOD_SUBDOMAINS
REFUSED = [*BAD, *BAD_SUBDOMAINS]
#: What a query cannot carry: it is bytes, not text.
SURROGATES = ["/\ud800", "/a\udfffb", "\udc80", "https://shop\ud800.example/", "https://shop.example/\udcff"]


def located(value: object, *, secure: bool = False) -> str | None:
    return safe_location(value, hosts=HOSTS, require_https=secure)


def assert_stays(location: str, *, secure: bool = False) -> None:
    """Assert with the parser of the WHATWG standard that a browser does not leave the allowed hosts."""
    page = f"{'https' if secure else 'http'}://{OWN_HOST}/referrals/code"
    url = URL(location, base=page)
    assert ALLOWED_ORIGIN.fullmatch(url.origin), url.href
    assert not (url.username or url.password), url.href
    assert not secure or url.protocol == "https:", url.href


def test_table_is_long_enough_and_says_nothing_twice() -> None:
    assert len(TAKEN) + len(REFUSED) >= 400
    assert len(TAKEN) == len(GOOD) + len(GOOD_SUBDOMAINS)
    assert len(REFUSED) == len(set(REFUSED)) and not TAKEN.keys() & set(REFUSED)


@pytest.mark.parametrize(("target", "location"), TAKEN.items())
def test_good_target_is_taken(target: str, location: str) -> None:
    assert located(target) == location
    assert_stays(location)


@pytest.mark.parametrize("target", [*REFUSED, *SURROGATES])
def test_bad_target_is_refused(target: str) -> None:
    assert located(target) is None


@pytest.mark.parametrize("target", [None, 1, True, b"/a", ["/a"], {"/a": 1}, object()])
def test_what_is_no_text_is_refused(target: object) -> None:
    assert located(target) is None


@pytest.mark.parametrize(
    "char", "\0\x01\t\n\x0b\x0c\r\x1b\x1f\x7f\x80\x85\xa0\xad\u1680\u200b\u2028\u202e\u2066\u3000\ufeff\ud800\udfff\\"
)
def test_character_is_refused_in_every_position(char: str) -> None:
    for target in ("//evil.example/", "/a/b?c=d#e", "https://shop.example:443/a?b#c", "javascript:alert(1)"):
        for position in range(len(target) + 1):
            assert located(target[:position] + char + target[position:]) is None, position


@pytest.mark.parametrize(
    "target",
    [
        start + run * 1_000_000
        for start in ("", "/", "https://", "https://shop.example/", "https://shop.example:")
        for run in ("/", "@", "\\", "%", ".", ":", "[", "a", "a.", "1", "\u0301", "\ufdfa")
    ],
    ids=lambda target: f"{target[:-1_000_000][:24]}...{target[-1]!a}",
)
def test_huge_target_is_refused(target: str) -> None:
    assert located(target) is None


class TestHttps:
    """A visitor who came by https is never led to http."""

    @pytest.mark.parametrize("target", [target for target in TAKEN if target.lower().startswith("http:")])
    def test_http_target_is_refused(self, target: str) -> None:
        assert located(target, secure=True) is None

    @pytest.mark.parametrize("target", [target for target in TAKEN if not target.lower().startswith("http:")])
    def test_other_target_is_taken(self, target: str) -> None:
        location = located(target, secure=True)
        assert location == TAKEN[target]
        assert_stays(location, secure=True)


class TestHostList:
    """The entries of ``REFERRALS_ALLOWED_REDIRECT_HOSTS``."""

    @pytest.mark.parametrize(
        ("entry", "host", "allowed"),
        [
            ("a.example", "a.example", True),
            ("a.example", "A.EXAMPLE", True),
            ("A.Example", "a.example", True),
            ("a.example", "b.a.example", False),
            ("a.example", "ba.example", False),
            ("a.example", "a.example.b", False),
            ("a.example", "axexample", False),
            (".a.example", "a.example", True),
            (".a.example", "b.a.example", True),
            (".a.example", "c.b.a.example", True),
            (".a.example", "ba.example", False),
            (".a.example", "example", False),
            ("*.a.example", "a.example", False),
            ("*.a.example", "b.a.example", True),
            ("*.a.example", "c.b.a.example", True),
            ("*.a.example", "ba.example", False),
            ("*.a.example", ".a.example", False),
            ("localhost", "localhost", True),
            (".localhost", "a.localhost", True),
            ("a.example", "a.example:443", True),
            ("a.example", "a.example:80", False),
            ("a.example", "a.example:8443", False),
            ("a.example:443", "a.example", True),
            ("a.example:80", "a.example", False),
            ("a.example:8443", "a.example:8443", True),
            ("a.example:8443", "a.example", False),
            (".a.example:8443", "b.a.example:8443", True),
            (".a.example:8443", "b.a.example", False),
            ("*.a.example:8443", "b.a.example:8443", True),
            ("*.a.example:8443", "a.example:8443", False),
            ("[::1]", "[::1]", True),
            ("[::1]", "[::2]", False),
            ("[::1]:8443", "[::1]:8443", True),
            ("[::1]:8443", "[::1]", False),
            ("[2001:DB8::1]", "[2001:db8::1]", True),
            ("127.0.0.1:5000", "127.0.0.1:5000", True),
            (".a.example", "a.example.b", False),
            (".a.example", "b-a.example", False),
            (".a.example", "b_a.example", False),
            (".a.example", ".a.example", False),
            (".a.example", "b..a.example", False),
            (".a.example", "b\\.a.example", False),
            (".a.example", "b%2f.a.example", False),
            (".a.example", "b/.a.example", False),
            (".a.example", "b@.a.example", False),
            (".a.example", "b:443.a.example", False),
            ("*.a.example", "a.example.a.example", True),
            ("*.a.example", "b\\.a.example", False),
            ("*.a.example", "b#.a.example", False),
            ("*.a.example", "b?.a.example", False),
            ("*.a.example", "*.a.example", False),
            ("*.a.example", "b.a.example.", False),
            ("*.A.Example", "b.a.example", True),
            ("*.a.example:443", "b.a.example", True),
            ("*.a.example:8443", "b.a.example", False),
            (".b.example.a", "a.b.example", False),
            ("xn--bcher-kva.example", "XN--bcher-KVA.example", True),
            ("xn--bcher-kva.example", "b\u00fccher.example", False),
        ],
    )
    def test_entry_allows_what_it_says(self, entry: str, host: str, allowed: bool) -> None:
        assert (safe_location(f"https://{host}/", hosts=[entry]) is not None) == allowed

    @pytest.mark.parametrize(("scheme", "port"), [("http", 80), ("https", 443)])
    def test_entry_without_a_port_is_the_default_port_of_the_scheme(self, scheme: str, port: int) -> None:
        for other in (80, 443, 8080):
            location = safe_location(f"{scheme}://a.example:{other}/", hosts=["a.example"])
            assert (location is not None) == (other == port)

    @pytest.mark.parametrize(
        "entry",
        [
            "",
            "*",
            ".",
            "*.",
            "**.a.example",
            "*a.example",
            "a.*.example",
            "..a.example",
            "a..example",
            "a.example.",
            "-a.example",
            " a.example",
            "a.example ",
            "a.example\n",
            "a b.example",
            "a.example/",
            "a.example/path",
            "https://a.example",
            "//a.example",
            "user@a.example",
            "a.example:",
            "a.example:x",
            "a.example:0",
            "a.example:65536",
            "a.example:99999",
            "a.example:123456",
            "::1",
            "[::1",
            "b\u00fccher.example",
            "a%2eexample",
            None,
            5,
            b"a.example",
        ],
    )
    def test_entry_that_is_no_host_is_refused(self, entry: str) -> None:
        with pytest.raises(ValueError, match=re.escape(repr(entry))):
            parse_host_pattern(entry)


#: What browsers, urllib and Werkzeug do not read alike, to put together and to put into good URLs.
PIECES = (
    "/|//|\\|:|@|.|..|?|#|[|]|[::1]|[2001:db8::1]|%|%2f|%5c|%00|%40|%2e|&|;|,|*|-|_| |\t|\n|\r|\0|\x1f|\x7f|\x85|\xa0"
    "|\u00e9|\u00df|\u0130|\u017f|\u212a|\u2100|\u3002|\uff0e|\uff0f|\uff1a|\uff20|\u200b|\u2028|\ufeff|\ud800|http|https"
    "|http:|https:|http://|https://|HTTPS://|javascript:|shop.example|green.tea.example|.tea.example|cups.example"
    "|evil.example|site.example|alt.example:8443|192.0.2.7|xn--|:80|:443|:8443|:0|:65536|a|1|0x7f|user@"
).split("|")
TEXTS = st.one_of(st.sampled_from(PIECES), st.characters())
EDITS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 4), TEXTS), min_size=1, max_size=4)
SHORT_GOOD = sorted(target for target in TAKEN if len(target) < 100)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A good target with some of its characters replaced."""
    url = draw(st.sampled_from(SHORT_GOOD))
    for start, length, text in draw(EDITS):
        url = url[:start] + text + url[start + length :]
    return url


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(url=st.one_of(mutated(), st.lists(TEXTS, max_size=8).map("".join)), secure=st.booleans())
def test_whatever_is_taken_is_sent_as_it_is_and_stays_on_allowed_hosts(url: str, secure: bool) -> None:
    location = located(url, secure=secure)
    if location is not None:
        assert_stays(location, secure=secure)
        assert iri_to_uri(location) == location
        headers = redirect(location, 302).get_wsgi_headers(create_environ(base_url=f"http://{OWN_HOST}/"))
        assert headers["Location"] == location


class Answer(NamedTuple):
    """What came over the wire."""

    status: int
    headers: Message
    body: str


class Site:
    """The site behind a real socket, with a link to /welcome and one whose target is no longer allowed."""

    def __init__(self, host: Host, port: int) -> None:
        self.host = host
        self.port = port
        with host.app.app_context():
            self.code = Referral.create("/welcome").code
            with host.app.test_request_context(base_url="https://site.example"):
                self.http_code = Referral.create("/", label="http").code
            host.db.session.execute(
                host.referrals.Referral.__table__.update()  # type: ignore[attr-defined]
                .where(host.referrals.Referral.code == self.http_code)
                .values(redirect_to="http://shop.example/")
            )
            host.db.session.commit()

    def send(self, method: str, path: str, body: str | None = None, *, secure: bool = False, **headers: str) -> Answer:
        """Send a request, and return the answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        proto = "https" if secure else "http"
        headers = {"Host": OWN_HOST, "User-Agent": BROWSER, "X-Forwarded-Proto": proto, **headers}
        try:
            connection.request(method, f"/referrals/{path}", body, headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read().decode())
        finally:
            connection.close()

    def follow(self, query: str = "", *, code: str | None = None, secure: bool = False) -> Answer:
        """Follow a link."""
        return self.send("GET", f"{code or self.code}{query}", secure=secure)

    def location(self, query: str = "", *, code: str | None = None, secure: bool = False) -> str:
        """Follow a link, and return the header as it was on the wire."""
        answer = self.follow(query, code=code, secure=secure)
        assert answer.status == 302
        (location,) = answer.headers.get_all("Location", [])
        return str(location)

    def create(self, target: str, *, as_form: bool = False, secure: bool = False) -> tuple[int, dict[str, str]]:
        """Make a link as a member of the site, and return the status and the values of the answer."""
        fields = {"redirect_to": target}
        body = urlencode(fields) if as_form else json.dumps(fields)
        mimetype = "application/x-www-form-urlencoded" if as_form else "application/json"
        answer = self.send("POST", "", body, secure=secure, Authorization="olga", **{"Content-Type": mimetype})
        return answer.status, json.loads(answer.body)


class QuietHandler(WSGIRequestHandler):
    """Writes no log."""

    def log(self, type: str, message: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The site, listening."""
    url = f"sqlite:///{tmp_path_factory.mktemp('redirects') / 'host.db'}"
    host = make_host(url, with_login=False, REFERRALS_ALLOWED_REDIRECT_HOSTS=LISTED)
    host.app.wsgi_app = ProxyFix(host.app.wsgi_app, x_for=0, x_proto=1)  # type: ignore[method-assign]
    with host.app.app_context():
        # Thousands of commits: none waits for the disk.
        event.listen(host.db.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
        host.db.create_all()
        olga = host.user("olga").id
    host.referrals.user_loader(
        lambda: host.db.session.get(host.User, olga) if request.headers.get("Authorization") == "olga" else None
    )
    server = make_server("127.0.0.1", 0, host.app, request_handler=QuietHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Site(host, server.port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        with host.app.app_context():
            host.db.engine.dispose()


class Markup(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


class TestHeader:
    """What a browser is sent when the target comes with the link, as ``?redirect_to=``."""

    @pytest.mark.parametrize(("target", "location"), TAKEN.items())
    def test_good_target_is_in_the_header(self, site: Site, target: str, location: str) -> None:
        assert site.location(f"?redirect_to={quote(target, safe='')}") == location
        assert_stays(location)

    @pytest.mark.parametrize("target", REFUSED)
    def test_bad_target_gives_way_to_that_of_the_link(self, site: Site, target: str) -> None:
        assert site.location(f"?redirect_to={quote(target, safe='')}") == "/welcome"

    @pytest.mark.parametrize(
        "target",
        [
            "/%ff",
            "/%ED%A0%80",
            "%C0%AF%C0%AFevil.example",
            "/%C0%AFevil.example",
            "//%ff",
            "%2F%5Cevil.example",
            "https://%ED%A0%80.tea.example/",
            "https://evil.example%ff.tea.example/",
            "https://shop.example/%ff",
        ],
    )
    def test_bytes_that_are_no_text_do_not_lead_away(self, site: Site, target: str) -> None:
        location = site.location(f"?redirect_to={target}")
        assert location.isascii()
        assert_stays(location)

    @pytest.mark.parametrize("target", ["http://site.example/", "http://shop.example/", "HTTP://shop.example/"])
    def test_https_is_not_downgraded(self, site: Site, target: str) -> None:
        assert site.location(f"?redirect_to={quote(target)}", secure=True) == "/welcome"
        assert site.location(f"?redirect_to={quote(target)}") == target.replace("HTTP:", "http:")

    @pytest.mark.parametrize("query", ["", "?redirect_to=/a", "?redirect_to=//evil.example"])
    def test_answer_is_302_and_no_cache_keeps_it(self, site: Site, query: str) -> None:
        answer = site.follow(query)
        assert answer.status == 302
        assert answer.headers.get_all("Cache-Control") == ["no-store"]
        assert answer.headers.get_all("Vary") == ["Cookie"]  # it gives a stranger a key
        assert len(answer.headers.get_all("Set-Cookie", [])) == 1

    @pytest.mark.parametrize("target", [target for target in TAKEN if set(target) & set("<>\"'&`{")])
    def test_page_under_the_header_links_to_the_same_and_holds_nothing_else(self, site: Site, target: str) -> None:
        answer = site.follow(f"?redirect_to={quote(target, safe='')}")
        page = Markup(answer.body)
        assert [tag for tag, _ in page.tags] == ["html", "title", "h1", "p", "a"]
        assert page.tags[-1][1] == {"href": answer.headers["Location"]}
        assert page.text.count(answer.headers["Location"]) == 1

    def test_host_that_has_left_the_list_is_led_to_no_more(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        _, made = site.create("https://shop.example/tea")
        code, query = made["code"], "?redirect_to=https://shop.example/cups"
        assert site.location(code=code) == "https://shop.example/tea"
        assert site.location(query) == "https://shop.example/cups"
        monkeypatch.setitem(site.host.app.config, "REFERRALS_ALLOWED_REDIRECT_HOSTS", LISTED[1:])
        monkeypatch.setitem(site.host.app.config, "REFERRALS_FALLBACK_URL", "/home")
        assert site.location(code=code) == site.location(query, code=code) == "/home"
        assert site.location(query) == "/welcome"
        assert site.create("https://shop.example/tea")[0] == 400

    @pytest.mark.parametrize("fallback", ["/home", "https://shop.example/home"])
    def test_stored_target_is_checked_again_at_each_click(
        self, site: Site, monkeypatch: pytest.MonkeyPatch, fallback: str
    ) -> None:
        monkeypatch.setitem(site.host.app.config, "REFERRALS_FALLBACK_URL", fallback)
        assert site.location(code=site.http_code) == "http://shop.example/"
        assert site.location(code=site.http_code, secure=True) == fallback

    def test_fallback_that_must_not_be_sent_gives_way_to_the_front_page(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(site.host.app.config, "REFERRALS_FALLBACK_URL", "http://shop.example/home")
        assert site.location(code=site.http_code, secure=True) == "/"

    def test_first_of_two_targets_is_the_one_that_is_checked(self, site: Site) -> None:
        assert site.location("?redirect_to=/first&redirect_to=//evil.example") == "/first"
        assert site.location("?redirect_to=//evil.example&redirect_to=/second") == "/welcome"


class TestCreation:
    """The same targets when a member makes a link to them."""

    @pytest.mark.parametrize(("target", "location"), TAKEN.items())
    def test_good_target_is_stored_and_sent(self, site: Site, target: str, location: str) -> None:
        status, made = site.create(target)
        assert status == 200
        assert site.create(target, as_form=True) == (status, made)
        assert site.location(code=made["code"]) == location

    @pytest.mark.parametrize("target", [*REFUSED, *SURROGATES])
    def test_bad_target_is_refused_with_a_reason(self, site: Site, target: str) -> None:
        for as_form in [False] if target in SURROGATES else [False, True]:
            status, answer = site.create(target, as_form=as_form)
            assert status == 400
            assert re.fullmatch("redirect_to (must be|is longer than|has a NUL or) .+", answer["error"])

    def test_http_target_is_refused_by_https(self, site: Site) -> None:
        assert site.create("http://shop.example/a", secure=True)[0] == 400
        assert site.create("https://shop.example/a", secure=True)[0] == 200
        assert site.create("http://shop.example/a")[0] == 200


class TestTargetLocation:
    """The targets of links, with the app's own hosts and endpoints."""

    def test_own_host_is_that_of_the_request(self, site: Site) -> None:
        with site.host.app.test_request_context(base_url="http://other.example:5000"):
            assert target_location("http://other.example:5000/a") == "http://other.example:5000/a"
            assert target_location("http://other.example/a") is None
            assert target_location(f"http://{OWN_HOST}/a") is None

    @pytest.mark.parametrize("name", ["REFERRALS_BASE_URL", "SERVER_NAME"])
    def test_own_host_is_that_of_the_settings_too(self, sqlite_url: str, name: str) -> None:
        value = "https://me.example:8000/mount" if name == "REFERRALS_BASE_URL" else "me.example:8000"
        settings: dict[str, Any] = {name: value}
        host = make_host(sqlite_url, with_login=False, **settings)
        with host.app.app_context():
            assert target_location("https://me.example:8000/a") == "https://me.example:8000/a"
            assert target_location("https://me.example/a") is None
            assert target_location("https://evil.example/a") is None

    @pytest.mark.parametrize("host", [".example", "*.example", "*", "a..example", "[::1", "evil.example, x"])
    def test_host_header_that_is_no_host_is_not_ours(self, site: Site, host: str) -> None:
        with site.host.app.test_request_context(headers={"Host": host}):
            assert target_location("http://evil.example/") is None
            assert target_location("/a") == "/a"

    def test_untrusted_host_is_not_ours(self, sqlite_url: str) -> None:
        host = make_host(sqlite_url, with_login=False, TRUSTED_HOSTS=[OWN_HOST])
        answer = host.client().get("/referrals/x?redirect_to=http://evil.example/", base_url="http://evil.example")
        assert (answer.status_code, answer.headers.get("Location")) == (400, None)

    @pytest.mark.parametrize(
        ("endpoint", "location"), [("index", "/"), ("act", None), ("static", None), ("none", None)]
    )
    def test_endpoint_is_taken_when_it_needs_no_arguments(
        self, site: Site, endpoint: str, location: str | None
    ) -> None:
        with site.host.app.app_context():
            assert target_location(endpoint) == location
        with site.host.app.test_request_context():
            assert target_location(endpoint) == location

    def test_endpoint_is_under_the_mount_path(self, site: Site) -> None:
        with site.host.app.test_request_context(base_url="http://site.example/mount"):
            assert target_location("index") == "/mount/"

    @pytest.mark.parametrize("target", [None, "", *SURROGATES])
    def test_nothing_leads_nowhere(self, site: Site, target: str | None) -> None:
        with site.host.app.test_request_context():
            assert target_location(target) is None
