"""The commands of ``flask referrals`` by name."""

import click

from .doctor import doctor
from .explain import explain, simulate
from .export import export
from .links import create, expire, list_, show
from .migrations import check, revision
from .privacy import anonymize, export_user, forget_user, purge
from .rekey import rekey
from .responses import void
from .rollup import rollup
from .stats import stats, top

COMMANDS: dict[str, click.Command] = {
    "anonymize": anonymize,
    "check": check,
    "create": create,
    "doctor": doctor,
    "expire": expire,
    "explain": explain,
    "export": export,
    "export-user": export_user,
    "forget-user": forget_user,
    "list": list_,
    "purge": purge,
    "rekey": rekey,
    "revision": revision,
    "rollup": rollup,
    "show": show,
    "simulate": simulate,
    "stats": stats,
    "top": top,
    "void": void,
}
