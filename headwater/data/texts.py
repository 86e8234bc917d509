"""Text files of data sets: tables and lists, with a clear error where a file is something else."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from headwater.errors import DataError


def read_lines(file: Path) -> list[str]:
    """The lines of a UTF-8 text file that are not empty.

    Raises:
        DataError: it is missing, or not a text file in UTF-8.
    """
    try:
        return [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not a text file in UTF-8 ({error})") from error


def read_table(file: Path, columns: Sequence[str]) -> list[Mapping[str, str]]:
    """The rows of a CSV file (UTF-8) that has at least these columns.

    Raises:
        DataError: it is missing, not a CSV file in UTF-8, or lacks a column or a value.
    """
    header, rows = _csv(file)
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(f"{file} needs columns {', '.join(columns)}; it has {', '.join(map(repr, header)) or 'none'}")
    short = next((k for k, row in enumerate(rows, 2) if any(row[c] is None for c in columns)), None)
    if short is not None:
        raise DataError(f"{file}, line {short}: a value is missing; needed are {', '.join(columns)}")
    return rows


def read_columns(file: Path) -> list[str]:
    """The names of a CSV file's columns.

    Raises:
        DataError: it is missing, or not a CSV file in UTF-8.
    """
    return _csv(file)[0]


def _csv(file: Path) -> tuple[list[str], list[Mapping[str, str]]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows: list[Mapping[str, str]] = list(reader)
            return list(reader.fieldnames or []), rows
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} is not a CSV file in UTF-8 ({error})") from error
