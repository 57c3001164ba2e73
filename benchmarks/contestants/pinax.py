"""A site with pinax-referrals, in a virtual environment of its own: as documented, and tuned.

As documented is what ``django-admin startproject`` writes, with what the package's README adds. Tuned is the
same with connections that stay open, and the three middlewares that the package cannot do without.
"""

# mypy: ignore-errors

import os
import sys
from types import ModuleType
from urllib.parse import urlsplit

import django
from django.conf import settings
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import include, path

#: As in benchmarks.contestants.settings, which needs what is not installed here.
DATABASE = "BENCHMARKS_DATABASE"
PAGE = "a page that has nothing to do with referrals"

APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.sites",
    "pinax.referrals",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "pinax.referrals.middleware.SessionJumpingMiddleware",
]
NEEDED = ("SessionMiddleware", "AuthenticationMiddleware", "SessionJumpingMiddleware")


def _database():
    url = urlsplit(os.environ[DATABASE])
    if url.scheme == "sqlite":
        options = {"init_command": "PRAGMA synchronous=NORMAL"}
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": url.path[1:], "OPTIONS": options}
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url.path[1:],
        "HOST": url.hostname,
        "PORT": url.port or "",
        "USER": url.username or "",
        "PASSWORD": url.password or "",
    }


def page(request):
    return HttpResponse(PAGE)


def log_in(request, user_id):
    from django.contrib.auth import login
    from django.contrib.auth.models import User

    login(request, User.objects.get(pk=user_id))
    return HttpResponse()


def buy(request):
    from pinax.referrals.models import Referral

    response = Referral.record_response(request, "BOUGHT")
    return HttpResponse("" if response is None else "thanks")


def create_app(tuned=False):
    """Build the site."""
    middleware = [name for name in MIDDLEWARE if name.endswith(NEEDED)] if tuned else MIDDLEWARE
    settings.configure(
        SECRET_KEY="of no use to anybody: the site lives for seconds",  # noqa: S106
        ALLOWED_HOSTS=["*"],
        DATABASES={"default": {**_database(), "CONN_MAX_AGE": None if tuned else 0}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        INSTALLED_APPS=APPS,
        MIDDLEWARE=middleware,
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        ROOT_URLCONF="benchmarks_pinax_urls",
        STATIC_URL="static/",
        SITE_ID=1,
        USE_TZ=True,
    )
    django.setup()
    urls = ModuleType("benchmarks_pinax_urls")
    urls.urlpatterns = [
        path("page", page),
        path("login/<int:user_id>", log_in),
        path("buy", buy),
        path("referrals/", include("pinax.referrals.urls")),
    ]
    sys.modules["benchmarks_pinax_urls"] = urls
    return get_wsgi_application()


if __name__ == "__main__":
    create_app()
    call_command("migrate", verbosity=0)
