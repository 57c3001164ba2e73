"""``flask referrals …``: the commands, gathered."""

from flask.cli import AppGroup

from .doctor import doctor
from .explain import explain
from .explain import simulate
from .links import create
from .links import expire
from .links import list_
from .links import show
from .migrations import check
from .migrations import revision
from .privacy import anonymize
from .privacy import export_user
from .privacy import forget_user
from .privacy import purge
from .rollup import rollup
from .transfer import export
from .transfer import import_

group: AppGroup = AppGroup("referrals", short_help="Links, their responses, and the tables of both.")

for _command in (
    create,
    list_,
    show,
    expire,
    explain,
    simulate,
    import_,
    export,
    purge,
    anonymize,
    export_user,
    forget_user,
    rollup,
    revision,
    check,
    doctor,
):
    group.add_command(_command)
