"""A finished run of ``headwater evaluate``, read back from its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater import __version__
from headwater.errors import DataError, MissingDependencyError

if TYPE_CHECKING:
    import pandas

SETTINGS, ABOUT, RESULTS, CURVES, ROWS = "settings.json", "run.json", "results.parquet", "curves.json", "rows"
_FINISH = "give the same headwater evaluate command again, which finishes it"


@dataclass(frozen=True)
class RunFolder:
    """What a run's folder holds.

    Attributes:
        folder: where it is.
        settings: what the table depends on.
        about: how it was run: the command, where the data are, versions, class names, which methods are baselines.
        table: one row per image and method.
        curves: mean curves of each method.
        randomisation: rows of the randomisation test, or ``None``.
    """

    folder: Path
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    table: pandas.DataFrame
    curves: Mapping[str, Mapping[str, Sequence[float]]]
    randomisation: pandas.DataFrame | None

    @classmethod
    def read(cls, folder: Path) -> RunFolder:
        """Read a folder that ``headwater evaluate`` has written.

        Raises:
            DataError: it is not such a folder, of another version, not finished, damaged, or without rows.
            MissingDependencyError: pandas or pyarrow is not installed.
        """
        try:
            import pandas
            import pyarrow  # noqa: F401 - pandas needs it for Parquet
        except ImportError as error:
            raise MissingDependencyError(f"reports need {error.name}: pip install 'headwater[evaluate]'") from error
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder; give the --out of a headwater evaluate command")
        if not (folder / SETTINGS).is_file():
            raise DataError(f"{folder} holds no run of headwater evaluate (no {SETTINGS})")
        settings = _object(folder / SETTINGS)
        if settings.get("headwater") != __version__:
            raise DataError(
                f"{folder} was written by headwater {settings.get('headwater')}, this is {__version__}; evaluate again "
                "into another folder, or make the report with that version"
            )
        if not (folder / RESULTS).is_file():
            there = len(_row_files(folder))
            raise DataError(f"the run in {folder} is not finished ({there} files of rows, no {RESULTS}); {_FINISH}")
        try:
            table = pandas.read_parquet(folder / RESULTS)
        except Exception as error:  # of a damaged file the reader raises anything
            raise DataError(f"{folder / RESULTS} cannot be read ({error}); {_FINISH}") from error
        lacking = {"image", "label", "method", "error", "predicted", "probability", "conservation_error"} - set(table)
        if table.empty or lacking or not any(column.startswith("id_") for column in table):
            raise DataError(f"{folder / RESULTS} holds no rows of an evaluation; {_FINISH}")
        if not _row_files(folder):
            raise DataError(f"{folder / ROWS} holds no rows, with the pictures of the report; {_FINISH}")
        shuffled = folder / "randomisation.csv"
        return cls(
            folder,
            settings,
            _object(folder / ABOUT),
            table,
            _object(folder / CURVES),
            pandas.read_csv(shuffled) if shuffled.is_file() else None,
        )

    def pictures(self, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], tuple[bytes, bytes]]:
        """Photo (JPEG) and map (PNG) by image and method, for those of the wanted ones that the rows hold.

        Raises:
            DataError: a file of rows is damaged.
        """
        import pandas

        found: dict[tuple[str, str], tuple[bytes, bytes]] = {}
        for path in _row_files(self.folder):
            try:
                rows = pandas.read_parquet(path, columns=["image", "method", "map", "photo"])
            except Exception as error:  # of a damaged file the reader raises anything
                raise DataError(f"{path} cannot be read ({error}); {_FINISH}") from error
            photos = {image: photo for image, photo in zip(rows["image"], rows["photo"], strict=True) if photo}
            for image, method, heatmap in zip(rows["image"], rows["method"], rows["map"], strict=True):
                if (image, method) in wanted and heatmap and image in photos:
                    found[image, method] = photos[image], heatmap
        return found


def _row_files(folder: Path) -> list[Path]:
    return sorted((folder / ROWS).glob("*.parquet"))


def _object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        DataError: it is missing, damaged, or holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"the run in {path.parent} is not finished (no {path.name}); {_FINISH}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); {_FINISH}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} does not hold what headwater evaluate writes; {_FINISH}")
    return content
