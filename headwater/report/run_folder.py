"""A finished run of ``headwater evaluate``, read back from its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater import __version__
from headwater.errors import DataError, MissingDependencyError
from headwater.files import is_intact

if TYPE_CHECKING:
    import pandas

SETTINGS, ABOUT, RESULTS, CURVES, ROWS = "settings.json", "run.json", "results.parquet", "curves.json", "rows"
SHUFFLED = "randomisation.csv"
_COLUMNS = {"image", "label", "label_source", "method", "error", "predicted", "probability"}
_COLUMNS |= {"conservation_error", "cut_error", "mass", "box_covered", "inside_box"}
_ABOUT = {"command": str, "data": str, "devices": list, "versions": dict, "baselines": list}
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
        settings = _object(folder / SETTINGS, {"headwater": str})
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
        if table.empty or _COLUMNS - set(table) or not any(column.startswith("id_") for column in table):
            raise DataError(f"{folder / RESULTS} holds no rows of an evaluation; {_FINISH}")
        if not _row_files(folder):
            raise DataError(f"{folder / ROWS} holds no rows, with the pictures of the report; {_FINISH}")
        curves = _object(folder / CURVES, dict.fromkeys(table["method"], dict))
        return cls(folder, settings, _object(folder / ABOUT, _ABOUT), table, curves, _randomisation(folder / SHUFFLED))

    def pictures(self, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], tuple[bytes, bytes]]:
        """Photo (JPEG) and map (PNG) by image and method.

        Raises:
            DataError: a file of rows is damaged or missing.
        """
        import pandas

        found: dict[tuple[str, str], tuple[bytes, bytes]] = {}
        for path in _row_files(self.folder):
            if not is_intact(path):
                raise DataError(f"{path} cannot be read (its checksum is another); {_FINISH}")
            rows = pandas.read_parquet(path, columns=["image", "method", "map", "photo"])
            photos = {image: photo for image, photo in zip(rows["image"], rows["photo"], strict=True) if photo}
            for image, method, heatmap in zip(rows["image"], rows["method"], rows["map"], strict=True):
                if (image, method) in wanted and heatmap and image in photos:
                    found[image, method] = photos[image], heatmap
        missing = sorted(wanted - set(found))
        if missing:
            raise DataError(f"{self.folder / ROWS} holds no picture of {missing[0][0]} by {missing[0][1]}; {_FINISH}")
        return found


def _row_files(folder: Path) -> list[Path]:
    return sorted((folder / ROWS).glob("*.parquet"))


def _randomisation(path: Path) -> pandas.DataFrame | None:
    """The rows of the randomisation test, where there are some.

    Raises:
        DataError: they are damaged.
    """
    import pandas

    if not path.is_file():
        return None
    try:
        return pandas.read_csv(path)[["method", "layers", "correlation"]]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be read ({error}); remove it, or evaluate with --randomise again") from error


def _object(path: Path, fields: Mapping[str, type]) -> dict[str, Any]:
    """A JSON file that holds an object with fields of these types.

    Raises:
        DataError: it is missing, damaged, or holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"the run in {path.parent} is not finished (no {path.name}); {_FINISH}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); {_FINISH}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(k), kind) for k, kind in fields.items()):
        raise DataError(f"{path} does not hold what headwater evaluate writes; {_FINISH}")
    return content
