"""Goal: a command says what it did on stdout, what went wrong on stderr, and the right exit code.

Method: the `raywatch` script as a subprocess for start-up, exit codes, pipes and interrupts;
`check`, `lag` and the tails against a small log that keeps its records in lists (the Log port has
an embedded and a Kafka implementation with tests of their own: here it only has to answer);
`status` against a real HTTP server.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from raywatch.actors.ports import Bounds, Committed, Fetched, Out, Partition
from raywatch.cluster import cli, output
from raywatch.cluster.commands import alerts, rejects, status
from raywatch.cluster.commands.check import examine, exit_code
from raywatch.cluster.commands.lag import measure
from raywatch.cluster.config import Config, load
from raywatch.cluster.connect import open_log, sample_fields
from raywatch.cluster.tail import tail
from raywatch.models.errors import ConfigError, RaywatchError, Refused, Unreachable

ROOT = Path(__file__).parent.parent
SCRIPT = Path(sys.executable).parent / "raywatch"
LOCAL = ROOT / "configs" / "local.yaml"


def raywatch(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *words], capture_output=True, text=True, timeout=60, cwd=cwd, check=False
    )


# ---- the script -----------------------------------------------------------------------------


def test_help_and_version_start_at_once_and_import_nothing_heavy() -> None:
    heavy = ("ray", "torch", "numba", "numpy", "pyarrow", "confluent_kafka", "rich", "pydantic")
    code = (
        "import sys; from raywatch.cluster.cli import main; code = main(sys.argv[1:]); "
        f"print([each for each in {heavy} if each in sys.modules], code)"
    )
    for words in (["--help"], ["--version"]):
        begin = time.monotonic()
        ran = subprocess.run(
            [sys.executable, "-c", code, *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        seconds = time.monotonic() - begin
        assert ran.stdout.splitlines()[-1] == "[] 0", ran.stderr
        assert seconds < 2.0  # 0.1 s alone; 0.5 s is the promise, the rest is for busy machines


def test_help_lists_every_command_whose_file_is_there() -> None:
    said = raywatch("--help").stdout
    files = {each.stem for each in (ROOT / "cluster" / "commands").glob("[!_]*.py")}
    assert files == set(cli.available())
    for name in files:
        assert re.search(rf"^  {name} +{re.escape(cli.COMMANDS[name][:20])}", said, re.M), said


@pytest.mark.parametrize("name", cli.available())
def test_every_command_has_help_and_json(name: str) -> None:
    pages = {path: words for path, words in cli.pages() if path.split()[1:2] == [name]}
    leaves = [it for path, it in pages.items() if not any(p.startswith(path + " ") for p in pages)]
    assert leaves
    for words in leaves:
        assert "--json" in words
        assert "--help" in words


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["chek", "x"], 2, "hint: did you mean `raywatch check`?"),
        (["check"], 2, "error: missing argument 'CONFIG'"),
        (["version", "--jsn"], 2, "error: no such option: --jsn"),
        (["check", "nowhere.yaml"], 2, "error: cannot read `nowhere.yaml`"),
        (["models", "show", "nobody"], 2, "hint: there are lagbank@"),
        (["backtest", str(LOCAL), "nowhere.csv", "--output", "o.parquet"], 2, "nowhere.csv"),
        (["status"], 2, "name the config or `--url`"),
        (["status", "--url", "http://127.0.0.1:1"], 3, "does not answer"),
        (["lag", str(ROOT / "configs" / "demo.yaml")], 2, "`kafka: embedded` is a log in"),
        (["alerts", "tail", str(LOCAL), "--from", "now"], 2, "got `now`"),
        (["alerts", "tail", str(LOCAL), "--from", "latest"], 2, "reads nothing"),
    ],
)
def test_what_went_wrong_has_words_and_an_exit_code(
    tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    ran = raywatch(*words, cwd=tmp_path)
    assert ran.returncode == code, ran.stderr
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.stdout == ""


def test_json_is_one_document_even_for_errors(tmp_path: Path) -> None:
    ran = raywatch("check", "nowhere.yaml", "--json", cwd=tmp_path)
    assert json.loads(ran.stdout)["exit_code"] == 2
    ran = raywatch("version", "--json")
    assert json.loads(ran.stdout)["raywatch"] == "0.1.0"
    ran = raywatch("check", str(LOCAL), "--offline", "--json")
    found = json.loads(ran.stdout)
    assert (ran.returncode, found["ready"]) == (0, True)


def test_a_bug_exits_70_with_its_traceback_and_where_to_send_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("offset went back: 7 < 9")

    monkeypatch.setattr(status, "fetch", broken)
    assert cli.main(["status", "--url", "http://127.0.0.1:1"]) == 70
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "offset went back: 7 < 9" in said
    assert "hint: report it with" in said


def test_every_error_has_the_exit_code_of_its_kind(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, code in ((Refused, 1), (ConfigError, 2), (Unreachable, 3)):
        assert output.error(kind("no", hint="so"), json=True) == code
        said = capsys.readouterr()
        assert said.err == "error: no\nhint: so\n"
        assert json.loads(said.out) == {"error": "no", "hint": "so", "exit_code": code}


def test_an_interrupt_exits_130_without_a_traceback() -> None:
    # A socket that accepts and says nothing: `status` waits, and is interrupted while it does.
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(30)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        ran = subprocess.Popen([SCRIPT, "status", "--url", url], stderr=subprocess.PIPE, text=True)
        connection, _ = listening.accept()
        with connection:
            ran.send_signal(signal.SIGINT)
            _, said = ran.communicate(timeout=30)
    assert ran.returncode == 130
    assert said == "interrupted\n"


def test_a_reader_that_has_enough_is_no_error() -> None:
    begin = f"import sys; sys.exit(__import__('os').execv('{SCRIPT}', ['raywatch', 'version']))"
    ran = subprocess.Popen(
        [sys.executable, "-c", begin], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert ran.stdout is not None
    assert ran.stderr is not None
    ran.stdout.close()
    assert ran.wait(timeout=30) == 0
    assert ran.stderr.read() == ""
    ran.stderr.close()


# ---- check, lag, tails: what a log answers --------------------------------------------------


@dataclass
class ListLog:
    """A Log whose answers are set by the test: the port's shape, kept in lists."""

    sizes: dict[str, int] = field(default_factory=lambda: {"events": 2})
    ranges: dict[Partition, Bounds] = field(default_factory=dict)
    offsets: dict[Partition, Committed] = field(default_factory=dict)
    living: list[str] = field(default_factory=list)
    records: dict[Partition, list[Out]] = field(default_factory=dict)
    why_not: str | None = None
    silent: bool = False
    closed: int = 0

    def topics(self) -> dict[str, int]:
        if self.silent:
            raise Unreachable("no answer in 10 s", hint="is it up?")
        return self.sizes

    def probe(self) -> str | None:
        return self.why_not

    def bounds(self, partitions: Sequence[Partition]) -> dict[Partition, Bounds]:
        known = {each: Bounds(0, len(self.records.get(each, []))) for each in partitions}
        return {each: self.ranges.get(each, known[each]) for each in partitions}

    def committed(self, group: str, partitions: Sequence[Partition]) -> dict[Partition, Committed]:
        return {each: it for each, it in self.offsets.items() if each in partitions}

    def members(self, group: str) -> list[str]:
        return self.living

    def source(
        self, group: str, partitions: Sequence[Partition], *, keys: bool = False
    ) -> "ListSource":
        assert group == ""
        return ListSource(self, list(partitions))

    def sink(self, lane: str, group: str) -> Any:
        raise AssertionError((lane, group))

    def create(self, topic: str, partitions: int, settings: Any = None) -> None:
        raise AssertionError("only looking")

    def write(self, out: Sequence[Out]) -> None:
        raise AssertionError("only looking")

    def close(self) -> None:
        self.closed += 1


