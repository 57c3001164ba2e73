"""shop and referrals

Revision ID: 3f50528cc780
Revises:
Create Date: 2026-11-23 01:54:45.926287
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "3f50528cc780"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "outbox_mail",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("to", sa.String(length=254), nullable=False),
        sa.Column("subject", sa.String(length=200), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "product",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("slug", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("tagline", sa.String(length=120), nullable=False),
        sa.Column("description", sa.String(length=500), nullable=False),
        sa.Column("unit", sa.String(length=40), nullable=False),
        sa.Column("price", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("slug"),
    )
    op.create_table(
        "user",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=False),
        sa.Column("password_hash", sa.String(length=255), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "order",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("product_id", sa.Integer(), nullable=False),
        sa.Column("price", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["product_id"],
            ["product.id"],
        ),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["user.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("order", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_order_product_id"), ["product_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_order_user_id"), ["user_id"], unique=False)

    op.create_table(
        "referral",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "code",
            sa.String(length=64)
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=64), "mariadb")
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=64), "mysql"),
            nullable=False,
        ),
        sa.Column(
            "folded_code",
            sa.String(length=64)
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=64), "mariadb")
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=64), "mysql"),
            nullable=True,
        ),
        sa.Column("label", sa.String(length=100), nullable=False),
        sa.Column("redirect_to", sa.String(length=2048), nullable=False),
        sa.Column(
            "identity",
            sa.String(length=64)
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=64), "mariadb")
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=64), "mysql"),
            nullable=False,
        ),
        sa.Column(
            "expired_at",
            sa.DateTime(timezone=True)
            .with_variant(mysql.DATETIME(fsp=6), "mariadb")
            .with_variant(mysql.DATETIME(fsp=6), "mysql"),
            nullable=True,
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True)
            .with_variant(mysql.DATETIME(fsp=6), "mariadb")
            .with_variant(mysql.DATETIME(fsp=6), "mysql"),
            nullable=False,
        ),
        sa.Column(
            "target_type",
            sa.String(length=100)
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=100), "mariadb")
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=100), "mysql"),
            nullable=True,
        ),
        sa.Column(
            "target_id",
            sa.String(length=64)
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=64), "mariadb")
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=64), "mysql"),
            nullable=True,
        ),
        sa.Column("user_id", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("code"),
        sa.UniqueConstraint("identity"),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("referral", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_referral_folded_code"), ["folded_code"], unique=True)
        batch_op.create_index(batch_op.f("ix_referral_user_id"), ["user_id"], unique=False)

    op.create_table(
        "referral_response",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "session_key",
            sa.String(length=43)
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=43), "mariadb")
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=43), "mysql"),
            nullable=True,
        ),
        sa.Column(
            "action",
            sa.String(length=128)
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=128), "mariadb")
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=128), "mysql"),
            nullable=False,
        ),
        sa.Column("is_touch", sa.Boolean(), nullable=False),
        sa.Column(
            "ignored",
            sa.String(length=20)
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=20), "mariadb")
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=20), "mysql"),
            nullable=True,
        ),
        sa.Column("ip_address", sa.String(length=45), nullable=True),
        sa.Column("http_referrer", sa.String(length=1024), nullable=True),
        sa.Column("user_agent", sa.String(length=255), nullable=True),
        sa.Column(
            "key",
            sa.String(length=128)
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=128), "mariadb")
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=128), "mysql"),
            nullable=True,
        ),
        sa.Column(
            "identity",
            sa.String(length=64)
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=64), "mariadb")
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=64), "mysql"),
            nullable=True,
        ),
        sa.Column(
            "value",
            sa.Numeric(precision=14, scale=4).with_variant(sa.Float(asdecimal=True, decimal_return_scale=4), "sqlite"),
            nullable=True,
        ),
        sa.Column("currency", sa.String(length=3), nullable=True),
        sa.Column("params", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("referral_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True)
            .with_variant(mysql.DATETIME(fsp=6), "mariadb")
            .with_variant(mysql.DATETIME(fsp=6), "mysql"),
            nullable=False,
        ),
        sa.Column(
            "target_type",
            sa.String(length=100)
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=100), "mariadb")
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=100), "mysql"),
            nullable=True,
        ),
        sa.Column(
            "target_id",
            sa.String(length=64)
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=64), "mariadb")
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=64), "mysql"),
            nullable=True,
        ),
        sa.Column("user_id", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["referral_id"], ["referral.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("identity"),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("referral_response", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_referral_response_referral_id"), ["referral_id", "created_at", "id"], unique=False
        )
        batch_op.create_index(
            batch_op.f("ix_referral_response_session_key"), ["session_key", "ignored", "created_at", "id"], unique=False
        )
        batch_op.create_index(
            batch_op.f("ix_referral_response_user_id"),
            ["user_id", "is_touch", "ignored", "created_at", "id"],
            unique=False,
        )

    op.create_table(
        "referral_total",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("referral_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column(
            "action",
            sa.String(length=128)
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=128), "mariadb")
            .with_variant(mysql.VARCHAR(collation="utf8mb4_bin", length=128), "mysql"),
            nullable=False,
        ),
        sa.Column(
            "day",
            sa.DateTime(timezone=True)
            .with_variant(mysql.DATETIME(fsp=6), "mariadb")
            .with_variant(mysql.DATETIME(fsp=6), "mysql"),
            nullable=False,
        ),
        sa.Column("count", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "value",
            sa.Numeric(precision=20, scale=4).with_variant(sa.Float(asdecimal=True, decimal_return_scale=4), "sqlite"),
            nullable=True,
        ),
        sa.Column("currency", sa.String(length=3), nullable=True),
        sa.ForeignKeyConstraint(["referral_id"], ["referral.id"], ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("referral_total", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_referral_total_action"), ["action", "day", "referral_id", "count"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_referral_total_referral_id"), ["referral_id", "day"], unique=False)

    op.create_table(
        "welcome_link",
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("referral_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.ForeignKeyConstraint(["referral_id"], ["referral.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("user_id"),
        sa.UniqueConstraint("referral_id"),
    )


def downgrade() -> None:
    # The indexes go with their tables: MariaDB drops none that a foreign key still needs.
    op.drop_table("welcome_link")
    op.drop_table("referral_total")
    op.drop_table("referral_response")
    op.drop_table("referral")
    op.drop_table("order")
    op.drop_table("user")
    op.drop_table("product")
    op.drop_table("outbox_mail")
