"""Goal: a config is right or one error says what, where and what instead; secrets never show.

Method: the smallest config and the shipped ones, then one wrong file for each kind of mistake, with
the line, the path, the value and the hint that must be in the error. Drift between the settings and
what lanes know (DetectorSpec) is caught field by field.
"""

import dataclasses
from pathlib import Path

import pytest

from raywatch.actors.names import Names
from raywatch.actors.spec import DetectorSpec
from raywatch.cluster.config import Config, load
from raywatch.models.errors import EXIT_CHANGE, ConfigError
from raywatch.models.trace_names import RECENT

ROOT = Path(__file__).parent.parent
SMALLEST = """\
kafka: {bootstrap: "127.0.0.1:9092"}
detectors:
  - name: hosts
    topics: [events]
    record: {key: host, time: ts, values: [cpu, mem]}
    model: lagbank
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "it.yaml"
    path.write_text(text)
    return path


def refused(folder: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(write(folder, text))
    return caught.value


def test_the_smallest_config_is_valid_and_means_what_the_defaults_say(tmp_path: Path) -> None:
    config = load(write(tmp_path, SMALLEST))
    spec = config.spec("hosts")
    assert spec == DetectorSpec(
        name="hosts",
        topics=("events",),
        record=dataclasses.replace(spec.record, key="host", time="ts", values=("cpu", "mem")),
        model="lagbank",
    )
    assert (spec.group, spec.alerts, spec.rejects, spec.audit) == (
        "raywatch.hosts",
        "hosts.alerts",
        "hosts.rejects",
        "raywatch.audit",
    )


@pytest.mark.parametrize(
    "name", ["demo", "local", "logs", "network", "payments", "production", "traces"]
)
def test_shipped_configs_are_valid(name: str) -> None:
    config = load(ROOT / "configs" / f"{name}.yaml")
    assert [each.name for each in config.specs()] == [each.name for each in config.detectors]


@pytest.mark.parametrize("written", ["1e-4", "1E-4", "1.0e-4", "0.0001", "1.e-4"])
def test_a_probability_is_a_number_however_it_is_written(tmp_path: Path, written: str) -> None:
    alert = f"    alert: {{probability: {written}, per_day: 2e1}}\n"
    settings = load(write(tmp_path, SMALLEST + alert)).spec().decide
    assert (settings.probability, settings.per_day) == (1e-4, 20.0)


def test_what_begins_like_a_number_is_a_text(tmp_path: Path) -> None:
    text = SMALLEST.replace("[events]", "[1e4-events, '1e5']")
    assert load(write(tmp_path, text)).spec().topics == ("1e4-events", "1e5")


def test_every_field_a_lane_knows_can_be_set(tmp_path: Path) -> None:
    text = SMALLEST.replace(
        "    model: lagbank\n",
        """    model: robustz@abcdef12
    group: g
    alerts: a
    rejects: r
    lanes: 7
    start: earliest
    lost: continue
    replay_max: 5
    keys_max: 11
    keys_full: reject
    rejects_max: 12
    batch_records: 13
    batch_wait_ms: 170
    batch_bytes: 2048
    in_flight: 3
    in_flight_bytes: 1048576
    checkpoint_ms: 190
    snapshot_s: 2
    alert: {probability: 0.001, warmup: 1, quiet: 2, half_life: 300, update_factor: 4,
            per_day: 6}
    missing: {enabled: false, intervals: 3, floor_ms: 4, records_min: 5}