@dataclass
class ListSource:
    log: ListLog
    partitions: list[Partition]
    at: dict[Partition, int] = field(default_factory=dict)

    def assign(self, begin: Mapping[Partition, int]) -> None:
        self.at = dict(begin)

    def fetch(self, limit: int, wait_s: float) -> Fetched:
        rows = [
            (self.partitions.index(each), offset, self.log.records[each][offset])
            for each, begin in self.at.items()
            for offset in range(begin, len(self.log.records.get(each, [])))
        ][:limit]
        for index, offset, _ in rows:
            self.at[self.partitions[index]] = offset + 1
        return Fetched(
            np.array([row[0] for row in rows], np.int32),
            np.array([row[1] for row in rows], np.int64),
            np.full(len(rows), 5, np.int64),
            [row[2].value for row in rows],
            [row[2].key for row in rows],
            [row[2].headers for row in rows],
        )

    def position(self) -> dict[Partition, int]:
        return dict(self.at)

    def committed(self) -> dict[Partition, Committed]:
        raise AssertionError("only looking")

    def bounds(self) -> dict[Partition, Bounds]:
        return self.log.bounds(self.partitions)

    def close(self) -> None:
        self.log.closed += 1


E0, E1 = Partition("events", 0), Partition("events", 1)


@pytest.fixture
def config() -> Config:
    return load(LOCAL)


