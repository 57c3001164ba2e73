"""The absolute address of a referral."""

import pytest

from flask_referrals import ConfigurationError, Referral
from tests.conftest import MakeHost


def test_mail_rendered_in_a_worker_has_the_configured_address(new_host: MakeHost) -> None:
    host = new_host(REFERRALS_BASE_URL="https://shop.example/app/")
    with host.app.app_context():
        referral = Referral.create("/", code="alice")
        mail = host.app.jinja_env.from_string("Your link: {{ referral.url }}").render(referral=referral)
    assert mail == "Your link: https://shop.example/app/referrals/alice"


def test_server_name_is_used_without_a_base_url(new_host: MakeHost) -> None:
    host = new_host(SERVER_NAME="shop.example", PREFERRED_URL_SCHEME="https", APPLICATION_ROOT="/app")
    with host.app.app_context():
        assert Referral.create("/", code="alice").url == "https://shop.example/app/referrals/alice"


def test_server_name_leaves_the_scheme_to_the_request(new_host: MakeHost) -> None:
    host = new_host(SERVER_NAME="shop.example")
    with host.app.test_request_context(base_url="https://shop.example/app"):
        assert Referral.create("/", code="alice").url == "https://shop.example/app/referrals/alice"


def test_request_is_used_without_either(new_host: MakeHost) -> None:
    host = new_host()
    with host.app.test_request_context(base_url="https://here.example/mounted"):
        assert Referral.create("/", code="alice").url == "https://here.example/mounted/referrals/alice"


@pytest.mark.parametrize("config", [{"REFERRALS_BASE_URL": "https://shop.example"}, {"SERVER_NAME": "shop.example"}])
def test_host_header_does_not_change_a_configured_address(new_host: MakeHost, config: dict[str, str]) -> None:
    host = new_host(**config)
    with host.app.test_request_context(base_url="https://evil.example/"):
        assert "://shop.example/referrals/alice" in Referral.create("/", code="alice").url


def test_address_without_any_of_them_is_an_error_that_names_the_setting(new_host: MakeHost) -> None:
    host = new_host()
    with host.app.app_context(), pytest.raises(ConfigurationError, match="REFERRALS_BASE_URL"):
        _ = Referral.create("/").url


def test_code_is_part_of_an_address_that_the_host_chose(new_host: MakeHost) -> None:
    host = new_host(REFERRALS_URL_PREFIX="/r", REFERRALS_BASE_URL="https://shop.example")
    with host.app.app_context():
        assert Referral.create("/", code="alice").url == "https://shop.example/r/alice"
    assert host.client().get("/r/alice").status_code == 302
