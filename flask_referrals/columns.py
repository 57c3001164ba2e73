"""The types of our columns.

Stock types only: a type of ours would be a name that the host's revision files do not import.
"""

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
# SQLite has no decimals: a float of 14 digits gives back what was put in.
MONEY = sa.Numeric(14, 4).with_variant(sa.Float(asdecimal=True, decimal_return_scale=4), "sqlite")


def exact(length: int) -> TypeEngine[str]:
    """A text compared byte for byte; MariaDB takes 'a' and 'A' for one unless told otherwise."""
    return sa.String(length).with_variant(mysql.VARCHAR(length, collation="utf8mb4_bin"), "mysql", "mariadb")