audit: audit
""",
    ).replace(
        "{key: host,",
        "{ahead_max_ms: 1, bytes_max: 17, key_bytes_max: 3, pseudonymise: [mail], "
        "session_idle_ms: 9, label_days: 2, key: host,",
    )
    changed = load(write(tmp_path, text)).spec("hosts")
    default = load(write(tmp_path, SMALLEST)).spec("hosts")
    same = [
        f"{part}.{field.name}"
        for part, one, other in (
            ("", changed, default),
            ("record", changed.record, default.record),
            ("decide", changed.decide, default.decide),
            ("missing", changed.missing, default.missing),
        )
        for field in dataclasses.fields(one)
        if getattr(one, field.name) == getattr(other, field.name)
    ]
    # `partitions` and `added` are found out about the topics (cluster/deployment.py), not set;
    # `pseudonym` is revealed for who decodes only (tests/test_pseudonyms.py), labels are for one
    # signal class (tests/test_label_config.py).
    named = [
        ".name",
        ".topics",
        ".labels",
        ".labels_delay_s",
        ".partitions",
        ".added",
        ".pseudonym",
    ]
    # Each of these is set somewhere here.
    fields = ("values", "key", "time", "words", "message", "session", "id", "label", "error")
    fields = (*fields, "format")
    assert same == [*named, *(f"record.{field}" for field in fields)]
    assert changed.batch_wait_s == pytest.approx(0.17)  # 170 ms
    assert changed.checkpoint_s == pytest.approx(0.19)  # 190 ms


def test_short_forms_mean_the_long_ones(tmp_path: Path) -> None:
    text = SMALLEST.replace('{bootstrap: "127.0.0.1:9092"}', "embedded")
    config = load(write(tmp_path, text.replace("[cpu, mem]", "cpu")))
    assert config.kafka.embedded
    assert config.detectors[0].record.values == ("cpu",)


@pytest.mark.parametrize(
    ("old", "new", "line", "words", "hint"),
    [
        ("    model: lagbank", "    modle: lagbank", 6, "`detectors.0.modle` is not", "`model`?"),
        ("    model: lagbank", "    zz: 1", 6, "`detectors.0.zz` is not", "allowed here: `name`"),
        ("    model: lagbank\n", "", 3, "`detectors.0.model` is missing", "Model to score with"),
        ("key: host", "kee: host", 5, "`detectors.0.record.kee` is not", "did you mean `key`?"),
        ("model: lagbank", "model: lagbank\n    lanes: 0", 7, "`detectors.0.lanes`", "most owners"),
        ("model: lagbank", "model: lagbank\n    lanes: true", 7, "got `true`", "lanes"),
        ("model: lagbank", "model: lagbank\n    start: now", 7, "'earliest' or 'latest'", "never"),
        ("model: lagbank", "model: Lag Bank", 6, "got `Lag Bank`", "name@hash"),
        ("[events]", "[hosts.alerts]", 1, "would read what it writes: `hosts.alerts`", ""),
        ("[events]", "['a b']", 4, "got `a b`", ""),
        ("[cpu, mem]", "[cpu, cpu]", 5, "`cpu` must not be empty and must stand there once", ""),
        ("[cpu, mem]", "[]", 5, "`values` is missing: name the fields with numbers", ""),
        ("[cpu, mem]", "[cpu], words: [a]", 3, "`record.words` is for `preset:network`", ""),
        ("values: [cpu, mem]", "words: [a]", 3, "`record.words` is for `preset:network`", ""),
        ("[cpu, mem]", "cpu, id: a", 3, "`record.id` and `record.label` are for `preset:pay", ""),
        ("lagbank", "preset:payments", 3, "needs one name in `record.values`", ""),
        ("key: host", "key: host, label: host", 5, "`host` cannot be `id` or `label` and", ""),
        ("lagbank", "preset:words", 6, "`detectors.0.model`", ""),
        ("lagbank", "preset:logs", 3, "`record.message` is missing", ""),
        ("values: [cpu, mem]", "message: m", 3, "`record.message` is for `preset:logs`", ""),
        ("[cpu, mem]", "[cpu], message: m", 5, "`message` stands alone", ""),
        ("[cpu, mem]", "[cpu], session: s", 5, "`session` needs `message`", ""),
        ("[cpu, mem]", "[cpu], error: e", 3, "`record.error` is for `preset:traces`", ""),
        ("key: host", "key: host, error: host", 5, "`host` cannot be `error` and something", ""),
        ("key: host", "format: text, key: host", 5, "`values` names a field; a record of", ""),
        ("key: host", "format: csv, key: host", 5, "'json' or 'text'", "the log line itself"),
        ("lagbank", "preset:traces", 3, "needs one name in `record.values` (the duration)", ""),
    ],
)
def test_a_mistake_is_named_with_line_path_value_and_hint(
    tmp_path: Path, old: str, new: str, line: int, words: str, hint: str
) -> None:
    assert SMALLEST.count(old) == 1
    error = refused(tmp_path, SMALLEST.replace(old, new))
    first = error.message.splitlines()[0]
    assert words in error.message
    assert hint in error.hint
    assert str(tmp_path / "it.yaml") in first
    assert f"line {line}:" in first or line == 1  # a rule about the whole file names no line
    assert error.exit_code == EXIT_CHANGE


def test_several_mistakes_are_told_at_once(tmp_path: Path) -> None:
    error = refused(
        tmp_path, SMALLEST.replace("lagbank", "lagbank\n    lanes: 0\n    in_flight: 0")
    )
    assert "`detectors.0.lanes`" in error.message
    assert "`detectors.0.in_flight`" in error.message
    assert len(error.message.splitlines()) == 2  # and not a third one about `detectors` itself


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("- a\n", "must be a mapping"),
        ("kafka: [", "line 1 is not YAML"),
        (SMALLEST + "kafka: embedded\n", "line 7: `kafka` stands there twice"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [" + "*b, " * 40_000 + "*b]\n", "do aliases nest?"),
        ("#" * 1_048_577, "larger than 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str, words: str) -> None:
    assert words in refused(tmp_path, text).message


def test_a_file_that_cannot_be_read_is_an_error_not_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="is a directory"):
        load(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(byte 3\)"):
        load(binary)


SECURE = SMALLEST.replace(
    '{bootstrap: "127.0.0.1:9092"}',
    """
  bootstrap: "b:9093"
  settings: {client.rack: a, log.queue: true}
  security: {protocol: SASL_SSL, username: u, password: {env: RW_TEST_SECRET}}""",
)


def test_secrets_come_from_the_environment_and_show_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RW_TEST_SECRET", "hunter2")
    config = load(write(tmp_path, SECURE))
    assert config.kafka.librdkafka() == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "u",
        "sasl.password": "hunter2",
        "client.rack": "a",
        "log.queue": "true",
    }
    assert "hunter2" not in repr(config) + str(config) + config.model_dump_json()


def test_secrets_come_from_files_without_their_line_break(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("pass word \n")
    text = SECURE.replace("{env: RW_TEST_SECRET}", f"{{file: {tmp_path / 'secret'}}}")
    settings = load(write(tmp_path, text)).kafka.librdkafka()
    assert settings["sasl.password"] == "pass word "


def test_a_secret_that_is_not_there_is_named_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RW_TEST_SECRET", raising=False)
    config = load(write(tmp_path, SECURE))  # a check elsewhere needs no secrets
    with pytest.raises(ConfigError, match="environment variable `RW_TEST_SECRET`"):
        config.kafka.librdkafka()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{env: RW_TEST_SECRET}", "hunter2", "not shown"),
        ("{env: RW_TEST_SECRET}", "{env: A, file: hunter2}", "one of them"),
        ("{env: RW_TEST_SECRET}", "{}", "one of them"),
        ("client.rack: a", "sasl.password: hunter2", "is a secret"),
        ("client.rack: a", "group.id: mine", "carries a promise"),
        (", password: {env: RW_TEST_SECRET}", "", "needs `username` and `password`"),
    ],
)
def test_secrets_in_the_file_are_refused_and_not_repeated(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert old in SECURE
    error = refused(tmp_path, SECURE.replace(old, new, 1))
    assert words in error.message
    assert "hunter2" not in error.message + error.hint


def test_a_page_that_others_can_reach_needs_a_token(tmp_path: Path) -> None:
    error = refused(tmp_path, SMALLEST + "page: {host: 0.0.0.0}\n")
    assert "can be reached from elsewhere: set `token`" in error.message


def test_two_detectors_may_not_share_name_or_group(tmp_path: Path) -> None:
    twin = SMALLEST[SMALLEST.index("  - name") :]
    assert "two detectors are named" in refused(tmp_path, SMALLEST + twin).message
    other = twin.replace("name: hosts", "name: other\n    group: raywatch.hosts")
    assert "share the group `raywatch.hosts`" in refused(tmp_path, SMALLEST + other).message


def test_patterns_take_matching_fields_in_natural_order(tmp_path: Path) -> None:
    config = load(write(tmp_path, SMALLEST.replace("[cpu, mem]", '["x*", mem]')))
    fields = Names(("mem", "x10", "x2", "host", "ts", "y"))
    assert config.spec("hosts", fields).record.values == ("x2", "x10", "mem")
    with pytest.raises(ConfigError, match="no record was seen yet"):
        config.spec("hosts")
    with pytest.raises(ConfigError, match=r"no column `x\*`"):
        config.spec("hosts", Names(("mem", "y")))


def test_the_key_and_the_time_are_never_channels(tmp_path: Path) -> None:
    config = load(write(tmp_path, SMALLEST.replace("[cpu, mem]", '"*"')))
    assert config.spec("hosts", Names(("host", "ts", "cpu"))).record.values == ("cpu",)


def test_a_detector_is_found_by_name_or_as_the_only_one(tmp_path: Path) -> None:
    config = load(ROOT / "configs" / "production.yaml")
    with pytest.raises(ConfigError, match="which detector"):
        config.spec()
    with pytest.raises(ConfigError, match="no detector is named `host`"):
        config.spec("host")
    assert load(write(tmp_path, SMALLEST)).spec().name == "hosts"


def test_a_config_cannot_be_changed_afterwards(tmp_path: Path) -> None:
    config = load(write(tmp_path, SMALLEST))
    with pytest.raises(ValueError, match="frozen"):
        config.store = "elsewhere"  # pyright: ignore[reportAttributeAccessIssue]


def test_every_setting_has_a_default_or_is_required_and_is_described() -> None:
    required = {"kafka", "bootstrap", "detectors", "name", "topics", "topic", "record", "model"}
    from raywatch.cluster.reference import settings

    for path, field in settings(Config):
        assert field.description, path
        assert field.is_required() == (path.split(".")[-1] in required), path


def test_payments_have_an_amount_a_customer_an_id_and_maybe_labels(tmp_path: Path) -> None:
    fields = "values: amount, words: customer, id: payment, label: fraud"
    text = SMALLEST.replace("values: [cpu, mem]", fields).replace("lagbank", "preset:payments")
    record = load(write(tmp_path, text)).spec("hosts").record
    assert (record.id, record.label, record.label_days) == ("payment", "fraud", 8.0)
    assert record.texts == ("customer", "payment", "fraud")
    unlabelled = text.replace(", label: fraud", "")
    assert load(write(tmp_path, unlabelled)).spec("hosts").record.label is None
    for broken in (", id: payment, label: fraud", "words: customer, "):
        with pytest.raises(ConfigError, match="needs one name in"):
            load(write(tmp_path, text.replace(broken, "")))
    with pytest.raises(ConfigError, match="needs one name in"):
        load(write(tmp_path, text.replace("amount", "'amount*'")))


def test_a_signal_class_needs_no_numbers_and_its_silence_is_asked_for(tmp_path: Path) -> None:
    text = SMALLEST.replace("values: [cpu, mem]", "words: service").replace(
        "lagbank", "preset:network"
    )
    known = load(write(tmp_path, text)).spec("hosts")
    assert (known.record.values, known.record.words) == ((), ("service",))
    assert known.stage == "network"
    assert not known.missing.enabled
    asked = load(write(tmp_path, text + "    missing: {intervals: 5}\n")).spec("hosts")
    assert asked.missing.enabled
    assert asked.missing.intervals == 5


def test_calls_have_a_duration_names_and_maybe_failures(tmp_path: Path) -> None:
    fields = "values: ms, words: [caller, operation], error: status"
    text = SMALLEST.replace("values: [cpu, mem]", fields).replace("lagbank", "preset:traces")
    known = load(write(tmp_path, text)).spec("hosts")
    assert known.record.texts == ("caller", "operation", "status")
    assert known.columns == ("ms", *RECENT, "caller", "operation", "status")
    assert (known.stage, known.keys_max, known.missing.enabled) == ("traces", 10_000, False)
    few = load(write(tmp_path, text.replace(", operation]", "]").replace(", error: status", "")))
    assert few.spec("hosts").record.texts == ("caller",)
    for old, new in (("[caller, operation]", "[a, b, c]"), ("ms", "[ms, us]"), ("ms", "'m*'")):
        with pytest.raises(ConfigError, match="needs one name in"):
            load(write(tmp_path, text.replace(old, new, 1)))


def test_log_lines_need_a_message_and_few_keys(tmp_path: Path) -> None:
    text = SMALLEST.replace("values: [cpu, mem]", "message: msg, session: request").replace(
        "lagbank", "preset:logs"
    )
    known = load(write(tmp_path, text)).spec("hosts")
    assert (known.record.texts, known.columns) == (("msg", "request"), ("msg", "request"))
    assert (known.stage, known.keys_max, known.missing.enabled) == ("logs", 2_000, False)
    asked = load(write(tmp_path, text + "    keys_max: 100000\n")).spec("hosts")
    assert asked.keys_max == 100_000
    other = text.replace("preset:logs", "preset:network")
    with pytest.raises(ConfigError, match="is for `preset:logs`"):
        load(write(tmp_path, other))


LINES = SMALLEST.replace("key: host, time: ts, values: [cpu, mem]", "format: text").replace(
    "lagbank", "preset:logs"
)


def test_lines_without_fields_need_nothing_else(tmp_path: Path) -> None:
    known = load(write(tmp_path, LINES)).spec("hosts")
    assert (known.record.format, known.record.texts, known.columns) == (
        "text",
        ("line",),
        ("line",),
    )
    assert (known.record.key, known.record.time, known.keys_max) == (None, None, 2_000)
    hidden = load(write(tmp_path, LINES.replace("text", "text, pseudonymise: [line]")))
    assert hidden.spec("hosts").record.pseudonymise == ("line",)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("text", "text, key: host", "`key` names a field; a record of `format: text` has none"),
        ("text", "text, time: ts", "`time` names a field"),
        ("text", "text, message: msg", "`message` names a field"),
        ("text", "text, session: s", "`session` names a field"),
        ("text", "text, words: [a]", "`words` names a field"),
        ("text", "text, error: a", "`error` names a field"),
        ("text", "text, ahead_max_ms: 1000", "`ahead_max_ms` is about `time`, which is Kafka's"),
        ("text", "text, session_idle_ms: 60000", "`session_idle_ms` is about sessions: leave it"),
        ("text", "text, label_days: 8", "`label_days` is about labels of payments: leave it out"),
        ("text", "text, pseudonymise: [message]", "has `key` and `line` to disguise, no `message`"),
        ("preset:logs", "lagbank", "`record.format: text` is for `preset:logs`"),
        ("preset:logs", "preset:traces", "`record.format: text` is for `preset:logs`"),
        ("format: text", "key: host", "`values` is missing"),
    ],
)
def test_lines_without_fields_are_for_logs_and_have_none(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert LINES.count(old) == 1
    assert words in refused(tmp_path, LINES.replace(old, new)).message
