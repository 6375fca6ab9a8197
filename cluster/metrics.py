"""All metrics of raywatch, in one place: `raywatch_<noun>_<unit>[_total]`.

Filled from a snapshot, so the page and a dashboard cannot disagree. What is unknown is absent
(or NaN where a metric has no labels), never 0. Counters follow counts that begin anew at midnight:
a smaller count than before is a new day. The registry is its own, so nothing of a process that
embeds raywatch leaks into it.
"""

import math
from collections.abc import Mapping
from typing import Any, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from raywatch.cluster.lag import STATES

VERDICTS = ("healthy", "slow", "degraded", "starting")


class Metrics:
    """The metrics of one service. Used by one thread at a time."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._counted: dict[str, int] = {}
        self._of_cluster()
        self._of_parts()

    def update(self, snapshot: Mapping[str, Any]) -> None:
        """Take in a snapshot; called once a tick."""
        owners, scorers = snapshot["owners"], snapshot["scorers"]
        self._set(self._age, snapshot["at_ms"] / 1000.0)
        self._set(self._up, snapshot["cluster"]["up_s"])
        for state in VERDICTS:
            self._state.labels(state).set(state == snapshot["verdict"]["state"])
        self._set(self._owners.labels("up"), owners["up"])
        self._set(self._owners.labels("wanted"), owners["want"])
        self._set(self._lag_records, owners["lag_records"])
        self._set(self._lag_s, owners["lag_oldest_s"])
        for state in ("serving", "starting", "draining", "min", "max"):
            self._set(self._scorers.labels(state), scorers[state])
        wanted = snapshot["pool"]["series"]["wanted"]
        self._set(self._scorers.labels("wanted"), wanted[-1] if wanted else None)
        self._set(self._busy, scorers["busy"])
        self._set(self._queue, scorers["queue_records"])
        p99_ms = scorers["p99_ms"]
        self._set(self._p99, None if p99_ms is None else p99_ms / 1000.0)
        self._set(self._incidents, snapshot["incidents_open"])
        counts = {**snapshot["alerts"], "resolved_today": snapshot["resolved_today"]}
        for name, counter in self._counters.items():
            self._count(name, counter, counts.get(name))
        self._partitions(snapshot["partitions"])
        self._detectors(snapshot["detectors"])

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)

    def _of_cluster(self) -> None:
        self._age = self._gauge("snapshot_timestamp_seconds", "When the service last looked.")
        self._up = self._gauge("supervisor_up_seconds", "Time since the supervisor started.")
        self._state = self._gauge("verdict_state", "1 for the present verdict.", "state")
        self._owners = self._gauge("owners_count", "Owners.", "state")
        self._scorers = self._gauge("scorers_count", "Scorers, and their bounds.", "state")
        self._busy = self._gauge("scorers_busy_ratio", "Share of time that scorers work.")
        self._queue = self._gauge("scorers_queue_records", "Records that wait at scorers.")
        self._p99 = self._gauge("scorers_p99_seconds", "p99 of the slowest scorer.")
        self._lag_records = self._gauge("lag_records", "Records that wait, in all.")
        self._lag_s = self._gauge("lag_seconds", "Time that the oldest record waits.")
        self._incidents = self._gauge("incidents_count", "Open incidents.")
        self._counters = {
            "today": self._counter("alerts", "Alerts that were raised."),
            "rejects_today": self._counter("rejects", "Records that could not be decoded."),
            "scored_today": self._counter("scored_records", "Records that were scored."),
            "resolved_today": self._counter("incidents_resolved", "Incidents that ended."),
        }

    def _of_parts(self) -> None:
        self._part_records = self._gauge("partition_lag_records", "Records that wait.", "partition")
        self._part_s = self._gauge("partition_lag_seconds", "Oldest record's wait.", "partition")
        self._part_states = self._gauge("partitions_count", "Partitions by state.", "state")
        self._in = self._gauge("detector_in_records_per_second", "Arrivals.", "detector")
        self._out = self._gauge("detector_out_records_per_second", "Commits.", "detector")
        self._delay = self._gauge(
            "detector_delay_seconds", "From record to decision.", "detector", "quantile"
        )
        self._ratio = self._gauge(
            "detector_nominal_ratio",
            "Records at or below a tail probability, over how many it promises: 1 is as promised.",
            "detector",
            "probability",
        )
        self._judged = self._counter(
            "detector_judged_records", "Records that might have alerted.", "detector"
        )
        self._rare = self._counter(
            "detector_rare_records",
            "Of these, records at or below a tail probability.",
            "detector",
            "probability",
        )
        self._held = self._counter(
            "detector_held_incidents",
            "Incidents that `alert.per_day` did not let open at once.",
            "detector",
        )

        self._labels = self._gauge(
            "detector_labels",
            "Labels of payments by what became of them, as far back as lanes remember.",
            "detector",
            "what",
        )

    def _gauge(self, name: str, words: str, *labels: str) -> Gauge:
        return Gauge(f"raywatch_{name}", words, labels, registry=self._registry)

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(f"raywatch_{name}", words, labels, registry=self._registry)

    @staticmethod
    def _set(gauge: Gauge, value: float | None) -> None:
        gauge.set(math.nan if value is None else value)

    def _count(self, name: str, counter: Counter, value: int | None) -> None:
        if value is None:
            return
        before = self._counted.get(name, 0)
        counter.inc(value - before if value >= before else value)
        self._counted[name] = value

    def _partitions(self, partitions: Mapping[str, Any]) -> None:
        self._part_records.clear()
        self._part_s.clear()
        columns = zip(
            partitions["name"], partitions["lag_records"], partitions["lag_s"], strict=True
        )
        for name, records, seconds in columns:
            if records is not None:
                self._part_records.labels(name).set(records)
            if seconds is not None:
                self._part_s.labels(name).set(seconds)
        states = cast("list[str]", partitions["state"])
        for state in STATES:
            self._part_states.labels(state).set(states.count(state))

    def _detectors(self, detectors: list[Mapping[str, Any]]) -> None:
        for gauge in (self._in, self._out, self._delay, self._ratio, self._labels):
            gauge.clear()
        for each in detectors:
            name, series = each["name"], each["series"]
            for gauge, key in ((self._in, "in_per_s"), (self._out, "out_per_s")):
                if series[key] and series[key][-1] is not None:
                    gauge.labels(name).set(series[key][-1])
            for quantile, key in (("0.5", "delay_ms_p50"), ("0.99", "delay_ms_p99")):
                if each[key] is not None:
                    self._delay.labels(name, quantile).set(each[key] / 1000.0)
            self._count(f"judged:{name}", self._judged.labels(name), each["judged_records"])
            self._count(f"held:{name}", self._held.labels(name), each["held"])
            for what, labels in (each["labels"] or {}).items():
                self._labels.labels(name, what).set(labels)
            for at in each["nominal"]:
                place = name, f"{at['p']:g}"
                self._count(f"rare:{place}", self._rare.labels(*place), at["records"])
                if at["ratio"] is not None:
                    self._ratio.labels(*place).set(at["ratio"])
