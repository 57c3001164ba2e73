"""The typed host leaves out nothing that is public."""

import ast
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

import flask_referrals
from flask_referrals import ReferralMixin, ReferralResponseMixin, Referrals

NODES = list(ast.walk(ast.parse((Path(__file__).parent / "host_app.py").read_text())))
#: The names that are looked up, the attributes, and the names of arguments in calls.
USED = {node.id for node in NODES if isinstance(node, ast.Name)}
ATTRIBUTES = {node.attr for node in NODES if isinstance(node, ast.Attribute)}
KEYWORDS = {node.arg for node in NODES if isinstance(node, ast.keyword)}


def test_every_name() -> None:
    assert set(flask_referrals.__all__) - USED == set()


@pytest.mark.parametrize("cls", [Referrals, ReferralMixin, ReferralResponseMixin])
def test_every_attribute(cls: type) -> None:
    own = {name for name in dir(cls) if not name.startswith("_")}
    assert own - ATTRIBUTES - {"metadata"} == set()


@pytest.mark.parametrize(
    ("function", "positional"),
    [
        (Referrals, {"app"}),
        (Referrals.init_app, {"app"}),
        (Referrals.link_user, {"user"}),
        (Referrals.forget_user, {"user"}),
        (Referrals.register_target, {"model"}),
        (ReferralMixin.create, {"redirect_to", "user", "label", "target"}),
        (ReferralMixin.record_response, {"action"}),
        (ReferralMixin.respond, {"action"}),
        (ReferralMixin.referral_for_request, set()),
        (ReferralMixin.referral_responses_for_request, set()),
        (ReferralMixin.filtered_responses, set()),
        (ReferralMixin.link_responses_to_user, {"user", "session_key"}),
    ],
)
def test_every_parameter(function: Callable[..., object], positional: set[str]) -> None:
    parameters = set(inspect.signature(function).parameters) - {"self"}
    assert positional <= parameters
    assert parameters - positional - KEYWORDS == set()