def said_by(config: Config, log: ListLog) -> tuple[int, str]:
    findings = list(examine(config, log))
    return exit_code(findings), "\n".join(f"{it.state} {it.words}" for it in findings)


def test_check_says_what_will_happen_when_all_is_well(config: Config) -> None:
    code, said = said_by(config, ListLog(sizes={"events": 4, "hosts.alerts": 1}))
    assert code == 0
    assert "fail" not in said
    assert "ok hosts: 4 partitions in 4 lanes" in said
    assert "ok hosts: group `raywatch.hosts` begins at the latest record" in said
    assert "ok hosts: hosts.alerts is there" in said
    assert "ok hosts: hosts.rejects, raywatch.audit will be created" in said


@pytest.mark.parametrize(
    ("log", "code", "said"),
    [
        (ListLog(silent=True), 3, "fail no answer in 10 s"),
        (ListLog(sizes={}), 2, "fail hosts: there is no topic `events`"),
        (ListLog(living=["them-1"]), 1, "fail hosts: group `raywatch.hosts` has 1 live members"),
        (ListLog(), 0, "warn hosts: 4 lanes for 2 partitions: 2 stay empty"),
        (
            ListLog(why_not="version 0.10"),
            0,
            "warn no transactions, so alerts",
        ),
        (
            ListLog(ranges={E0: Bounds(9, 20)}, offsets={E0: Committed(8)}),
            1,
            "fail hosts: events/0 lost records that were not scored",  # 8 < 9
        ),
        (
            ListLog(ranges={E0: Bounds(9, 20)}, offsets={E0: Committed(9)}),
            0,
            "ok hosts: what `raywatch.hosts` committed is retained",  # 9 is the oldest there is
        ),
        (
            ListLog(ranges={E1: Bounds(0, 20)}, offsets={E1: Committed(21)}),
            1,
            "fail hosts: `raywatch.hosts` committed beyond the end of events/1",
        ),
    ],
)
def test_check_names_what_is_in_the_way(config: Config, log: ListLog, code: int, said: str) -> None:
    found = said_by(config, log)
    assert said in found[1]
    assert found[0] == code


def test_a_broker_that_is_silent_outweighs_what_else_is_wrong(config: Config) -> None:
    class Half(ListLog):
        def members(self, group: str) -> list[str]:
            raise Unreachable("no coordinator")

    code, said = said_by(config, Half(sizes={}))
    assert "no topic `events`" in said
    assert code == 3


def test_lag_reads_several_times_and_tells_stalled_from_never_committed(config: Config) -> None:
    log = ListLog(ranges={E0: Bounds(0, 100), E1: Bounds(0, 100)}, offsets={E0: Committed(40)})
    rows = measure(log, config.spec(), 0.2, time.sleep)
    first, second = rows
    assert (first["committed"], first["end"], first["lag_records"]) == (40, 100, 60)
    assert first["state"] == "stalled"
    assert (second["lag_records"], second["state"]) == (None, "unknown")  # unknown is not 0


def test_lag_of_a_group_that_is_done_is_ok(config: Config) -> None:
    done = {E0: Committed(100), E1: Committed(100)}
    log = ListLog(ranges={E0: Bounds(0, 100), E1: Bounds(0, 100)}, offsets=done)
    assert {row["state"] for row in measure(log, config.spec(), 0.1, time.sleep)} == {"ok"}


def a_reject(offset: int) -> Out:
    headers = (
        ("reason", b"not JSON"),
        ("detail", b"at byte 3"),
        ("topic", b"events"),
        ("partition", b"1"),
        ("offset", str(offset).encode()),
        ("size", b"4"),
    )
    return Out("hosts.rejects", b"events/1", b"\xff\n{x", headers)


def test_tail_ends_where_the_topic_ended_or_at_its_limit() -> None:
    log = ListLog(sizes={"t": 2}, records={Partition("t", 1): [a_reject(n) for n in range(5)]})
    assert [it.offset for it in tail(log, "t", begin="earliest", follow=False)] == [0, 1, 2, 3, 4]
    assert len(list(tail(log, "t", begin="earliest", follow=False, limit=3))) == 3
    assert list(tail(log, "t", begin="latest", follow=False)) == []
    assert log.closed == 3  # a source each


def test_tail_follows_until_its_limit() -> None:
    log = ListLog(sizes={"t": 1}, records={Partition("t", 0): [a_reject(0)]})
    entries = tail(log, "t", begin="earliest", follow=True, limit=2)
    assert next(entries).offset == 0
    log.records[Partition("t", 0)].append(a_reject(1))
    assert next(entries).offset == 1
    assert next(entries, None) is None


def test_tail_of_a_topic_that_is_not_there_is_refused() -> None:
    with pytest.raises(Refused, match="there is no topic `t` yet"):
        list(tail(ListLog(), "t", begin="earliest", follow=False))


