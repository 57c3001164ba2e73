"""Texts that are no visitor's key: every small change of a valid one, keys made for another use, and random ones.

::

    python -m tests.fuzz.keys --random 100000

Each is put into the session of a request to a page that asks who gets credit, and then into the cookie that
``REFERRALS_COOKIE`` names. A text is accepted when the database is asked because of it: of a visitor without a key
nothing is asked.
"""

import argparse
import base64
import hashlib
import json
import random
import string
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask.sessions import SecureCookieSessionInterface
from itsdangerous import Signer, TimestampSigner, URLSafeSerializer, URLSafeTimedSerializer
from werkzeug.http import dump_cookie

from flask_referrals import Referral
from tests.host import BROWSER, Host, make_host, statements

#: Where the key is, and what it is signed for.
ENTRY = "_referral"
SALT = "flask-referrals.visitor"
#: What stands between a key and clicks of its visitor that are not stored yet. A key with nothing behind it is valid.
PENDING = "~"

PRINTABLE = [chr(number) for number in range(32, 127)]
BASE64URL = string.ascii_letters + string.digits + "-_"


@dataclass
class Outcome:
    """What came of forgeries.

    :param tried: how many there were.
    :param accepted: those that were taken for a key.
    :param failed: those that were not answered with 200.
    """

    tried: int
    accepted: list[Any]
    failed: list[Any]


