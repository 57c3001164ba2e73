"""The shop's back office, at /admin/: Flask-Admin with the views of Flask-Referrals beside the shop's own."""

from __future__ import annotations

from flask import Flask, abort
from flask.typing import ResponseReturnValue
from flask_admin import Admin
from flask_admin.contrib.sqla import ModelView
from flask_admin.menu import MenuLink
from flask_login import current_user

from flask_referrals.contrib.admin import InsightIndexView, add_views

from .extensions import db, login
from .models import Order, Product, User


class ForOperators:
    def is_accessible(self) -> bool:
        return bool(current_user.is_authenticated and current_user.is_operator)

    def inaccessible_callback(self, name: str, **kwargs: object) -> ResponseReturnValue:
        if not current_user.is_authenticated:
            answer: ResponseReturnValue = login.unauthorized()
            return answer
        abort(404)


class Index(ForOperators, InsightIndexView):
    pass


class ReadOnly(ForOperators, ModelView):  # type: ignore[misc]  # Flask-Admin has no types
    can_create = can_edit = can_delete = False
    can_view_details = True


class UserAdmin(ReadOnly):
    column_list = column_details_list = ("name", "email")  # without the password hash


# The shop's Content-Security-Policy applies here too. It blocks "return false" and "void(0)", which do nothing.


def init_app(app: Flask) -> None:
    """Add the back office to an app, after ``referrals.init_app``."""
    admin = Admin(app, name="Kettle & Leaf", index_view=Index())
    admin.add_view(UserAdmin(User, db))
    admin.add_view(ReadOnly(Product, db))
    admin.add_view(ReadOnly(Order, db))
    add_views(admin)  # open to everyone who may open Index
    admin.add_link(MenuLink("Insight", endpoint="referrals_dashboard.insight"))
