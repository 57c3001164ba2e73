"""Reading a dump of pinax-referrals, record by record: Django's JSON array or JSON lines, and CSV.

No more is held in memory than the record that is being read, and what is broken is handed on as such.
"""

import csv
import json
import re
import typing as t
from collections.abc import Iterator
from dataclasses import dataclass

LINK = "referral"
RESPONSE = "response"
CONTENT_TYPE = "content type"

#: Django's names of the models; pinax calls its app "referrals" unless a project gave it another label.
_MODELS = {
    "referrals.referral": LINK,
    "referrals.referralresponse": RESPONSE,
    "pinax_referrals.referral": LINK,
    "pinax_referrals.referralresponse": RESPONSE,
    "contenttypes.contenttype": CONTENT_TYPE,
}
_COLUMNS = {
    LINK: {"id", "code", "redirect_to", "created_at"},
    RESPONSE: {"id", "referral_id", "action", "created_at"},
}
#: The columns that hold another row's key; Django's own dumps leave the "_id" out.
_FOREIGN_KEYS = {"referral_id", "user_id", "target_content_type_id"}
#: How databases write NULL into CSV, and where it may be.
_NULLS = {"", "\\N", "NULL"}
_NULLABLE = {"expired_at", "user", "target_content_type", "target_object_id"}

_CHUNK = 1 << 16
#: The longest record, in characters; a dump of all models may hold long texts.
_LONGEST = 1 << 24
_BETWEEN = re.compile(r"[\s,]*")
_RECORD_START = re.compile(r'\{\s*"(?:model|pk)"\s*:')


@dataclass(frozen=True)
class Record:
    """A row of one of the three tables.

    :param where: file and number, for reports.
    :param kind: :data:`LINK`, :data:`RESPONSE` or :data:`CONTENT_TYPE`.
    :param pk: its key, as text.
    :param fields: the other columns under Django's names.
    """

    where: str
    kind: str
    pk: str
    fields: dict[str, t.Any]


@dataclass(frozen=True)
class Broken:
    """What cannot be read."""

    where: str
    reason: str


def read_json(name: str, stream: t.TextIO) -> Iterator[Record | Broken]:
    """Read what ``dumpdata`` wrote, as ``json`` or ``jsonl``; rows of other models are skipped.

    :param name: the file's name, for reports.
    :param stream: the open file.
    """
    for where, element in _Elements(name, stream):
        if isinstance(element, Broken):
            yield element
            continue
        try:
            kind = _MODELS.get(element["model"].lower())
            fields = element["fields"] if kind else None
            pk = element["pk"] if kind else None
        except (AttributeError, KeyError, TypeError):
            yield Broken(where, "is not an object with model, pk and fields")
            continue
        if kind is None:
            continue
        if not isinstance(fields, dict) or isinstance(pk, (bool, float, list, dict)) or pk is None:
            yield Broken(where, "is not an object with model, pk and fields")
        else:
            yield Record(where, kind, str(pk), fields)


class _Elements:
    """The elements of a JSON array, or of JSON lines, that is read piece by piece."""

    def __init__(self, name: str, stream: t.TextIO) -> None:
        self._name = name
        self._stream = stream
        self._buffer = ""
        self._position = 0
        self._line = 1

    def __iter__(self) -> Iterator[tuple[str, t.Any]]:
        in_array = self._next() == "["
        if in_array:
            self._advance(self._position + 1)
        number = 0
        while (character := self._next()) not in ("", "]" if in_array else ""):
            number += 1
            where = f"{self._name}, record {number}" if in_array else f"{self._name}, line {self._line}"
            element = self._element(where)
            yield where, element
            if isinstance(element, Broken) and not self._skip_to_record():
                return
        if in_array and character == "":
            where = f"{self._name}, record {number + 1}"
            yield where, Broken(where, "is missing: the file ends before its array does")

    def _next(self) -> str:
        """Step over what is between elements, and return the character there, or the empty string at the end."""
        while True:
            match = _BETWEEN.match(self._buffer, self._position)
            self._advance(match.end() if match else self._position)
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._fill():
                return ""

    def _element(self, where: str) -> t.Any:
        while True:
            try:
                element, end = _decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                if self._may_go_on(error) and self._fill():
                    continue
                return Broken(where, f"is not JSON: {error.msg}")
            except (RecursionError, ValueError):
                return Broken(where, "is not JSON of a row")
            self._advance(end)
            return element

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        """Whether the element may only be cut off by the end of what was read so far."""
        if len(self._buffer) - self._position > _LONGEST:
            return False
        return error.pos > len(self._buffer) - 16 or error.msg.startswith("Unterminated string")

    def _skip_to_record(self) -> bool:
        start = self._position + 1
        while (match := _RECORD_START.search(self._buffer, start)) is None:
            self._advance(max(start, len(self._buffer) - 64))
            start = self._position
            if not self._fill():
                return False
            start = self._position
        self._advance(match.start())
        return True

    def _advance(self, position: int) -> None:
        self._line += self._buffer.count("\n", self._position, position)
        self._position = position

    def _fill(self) -> bool:
        """Read on, as much again as is waiting; whether there was anything."""
        waiting = self._buffer[self._position :]
        more = self._stream.read(max(_CHUNK, len(waiting)))
        self._buffer, self._position = waiting + more, 0
        return more != ""


_decode = json.JSONDecoder().raw_decode


def read_csv(name: str, stream: t.TextIO, kind: str) -> Iterator[Record | Broken]:
    """Read a table's rows from CSV with a header of pinax's column names.

    :param name: the file's name, for reports.
    :param stream: the file, opened with ``newline=""``.
    :param kind: which table it is.
    """
    reader = csv.reader(stream, strict=True)
    header = [column.strip() for column in next(reader, [])]
    missing = _COLUMNS[kind] - set(header)
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
        for column in _NULLABLE & fields.keys():
            if fields[column] in _NULLS:
                fields[column] = None
        pk = fields.pop("id")
        yield Record(where, kind, pk, fields) if pk else Broken(where, "has no id")
