"""The commands of ``flask referrals``, gathered."""

import click

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

COMMANDS: tuple[click.Command, ...] = (
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
)
