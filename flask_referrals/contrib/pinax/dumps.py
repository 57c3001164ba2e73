"""Read a dump of pinax-referrals record by record: Django's JSON array, JSON lines, or CSV.

Only the current record is in memory. A record that cannot be read is returned as :class:`Broken`.
"""

import csv
import json
import re
import typing as t
from collections.abc import Iterator
from dataclasses import dataclass

LINK, RESPONSE, CONTENT_TYPE = "referral", "response", "content type"

#: Django's names of the models. The app is "referrals" unless the project gave it another label.
_KINDS = {
    "referrals.referral": LINK,
    "referrals.referralresponse": RESPONSE,
    "pinax_referrals.referral": LINK,
    "pinax_referrals.referralresponse": RESPONSE,
    "contenttypes.contenttype": CONTENT_TYPE,
}
_REQUIRED_COLUMNS = {
    LINK: {"id", "code", "redirect_to", "created_at"},
    RESPONSE: {"id", "referral_id", "action", "created_at"},
}
#: Columns that hold the key of another row. In Django's dumps their names have no "_id".
_FOREIGN_KEYS = {"referral_id", "user_id", "target_content_type_id"}
#: How databases write NULL into CSV, and the columns in which it may occur.
_NULLS = {"", "\\N", "NULL"}
_NULLABLE = {"expired_at", "user", "target_content_type", "target_object_id"}

_CHUNK = 1 << 16
#: The longest record, in characters. Records of other models may hold long texts.
_MAX_RECORD = 1 << 24
_SEPARATORS = re.compile(r"[\s,]*")
_RECORD_START = re.compile(r'\{\s*"(?:model|pk)"\s*:')
_decode = json.JSONDecoder().raw_decode


@dataclass(frozen=True)
class Record:
    """A row of one of the three tables.

    :param where: the file and the number of the record, for reports.
    :param kind: :data:`LINK`, :data:`RESPONSE` or :data:`CONTENT_TYPE`.
    :param pk: the primary key, as text.
    :param fields: the other columns under Django's names.
    """

    where: str
    kind: str
    pk: str
    fields: dict[str, t.Any]


@dataclass(frozen=True)
class Broken:
    """A record that cannot be read, and the reason."""

    where: str
    reason: str


def read_json(name: str, stream: t.TextIO) -> Iterator[Record | Broken]:
    """Read what Django's ``dumpdata`` wrote, as ``json`` or ``jsonl``. Rows of other models are skipped.

    :param name: the name of the file, for reports.
    """
    for where, element in _Elements(name, stream):
        if isinstance(element, Broken):
            yield element
            continue
        row = element if isinstance(element, dict) else {}
        model, pk, fields = row.get("model"), row.get("pk"), row.get("fields")
        if isinstance(model, str) and model.lower() not in _KINDS:
            continue
        if isinstance(model, str) and type(pk) in (str, int) and isinstance(fields, dict):
            yield Record(where, _KINDS[model.lower()], str(pk), fields)
        else:
            yield Broken(where, "is not an object with model, pk and fields")


class _Elements:
    """Read a JSON array or JSON lines in chunks. Yield each element and where it is."""

    def __init__(self, name: str, stream: t.TextIO) -> None:
        self._name = name
        self._stream = stream
        self._buffer = ""
        self._position = 0
        self._line = 1

    def __iter__(self) -> Iterator[tuple[str, t.Any]]:
        is_array = self._skip_separators() == "["
        if is_array:
            self._move_to(self._position + 1)
        number = 0
        while (character := self._skip_separators()) not in ("", "]" if is_array else ""):
            number += 1
            where = f"{self._name}, record {number}" if is_array else f"{self._name}, line {self._line}"
            element = self._read_element(where)
            yield where, element
            if isinstance(element, Broken) and not self._skip_to_next_record():
                return
        if is_array and character == "":
            where = f"{self._name}, record {number + 1}"
            yield where, Broken(where, "is missing: the file ends before its array does")

    def _skip_separators(self) -> str:
        """Return the first character of the next element, or the empty string at the end of the file."""
        while True:
            match = _SEPARATORS.match(self._buffer, self._position)
            self._move_to(match.end() if match else self._position)
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._read_more():
                return ""

    def _read_element(self, where: str) -> t.Any:
        while True:
            try:
                element, end = _decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                if self._may_be_incomplete(error) and self._read_more():
                    continue
                return Broken(where, f"is not JSON: {error.msg}")
            except (RecursionError, ValueError):
                return Broken(where, "is not JSON of a row")
            self._move_to(end)
            return element

    def _may_be_incomplete(self, error: json.JSONDecodeError) -> bool:
        """Return whether the rest of the element may be in the next chunk."""
        if len(self._buffer) - self._position > _MAX_RECORD:
            return False
        return error.pos > len(self._buffer) - 16 or error.msg.startswith("Unterminated string")

    def _skip_to_next_record(self) -> bool:
        """Move to the next text that looks like the start of a record. Return whether there is one."""
        start = self._position + 1
        while (match := _RECORD_START.search(self._buffer, start)) is None:
            self._move_to(max(start, len(self._buffer) - 64))  # the start may be cut by the end of the chunk
            if not self._read_more():
                return False
            start = self._position
        self._move_to(match.start())
        return True

    def _move_to(self, position: int) -> None:
        self._line += self._buffer.count("\n", self._position, position)
        self._position = position

    def _read_more(self) -> bool:
        """Read another chunk, at least as long as the unread rest. Return whether there was one."""
        rest = self._buffer[self._position :]
        chunk = self._stream.read(max(_CHUNK, len(rest)))
        self._buffer, self._position = rest + chunk, 0
        return chunk != ""


def read_csv(name: str, stream: t.TextIO, kind: str) -> Iterator[Record | Broken]:
    """Read a table from CSV. The header has the names of pinax's columns.

    :param name: the name of the file, for reports.
    :param stream: the file, opened with ``newline=""``.
    :param kind: ``"referral"`` or ``"response"``.
    """
    reader = csv.reader(stream, strict=True)
    header = [column.strip() for column in next(reader, [])]
    missing = _REQUIRED_COLUMNS[kind] - set(header)
    if missing:
        yield Broken(f"{name}, line 1", f"must name the columns; {', '.join(sorted(missing))} missing")
        return
    names = [column.removesuffix("_id") if column in _FOREIGN_KEYS else column for column in header]
    while True:
        where = f"{name}, line {reader.line_num + 1}"
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Broken(where, f"is not CSV: {error}")
            continue
        if not row:
            continue
        if len(row) != len(names):
            yield Broken(where, f"has {len(row)} columns, not {len(names)}")
            continue
        fields: dict[str, t.Any] = dict(zip(names, row, strict=True))
        fields |= {column: None for column in _NULLABLE & fields.keys() if fields[column] in _NULLS}
        pk = fields.pop("id")
        yield Record(where, kind, pk, fields) if pk else Broken(where, "has no id")
