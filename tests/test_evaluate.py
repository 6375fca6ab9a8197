"""Goal: `evaluate` measures as the published scorers do, and says what it cannot measure.

Method: numbers that the referee gave for the same series (NAB v1.1 and TSB-AD, computed apart from
this code); perfect and useless scores; the command on a labelled file in three formats.
"""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
from command import Said, called, written
from hypothesis import given

from raywatch.actors.evaluate import evaluate
from raywatch.models import measures
from raywatch.models.errors import ConfigError
from raywatch.models.scorer import F64, I64

REFEREE = {  # of `series()`: best score and its threshold, score at 3.0
    "standard": (60.067632722392155, 2.72, 55.79159178331525),
    "low_fp": (47.951889233847545, 3.05, 47.951889233847545),
    "low_fn": (73.37842181492809, 2.72, 65.76582309363872),
}
REFEREE_VUS = {  # by number of the series: at buffers 0, 7, 40
    1: (0.12027178704923738, 0.12027178704923737, 0.12546331640773042),
    2: (0.23249636891553815, 0.23799538523412, 0.2673800935961115),
    3: (0.3373498391554881, 0.3424610349476396, 0.3719493043586104),
    5: (0.016404642817484973, 0.01640464281748497, 0.019850339284520385),
}
REFEREE_RECALL = {0.01: (1.0, 1.0, 1.0, 1.0), 0.001: (0.0, 1.0, 1.0, 0.0)}  # of the same


@pytest.fixture
def raywatch(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    return partial(called, capsys)


def series() -> list[tuple[F64, I64]]:
    """(score, window) of six keys; in windows scores are higher by 1.5 sigma."""
    random, made = np.random.default_rng(7), list[tuple[F64, I64]]()
    for number in range(6):
        window = np.full(600 + 400 * number, -1)
        for each in range(number % 4):
            begin = 200 + 150 * each
            window[begin : begin + 10 + 20 * each] = each
        score = np.round(random.normal(size=len(window)) + 1.5 * (window >= 0), 2)
        score[:8] = np.nan
        made.append((score, window))
    return made


def test_nab_is_the_referees() -> None:
    best, fixed = measures.nab(series()), measures.nab(series(), 3.0)
    for name, (score, threshold, at) in REFEREE.items():
        assert best[name].score == pytest.approx(score, rel=1e-12)
        assert best[name].threshold == threshold
        assert fixed[name].score == pytest.approx(at, rel=1e-12)


def test_vus_pr_and_event_recall_are_the_referees() -> None:
    made = series()
    for number, wanted in REFEREE_VUS.items():
        score, window = made[number]
        found = [measures.vus_pr(score, window >= 0, buffer) for buffer in (0, 7, 40)]
        assert found == pytest.approx(wanted, rel=1e-12)
    for rate, wanted in REFEREE_RECALL.items():
        assert tuple(measures.event_recall(*made[n], rate) for n in REFEREE_VUS) == wanted
    assert math.isnan(measures.vus_pr(made[0][0], made[0][1] >= 0, 7))
    assert math.isnan(measures.event_recall(*made[0], 0.01))


def test_perfect_scores_are_perfect_and_silence_is_worth_nothing() -> None:
    window = np.full(1_000, -1)
    window[300:320], window[500:620] = 0, 1
    first = np.isin(np.arange(1_000), (300, 500)).astype(np.float64)
    perfect = measures.nab([(first, window)] * 3, 1.0)
    assert all(each.score == pytest.approx(100.0) for each in perfect.values())
    silent = measures.nab([(np.zeros(1_000), window)] * 3, 1.0)
    assert all(each.score == 0.0 for each in silent.values())
    assert measures.vus_pr((window >= 0).astype(np.float64), window >= 0, 0) == pytest.approx(1.0)
    assert all(math.isnan(x.score) for x in measures.nab([(np.ones(9), np.full(9, -1))]).values())


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 3))
def test_windows_are_the_runs_of_a_label(label: list[int], normal: int) -> None:
    found = measures.numbered(np.array(label), normal)
    assert ((found < 0) == (np.array(label) == normal)).all()
    for a, b, x, y in zip(label, label[1:], found, found[1:], strict=False):
        assert (a == b) == (x == y)
    inside = found[found >= 0]
    assert len(inside) == 0 or (np.diff(inside) >= 0).all()


