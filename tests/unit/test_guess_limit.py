"""The limit on guessed codes: exact under threads, and of bounded size."""

from concurrent.futures import ThreadPoolExecutor

from flask_referrals.limits import GuessLimit


def test_limit_is_exact_under_threads() -> None:
    guesses = GuessLimit()
    with ThreadPoolExecutor(64) as pool:
        allowed = list(pool.map(lambda number: guesses.allow("192.0.2.1", 10), range(640)))
    assert allowed.count(True) == 10


def test_address_starts_again_after_the_time() -> None:
    guesses = GuessLimit(seconds=0)
    assert [guesses.allow("192.0.2.1", 1) for _ in range(3)] == [True] * 3


def test_only_so_many_addresses_are_remembered() -> None:
    guesses = GuessLimit(addresses=2)
    for address in ("a", "b", "c"):
        guesses.allow(address, 1)
    assert [guesses.allow(address, 1) for address in ("c", "b", "a")] == [False, False, True]
