"""How good is what is shipped, on public data? Measures it and writes docs/quality.md.

    python bench/quality.py FOLDER [--only nab,smd] [--page docs/quality.md]

FOLDER holds the sets as quality_sets.py says. Each becomes a labelled file in a temporary folder
and goes through the very functions behind `raywatch backtest` and `raywatch evaluate`, with one
setting for all of a class: the shipped model `lagbank`, or a preset, and nothing set.
Without --only every part is measured; a part that was not is named on the page. Plots go to a
folder beside the page, with its name. Exit code 2: something is missing, the page is as it was.
"""

import argparse
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import quality_channels
import quality_counters
import quality_faults as faults
import quality_log_lines as log_lines
import quality_logs as logs
import quality_network as network
import quality_payments as payments
import quality_sets as sets
import quality_traces as traces
import quality_weeks
from quality_page import GOALS, Page, Plot, Row, Section
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from raywatch.actors.backtest import backtest
from raywatch.actors.evaluate import NOMINAL, Quality, evaluate
from raywatch.actors.records import RecordSpec
from raywatch.actors.spec import DetectorSpec
from raywatch.models import measures
from raywatch.models.errors import ConfigError, RaywatchError
from raywatch.models.registry import build, shipped

ROOT = Path(__file__).resolve().parent.parent
MODEL = "lagbank"
SEED = 20_261
SHOWN = 3  # best and worst keys that are plotted
CHANNELS = 45  # that faults are planted in
RECORDS = 8_000  # of each
CLEAN_FROM = 2_500  # record of the clean copy from which on its scores set the level
RATE = 1e-3  # of the clean copy's records above the level
LATE = 16  # records behind a fault in which it may still be found
SETTLE = 500  # records of a key, and after a shift, that are not judged: the default warm-up


class Bench:
    """The folder with the sets, one with room, and the model."""

    def __init__(self, folder: Path, room: Path, progress: Callable[[str], None]) -> None:
        self.folder, self.room, self.say = folder, room, progress
        self.scorer = build(shipped(MODEL))

    def scored(self, given: sets.Labelled) -> Path:
        """What `backtest` says of a file."""
        out = self.room / f"{given.path.stem}.scores.parquet"
        record = RecordSpec(values=given.channels, key="key", time="ts")
        spec = DetectorSpec(name="quality", topics=("quality",), record=record, model=MODEL)
        name, evidence = given.path.stem, bool(given.causes)
        backtest(
            spec, self.scorer, given.path, out, evidence=evidence,
            progress=lambda n: self.say(f"scoring {name}: {n:,} records"),
        )  # fmt: skip
        return out

    def measured(self, given: sets.Labelled, buffer: int | dict[str, int] = 0) -> Quality:
        """What `evaluate` says of a file."""
        out = self.scored(given)
        return evaluate(
            out, given.path, given.label, normal=given.normal, buffer=buffer, causes=given.causes,
            progress=lambda n: self.say(f"measuring {given.path.stem}: {n:,} records"),
        )  # fmt: skip

    def by_key(self, given: sets.Labelled) -> Iterator[tuple[str, dict[str, Any]]]:
        """(key, columns) of a scored file of one channel: event, value, window; its rows."""
        told = pq.read_table(self.room / f"{given.path.stem}.scores.parquet")
        table = pq.read_table(given.path)
        keys = np.array(table["key"].to_pylist(), object)
        edges = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
        label = table[given.label].to_numpy().astype(np.int64)
        for rows in np.split(np.arange(len(keys)), edges[1:]):
            yield (
                keys[rows[0]],
                {
                    "rows": rows,
                    "event": told["event_score"].to_numpy()[rows].astype(np.float64),
                    "value": table[given.channels[0]].to_numpy()[rows],
                    "window": measures.numbered(label[rows], given.normal),
                },
            )


# ---- the parts -----------------------------------------------------------------------------