def test_alerts_are_counted_by_window() -> None:
    window = np.array([-1, 0, 0, 0, 0, 1, 1, -1, -1])
    alert = np.array([1, 0, 1, 1, 0, 0, 0, 0, 1], np.bool_)
    assert measures.alarms(alert, window) == measures.Alarms([1], [0.25], missed=1, false=2)


# ---- the command -------------------------------------------------------------------------------


def rows() -> list[dict[str, Any]]:
    """Two keys in turn; each has a spike, of which one is labelled, and a part without labels."""
    random, made = np.random.default_rng(5), list[dict[str, Any]]()
    for step in range(1_500):
        for key in ("a", "b"):
            value = float(np.round(random.normal(), 4)) + (40.0 if step == 1_203 else 0.0)
            label = None if step < 400 else int(1_200 <= step < 1_208 and key == "a")
            made.append({"host": key, "ts": 1_000 * step, "value": value, "label": label})
    made[4]["value"] = None  # a reject, which has a row all the same
    return made


def labelled(folder: Path, kind: str, made: list[dict[str, Any]]) -> Path:
    """The rows as a file."""
    path = folder / f"in.{kind}"
    if kind == "jsonl":
        lines = [{name: v for name, v in row.items() if v is not None} for row in made]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    elif kind == "csv":
        pcsv.write_csv(pa.Table.from_pylist(made), path)
    else:
        pq.write_table(pa.Table.from_pylist(made), path)
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_labelled_file_is_scored_and_measured(
    kind: str, tmp_path: Path, raywatch: Callable[..., Said]
) -> None:
    config = written(tmp_path, model="robustz", alert={"warmup": 300, "probability": 1e-3})
    path = labelled(tmp_path, kind, rows())
    told = raywatch("evaluate", config, path, "--json")
    assert told.code == 0, told.err
    found = json.loads(told.out)
    assert (found["records"], found["windows"]) == (2_200, 1)
    assert found["alerts"]["found"] == 1
    assert found["alerts"]["false"] >= 1  # the spike of the other key
    assert found["alerts"]["delay_records"] == 3.0
    assert found["nab"]["standard"]["score"] > 50.0
    assert found["event_recall"] == {"0.01": 1.0, "0.001": 1.0}
    assert [(k["key"], k["windows"], k["found"]) for k in found["keys"]] == [
        ("a", 1, 1),
        ("b", 0, 0),
    ]
    assert found["keys"][1]["vus_pr"] is None

    # The same from the file that `backtest` wrote; and for people.
    out = tmp_path / "out.parquet"
    assert raywatch("backtest", config, path, "--output", out).code == 0
    again = raywatch("evaluate", config, path, "--scores", out, "--json")
    assert json.loads(again.out) == found
    words = raywatch("evaluate", config, path, "--scores", out).out
    assert "2,200 records, 2 keys, 1 windows" in words
    assert "NAB standard" in words


def test_what_cannot_be_measured_ends_with_2_and_says_why(
    tmp_path: Path, raywatch: Callable[..., Said]
) -> None:
    config = written(tmp_path, model="robustz")
    made = rows()
    path = labelled(tmp_path, "parquet", made)
    out = tmp_path / "out.parquet"
    assert raywatch("backtest", config, path, "--output", out).code == 0

    missing = raywatch("evaluate", config, path, "--label", "truth")
    assert (missing.code, "no column `truth`" in missing.err) == (2, True)
    half = labelled(tmp_path, "csv", [{**row, "label": 0.5} for row in made])
    broken = raywatch("evaluate", config, half)
    assert (broken.code, "label `0.5`" in broken.err) == (2, True)
    words = labelled(tmp_path, "csv", [{**row, "label": "bad"} for row in made])
    assert raywatch("evaluate", config, words).code == 2
    none = labelled(tmp_path, "jsonl", [{**row, "label": None} for row in made])
    assert raywatch("evaluate", config, none).code == 2
    short = labelled(tmp_path, "parquet", made[:-1])
    with pytest.raises(ConfigError, match=r"3000 rows, .* has 2999"):
        evaluate(out, short, "label")
    with pytest.raises(ConfigError, match="cannot read scores"):
        evaluate(path, short, "label")
