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


EVIDENCE = np.array([[0.0, 9.0, 1.0, 2.0, 3.0], [8.0, 0.0, 1.0, 2.0, np.nan]])  # of two records


@pytest.mark.parametrize(
    ("causes", "share", "rate"),
    [
        ([0], 1.0, 0.0),  # first is channel 1
        ([1], 1.0, 1.0),
        ([0], 1.5, 0.0),  # floor(1.5) is 1
        ([0, 1], 1.0, 1.0),  # 9 and 8, each at a record of its own
        ([0, 4], 1.0, 0.5),  # 9 8 | 3
        ([0, 4], 1.5, 1.0),  # 9 8 3
        ([2, 3, 4], 1.0, 1 / 3),  # 9 8 3 | 2 1
        ([2, 3, 4], 1.5, 2 / 3),  # floor(4.5) is 4: 9 8 3 2 | 1
        ([0, 4, 4], 1.0, 0.5),  # named twice is named once
        ([0, 1, 2, 3, 4], 1.5, 1.0),
    ],
)
def test_the_hit_rate_is_the_share_of_causes_among_the_first(
    causes: list[int], share: float, rate: float
) -> None:
    assert measures.hit_rate(EVIDENCE, causes, share) == pytest.approx(rate)


def test_silence_blames_nobody() -> None:
    for causes in ([0], [4], [1, 3]):
        assert measures.hit_rate(np.zeros((4, 5)), causes, 1.0) == 0.0
        assert measures.hit_rate(np.full((4, 5), np.nan), causes, 1.0) == 0.0


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
    assert found["event_score_recall"] == {"0.01": 1.0, "0.001": 1.0}
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


def test_each_key_may_have_a_buffer_of_its_own(
    tmp_path: Path, raywatch: Callable[..., Said]
) -> None:
    config = written(tmp_path, model="robustz")
    made = [row | {"label": int(row["ts"] // 1_000 in range(1_198, 1_206))} for row in rows()]
    path, out = labelled(tmp_path, "parquet", made), tmp_path / "out.parquet"
    assert raywatch("backtest", config, path, "--output", out).code == 0

    def vus(buffer: int | dict[str, int]) -> list[float]:
        return [key.vus_pr for key in evaluate(out, path, "label", buffer=buffer).keys]

    narrow, wide = vus(0), vus(40)
    assert narrow[0] != wide[0]
    assert vus({"a": 40, "b": 0}) == [wide[0], narrow[1]]


# ---- causes ------------------------------------------------------------------------------------

BLAME = {900: "cpu", 910: "cpu, disk", 1_000: "mem", 1_100: ""}  # first record of a window -> cause
TRUTH = {900: ("cpu",), 910: ("cpu", "disk"), 1_000: ("disk",), 1_100: ("mem",)}
CHANNELS = ("cpu", "mem", "disk")


def blamed() -> list[dict[str, Any]]:
    """One key; at the begin of each window of 10 records the channels of TRUTH jump.

    900 and 910 are one window with two causes. Of 1,000 the wrong channel is named, of 1,100 none.
    """
    random, made = np.random.default_rng(3), list[dict[str, Any]]()
    for step in range(1_300):
        begin = next((at for at in BLAME if at <= step < at + 10), None)
        row: dict[str, Any] = {"host": "a", "ts": 1_000 * step, "label": int(begin is not None)}
        for channel in CHANNELS:
            jump = 30.0 if step in TRUTH and channel in TRUTH[step] else 0.0
            row[channel] = float(np.round(random.normal() + jump, 4))
        row["cause"] = (BLAME[begin] if begin is not None else None) or None
        made.append(row)
    made[905]["label"] = None  # not judged
    made[906] |= dict.fromkeys(CHANNELS)  # a reject: it has no evidence
    return made


def blaming(folder: Path, **detector: Any) -> Path:
    record = {"key": "host", "time": "ts", "values": list(CHANNELS)}
    return written(folder, record=record, alert={"warmup": 300}, **detector)


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_causes_give_a_hit_rate(kind: str, tmp_path: Path, raywatch: Callable[..., Said]) -> None:
    config, path = blaming(tmp_path), labelled(tmp_path, kind, blamed())
    told = raywatch("evaluate", config, path, "--causes", "cause", "--json")
    assert told.code == 0, told.err
    found = json.loads(told.out)
    assert found["windows"] == 3
    # cpu: 1; cpu and disk: 1; mem, where disk jumped: 0, and at 150 % of one cause still one place.
    assert found["hit_rate"] == {"100": pytest.approx(2 / 3), "150": pytest.approx(2 / 3)}

    out = tmp_path / "out.parquet"
    assert raywatch("backtest", config, path, "--output", out, "--evidence").code == 0
    again = raywatch("evaluate", config, path, "--causes", "cause", "--scores", out, "--json")
    assert json.loads(again.out) == found
    assert (
        "hit rate at 100 % of the causes"
        in raywatch("evaluate", config, path, "--causes", "cause", "--scores", out).out
    )
    assert json.loads(raywatch("evaluate", config, path, "--json").out)["hit_rate"] == {}


def test_backtest_writes_the_evidence_of_each_channel_where_asked(
    tmp_path: Path, raywatch: Callable[..., Said]
) -> None:
    config, path = blaming(tmp_path), labelled(tmp_path, "parquet", blamed())
    plain, out = tmp_path / "plain.parquet", tmp_path / "out.parquet"
    assert raywatch("backtest", config, path, "--output", plain).code == 0
    assert raywatch("backtest", config, path, "--output", out, "--evidence").code == 0
    table = pq.read_table(out)
    assert table.drop_columns(["evidence"]).equals(pq.read_table(plain))
    rows = table["evidence"].to_pylist()
    assert [at for at, row in enumerate(rows) if row is None] == [906]
    assert {len(row) for row in rows if row is not None} == {3}
    assert [int(np.argmax(rows[at])) for at in (900, 1_000, 1_100)] == [0, 2, 1]
    assert json.loads(table.schema.metadata[b"channels"]) == list(CHANNELS)


def test_causes_that_cannot_be_judged_end_with_2_and_say_why(
    tmp_path: Path, raywatch: Callable[..., Said]
) -> None:
    config, made = blaming(tmp_path), blamed()
    path, out = labelled(tmp_path, "parquet", made), tmp_path / "out.parquet"
    assert raywatch("backtest", config, path, "--output", out).code == 0

    def refused(*words: str | Path) -> str:
        told = raywatch("evaluate", config, *words)
        assert told.code == 2, told.out
        return told.err

    said = refused(path, "--causes", "cause", "--scores", out)
    assert "no column `evidence`" in said
    assert "--evidence" in said
    assert "no column `causes`" in refused(path, "--causes", "causes")

    def with_cause(at: int, cause: object) -> Path:
        return labelled(
            tmp_path,
            "jsonl",
            [row | ({"cause": cause} if n == at else {}) for n, row in enumerate(made)],
        )

    said = refused(with_cause(1_002, "cpu,gpu"), "--causes", "cause")
    assert "row 1002: `cpu,gpu` names no channels that were scored" in said
    assert "cpu, mem, disk" in said
    assert "row 1002" in refused(with_cause(1_002, "cpu,"), "--causes", "cause")
    assert "row 1002" in refused(with_cause(1_002, ["cpu"]), "--causes", "cause")
    said = refused(with_cause(500, "cpu"), "--causes", "cause")
    assert "row 500: a cause where `label` says nothing is wrong" in said
    none = labelled(tmp_path, "csv", [row | {"cause": None} for row in made])
    assert "no window" in refused(none, "--causes", "cause")
