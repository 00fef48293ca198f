"""Texts of one's own to evaluate on: JSON lines, CSV or plain text."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awd_core.errors import AwdError

SUFFIXES = (".jsonl", ".csv", ".txt")


@dataclass(frozen=True)
class OwnText:
    """A text, the label that is right for it where it has one, and the task that it belongs to."""

    text: str
    label: str | None
    task: str


def read_texts(file: Path) -> tuple[OwnText, ...]:
    """The texts of a file, in its order.

    Args:
        file: `.jsonl` with `{"text": ..., "label": ..., "task": ...}` on each line, `.csv` with
            these columns, or `.txt` with paragraphs. `label` and `task` may be left out; the task
            is then called as the file.

    Raises:
        AwdError: Another kind of file, a row without text, or no text at all.
    """
    readers = {".jsonl": _of_json_lines, ".csv": _of_csv, ".txt": _of_paragraphs}
    if file.suffix not in readers:
        raise AwdError(
            "These texts are in a file of another kind",
            where=file,
            received=file.suffix or "no ending",
            expected=", ".join(SUFFIXES),
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AwdError(
            "The file of texts cannot be read",
            where=file,
            received=f"{type(error).__name__}: {error}",
            expected="a file of UTF-8 text",
        ) from error
    found = tuple(readers[file.suffix](text, file))
    if not found:
        raise AwdError("There is no text in this file", where=file, received=f"{len(text)} letters")
    return found


def _of_json_lines(text: str, file: Path) -> Iterator[OwnText]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError:
            fields = None
        yield _own_text(fields, line, file, number)


def _of_csv(text: str, file: Path) -> Iterator[OwnText]:
    reader = csv.DictReader(text.splitlines(keepends=True))
    for fields in reader:
        yield _own_text(fields, str(fields), file, reader.line_num)


def _of_paragraphs(text: str, file: Path) -> Iterator[OwnText]:
    for paragraph in text.split("\n\n"):
        if paragraph.strip():
            yield OwnText(paragraph.strip(), None, file.stem)


def _own_text(fields: Any, line: str, file: Path, number: int) -> OwnText:
    text = fields.get("text") if isinstance(fields, Mapping) else None
    if not isinstance(text, str) or not text.strip():
        raise AwdError(
            "A text cannot be read",
            where=f"{file}, line {number}",
            received=line[:80],
            expected='{"text": ..., "label": ...} or the columns text and label',
        )
    label, task = fields.get("label"), fields.get("task")
    return OwnText(text, None if label in (None, "") else str(label), str(task or file.stem))
