"""The log class on public logs: templates of loghub-2k and sessions of HDFS.

    loghub_2k/*_structured.csv   `Content`: a line without its header; `EventId`: its true template
    hdfs/*_sessions.txt          `block,event event ...`: kinds of the lines of a block, in order

Templates: the lines of each system are one key of the state that a lane has; a line is right if its
group holds all lines of one true template and no other (grouping accuracy). Sessions: blocks come
in random order, a new one each 250 ms, their lines 400 ms apart, each kind a line of its own words;
a session is strange by the `score` that `backtest` gives it when it ends. Found is what lies above
the level that 1 % of the normal ones exceed. They come behind 1,000 normal ones, or with nothing
before them and 3 % of them abnormal; five orders each.
"""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
from numpy.typing import NDArray
from quality_page import GOALS, Row, Section
from quality_presets import told

from raywatch.actors.backtest import SESSIONS
from raywatch.actors.records import RecordSpec
from raywatch.models import log_sessions
from raywatch.models.logs import Batch, Logs
from raywatch.models.settings import DecideSettings

FRONT = 1_000  # normal sessions that come first
COLD = 0.03  # of the sessions are abnormal where none comes first
ORDERS = 5
BEGIN_MS, LINE_MS = 250, 400


def loghub(folder: Path) -> Section:
    """Grouping accuracy of each system."""
    rows: list[Row] = []
    for path in sorted((folder / "loghub_2k").glob("*_2k.log_structured.csv")):
        options = pcsv.ConvertOptions(column_types={"Content": pa.string()})
        table: Any = pcsv.read_csv(path, convert_options=options)
        lines = [line.encode() for line in table["Content"].to_pylist()]
        right = grouping(templates(lines), table["EventId"].to_pylist())
        rows.append(Row(path.name.split("_")[0], right))
    mean = float(np.mean([row.measured for row in rows]))
    rows.insert(0, Row("grouping accuracy, mean over systems", mean, GOALS["loghub"]))
    words = "2,000 lines of each system, without headers; model `preset:logs`, nothing learnt."
    return Section("Logs: templates of loghub-2k", words, rows)


def templates(lines: list[bytes]) -> list[int]:
    """The templates that lines of one key go by."""
    count = len(lines)
    size = np.array([len(line) for line in lines], np.int32)
    begin, none = np.cumsum(size, dtype=np.int64) - size, np.zeros(count, np.int64)
    text = np.frombuffer(b"".join(lines) + b"\0", np.uint8)
    logs = Logs(DecideSettings())
    logs.ensure(1)
    batch = Batch(
        np.zeros(count, np.int32), np.arange(count) * 1_000, text, begin, size, none, none,
        none.astype(np.int32),
    )  # fmt: skip
    return logs.observe(batch, (none[:0], none[:0])).code.tolist()


def grouping(found: list[int], true: list[str]) -> float:
    """Share of lines whose group is a true one."""
    size, groups = Counter(true), defaultdict[int, list[str]](list)
    for code, event in zip(found, true, strict=True):
        groups[code].append(event)
    right = (g for g in groups.values() if len(set(g)) == 1 and len(g) == size[g[0]])
    return sum(map(len, right)) / len(true)


def hdfs(folder: Path, room: Path) -> Section:
    """Recall of sessions at 1 % false positives, warm and cold."""
    kinds, strange = _blocks(folder / "hdfs")
    warm: list[float] = []
    cold: list[float] = []
    for seed in range(ORDERS):
        rng = np.random.default_rng(seed)
        normal, abnormal = (rng.permutation(np.flatnonzero(strange == s)) for s in (False, True))
        rest = rng.permutation(np.concatenate([normal[FRONT:], abnormal]))
        order = np.concatenate([normal[:FRONT], rest])
        score = _scored(kinds, order, room)
        warm.append(_recall(score[FRONT:], strange[order][FRONT:]))
        few = int(len(normal) * COLD / (1.0 - COLD))
        order = rng.permutation(np.concatenate([normal, abnormal[:few]]))
        cold.append(_recall(_scored(kinds, order, room), strange[order]))
    rows = [
        Row("found at 1 % false positives, worst order", min(warm), GOALS["hdfs"]),
        Row("at a cold start, 3 % abnormal, mean of orders", float(np.mean(cold))),
        Row("at a cold start, 3 % abnormal, worst order", min(cold)),
    ]
    words = (
        f"{len(kinds):,} sessions, {int(strange.sum()):,} of them abnormal; behind {FRONT:,} "
        f"normal ones, or none; {ORDERS} orders; model `preset:logs`, nothing set."
    )
    return Section("Logs: sessions of HDFS", words, rows)


def _blocks(folder: Path) -> tuple[list[NDArray[np.int64]], NDArray[np.bool_]]:
    """Kinds of the lines of each block, and whether it is abnormal."""
    kinds: list[NDArray[np.int64]] = []
    strange: list[bool] = []
    for name in ("normal", "abnormal"):
        for row in (folder / f"{name}_sessions.txt").read_text().splitlines():
            kinds.append(np.array(row.split(",")[1].split(), np.int64))
            strange.append(name == "abnormal")
    return kinds, np.array(strange)


def _line(kind: int) -> str:
    """A line that shares no template, and no family of them, with another kind's."""
    word = "".join(chr(ord("a") + int(digit)) for digit in str(kind))
    return f"kind{word} block blk_{kind}"


def _scored(kinds: list[NDArray[np.int64]], order: NDArray[Any], room: Path) -> NDArray[np.float64]:
    """What `backtest` says of each session, in this order."""
    size = np.array([len(kinds[block]) for block in order])
    number = np.repeat(np.arange(len(order)), size)
    at = number * BEGIN_MS + np.concatenate([np.arange(each) for each in size]) * LINE_MS
    by = np.argsort(at, kind="stable")
    code = np.concatenate([kinds[block] for block in order])[by]
    # One more session, so late and so long that each other one has ended when it is over.
    last = np.arange(log_sessions.SESSIONS) + at.max() + 10 * RecordSpec(values=()).session_idle_ms
    texts = np.array([_line(kind) for kind in range(int(code.max()) + 1)], object)
    table = pa.table(
        {
            "service": ["hdfs"] * (len(at) + len(last)),
            "ts": np.concatenate([at[by], last]),
            "message": [*texts[code], *[texts[code[0]]] * len(last)],
            "block": [*(f"blk_{n}" for n in number[by].tolist()), *["last"] * len(last)],
        }
    )
    record = RecordSpec((), "service", "ts", message="message", session="block")
    ended: Any = told(table, "logs", record, room, SESSIONS)[SESSIONS].combine_chunks().flatten()
    names, scores = ended.field("session").to_pylist(), ended.field("score").to_numpy()
    found = np.full(len(order), np.nan)
    for name, score in zip(names, scores, strict=True):
        if name != "last":
            assert np.isnan(found[int(name[4:])]), f"{name} ended twice"
            found[int(name[4:])] = score
    assert np.isfinite(found).all(), "a session did not end"
    return found


def _recall(score: NDArray[np.float64], strange: NDArray[np.bool_]) -> float:
    normal = np.sort(score[~strange])
    level = normal[int(np.ceil(len(normal) * 0.99)) - 1]
    return float((score[strange] > level).mean())
