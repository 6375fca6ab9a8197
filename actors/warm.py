"""Compiles every kernel of records and numbers: `python -m raywatch.actors.warm`.

Installation calls it, so that no first batch waits for a compiler. Compiled kernels of older
sources are removed first (see `models/warm.py`).
"""

from pathlib import Path

from raywatch import models
from raywatch.actors.keys import warm_decode
from raywatch.actors.line_times import warm_line_times
from raywatch.actors.merging import warm_merging
from raywatch.models.warm import forget_stale, warm


def main() -> None:
    """Forget what is stale, compile what is missing."""
    here = Path(__file__).parent
    assert models.__file__ is not None
    forget_stale(Path(models.__file__).parent)
    forget_stale(here)
    warm()
    warm_decode()
    warm_merging()
    warm_line_times()


if __name__ == "__main__":
    main()
