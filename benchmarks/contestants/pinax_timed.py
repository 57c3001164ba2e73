"""What operations of pinax-referrals, tuned, cost in this process: prints their median milliseconds as JSON.

Each is that of ``benchmarks.growth`` with the same title; the stored responses are those of ``benchmarks.rows``.
"""

# mypy: ignore-errors

import json
import random
import sys
import time
from statistics import median

from benchmarks.contestants.pinax import create_app

#: The link with a tenth of all responses, and its owner.
BUSY = 1


def operations():
    """Return what prepares each operation and returns what is timed, by title."""
    from django.contrib.auth.models import AnonymousUser, User
    from django.contrib.sessions.backends.db import SessionStore
    from django.test import RequestFactory
    from pinax.referrals.models import Referral, ReferralResponse
    from pinax.referrals.views import process_referral

    links, responses = Referral.objects.count(), ReferralResponse.objects.count()

    def request_of(session_key):
        request = RequestFactory().get("/")
        request.session, request.user = SessionStore(session_key), AnonymousUser()
        return request

    def click():
        code = Referral.objects.get(pk=random.randint(BUSY + 1, links)).code  # noqa: S311
        request = request_of(None)
        return lambda: process_referral(request, code)

    def act():
        stored = ReferralResponse.objects.filter(user=None).exclude(referral=BUSY)
        visitor = stored.filter(pk__gte=random.randint(1, responses - 100)).order_by("pk")[0]  # noqa: S311
        request = request_of(visitor.session_key)
        return lambda: Referral.record_response(request, "BOUGHT")

    def newest():
        owner = User.objects.get(pk=BUSY)
        return lambda: list(ReferralResponse.objects.filter(referral__user=owner).order_by("-created_at")[:50])

    def count():
        link = Referral.objects.get(pk=BUSY)
        return lambda: link.response_count

    return {
        "click of a stranger, quiet link": click,
        "action of a visitor, quiet link": act,
        "newest 50 of the busy owner": newest,
        "response_count of the busy link": count,
    }


def main(warm_up, repeats):
    """Print the medians.

    :param warm_up: how often each operation is done before it is timed.
    """
    create_app(tuned=True)
    took = {}
    for title, prepare in operations().items():
        for number in range(-warm_up, repeats):
            timed = prepare()
            began = time.perf_counter()
            timed()
            if number >= 0:
                took.setdefault(title, []).append((time.perf_counter() - began) * 1000)
    json.dump({title: median(each) for title, each in took.items()}, sys.stdout)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
