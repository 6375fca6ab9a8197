"""Goal: strangers by the ten thousand take no memory beyond the bound and nothing from the watched.

Method: bench/flood.py, small: real Kafka, real Ray, 50,000 keys that nobody knew at a hundred times
the hosts' rate, in partitions that hold 300. What is said of the hosts is compared with what is
said of the same events when nobody else sends any. The long version is in docs/guarantees.md.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from service import ray_local

BENCH = Path(__file__).resolve().parent.parent / "bench"


def program() -> ModuleType:
    """bench/flood.py, by path: bench is no package."""
    for name in ("bench", "flood"):
        spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
        assert spec
        assert spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules["flood"]


@pytest.mark.kafka
@pytest.mark.ray
def test_a_flood_stays_below_the_stated_memory_and_takes_nothing_from_the_watched(
    kafka: Any, tmp_path: Path
) -> None:
    flood = program()
    with ray_local():
        found: dict[str, Any] = flood.measure(
            kafka.bootstrap, tmp_path, rate=60.0, times=100, seconds=9.0, keys=50_000,
            model="robustz", drain_s=60.0, keys_max=300, batch_records=5_000,
        )  # fmt: skip
    assert found["everything_scored"], found
    assert found["scored"] == found["events"] > 100_000
    assert found["opened"] == [1, 1, 1, 1]  # nobody died of it
    assert found["evicted"] > 40_000
    # 12 partitions of 300 keys, and what six batches of the last moments displaced.
    assert found["keys"] <= 12 * 300
    assert found["alerts_of_hosts"] > 100
    assert (found["of_them_lost"], found["of_them_wrong"]) == (0, 0), found
    assert all(size < found["bound_mb"] for size in found["most_mb"].values()), found
    grown = [found["most_mb"][name] - size for name, size in found["before_mb"].items()]
    assert max(grown) < 400.0, found  # far below the bound: it is for the worst of all
