from datetime import datetime, timezone
from decimal import Decimal

import sqlalchemy as sa
from flask_login import UserMixin
from sqlalchemy.orm import Mapped, mapped_column, relationship
from werkzeug.security import check_password_hash, generate_password_hash

from flask_referrals import Referral

from .extensions import Model, db, login, referrals


def now() -> datetime:
    return datetime.now(timezone.utc)


def money(pence: int) -> str:
    return f"£{pence // 100}.{pence % 100:02}"


# The link in a user's welcome mail. It has a table of its own: referrals refer to users, and if users referred to
# referrals as well, neither table could be created first.
welcome_link = sa.Table(
    "welcome_link",
    db.metadata,
    sa.Column("user_id", sa.ForeignKey("user.id", ondelete="CASCADE"), primary_key=True),
    sa.Column(
        "referral_id",
        sa.ForeignKey("referral.id", ondelete="CASCADE"),
        unique=True,
        nullable=False,
    ),
)


class User(UserMixin, Model):  # type: ignore[misc]  # Flask-Login has no types
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(40), unique=True)
    email: Mapped[str] = mapped_column(sa.String(254))
    password_hash: Mapped[str] = mapped_column(sa.String(255))

    referral: Mapped[Referral | None] = relationship("Referral", secondary=welcome_link, uselist=False)
    orders: Mapped[list["Order"]] = relationship(back_populates="user", order_by="Order.id.desc()")

    def set_password(self, password: str) -> None:
        self.password_hash = generate_password_hash(password)

    def check_password(self, password: str) -> bool:
        return check_password_hash(self.password_hash, password)

    @property
    def is_operator(self) -> bool:
        # For the demo only: a real shop checks a role instead of a name.
        return self.name == "alice"

    def __str__(self) -> str:
        return self.name


class Product(Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(sa.String(40), unique=True)  # also names its picture
    name: Mapped[str] = mapped_column(sa.String(80))
    tagline: Mapped[str] = mapped_column(sa.String(120))
    description: Mapped[str] = mapped_column(sa.String(500))
    unit: Mapped[str] = mapped_column(sa.String(40))
    price: Mapped[int]  # pence

    def __str__(self) -> str:
        return self.name


class Order(Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("user.id"), index=True)
    product_id: Mapped[int] = mapped_column(sa.ForeignKey("product.id"), index=True)
    price: Mapped[int]  # pence, as paid: the product's price may change
    created_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), default=now)

    user: Mapped[User] = relationship(back_populates="orders")
    product: Mapped[Product] = relationship(lazy="joined")

    @property
    def pounds(self) -> Decimal:
        return Decimal(self.price) / 100

    def __str__(self) -> str:
        return f"Order no. {self.id}: {self.product.name}, {money(self.price)}"


class OutboxMail(Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    to: Mapped[str] = mapped_column(sa.String(254))
    subject: Mapped[str] = mapped_column(sa.String(200))
    body: Mapped[str] = mapped_column(sa.Text)
    sent_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), default=now)


def load_user(user_id: str) -> User | None:
    return db.session.get(User, int(user_id))


login.user_loader(load_user)

# Possible targets of links and actions.
referrals.register_target(Product)
referrals.register_target(Order)