def test_a_reject_says_reason_place_and_first_bytes() -> None:
    log = ListLog(sizes={"t": 1}, records={Partition("t", 0): [a_reject(17)]})
    (entry,) = tail(log, "t", begin="earliest", follow=False)
    found = rejects.described(entry)
    assert rejects.sentence(found) == "not JSON  events/1@17  at byte 3  \\xff\\n{x"
    assert (found["partition"], found["offset"], found["size"]) == (1, 17, 4)


def test_an_alert_that_is_no_json_is_shown_and_not_dropped() -> None:
    assert alerts.sentence(alerts.parsed(b"oh no")) == "oh no"
    assert alerts.parsed(b'{"id": "a"}') == {"id": "a"}
    assert alerts.moment(0) == "1970-01-01 00:00:00Z"
    assert alerts.moment(10**18) == f"{10**18} ms"


def test_fields_are_learned_from_the_newest_records(config: Config) -> None:
    values = [b'{"host": "a", "cpu": 1, "up": true}', b'{"mem": 2.5}', b"[", b"3"]
    log = ListLog(records={E1: [Out("events", b"", value) for value in values]})
    assert sample_fields(log, config.detectors[0]) == ["cpu", "mem"]
    assert sample_fields(ListLog(), config.detectors[0]) == []


def test_an_embedded_log_cannot_be_reached_from_outside() -> None:
    with pytest.raises(ConfigError, match="nobody else can reach it"):
        open_log(load(ROOT / "configs" / "demo.yaml"))


# ---- status ---------------------------------------------------------------------------------


class Answer(BaseHTTPRequestHandler):
    snapshot: ClassVar[bytes] = b"{}"
    token: ClassVar[str] = ""

    def do_GET(self) -> None:  # the name that http.server wants
        refused = self.token and self.headers["Authorization"] != f"Bearer {self.token}"
        self.send_response(401 if refused else 200 if self.path == "/snapshot.json" else 404)
        self.end_headers()
        if not refused:
            self.wfile.write(self.snapshot)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def page() -> Generator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join(timeout=10)
    server.server_close()
    Answer.snapshot, Answer.token = b"{}", ""


def a_snapshot(state: str) -> bytes:
    return json.dumps(
        {
            "schema": "raywatch.snapshot/1",
            "verdict": {"state": state, "words": "6 s behind", "next": {"command": "raywatch lag"}},
            "owners": {"up": 2, "want": 2, "lag_records": 12345, "lag_oldest_s": None},
        }
    ).encode()


@pytest.mark.parametrize(("state", "code"), [("healthy", 0), ("slow", 1), ("degraded", 1)])
def test_status_says_the_verdict_with_its_exit_code(page: str, state: str, code: int) -> None:
    Answer.snapshot = a_snapshot(state)
    ran = raywatch("status", "--url", page)
    assert ran.returncode == code
    assert ran.stdout.startswith(f"{state}: 6 s behind\n")
    assert "2 of 2 up, lag 12,345 records, oldest - s" in ran.stdout  # unknown is a dash


def test_status_of_a_page_that_is_not_ours_is_unreachable(page: str) -> None:
    with pytest.raises(Unreachable, match="is not the page of a raywatch"):
        status.fetch(page)
    Answer.snapshot = b"<html>"
    with pytest.raises(Unreachable, match="answered no JSON"):
        status.fetch(page)


def test_status_brings_its_token(page: str) -> None:
    Answer.token, Answer.snapshot = "s3cret", a_snapshot("healthy")
    assert status.fetch(page, "s3cret")["verdict"]["state"] == "healthy"
    with pytest.raises(Refused, match="wants a token"):
        status.fetch(page)


# ---- output ---------------------------------------------------------------------------------


def test_a_table_puts_numbers_to_the_right_and_unknown_as_a_dash() -> None:
    assert output.table(("name", "lag"), [("a", 12_345), ("bb", None)]) == [
        "name     lag",
        "a     12,345",
        "bb         -",
    ]


def test_summaries_in_help_begin_like_the_help_of_the_command() -> None:
    for name in cli.available():
        app = import_module(f"raywatch.cluster.commands.{name}").app
        told = app.info.help if isinstance(app.info.help, str) else None
        words = told or next(iter(app.registered_commands)).callback.__doc__
        first = re.split(r"[.,]", words.strip())[0]
        assert cli.COMMANDS[name].startswith(first[:20]), (name, words)


def test_errors_are_errors_of_ours_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert issubclass(ConfigError, RaywatchError)
    assert cli.main(["check", os.devnull]) == 2
    assert "is empty" in capsys.readouterr().err
