"""What a signal class says of a table, through `backtest`, with nothing set."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raywatch.actors.backtest import backtest
from raywatch.actors.records import RecordSpec
from raywatch.actors.spec import DetectorSpec
from raywatch.models.registry import build, shipped
from raywatch.models.settings import MissingSettings


def told(table: pa.Table, preset: str, record: RecordSpec, room: Path, *columns: str) -> pa.Table:
    """Columns of what `preset:...` says of each row; files go to the folder `room`."""
    source, out = room / f"{preset}.parquet", room / f"{preset}.scores.parquet"
    pq.write_table(table, source)
    spec = DetectorSpec(
        name="quality", topics=("quality",), record=record, model=f"preset:{preset}",
        missing=MissingSettings(enabled=False),
    )  # fmt: skip
    backtest(spec, build(shipped(preset)), source, out)
    return pq.ParquetFile(out).read(list(columns))