def nab(bench: Bench) -> Section:
    """NAB on event scores, and when alerts came."""
    given = sets.nab(bench.folder, bench.room)
    found = bench.measured(given)
    threshold = found.nab["standard"].threshold
    worth: dict[str, float] = {}
    early: list[float] = []
    parts = dict(bench.by_key(given))
    for key, part in parts.items():
        event, window = part["event"], part["window"]
        worth[key] = measures.nab([(event, window)], threshold)["standard"].score
        early.extend(measures.alarms(event >= threshold, window).shares)
    first = _mean(share < 0.25 for share in early)
    rows = [Row("NAB standard", found.nab["standard"].score, GOALS["nab"])]
    rows += [Row(f"NAB {n}", found.nab[n].score) for n in ("low_fp", "low_fn")]
    rows += [
        Row("threshold on `event_score` (standard)", threshold),
        Row("windows found at it", len(early) / max(1, found.windows)),
        Row("of those, in their first quarter", first, GOALS["delay"]),
        *_others_early(bench.folder, list(parts.values())),
        Row("windows with an alert, default settings", found.found / max(1, found.windows)),
        Row("of those, in their first quarter", found.first_quarter),
        Row("alerts outside windows, of 1,000 records", 1_000.0 * found.false / found.records),
    ]
    words = (
        f"{len(found.keys)} series, {found.windows} windows, {found.records:,} records. NAB "
        "puts a window around what is labelled: its first quarter comes long before that."
    )
    return Section("Telemetry: NAB", words, rows, plots=_plots(bench, given, worth, "NAB"))


def _others_early(folder: Path, parts: list[dict[str, Any]]) -> list[Row]:
    """The same of published detectors, each at the threshold that suits it best."""
    rows: list[Row] = []
    for name, scores in sets.nab_published(folder).items():
        series = [(scores[part["rows"]], part["window"]) for part in parts]
        line = measures.nab(series)["standard"].threshold
        found = [each for s, window in series for each in measures.alarms(s >= line, window).shares]
        rows.append(
            Row(f"{name}: found windows, in their first quarter", _mean(s < 0.25 for s in found))
        )
    return rows


def tsbad_u(bench: Bench) -> Section:
    """VUS-PR of the univariate series."""
    given = sets.tsbad_u(bench.folder, bench.room)
    found = bench.measured(given, sets.buffers(bench.folder))
    worth = {each.key: each.vus_pr for each in found.keys}
    rows = [Row("VUS-PR, mean over series", found.vus_pr, GOALS["tsbad_u"])]
    section = Section("Telemetry: TSB-AD-U", f"{len(worth)} series, nothing muted.", rows)
    section.wins = _wins(worth, sets.published(bench.folder, "u"))
    section.plots = _plots(bench, given, worth, "VUS-PR")
    return section


def tsbad_m(bench: Bench) -> Section:
    """VUS-PR of the multivariate series."""
    worth: dict[str, float] = {}
    buffers = sets.buffers(bench.folder)
    for name, given in sets.tsbad_m(bench.folder, bench.room):
        worth[name] = bench.measured(given, buffers[name]).vus_pr
    rows = [Row("VUS-PR, mean over series", _mean(worth.values()), GOALS["tsbad_m"])]
    section = Section("Telemetry: TSB-AD-M", f"{len(worth)} series, nothing muted.", rows)
    section.wins = _wins(worth, sets.published(bench.folder, "m"))
    return section


def machines(name: str) -> Callable[[Bench], Section]:
    """SMD or ASD: event recall and hit rates."""

    def part(bench: Bench) -> Section:
        given = sets.machines(bench.folder, name, bench.room)
        found = bench.measured(given)
        event, score = found.event_score_recall, found.event_recall
        goal = GOALS[f"{name}_recall"]
        rows = [
            Row("event recall of `event_score`, 0.1 % flagged", event[1e-3], goal),
            Row("the same, 1 % flagged", event[1e-2]),
            Row("event recall of `score`, 0.1 % flagged", score[1e-3], goal),
            Row("the same, 1 % flagged", score[1e-2]),
            Row("HitRate@100 of explanations", found.hit_rate[1.0], GOALS[f"{name}_hit"]),
            Row("HitRate@150", found.hit_rate[1.5]),
        ]
        words = (
            f"{len(found.keys)} machines, {len(given.channels)} channels, {found.windows} windows; "
            "the train part goes in front, without labels. Flagged are normal records."
        )
        return Section(f"Server metrics: {name.upper()}", words, rows)

    return part


