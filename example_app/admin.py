"""The shop's back office, at /admin/: Flask-Admin with the views of Flask-Referrals beside the shop's own."""

from __future__ import annotations

from flask import Flask
from flask import abort
from flask.typing import ResponseReturnValue
from flask_admin import Admin
from flask_admin import AdminIndexView
from flask_admin.contrib.sqla import ModelView
from flask_login import current_user

from flask_referrals.contrib.admin import add_views

from .extensions import db
from .extensions import login
from .models import Order
from .models import Product
from .models import User


class OnlyForAlice:
    # For the demo: a real shop asks for a role, and gives nobody one by name.
    def is_accessible(self) -> bool:
        return bool(current_user.is_authenticated and current_user.name == "alice")

    def inaccessible_callback(self, name: str, **kwargs: object) -> ResponseReturnValue:
        if not current_user.is_authenticated:
            answer: ResponseReturnValue = login.unauthorized()
            return answer
        abort(404)


class Index(OnlyForAlice, AdminIndexView):  # type: ignore[misc]  # Flask-Admin has no types
    pass


class ReadOnly(OnlyForAlice, ModelView):  # type: ignore[misc]
    can_create = can_edit = can_delete = False
    can_view_details = True


class UserAdmin(ReadOnly):
    column_list = column_details_list = ("name", "email")  # and not the password's hash


# The shop's Content-Security-Policy holds here too: all that it keeps from running is "return false" and "void(0)".


def init_app(app: Flask) -> None:
    """Open the back office; the app has its referrals."""
    admin = Admin(app, name="Kettle & Leaf", index_view=Index())
    admin.add_view(UserAdmin(User, db))
    admin.add_view(ReadOnly(Product, db))
    admin.add_view(ReadOnly(Order, db))
    add_views(admin)  # these let in whom Index lets in
