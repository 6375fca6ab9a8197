"""What does the page show, and what does `status` say?

`raywatch.snapshot/1`: one dictionary of plain values. Every series has `axis.n` values,
`axis.step_s` apart, the last at `axis.end_ms`; names end in their unit (`_ms` after `at`, `end`,
`since`, `until` is Unix time). Null is unknown, and nothing is made up: what was not measured is
null or an empty list. Fields are added, never renamed. Everything is bounded, no clock is read,
the same observation gives the same snapshot.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from raywatch.actors.stats import CHECKED
from raywatch.cluster.journal import Entry
from raywatch.cluster.lag import STATES
from raywatch.cluster.series import Axis
from raywatch.cluster.views import (
    AlertView,
    ChannelView,
    DetectorView,
    Observed,
    OwnerView,
    PartitionView,
    PoolView,
    ScorerView,
    Window,
)
from raywatch.cluster.words import ranked, verdict

SCHEMA = "raywatch.snapshot/1"
PARTITIONS_MAX = 10_000
SPARKS_ALL = 32  # up to so many partitions, each has its line
SPARKS_MAX = 64  # beyond that, only those in trouble, the worst first
INCIDENTS_MAX = 100
CHANNELS_MAX = 12
DETECTORS_MAX = 200
JOURNAL_MAX = 100
MARKS_MAX = 60
LABEL_MAX = 24
WINDOW_MAX = 1_024  # Values of a window that are drawn, the newest ones.
EXPECTED_MIN = 10.0  # rare records; of so many, a ratio is off by a third one time in three
MARK_KINDS = ("grow", "shrink", "rollout", "fault", "drill")


def build(seen: Observed, now_ms: int, axis: Axis) -> dict[str, Any]:
    """The snapshot. Called once a second; 2,000 partitions take a few milliseconds.

    Args:
        seen: what the supervisor observed this tick.
        now_ms: Unix milliseconds; also the end of the time axis.
        axis: of all series in `seen`; shorter ones are filled with unknown on the left.
    """
    counts, cluster = seen.counts, seen.cluster
    return {
        "schema": SCHEMA,
        "at_ms": now_ms,
        "axis": {"end_ms": now_ms, "step_s": axis.step_s, "n": axis.n},
        "cluster": {
            "name": cluster.name,
            "version": cluster.version,
            "config": cluster.config,
            "up_s": _number(cluster.up_s),
            "exactly_once": cluster.exactly_once,
        },
        "verdict": verdict(seen),
        "owners": _owners(seen.owners, seen.partitions),
        "scorers": _scorers(seen.scorers, seen.pool),
        "alerts": {
            "today": counts.today,
            "last_minute": counts.last_minute,
            "unacknowledged": counts.unacknowledged,
            "rejects_today": counts.rejects_today,
            "scored_today": counts.scored_today,
        },
        "resolved_today": counts.resolved_today,
        "last_resolved": counts.last_resolved,
        "incidents_open": len(seen.alerts),  # `incidents` is bounded
        "incidents": [
            _incident(each, now_ms, axis) for each in ranked(seen.alerts)[:INCIDENTS_MAX]
        ],
        "detectors": [_detector(each, axis) for each in seen.detectors[:DETECTORS_MAX]],
        "partitions": _partitions(seen, axis),
        "pool": {
            "say": seen.pool.say,
            "series": {
                "serving": _fit(seen.pool.serving, axis),
                "starting": _fit(seen.pool.starting, axis),
                "draining": _fit(seen.pool.draining, axis),
                "wanted": _fit(seen.pool.wanted, axis),
                "busy": _fit(seen.pool.busy, axis),
                "queue_records": _fit(seen.pool.queue_records, axis),
            },
        },
        "marks": marks(seen.journal, now_ms, axis),
        "journal": [
            {
                "at_ms": entry.at_ms,
                "kind": entry.kind if entry.kind in MARK_KINDS else "",
                "words": entry.words,
            }
            for entry in seen.journal[:JOURNAL_MAX]
        ],
        "flow": [
            {
                "name": each.name,
                "per_s": _number(each.per_s),
                "per_min": _number(each.per_min),
                "words": each.words,
                "held": each.held,
            }
            for each in seen.flow
        ],
    }


def open_alerts(alerts: Iterable[Mapping[str, Any]]) -> list[AlertView]:
    """Open incidents, from records of the alerts topics in the order they were read.

    The last record of an id says how its incident stands. Only `live` ones count; what does not
    look like an alert is passed over.
    """
    newest: dict[str, Mapping[str, Any]] = {}
    for alert in alerts:
        name = alert.get("id")
        if isinstance(name, str) and alert.get("run_kind") == "live":
            newest.pop(name, None)
            newest[name] = alert
    views = (_view(each) for each in newest.values() if each.get("state") != "resolved")
    return [each for each in views if each is not None]


def marks(journal: Sequence[Entry], now_ms: int, axis: Axis) -> list[dict[str, Any]]:
    """Lines and bands over the plots: journal entries with a `label`, oldest first."""
    begin_ms = now_ms - 1000.0 * axis.step_s * (axis.n - 1)
    made: list[dict[str, Any]] = []
    for entry in journal:
        label, until_ms = entry.fields.get("label"), entry.fields.get("until_ms")
        kind = "rollout" if entry.kind == "start" else entry.kind
        ends_ms = until_ms if isinstance(until_ms, int) else entry.at_ms
        if not isinstance(label, str) or kind not in MARK_KINDS or ends_ms < begin_ms:
            continue
        mark: dict[str, Any] = {"at_ms": entry.at_ms, "kind": kind, "label": label[:LABEL_MAX]}
        if isinstance(until_ms, int):
            mark["until_ms"] = until_ms
        made.append({**mark, "words": entry.words})
        if len(made) == MARKS_MAX:
            break
    return made[::-1]


def ok_lags(partitions: Iterable[PartitionView]) -> tuple[float | None, float | None]:
    """Median and highest lag in seconds of the partitions that are ok, for two series."""
    lags = sorted(
        each.lag_s for each in partitions if each.state == "ok" and each.lag_s is not None
    )
    return (lags[len(lags) // 2], lags[-1]) if lags else (None, None)


def _owners(owners: Sequence[OwnerView], partitions: Sequence[PartitionView]) -> dict[str, Any]:
    records = [each.lag_records for each in partitions]
    seconds = [each.lag_s for each in partitions]
    return {
        "up": sum(each.up for each in owners),
        "want": len(owners),
        # A sum with a part missing would pass for a smaller one.
        "lag_records": None if not records or None in records else sum(cast("list[int]", records)),
        "lag_oldest_s": None
        if not seconds or None in seconds
        else _number(max(cast("list[float]", seconds))),
    }


def _scorers(scorers: Sequence[ScorerView], pool: PoolView) -> dict[str, Any]:
    serving = [each for each in scorers if each.state == "serving"]
    busy = [each.busy for each in serving if each.busy is not None]
    p99 = [each.p99_ms for each in serving if each.p99_ms is not None]
    queues = [each.queue_records for each in scorers if each.queue_records is not None]
    return {
        "serving": len(serving),
        "starting": sum(each.state == "starting" for each in scorers),
        "draining": sum(each.state == "draining" for each in scorers),
        "min": pool.scorers_min,
        "max": pool.scorers_max,
        "busy": _number(sum(busy) / len(busy)) if busy else None,
        "busy_target": pool.busy_target,
        "p99_ms": _number(max(p99)) if p99 else None,  # of the slowest: p99s cannot be averaged
        "queue_records": sum(queues) if queues else None,
        "model": ", ".join(sorted({each.model for each in serving or scorers if each.model})),
    }


def _detector(view: DetectorView, axis: Axis) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": view.name,
        "model": view.model,
        "lag_s": _number(view.lag_s),
        "delay_ms_p50": _number(view.delay_ms_p50),
        "delay_ms_p99": _number(view.delay_ms_p99),
        "budget": None,
        "judged_records": view.tally.judged if view.tally else None,
        "nominal": _nominal(view),
        "per_day": view.per_day or None,
        "held": view.tally.held if view.tally and view.per_day else None,
        "labels": None if view.labels is None else dict(view.labels),
        "series": {
            "in_per_s": _fit(view.in_per_s, axis),
            "out_per_s": _fit(view.out_per_s, axis),
            "lag_s": _fit(view.lag_series_s, axis),
        },
    }
    if view.budget_limit is not None:
        made["budget"] = {"used": view.budget_used, "limit": view.budget_limit}
    return made


def _nominal(view: DetectorView) -> list[dict[str, Any]]:
    """How many records were at or below a tail probability, over how many it promises.

    1 is as promised. Null where fewer than EXPECTED_MIN were to be expected: chance alone.
    """
    if (tally := view.tally) is None:
        return []
    at = (*CHECKED, view.probability)
    came = dict(zip(at, (tally.first, tally.second, tally.alerting), strict=True))
    return [
        {
            "p": p,
            "records": records,
            "ratio": _number(records / (tally.judged * p))
            if tally.judged * p >= EXPECTED_MIN
            else None,
        }
        for p, records in sorted(came.items(), reverse=True)
    ]


def _partitions(seen: Observed, axis: Axis) -> dict[str, Any]:
    shown = seen.partitions[:PARTITIONS_MAX]
    drawn = list(shown)
    if len(shown) > SPARKS_ALL:
        troubled = [each for each in shown if each.state not in ("ok", "unknown")]
        troubled.sort(key=lambda each: (STATES.index(each.state), -(each.lag_s or 0.0), each.name))
        drawn = troubled[:SPARKS_MAX]
    return {
        "total": len(seen.partitions),
        "name": [each.name for each in shown],
        "state": [each.state for each in shown],
        "lag_s": [_number(each.lag_s) for each in shown],
        "lag_records": [each.lag_records for each in shown],
        "owner": [each.owner for each in shown],
        "spark": {each.name: _fit(each.spark, axis) for each in drawn},
        "ok_p50": _fit(seen.ok_p50_s, axis),
        "ok_max": _fit(seen.ok_max_s, axis),
    }


def _incident(view: AlertView, now_ms: int, axis: Axis) -> dict[str, Any]:
    return {
        "id": view.id,
        "detector": view.detector,
        "key": view.key,
        "what": view.what,
        "since_ms": view.since_ms,
        "tail_probability": view.tail_probability,
        "model": view.model,
        "unit": view.unit,
        "lineage": view.lineage,
        "explain_url": view.explain_url,
        "replay": view.replay,
        "axis_from_zero": False,
        "series": _window(view.window, now_ms, axis),
        "similar": None,
        "channels": [
            {
                "name": each.name,
                "share": _number(each.share),
                "observed": _number(each.observed),
                "expected": _number(each.expected),
            }
            for each in sorted(view.channels, key=_least_share)[:CHANNELS_MAX]
        ],
    }


def _least_share(channel: ChannelView) -> float:
    return -(channel.share or 0.0)


def _window(window: Window | None, now_ms: int, axis: Axis) -> dict[str, Any]:
    """A window of records on the time axis: of each step, the last value that is known.

    Not their mean: what is alarming about a record must not vanish among its neighbours.
    """
    names = ("observed", "expected", "low", "high")
    made: dict[str, list[float | None]] = {name: [None] * axis.n for name in names}
    if window is None:
        return made
    cells = [axis.n - 1 - math.floor((now_ms - t) / (1000.0 * axis.step_s)) for t in window.time_ms]
    for name in names:
        column = cast("Sequence[float | None]", getattr(window, name))
        assert not column or len(column) == len(cells), (name, len(column), len(cells))
        for cell, value in zip(cells, column, strict=False):
            if value is not None and math.isfinite(value) and 0 <= cell < axis.n:
                made[name][cell] = _number(value)
    return made


def _view(alert: Mapping[str, Any]) -> AlertView | None:
    """An alert as the page needs it, from its JSON; None where it is none."""
    since_ms = alert.get("since_ms")
    if type(since_ms) is not int:
        return None
    p, lineage = alert.get("tail_probability"), alert.get("lineage")
    where = ""
    if isinstance(lineage, Mapping):
        at = cast("Mapping[str, Any]", lineage)
        where = f"{at.get('topic')}/{at.get('partition')}, offset {at.get('offset')}"
    channels = alert.get("channels")
    return AlertView(
        id=str(alert["id"]),
        detector=str(alert.get("detector", "")),
        key=str(alert.get("key", "")),
        what=str(alert.get("words", "")),
        since_ms=since_ms,
        tail_probability=_measured(p),
        model=str(alert.get("model", "")),
        lineage=where,
        channels=tuple(
            ChannelView(
                name=str(each.get("name", "")),
                share=_measured(each.get("share")),
                observed=_measured(each.get("observed")),
                expected=_measured(each.get("expected")),
            )
            for each in (cast("list[Any]", channels) if isinstance(channels, list) else [])
            if isinstance(each, Mapping)
        ),
        window=_window_of(alert),
    )


def _window_of(alert: Mapping[str, Any]) -> Window | None:
    """The window of an alert, its values spaced as its key's records usually are."""
    window, at_ms = alert.get("window"), alert.get("at_ms")
    if not isinstance(window, Mapping) or type(at_ms) is not int:
        return None
    parts = cast("Mapping[str, Any]", window)
    step_ms, observed = parts.get("step_ms"), _line(parts.get("observed"))
    expected = _line(parts.get("expected"))
    if type(step_ms) is not int or step_ms <= 0 or not observed:
        return None
    if len(expected) != len(observed):
        expected = []
    begin_ms = at_ms - step_ms * (len(observed) - 1)
    width = _width(alert, parts.get("channel"))
    low, high = (
        [e if e is None else e + side for e in expected] if width is not None else []
        for side in (-(width or 0.0), width or 0.0)
    )
    time_ms = [begin_ms + step_ms * i for i in range(len(observed))]
    return Window(time_ms, observed, expected, low, high)


def _width(alert: Mapping[str, Any], name: Any) -> float | None:
    """Half the width of the band of a channel, if the alert gives it one."""
    channels = alert.get("channels")
    for each in cast("list[Any]", channels) if isinstance(channels, list) else []:
        if isinstance(each, Mapping) and each.get("name") == name:
            band = _line(cast("Mapping[str, Any]", each).get("band"))
            low, high = band if len(band) == 2 else (None, None)
            return None if low is None or high is None or high < low else (high - low) / 2.0
    return None


def _line(values: Any) -> list[float | None]:
    """The newest values of a list from JSON."""
    found = cast("list[Any]", values) if isinstance(values, list) else []
    return [_measured(each) for each in found[-WINDOW_MAX:]]


def _measured(value: Any) -> float | None:
    """A number from JSON, or None."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None


def _fit(values: Sequence[float | None], axis: Axis) -> list[float | None]:
    """Exactly n values, the last one now; what is missing is unknown."""
    newest = [_number(each) for each in values[-axis.n :]]
    return [None] * (axis.n - len(newest)) + newest


def _number(value: float | None) -> float | None:
    """Three decimals are more than a pixel; what is not finite is unknown."""
    if value is None or not math.isfinite(value):
        return None
    return round(value, 3)