def injections(bench: Bench) -> Section:
    """Faults planted into channels of the train parts."""
    random = np.random.default_rng(SEED)
    pool = [
        (values[:RECORDS, n].astype(np.float64), sets.STEP_MS[name])
        for name in ("smd", "asd")
        for _, part in sets.parts(bench.folder, name)
        for values in (part["tr"],)
        for n in range(values.shape[1])
        if len(values) > faults.EARLIEST + faults.ROOM and faults.live(values[:RECORDS, n])
    ]
    if not pool:
        raise ConfigError("no train part has a channel that faults can be planted in")
    tables: list[pa.Table] = []
    planted: dict[str, faults.Fault] = {}
    for at in random.permutation(len(pool))[:CHANNELS].tolist():
        values, step_ms = pool[at]
        tables.append(pa.table(sets.columns_of(f"{at} clean", values[:, None], step_ms)))
        for kind in faults.KINDS:
            key = f"{at} {kind}"
            planted[key] = faults.planted(values, kind, random)
            columns = sets.columns_of(key, planted[key].values[:, None], step_ms)
            tables.append(pa.table(columns))
    path = bench.room / "injections.parquet"
    pq.write_table(pa.concat_tables(tables), path)
    rates = _found(bench.scored(sets.Labelled(path, ("x0",))), planted)
    rows = [
        Row("found at 1e-3, all kinds", _mean(rates.values()), GOALS["injections"]),
        Row("worst kind", min(rates.values()), GOALS["injections_worst"]),
        *(Row(kind, rate) for kind, rate in rates.items()),
    ]
    words = (
        f"{len(tables) // (1 + len(faults.KINDS))} channels of SMD's and ASD's train parts, each "
        "with seven faults, one at a time. Found: `event_score` rises above the level that one in "
        f"1,000 records of the clean copy exceeds, within the fault or {LATE} records behind it."
    )
    return Section("Planted faults", words, rows)


def _found(scores: Path, planted: dict[str, faults.Fault]) -> dict[str, float]:
    """Share of faults of each kind that were found."""
    table = pq.read_table(scores, columns=["key", "event_score"])
    keys, event = np.array(table["key"].to_pylist(), object), table["event_score"].to_numpy()
    begins = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    parts = dict(zip(keys[begins].tolist(), np.split(event, begins[1:]), strict=True))
    hits: dict[str, list[bool]] = {kind: [] for kind in faults.KINDS}
    for key, fault in planted.items():
        at, kind = key.split(" ")
        clean = np.sort(parts[f"{at} clean"][CLEAN_FROM:])[::-1]
        level = clean[int(RATE * len(clean))]
        hits[kind].append(bool((parts[key][fault.begin : fault.end + LATE] > level).any()))
    return {kind: float(np.mean(each)) for kind, each in hits.items()}


def alarms(bench: Bench) -> Section:
    """False alarms against their promise where nothing is wrong, and after a lasting shift."""
    rows: list[Row] = []
    rarest: list[str] = []
    for name in ("smd", "asd"):
        random = np.random.default_rng(SEED)
        tables: dict[str, list[pa.Table]] = {"": [], " after a level shift": []}
        for machine, part in sets.parts(bench.folder, name):
            moved = faults.shifted(part["tr"], random)
            for what, values, begin in (
                ("", part["tr"], 0),
                (" after a level shift", moved.values, moved.begin),
            ):
                columns = sets.columns_of(machine, values, sets.STEP_MS[name])
                judged = np.arange(len(values)) >= begin + SETTLE
                columns["label"] = pa.array(np.zeros(len(values), np.int64), mask=~judged)
                tables[what].append(pa.table(columns))
        for what, each in tables.items():
            path = bench.room / f"{name}{what.replace(' ', '_')}_alarms.parquet"
            pq.write_table(pa.concat_tables(each), path)
            channels = tuple(x for x in each[0].column_names if x[0] == "x")
            found = bench.measured(sets.Labelled(path, channels))
            least = min(NOMINAL)
            came, due = found.false_alarms[least] * found.records, least * found.records
            rarest.append(f"{came:.0f} of {due:.1f} for {name.upper()}{what}")
            for nominal in NOMINAL:
                ratio = found.false_alarms[nominal] / nominal
                rows.append(
                    Row(f"{name.upper()}{what}, at {nominal:g}", ratio, GOALS[f"{nominal:g}"])
                )
    words = (
        "Share of normal records at or below a tail probability, over that probability, in train "
        f"parts from record {SETTLE} on. The shift moves half of the channels by 2 to 4 deviations "
        f"in the middle of the part; what is judged begins {SETTLE} records after it. At "
        f"{min(NOMINAL):g} few are to come at all, so chance decides: {', '.join(rarest)}."
    )
    return Section("False alarms, measured over nominal", words, rows)


