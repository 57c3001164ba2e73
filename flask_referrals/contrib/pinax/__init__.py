"""Import the links and responses of pinax-referrals 4.5.0.

``flask referrals import --from pinax`` is the command for it. In Python, within an app context::

    with open("pinax.json", encoding="utf-8") as stream:
        report = import_pinax(read_json("pinax.json", stream))
"""

from .dumps import Broken, Record, read_csv, read_json
from .importing import Options, Report, import_pinax

__all__ = ["Broken", "Options", "Record", "Report", "import_pinax", "read_csv", "read_json"]
