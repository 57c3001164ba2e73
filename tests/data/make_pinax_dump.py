"""Makes pinax-4.5.0.json: a site on pinax-referrals, its people clicking through its own views, and Django's dumpdata.

It also makes pinax-4.5.0-counts.json: what pinax-referrals counts itself. If the first file exists, it is loaded into
the site instead.

It installs nothing. In a virtual environment of its own::

    pip install "Django~=5.2.0" pinax-referrals==4.5.0
    python make_pinax_dump.py pinax-4.5.0.json pinax-4.5.0-counts.json
"""

# mypy: ignore-errors

import json
import sys
import tempfile
from collections import Counter
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import django
from django.conf import settings
from django.core.management import call_command
from django.db.models import F
from django.http import HttpResponse
from django.urls import include, path
from django.utils import timezone


def buy(request):
    from pinax.referrals.models import Referral

    response = Referral.record_response(request, "BOUGHT")
    return HttpResponse("" if response is None else response.referral.code)


def set_up(folder: str) -> None:
    settings.configure(
        SECRET_KEY="of no use to anybody: the site lives for a second",
        ALLOWED_HOSTS=["*"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path(folder) / "site.db"}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "django.contrib.sites",
            "pinax.referrals",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "pinax.referrals.middleware.SessionJumpingMiddleware",
        ],
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
        ROOT_URLCONF="pinax_site_urls",
        SITE_ID=1,
        USE_TZ=True,
    )
    django.setup()
    urls = ModuleType("pinax_site_urls")
    urls.urlpatterns = [
        path("", lambda request: HttpResponse("shop")),
        path("buy/", buy),
        path("referrals/", include("pinax.referrals.urls")),
    ]
    sys.modules["pinax_site_urls"] = urls
    call_command("migrate", verbosity=0)


def live() -> None:
    """What happens on the site."""
    from django.contrib.auth.models import Group, User
    from django.test import Client
    from pinax.referrals.models import Referral, ReferralResponse

    olga = User.objects.create(username="olga")
    fred = User.objects.create(username="fred")
    shop_group = Group.objects.create(name="the object a link is about")

    def browser(address: str) -> Client:
        return Client(HTTP_X_FORWARDED_FOR=address, HTTP_REFERER="https://blog.example/a-post?token=secret")

    # Olga makes a link with the site's form, and follows it herself.
    owner = browser("198.51.100.7")
    owner.force_login(olga)
    made = owner.post("/referrals/", {"redirect_to": "/welcome/", "label": "welcome mail"})
    welcome = Referral.objects.get(code=made.json()["code"])
    owner.get(f"/referrals/{welcome.code}/")

    # A stranger follows it, and buys; another becomes Fred, who buys then.
    stranger = browser("203.0.113.9")
    stranger.get(f"/referrals/{welcome.code}/")
    stranger.get("/buy/")
    guest = browser("2001:db8:1:2::3")
    guest.get(f"/referrals/{welcome.code}/")
    guest.force_login(fred)
    guest.get("/buy/")

    # The race that leaves two links where one was meant.
    twin = Referral.objects.create(user=olga, redirect_to="/welcome/", label="welcome mail")
    browser("203.0.113.77").get(f"/referrals/{twin.code}/")

    # A link about an object, one that leads off the site, one without an owner, and one that has expired.
    about = Referral.create("/group/", user=fred, label="group", target=shop_group)
    browser("not an address").get(f"/referrals/{about.code}/?redirect_to=/elsewhere/")
    Referral.create("https://partner.example/landing", user=fred)
    Referral.create("/spring/", label="the site's own")
    ended = Referral.create("/winter/", user=olga, label="winter")
    browser("203.0.113.80").get(f"/referrals/{ended.code}/")
    Referral.objects.filter(pk=ended.pk).update(expired_at=timezone.now())

    # All times are long past, so that the dump does not depend on the clock.
    long_ago = timedelta(days=1000)
    for model in (Referral, ReferralResponse):
        model.objects.update(created_at=F("created_at") - long_ago)
    Referral.objects.update(expired_at=F("expired_at") - long_ago)


def dump(file: Path) -> None:
    call_command("dumpdata", "contenttypes", "auth.user", "referrals", indent=1, output=str(file))


def count(file: Path) -> None:
    """Write what pinax-referrals counts: the clicks and the actions of each link, and those of each owner."""
    from django.contrib.auth.models import User
    from pinax.referrals.callbacks import filter_responses
    from pinax.referrals.models import Referral

    def actions(responses) -> dict[str, int]:
        return dict(Counter(response.action for response in responses))

    links = Referral.objects.order_by("pk")
    counts = {
        "clicks": {link.code: link.response_count for link in links},
        "links": {link.code: actions(link.filtered_responses()) for link in links},
        "owners": {user.pk: actions(filter_responses(user=user)) for user in User.objects.order_by("pk")},
    }
    file.write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    dump_file, counts_file = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        set_up(folder)
        if dump_file.exists():
            call_command("loaddata", str(dump_file), verbosity=0)
        else:
            live()
            dump(dump_file)
        count(counts_file)