class Target:
    """A site, and a visitor of it with a valid key.

    :param host: a site with its tables, without a login. The key is where it has it: in the session, or in a cookie.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        # Answered with 500, as in production, instead of raised.
        host.app.config.update(TESTING=False, PROPAGATE_EXCEPTIONS=False)

        @host.app.get("/credit")
        def credit() -> str:
            referral = Referral.referral_for_request()
            return "" if referral is None else referral.code

        self._own_cookie = host.app.config["REFERRALS_COOKIE"]
        self._client = host.app.test_client(use_cookies=False)
        sessions = SecureCookieSessionInterface().get_signing_serializer(host.app)
        assert sessions is not None
        self._sessions = sessions
        with host.app.app_context():
            self.code = Referral.create("/").code
        self.token = self.new_token()

    def new_token(self) -> str:
        """Follow the link in a new browser, and return the key that it was given."""
        visitor: Any = self.host.client()
        visitor.get(f"/referrals/{self.code}")
        if self._own_cookie is not None:
            return str(visitor.get_cookie(self._own_cookie).value)
        with visitor.session_transaction() as session:
            return str(session[ENTRY])

    def session_cookie(self, content: Any) -> str:
        """Return the cookie of a session that holds something, as the site signs it."""
        return str(self._sessions.dumps(content))

    def answer(self, entry: Any) -> tuple[int, str]:
        """Return status and text for a request with something in the place of the key."""
        if self._own_cookie is None:
            cookie = f"session={self.session_cookie({ENTRY: entry})}"
        else:  # quoted, so that it arrives as it is
            cookie = dump_cookie(self._own_cookie, str(entry).encode(errors="replace").decode(), path=None)
        answer = self._client.get("/credit", headers={"Cookie": cookie, "User-Agent": BROWSER})
        return answer.status_code, answer.text

    def try_all(self, entries: Iterable[Any]) -> Outcome:
        """Put each of some entries in the place of the key, and see whether one is taken for a key, or fails."""
        outcome = Outcome(0, [], [])
        with self.host.app.app_context(), statements(self.host.db) as sent:
            assert self.answer(self.token) == (200, self.code)
            assert sent != []
            for entry in entries:
                sent.clear()
                status, text = self.answer(entry)
                outcome.tried += 1
                if sent or (status == 200 and text):
                    outcome.accepted.append(entry)
                if status != 200:
                    outcome.failed.append(entry)
        return outcome


def changes(token: str, characters: Iterable[str]) -> Iterator[str]:
    """Put each character in the place of every other one."""
    for position, old in enumerate(token):
        for new in characters:
            if new != old:
                yield token[:position] + new + token[position + 1 :]


def extensions(token: str, characters: Iterable[str]) -> Iterator[str]:
    """Put each character before, behind and between."""
    for position in range(len(token) + 1):
        for new in characters:
            yield token[:position] + new + token[position:]


def truncations(token: str) -> Iterator[str]:
    """Leave out the beginning, the end, and each character alone."""
    for position in range(len(token)):
        yield token[:position]
        yield token[:position] + token[position + 1 :]
        if position:
            yield token[position:]


def swaps(token: str, other: str) -> Iterator[str]:
    """Exchange two characters, two of the three parts, and parts with those of another valid key."""
    for first in range(len(token)):
        for second in range(first + 1, len(token)):
            if token[first] != token[second]:
                characters = list(token)
                characters[first], characters[second] = characters[second], characters[first]
                yield "".join(characters)
    mine, theirs = token.split("."), other.split(".")
    for order in ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        yield ".".join(mine[index] for index in order)
    for mixed in ((0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0)):
        parts = [(mine, theirs)[which][index] for index, which in enumerate(mixed)]
        if parts not in (mine, theirs):  # two keys of one second have the same time
            yield ".".join(parts)


def signed_otherwise(token: str, secret: str) -> Iterator[str]:
    """Sign the right key in each wrong way, and what is no key in the right way."""
    key = token.split(".")[0]
    digests = (hashlib.sha1, hashlib.sha256, hashlib.sha384, hashlib.sha512)
    for digest in digests:
        for salt in (SALT, "cookie-session", "itsdangerous", "itsdangerous.Signer", "flask-referrals.target", ""):
            for a_secret in (secret, "another", secret[:-1], f"{secret} ", "x"):
                for derivation in ("django-concat", "concat", "hmac", "none"):
                    options: dict[str, Any] = {"salt": salt, "key_derivation": derivation, "digest_method": digest}
                    if (digest, salt, a_secret, derivation) != (hashlib.sha384, SALT, secret, "django-concat"):
                        yield TimestampSigner(a_secret, **options).sign(key).decode()
                    yield Signer(a_secret, **options).sign(key).decode()
    for salt in (SALT, "cookie-session", "flask-referrals.target"):
        for digest in digests:
            for kind in (URLSafeSerializer, URLSafeTimedSerializer):
                serializer = kind(secret, salt=salt, signer_kwargs={"digest_method": digest})
                for payload in (key, [key], {"key": key}, token):
                    yield str(serializer.dumps(payload))
    right = TimestampSigner(secret, salt=SALT, digest_method=hashlib.sha384)
    for alien in (
        "",
        "1",
        key[:-1],
        f"{key}A",
        f" {key}",
        f"{key}\n",
        f"{key}=",
        key.replace(key[0], "\0"),
        "\u00e9" * 43,
    ):
        yield right.sign(alien).decode("latin-1")
    # A key of the right form that was signed without a time, or with one that is none.
    untimed = Signer(secret, salt=SALT, digest_method=hashlib.sha384)
    for time_text in ("", "A", "AAAAAAA", "______", "-_-_-_", "=====A", "......"):
        yield untimed.sign(f"{key}.{time_text}").decode()
    for unsigned in (
        "",
        "A" * 64,
        "=" * 64,
        key,
        base64.urlsafe_b64encode(hashlib.sha384(key.encode()).digest()).decode(),
    ):
        yield f"{key}.{token.split('.')[1]}.{unsigned}"


def of_other_kinds(target: Target) -> Iterator[Any]:
    """What else a session or a cookie may hold: session cookies, and what is no text."""
    whole = target.session_cookie({ENTRY: target.token})
    yield from (whole, *whole.split("."))
    for content in ({}, {"_user_id": "1"}, {"csrf_token": "x"}, target.token):
        yield target.session_cookie(content)
    yield json.dumps(target.token)
    yield from (None, True, False, 0, -1, 2**70, 1.5, [], {}, [target.token], {ENTRY: target.token}, (target.token,))
    yield from (target.token.encode(), "\ud800", "\0", f"{target.token}\0", f"\ufeff{target.token}", "x" * 4000)


def at_random(token: str, number: int, seed: int) -> Iterator[str]:
    """Make texts, more of them the nearer they are to a key: by its form, its parts, its alphabet; and any text."""
    chance = random.Random(seed)
    key, moment, signature = token.split(".")

    def word(length: int, characters: str = BASE64URL) -> str:
        return "".join(chance.choices(characters, k=length))

    for _ in range(number):
        kind = chance.randrange(8)
        if kind == 0:
            yield f"{word(43)}.{word(6)}.{word(64)}"
        elif kind == 1:
            yield f"{key}.{moment}.{word(64)}"
        elif kind == 2:
            yield f"{key}.{word(6)}.{signature}"
        elif kind == 3:
            yield f"{word(43)}.{moment}.{signature}"
        elif kind == 4:  # some characters of a key, changed
            characters = list(token)
            for position in chance.sample(range(len(token)), chance.randint(2, 20)):
                characters[position] = chance.choice(PRINTABLE)
            yield "".join(characters)
        elif kind == 5:
            yield word(chance.randint(0, 200), BASE64URL + "." * 8)
        elif kind == 6:
            yield word(chance.randint(0, 200), string.printable)
        else:
            yield "".join(chr(chance.choice((chance.randrange(256), chance.randrange(0x110000)))) for _ in range(40))


def forgeries(target: Target, *, characters: Iterable[str], number: int, seed: int) -> dict[str, Iterator[Any]]:
    """Return all that is tried, by what was done to a valid key.

    :param target: whose keys are forged.
    :param characters: what is put in the place of, and between, the key's own characters.
    :param number: how many are made at random.
    :param seed: makes them the same again.
    """
    token, characters = target.token, list(characters)
    return {
        "one character changed": changes(token, characters),
        "one character more": (text for text in extensions(token, characters) if text != token + PENDING),
        "characters missing": truncations(token),
        "characters and parts swapped": swaps(token, target.new_token()),
        "signed otherwise": signed_otherwise(token, str(target.host.app.secret_key)),
        "of another kind": of_other_kinds(target),
        "random": (text for text in at_random(token, number, seed) if text != token),
    }


def main() -> int:
    """Try all forgeries, and print what came of them."""
    parser = argparse.ArgumentParser(description="Forge visitors' keys.")
    parser.add_argument("--random", type=int, default=100_000, help="how many are made at random")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    outcomes = [try_forgeries(name, number=options.random, seed=options.seed) for name in (None, "visitor")]
    return 1 if any(outcomes) else 0


def try_forgeries(cookie: str | None, *, number: int, seed: int) -> int:
    """Try all forgeries on a new site, and print what came of them.

    :param cookie: the site's ``REFERRALS_COOKIE``.
    :param number: how many are made at random.
    :param seed: makes them the same again.
    :return: how many were accepted, or failed.
    """
    tried = missed = 0
    where = "In the session" if cookie is None else "In a cookie"
    print(f"{where:<30}{'Tried':>9}{'Accepted':>10}{'Not 200':>9}{'Seconds':>9}")
    with tempfile.TemporaryDirectory() as folder:
        host = make_host(f"sqlite:///{Path(folder) / 'keys.db'}", with_login=False, REFERRALS_COOKIE=cookie)
        with host.app.app_context():
            host.db.create_all()
        target = Target(host)
        for name, entries in forgeries(target, characters=PRINTABLE, number=number, seed=seed).items():
            started = time.perf_counter()
            outcome = target.try_all(entries)
            seconds = time.perf_counter() - started
            tried += outcome.tried
            missed += len(outcome.accepted) + len(outcome.failed)
            found = f"{outcome.tried:>9}{len(outcome.accepted):>10}{len(outcome.failed):>9}{seconds:>9.1f}"
            print(f"{name:<30}{found}", flush=True)
            for entry in [*outcome.accepted, *outcome.failed][:5]:
                print(f"  {entry!r}")
        with host.app.app_context():
            host.db.engine.dispose()
    print(f"{'all':<30}{tried:>9}\n")
    return missed


if __name__ == "__main__":
    sys.exit(main())