PARTS: dict[str, Callable[[Bench], Section]] = {
    "nab": nab,
    "tsbad_u": tsbad_u,
    "tsbad_m": tsbad_m,
    "smd": machines("smd"),
    "asd": machines("asd"),
    "injections": injections,
    "alarms": alarms,
    "counters": quality_counters.counters,
    "weeks": quality_weeks.weeks,
    "channels": quality_channels.channels,
    "loghub": lambda bench: logs.loghub(bench.folder),
    "log_lines": lambda bench: log_lines.lines(bench.room),
    "hdfs": lambda bench: logs.hdfs(bench.folder, bench.room),
    "nsl_kdd": lambda bench: network.nsl_kdd(bench.folder, bench.room),
    "smtp": lambda bench: network.smtp(bench.folder, bench.room),
    "payments": lambda bench: payments.payments(bench.folder, bench.room),
    "traces": lambda bench: traces.calls(bench.room),
}


def _mean(values: Any) -> float:
    """NaN of nothing."""
    found = list(values)
    return float(np.mean(found)) if found else math.nan


def _wins(
    worth: dict[str, float], methods: dict[str, dict[str, float]]
) -> list[tuple[str, float, int]]:
    """(method, its mean, series on which this is better), best first."""
    found = [
        (name, _mean(of[key] for key in worth), sum(worth[key] > of[key] for key in worth))
        for name, of in methods.items()
        if all(key in of for key in worth)
    ]
    return sorted(found, key=lambda each: -each[1])


def _plots(bench: Bench, given: sets.Labelled, worth: dict[str, float], what: str) -> list[Plot]:
    """Of the best and the worst keys; a key without a window has no worth."""
    order = sorted((key for key in worth if worth[key] == worth[key]), key=lambda key: -worth[key])
    best = order[:SHOWN]
    worst = [key for key in order[-SHOWN:] if key not in best]
    kept = {key: part for key, part in bench.by_key(given) if key in order}
    return [
        Plot(
            f"{given.path.stem}-{side}-{number}",
            f"{side} {number}: {key} ({what} {worth[key]:.2f})",
            kept[key]["value"], kept[key]["event"], kept[key]["window"] >= 0,
        )
        for side, keys in (("best", best), ("worst", worst[::-1]))
        for number, key in enumerate(keys, 1)
    ]  # fmt: skip


# ---- the command ---------------------------------------------------------------------------


def commit() -> str:
    """What is measured: the commit, and whether files differ from it."""

    def git(*words: str) -> str:
        asked = ["git", *words]
        return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs").strip()
    name = git("rev-parse", "--short=12", "HEAD").strip() or "unknown"
    return f"{name} with changes" if changed else name


def report(folder: Path, only: list[str]) -> Page:
    """Measure the parts. Raises ConfigError."""
    unknown = [name for name in only if name not in PARTS]
    if unknown:
        raise ConfigError(f"no part is called `{unknown[0]}`", hint=f"parts: {', '.join(PARTS)}")
    sets.check(folder, only)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="raywatch-quality-") as room,
        Progress(*columns, console=Console(stderr=True)) as bar,
    ):
        task = bar.add_task("", total=None)
        bench = Bench(folder, Path(room), lambda words: bar.update(task, description=words))
        sections: list[Section] = []
        for name in only:
            sections.append(PARTS[name](bench))
            bar.console.print(f"{name}: {sections[-1].rows[0].words()}")
        left = [name for name in PARTS if name not in only]
        today = datetime.now(UTC).date().isoformat()
        return Page(bench.scorer.version, commit(), today, sections, left)


def main() -> None:
    """Measure, then write the page and its plots."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with the public sets")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "quality.md")
    arguments = parser.parse_args()
    try:
        report(arguments.folder, arguments.only.split(",")).write(arguments.page)
    except (RaywatchError, OSError, pa.ArrowException) as caught:
        hint = getattr(caught, "hint", "")
        sys.exit(_refused(str(caught), hint))


def _refused(words: str, hint: str) -> int:
    print(f"error: {words}" + (f"\nhint: {hint}" if hint else ""), file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
