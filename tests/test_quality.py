"""Goal: one command measures the public sets and writes a page that says what it measured; what is
missing is one error, and the page stays as it was.

Method: the program itself on a made-up folder of the same layout, small, where some answers are
known; what it plants and prepares is looked at by itself.
"""

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"
TRAIN, TEST = 4_200, 600
WINDOWS = ((100, 109), (300, 309))  # first and last record of the test part that is labelled


def program(name: str) -> ModuleType:
    """A file of bench, by path: bench is no package."""
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def calm(records: int, channels: int, seed: int) -> Any:
    """(records, channels): a rhythm with noise."""
    noise = np.random.default_rng(seed).normal(0.0, 0.1, (records, channels))
    return np.sin(np.arange(records)[:, None] / 9.0 + np.arange(channels)) + noise


def machine(seed: int) -> dict[str, Any]:
    """Train, test and labels of a machine; channel 2 jumps in the first window, 1 and 3 in both."""
    values, label = calm(TRAIN + TEST, 4, seed), np.zeros(TEST, np.int8)
    for number, (begin, end) in enumerate(WINDOWS):
        label[begin : end + 1] = 1
        bad = (1,) if number == 0 else (0, 2)
        values[TRAIN + begin : TRAIN + end + 1, bad] += 8.0
    return {"tr": values[:TRAIN].astype(np.float32), "te": values[TRAIN:], "y": label}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the layout that bench/quality_sets.py describes."""
    found = tmp_path_factory.mktemp("public")
    series = [f"realMade/{name}.csv" for name in "ab"]
    value = calm(2_000, 2, 1)
    value[1_500:1_520, 0] += 8.0
    window = np.full((2_000, 2), -1)
    window[1_495:1_540, 0] = 0
    names = np.repeat(series, 2_000)
    ts = np.tile(np.arange(2_000) * 300_000, 2)
    flat, windows = value.T.reshape(-1), window.T.reshape(-1).astype(np.int16)
    nab = {"series": names, "ts": ts, "value": flat, "window": windows}
    pq.write_table(pa.table(nab), found / "nab.parquet")
    perfect = (np.asarray(windows) >= 0).astype(np.float64)
    pq.write_table(pa.table({"Perfect": perfect}), found / "nab_published_scores.parquet")

    label = (windows >= 0).astype(np.int8)
    univariate = {"series": names, "t": ts, "x0": flat, "label": label}
    pq.write_table(pa.table(univariate), found / "tsbad_u.parquet")
    (found / "tsbad_m").mkdir()
    many = {"t": np.arange(2_000), "x0": value[:, 0], "x1": value[:, 1], "label": label[:2_000]}
    pq.write_table(pa.table(many), found / "tsbad_m" / "m.parquet")
    with (found / "tsbad_meta.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["series", "kind", "vus_window"])
        rows.writerows([[name, "U", 20] for name in series] + [["m.csv", "M", 7]])
    for kind, names_of in (("u", series), ("m", ["m.csv"])):
        with (found / f"tsbad_{kind}_published_vus_pr.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["file", "Perfect", "Useless"])
            rows.writerows([name, 1.1, -0.1] for name in names_of)

    (found / "interpretation_label").mkdir()
    for name, seed in (("smd", 5), ("asd", 6)):
        parts = {f"{name}-1|{part}": array for part, array in machine(seed).items()}
        np.savez(found / f"{name}.npz", **parts)
        # SMD writes the record behind a stretch, ASD the last one of it.
        last = 110 if name == "smd" else 109
        (found / "interpretation_label" / f"{name}-1.txt").write_text(
            f"100-{last}:2\n300-{last + 200}:1,3\n"
        )
    security(found)
    payments(found)
    logs(found)
    return found


def payments(found: Path) -> None:
    """A payment a minute for 32 days; one terminal is taken over on the sixth."""
    rng, minute = np.random.default_rng(4), np.arange(32 * 1_440)
    terminal = rng.integers(40, size=minute.size)
    fraud = (terminal == 7) & (minute >= 6 * 1_440)
    columns: dict[str, Any] = {
        "TRANSACTION_ID": minute, "CUSTOMER_ID": rng.integers(50, size=minute.size),
        "TERMINAL_ID": terminal, "TX_AMOUNT": rng.lognormal(3.0, 0.3, minute.size),
        "TX_DATETIME": minute.astype("datetime64[m]").astype("datetime64[ns]"),
        "TX_TIME_DAYS": minute // 1_440, "TX_FRAUD": fraud.astype(int),
        "TX_FRAUD_SCENARIO": 2 * fraud,
    }  # fmt: skip
    pq.write_table(pa.table(columns), found / "fraud_sim.parquet")


def security(found: Path) -> None:
    """Records of the network class: of 3,000 the last 200 have numbers and words of their own."""
    rng, attack = np.random.default_rng(9), np.arange(3_000) >= 2_800
    numbers = rng.lognormal(size=(3_000, 41)) * np.where(attack, 1e3, 1.0)[:, None]
    columns: dict[str, Any] = {str(n): numbers[:, n] for n in range(41)}
    for name in ("1", "2", "3"):
        columns[name] = np.where(attack, "odd", rng.choice(["tcp", "udp"], 3_000))
    columns |= {"41": np.where(attack, "flood", "normal"), "42": rng.integers(21, size=3_000)}
    pq.write_table(pa.table(columns), found / "nsl_kdd.parquet")
    np.savez(found / "smtp.npz", X=numbers[:, :3], y=attack.astype(int))


def logs(found: Path) -> None:
    """Lines of two kinds; sessions of which the abnormal ones lack most of their lines."""
    (found / "loghub_2k").mkdir()
    with (found / "loghub_2k" / "Two_2k.log_structured.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["LineId", "Content", "EventId"])
        rows.writerows(
            [n, f"{'opened' if n % 3 else 'shut'} door {n}", n % 3 > 0] for n in range(90)
        )
    (found / "hdfs").mkdir()
    rng = np.random.default_rng(4)
    usual = ["5 5 22 11 9" + " 26" * int(n) for n in rng.integers(1, 4, 1_200)]
    for name, kinds in (("normal", usual), ("abnormal", ["5 7 7"] * 60)):
        blocks = [f"blk_{n},{each}\n" for n, each in enumerate(kinds)]
        (found / "hdfs" / f"{name}_sessions.txt").write_text("".join(blocks))


def ran(*words: str | Path) -> subprocess.CompletedProcess[str]:
    asked = [sys.executable, BENCH / "quality.py", *words]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


def measured(page: str, what: str) -> float:
    """The number beside the first measure of this name."""
    line = next(line for line in page.splitlines() if line.startswith(f"| {what} |"))
    return float(line.split("|")[2].strip(" *"))


def test_one_command_measures_every_set_and_writes_the_page(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "q.md"
    told = ran(folder, "--page", page)
    assert told.returncode == 0, told.stderr
    text = page.read_text()
    assert measured(text, "HitRate@100 of explanations") == 1.0
    assert measured(text, "event recall of `event_score`, 0.1 % flagged") == 1.0
    assert measured(text, "NAB standard") > 80.0
    assert measured(text, "AUC of `score`") > 0.99
    assert measured(text, "of `flood` (200)") > 0.9
    assert "## Security: smtp" in text
    assert measured(text, "grouping accuracy, mean over systems") == 1.0
    assert measured(text, "found at 1 % false positives, worst order") == 1.0
    assert measured(text, "at a cold start, 3 % abnormal, mean of orders") > 0.5
    assert 0.0 < measured(text, "VUS-PR, mean over series") < 1.1
    assert "| Perfect | 1.100 | 0 |" in text
    assert "| Useless | -0.100 | 1 |" in text
    assert measured(text, "Perfect: found windows, in their first quarter") == 1.0
    assert measured(text, "spike") > 0.5
    assert measured(text, "ASD after a level shift, at 0.001") >= 0.0
    assert measured(text, "average precision of `score`") > 0.9
    assert measured(text, "false alarms at 0.0001, over nominal") < 1.7
    assert "## Traces: planted calls" in text
    assert "series that are not public here" in text.split("## Not yet")[1]
    assert "Not measured in this run" not in text
    assert str(folder) not in text
    assert "lagbank@" in text

    plots = sorted(each.name for each in (tmp_path / "q").iterdir())
    assert plots == ["nab-best-1.svg", "tsbad_u-best-1.svg"]  # one key of two has a window
    for name in plots:
        assert f"(q/{name})" in text
        body = (tmp_path / "q" / name).read_text()
        assert ElementTree.fromstring(body).tag.endswith("svg")
        assert len(body) < 60_000
        assert "realMade/a.csv" in body


def test_a_part_can_be_measured_and_the_page_names_what_was_not(
    folder: Path, tmp_path: Path
) -> None:
    told = ran(folder, "--only", "tsbad_m,nab", "--page", tmp_path / "q.md")
    assert told.returncode == 0, told.stderr
    text = (tmp_path / "q.md").read_text()
    assert "## Telemetry: TSB-AD-M" in text
    assert "## Planted faults" not in text
    assert "Not measured in this run: tsbad_u, smd, asd, injections, alarms," in text


@pytest.mark.parametrize(
    ("lost", "words", "said"),
    [
        ("", ["--only", "nab,weather"], "no part is called `weather`"),
        ("nab.parquet", ["--only", "smd,nab"], "lacks `nab.parquet`"),
        ("tsbad_meta.csv", [], "lacks `tsbad_meta.csv`"),
        ("interpretation_label/asd-1.txt", ["--only", "asd"], "asd-1.txt"),
        ("everything", [], "is no folder"),
    ],
)
def test_what_is_missing_is_one_error_and_the_page_stays(
    folder: Path, tmp_path: Path, lost: str, words: list[str], said: str
) -> None:
    there, page = tmp_path / "public", tmp_path / "q.md"
    if lost != "everything":
        (there / "interpretation_label").mkdir(parents=True)
        for each in folder.rglob("*.*"):
            name = each.relative_to(folder)
            if each.is_file() and str(name) != lost:
                (there / name).parent.mkdir(exist_ok=True)
                (there / name).symlink_to(each)
    page.write_text("as it was")
    told = ran(there, "--page", page, *words)
    assert (told.returncode, said in told.stderr) == (2, True), told.stderr
    assert "Traceback" not in told.stderr
    assert page.read_text() == "as it was"


def test_a_torn_file_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "nab.parquet").write_bytes(b"PAR1 and then nothing")
    told = ran(tmp_path, "--only", "nab", "--page", tmp_path / "q.md")
    assert (told.returncode, "Traceback" in told.stderr) == (2, False), told.stderr
    assert not (tmp_path / "q.md").exists()


def test_planted_faults_are_where_they_are_said_to_be_and_come_again() -> None:
    faults = program("quality_faults")
    values = calm(6_000, 1, 2)[:, 0]
    for kind, length in faults.KINDS.items():
        one, two = (faults.planted(values, kind, np.random.default_rng(9)) for _ in range(2))
        np.testing.assert_array_equal(one.values, two.values)
        assert one.end - one.begin == length
        assert one.begin >= faults.EARLIEST
        changed = np.flatnonzero(one.values != values)
        assert one.begin <= changed[0] <= changed[-1] < one.end
        assert len(changed) >= 0.9 * length
    flat = faults.planted(values, "flat", np.random.default_rng(1))
    assert np.ptp(flat.values[flat.begin : flat.end]) == 0.0

    many = calm(1_000, 5, 3)
    many[:, 4] = 2.0  # does not move
    moved = faults.shifted(many, np.random.default_rng(4))
    np.testing.assert_array_equal(moved.values[:500], many[:500])
    lasting = moved.values[500:] - many[500:]
    np.testing.assert_allclose(lasting, np.broadcast_to(lasting[0], lasting.shape), atol=1e-12)
    assert (lasting[0] != 0.0).sum() == 2  # half of the four that move
    assert lasting[0, 4] == 0.0


@pytest.mark.parametrize("name", ["smd", "asd"])
def test_causes_begin_and_end_with_their_labels(name: str, folder: Path, tmp_path: Path) -> None:
    given = program("quality_sets").machines(folder, name, tmp_path)
    table = pq.read_table(given.path)
    assert given.channels == ("x0", "x1", "x2", "x3")
    label, cause = table["label"].to_pylist(), table["cause"].to_pylist()
    assert label[:TRAIN] == [None] * TRAIN
    assert cause[:TRAIN] == [None] * TRAIN
    for part, (begin, end) in zip(("x1", "x0,x2"), WINDOWS, strict=True):
        assert cause[TRAIN + begin : TRAIN + end + 1] == [part] * (end - begin + 1)
    assert [c is not None for c in cause[TRAIN:]] == [bool(each) for each in label[TRAIN:]]


def test_a_long_line_keeps_its_peaks_and_few_points() -> None:
    page = program("quality_page")
    values = np.zeros(100_000)
    values[[4, 50_000, 99_999]] = 3.0, -7.0, 5.0
    at, shown = page.envelope(values)
    assert len(at) == len(shown) == 2 * page.POINTS
    assert (shown.min(), shown.max(), shown[-1]) == (-7.0, 5.0, 5.0)
    assert (np.diff(at) >= 0).all()
