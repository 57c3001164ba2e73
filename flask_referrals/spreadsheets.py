"""Cells of CSV files, which people open with spreadsheets."""

import json
import re
import typing as t

#: Where a spreadsheet would begin a formula: in front of the text, or after what separates cells or lines elsewhere.
_FORMULA = re.compile(r"""(?:^|(?<=[;\t\r\n])(?<!^[\t\r\n]))(?=[\s"']*[=+\-@\uff1d\uff0b\uff0d\uff20])|^(?=[\t\r\n])""")
#: Control characters, which a terminal obeys, except tabs and line ends.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def csv_cell(value: t.Any) -> t.Any:
    """Return a value as a cell that no spreadsheet takes for a formula."""
    if isinstance(value, (dict, list)):
        value = json.dumps(value)
    if isinstance(value, bool):
        return str(value).lower()
    return _FORMULA.sub("'", _CONTROL.sub("\N{REPLACEMENT CHARACTER}", value)) if isinstance(value, str) else value
