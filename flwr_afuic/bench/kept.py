"""Results kept as files: each is made once, and only as long as there is time."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr_afuic.app.demo import write_json
from flwr_afuic.errors import DataError

Result = dict[str, Any]


class Keeper:
    """A folder of results.

    Parameters
    ----------
    folder : Path
        Holds one JSON file per result.
    fresh : bool
        Make results anew.
    budget : float or None
        Seconds after which nothing further is begun.
    told : callable
        Gets a line of text per result.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fresh: bool = False,
        budget: float | None = None,
        told: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._folder, self._fresh, self._budget, self._told = folder, fresh, budget, told
        self._began = time.monotonic()
        self.left = 0

    def once(self, name: str, asked: Result, make: Callable[[], Result]) -> Result | None:
        """Return a result from its file, or make it; None if time is up.

        Parameters
        ----------
        name : str
            Of the file; a digest of ``asked`` is added.
        asked : dict
            What the result depends on, as plain values.
        make : callable

        Raises
        ------
        DataError
            If the file is damaged.
        """
        path = self.path(name, asked)
        if path.is_file() and not self._fresh:
            return self._read(path)
        began = time.monotonic()
        if self._budget is not None and began - self._began > self._budget:
            self.left += 1
            self._told(f"{name}: left for the next run of this command")
            return None
        result = make()
        write_json(path, result)
        self._told(f"{name}: {time.monotonic() - began:.0f} s")
        return self._read(path)  # as a later run will see it

    def path(self, name: str, asked: Result) -> Path:
        """Name the file of a result."""
        text = json.dumps(asked, sort_keys=True, default=str)
        return self._folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}.json"

    def _read(self, path: Path) -> Result:
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {path} ({error}); delete it to repeat") from error
        if not isinstance(result, dict):
            raise DataError(f"{path} holds no result; delete it to repeat")
        return result
