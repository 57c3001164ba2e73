"""The extension objects; ``create_app`` initialises them for an app."""

from typing import TYPE_CHECKING

from flask_login import LoginManager
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase

from flask_referrals import Referrals


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)
migrate = Migrate()
login = LoginManager()
referrals = Referrals()

if TYPE_CHECKING:
    Model = Base  # db.Model is a subclass made at run time, which type checkers cannot see
else:
    Model = db.Model

login.login_view = "auth.login"
login.login_message = "Please log in first."
