"""Signatures with the app's secret keys, each purpose under a salt of its own."""

import hashlib
import typing as t
from functools import lru_cache

from flask import Flask
from itsdangerous import Signer, TimestampSigner, URLSafeSerializer


@lru_cache(maxsize=8)
def visitor_signer(*keys: t.Any) -> TimestampSigner:
    """Return the signer of visitor keys with an app's secret keys. It derives each signing key once."""
    # SHA-384: its 48 bytes fill their base64 form to the last bit, so that no two texts are the same signature.
    signer = TimestampSigner(keys, salt="flask-referrals.visitor", digest_method=hashlib.sha384)
    signer.derive_key = lru_cache(signer.derive_key)  # type: ignore[method-assign]
    return signer


def _secret_keys(app: Flask) -> t.Any:
    return (*(app.config.get("SECRET_KEY_FALLBACKS") or ()), app.config["SECRET_KEY"])


def new_signer(app: Flask, purpose: str) -> Signer:
    """Return a signer for one purpose: ``pending`` clicks, the ``reservation`` of a key, an ``address`` of a day."""
    return Signer(_secret_keys(app), salt=f"flask-referrals.{purpose}", digest_method=hashlib.sha256)


def target_serializer(app: Flask) -> URLSafeSerializer:
    return URLSafeSerializer(_secret_keys(app), salt="flask-referrals.target")
