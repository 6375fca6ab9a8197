"""raywatch check: is everything ready, so that `run` will not fail at the first record?

Asks in the order in which things depend on each other, says every answer, and changes nothing
(but for one empty transaction that shows whether transactions work).
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from raywatch.actors.kafka_security import Right
from raywatch.actors.ports import Bounds, Committed, Log, Partition
from raywatch.actors.spec import DetectorSpec
from raywatch.cluster import insecure
from raywatch.cluster.config import Config, load
from raywatch.cluster.growth import grown
from raywatch.cluster.memory import fitting, gib, memory_bound
from raywatch.cluster.output import ConfigPath, JsonFlag, mark, result, say
from raywatch.models.errors import (
    EXIT_CHANGE,
    EXIT_NO,
    EXIT_OK,
    EXIT_UNREACHABLE,
    ConfigError,
    RaywatchError,
)

SHOWN_MAX = 5  # partitions that one line names
STAMPS = "message.timestamp.type"  # of a topic: whose times its records have

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer. `exit_code` counts where `state` is `fail`."""

    state: Literal["ok", "warn", "fail"]
    words: str
    hint: str = ""
    exit_code: int = EXIT_OK
    numbers: Mapping[str, int] = field(default_factory=dict[str, int])  # behind the words


def ok(words: str) -> Finding:
    """Ready."""
    return Finding("ok", words)


def warn(words: str, hint: str = "") -> Finding:
    """It will run; somebody should know."""
    return Finding("warn", words, hint)


def failed(error: RaywatchError, before: str = "") -> Finding:
    """An error as an answer."""
    return Finding("fail", f"{before}{error.message}", error.hint, error.exit_code)


@app.command()
def check(
    config: ConfigPath,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the brokers.")] = False,
    acl: Annotated[
        bool,
        typer.Option("--acl", help="Print the commands that give the least rights."),
    ] = False,
    principal: Annotated[
        str,
        typer.Option(
            "--principal",
            metavar="User:NAME",
            help="Whom the brokers take raywatch for, where the config does not tell (--acl).",
        ),
    ] = "",
    json: JsonFlag = False,
) -> None:
    """Say whether a config, its models and its brokers are ready.

    Exit code 0 ready, 1 somebody else is in the way, 2 a file or a right must change, 3 a broker
    did not answer. A warning (!) is no failure. With --acl, stdout is a script for whoever may
    alter ACLs, and what the brokers say of each right goes to stderr.
    """
    settings = load(config)
    if acl:
        _acl(settings, principal, offline, json)
    findings = [ok(f"`{config}` is a valid config"), *locally(settings)]
    findings += _insecure(settings, config)
    if settings.kafka.embedded:
        findings.append(ok("the log is embedded: there is no broker to ask"))
    elif offline:
        findings.append(warn("brokers were not asked (`--offline`)"))
    else:
        findings += _remotely(settings)
    code = exit_code(findings)
    found = {
        "ready": code == EXIT_OK,
        "exit_code": code,
        "findings": [
            {"state": each.state, "words": each.words, "hint": each.hint}
            | ({"numbers": dict(each.numbers)} if each.numbers else {})
            for each in findings
        ],
    }
    result(found, json, _lines)
    raise typer.Exit(code)


def _acl(config: Config, principal: str, offline: bool, json: bool) -> None:
    """Print the commands that give the least rights, and test each right. Raises typer.Exit."""
    from raywatch.actors.kafka_security import commands
    from raywatch.cluster import acl

    if config.kafka.embedded:
        raise ConfigError("`kafka: embedded` asks nobody who he is: there are no rights to give")
    if principal and not principal.startswith("User:"):
        raise ConfigError(f"`--principal` must be `User:NAME`, got `{principal}`")
    who = principal or acl.principal(config)
    needed, held, findings = acl.rights(config), {}, list[Finding]()
    if not offline:
        try:
            needed, held = _held(config)
            findings += _rights(needed, held)
        except RaywatchError as error:
            findings.append(failed(error))
    code, lines = exit_code(findings), list(commands(needed, who, config.kafka.bootstrap))
    for each in findings:
        say(mark(each.state, each.words, sys.stderr))
        if each.hint:
            say(f"  hint: {each.hint}")
    rights = [
        {
            "operation": right.operation, "resource": right.resource, "name": right.name,
            "prefixed": right.prefixed, "for": why, "held": held.get(right),
        }
        for right, why in needed.items()
    ]  # fmt: skip
    found = {
        "principal": who,
        "ready": code == EXIT_OK and not offline,
        "exit_code": code,
        "commands": lines,
        "rights": rights,
        "more": list(acl.more(needed, held)),
    }
    result(found, json, lambda found: found["commands"])
    raise typer.Exit(code)


def _held(config: Config) -> tuple[dict[Right, str], dict[Right, bool | None]]:
    """What is needed where these topics are, and what the brokers say that there is."""
    from raywatch.cluster import acl
    from raywatch.cluster.connect import open_log

    log = open_log(config)
    try:
        needed = acl.rights(config, log.topics())
        ask: Callable[[list[Right]], dict[Right, bool | None]] = getattr(log, "held")  # noqa: B009
        return needed, ask(list(needed))
    finally:
        log.close()


def _rights(needed: Mapping[Right, str], held: Mapping[Right, bool | None]) -> Iterator[Finding]:
    from raywatch.cluster import acl

    for right, why in needed.items():
        if held[right]:
            yield ok(f"{right} ({why})")
        elif held[right] is None:
            yield warn(f"{right} ({why}): nobody can say before the topic is there")
        elif right.operation == "Create" and not held.get(replace(right, operation="Write"), True):
            yield warn(f"{right}: only where it is not there, which nobody can see without WRITE")
        else:
            yield Finding("fail", f"{right} is missing ({why})", exit_code=EXIT_CHANGE)
    extra = list(acl.more(needed, held))
    if any("ALTER" in each for each in extra):
        yield warn(
            "may do everything: a super user, or brokers that check no rights",
            "an `authorizer.class.name`, and a principal of raywatch's own",
        )
    else:
        yield from map(warn, extra)


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    for each in found["findings"]:
        yield mark(each["state"], each["words"])
        if each["hint"] and each["state"] != "ok":
            yield f"  hint: {each['hint']}"


def exit_code(findings: list[Finding]) -> int:
    """Unreachable before anything else: what was not asked may hide more."""
    codes = {each.exit_code for each in findings if each.state == "fail"}
    return next((it for it in (EXIT_UNREACHABLE, EXIT_CHANGE, EXIT_NO) if it in codes), EXIT_OK)


def locally(config: Config) -> Iterator[Finding]:
    """What can be said without a broker."""
    from raywatch.cluster.connect import open_registry

    registry = open_registry(config)
    for each in config.detectors:
        try:
            artifact = registry.resolve(each.model)
            yield ok(f"{each.name}: model `{each.model}` is {artifact.version}")
        except RaywatchError as error:
            yield failed(error, f"{each.name}: ")
    missing = list(_secrets(config))
    yield from missing
    if all(each.state == "ok" for each in missing):
        yield from _wrong(config)
    relative = "://" not in config.store and not Path(config.store).expanduser().is_absolute()
    if relative and insecure.far_brokers(config):
        yield warn(
            f"`store: {config.store}` lies below the working directory",
            "right for one machine; a cluster needs a folder or bucket that every node reaches",
        )


def _secrets(config: Config) -> Iterator[Finding]:
    named = {
        "kafka.security.password": config.kafka.security.password,
        "kafka.security.key_password": config.kafka.security.key_password,
        "page.token": config.page.token,
        **{
            f"detectors.{each.name}.record.pseudonym_key": each.record.pseudonym_key
            for each in config.detectors
        },
    }
    for path, secret in named.items():
        if secret is None:
            continue
        try:
            secret.reveal()
            yield ok(f"the secret `{path}` is there")
        except RaywatchError as error:
            yield failed(error, f"`{path}`: ")
    security = config.kafka.security
    for name, path in (
        ("ca", security.ca),
        ("certificate", security.certificate),
        ("key", security.key),
    ):
        if path and not Path(path).is_file():
            yield Finding(
                "fail", f"`kafka.security.{name}`: no file `{path}`", exit_code=EXIT_CHANGE
            )


def _wrong(config: Config) -> Iterator[Finding]:
    """Secrets that are there, but cannot do."""
    from raywatch.cluster.page_listen import tls

    try:
        for each in config.detectors:
            config.disguised(config.spec(each.name, unsettled=True))
        tls(config.page.spec())
    except RaywatchError as error:
        yield failed(error)


def _insecure(config: Config, path: str) -> Iterator[Finding]:
    machine = insecure.look(config, Path(path))
    for risk in (*insecure.of_config(config), *insecure.of_machine(machine)):
        yield warn(risk.words, risk.hint)


def _remotely(config: Config) -> Iterator[Finding]:
    from raywatch.cluster.connect import open_log

    try:
        log = open_log(config)
    except RaywatchError as error:
        yield failed(error)
        return
    try:
        yield from examine(config, log)
    finally:
        log.close()


def examine(config: Config, log: Log) -> Iterator[Finding]:
    """What brokers have to say, in the order in which it matters. Never raises RaywatchError."""
    try:
        topics = log.topics()
    except RaywatchError as error:
        yield failed(error)
        return
    yield ok(f"`{config.kafka.bootstrap}` answers: {len(topics)} topics")
    # A Log that cannot say (the embedded one always can) has no probe.
    probe: Callable[[], str | None] | None = getattr(log, "probe", None)
    if probe is not None:
        yield from _asked(lambda: _transactions(probe))
    for each in config.detectors:
        spec = config.spec(each.name, unsettled=True)
        yield from _asked(lambda spec=spec: _input(spec, log, topics))
        if spec.labels and all(topics.get(topic) for topic in spec.inputs):
            yield from _asked(lambda spec=spec: _labels(spec, log, topics))
        yield from _memory(spec, config, topics)
        yield from _asked(lambda spec=spec: _group(spec, log))
        yield from _outputs(spec, topics)


def _memory(spec: DetectorSpec, config: Config, topics: Mapping[str, int]) -> Iterator[Finding]:
    """What an owner takes at most, and whether a machine like this one has it."""
    partitions = sum(topics.get(each, 0) for each in spec.topics)
    if not partitions:
        return
    place: dict[str, Any] = {
        "partitions": partitions, "owners": config.owners.count, "kafka": config.kafka.settings
    }  # fmt: skip
    bound, there = memory_bound(spec, **place), machine_bytes()
    words = f"{spec.name}: {bound.words}"
    if config.detector(spec.name).record.patterns:
        words += f", with `{len(spec.record.values)}` channels; patterns may match more"
    numbers = {**asdict(bound), "total": bound.total, "machine": there or 0}
    if there is None or bound.total <= there:
        yield Finding("ok", words, numbers=numbers)
        return
    fit = fitting(spec, there, **place)
    hint = (
        f"`keys_max: {fit}` fits (of a partition), so do more owners on machines of their own"
        if fit
        else "more owners on machines of their own, or smaller `in_flight_bytes`, `batch_records`"
    )
    yield Finding("warn", f"{words}; this machine has {gib(there)}", hint, numbers=numbers)


def machine_bytes() -> int | None:
    """Memory of this machine, or what its container may take; None where nobody says."""
    found: list[int] = []
    for path, unit in (("/proc/meminfo", 1_024), ("/sys/fs/cgroup/memory.max", 1)):
        with suppress(OSError, ValueError, IndexError):
            words = Path(path).read_text(encoding="ascii").split()
            found.append(int(words[1 if unit > 1 else 0]) * unit)
    return min(found, default=None)


def _asked(question: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from question()
    except RaywatchError as error:
        yield failed(error)


def _transactions(probe: Callable[[], str | None]) -> Iterator[Finding]:
    why_not = probe()
    if why_not is None:
        yield ok("transactions work: exactly once")
    else:
        yield warn(
            f"no transactions, so alerts are written at least once: {why_not}",
            "duplicates carry the same id; receivers can drop them",
        )


def _input(spec: DetectorSpec, log: Log, topics: Mapping[str, int]) -> Iterator[Finding]:
    from raywatch.cluster.connect import must_see, no_topic

    missing = [each for each in spec.inputs if not topics.get(each)]
    for each in missing:
        try:
            must_see(log, each)
            yield failed(no_topic(each, spec.name, topics))
        except ConfigError as error:
            yield failed(error, f"{spec.name}: ")
    partitions = [
        Partition(each, number) for each in spec.inputs for number in range(topics.get(each, 0))
    ]
    if not partitions:
        return
    count = sum(each.topic in spec.topics for each in partitions)
    if spec.lanes > count:
        yield warn(
            f"{spec.name}: {spec.lanes} lanes for {count} partitions: "
            f"{spec.lanes - count} stay empty",
            f"`lanes: {count}`",
        )
    else:
        yield ok(f"{spec.name}: {len(partitions)} partitions in {spec.lanes} lanes")
    bounds = log.bounds(partitions)
    unread = [each for each in partitions if each not in bounds]
    if unread:
        yield Finding(
            "fail",
            f"{spec.name}: cannot read the ends of {_named(unread)}",
            "is the partition without a leader, or the right `Describe` missing?",
            EXIT_UNREACHABLE,
        )
    committed = log.committed(spec.group, partitions)
    yield from retention(spec, bounds, committed)
    for growth in grown(partitions, committed):
        yield warn(
            f"{spec.name}: {growth.words}",
            "`raywatch deploy CONFIG --yes`, or a new `run`, reads them from their beginning",
        )


def _labels(spec: DetectorSpec, log: Log, topics: Mapping[str, int]) -> Iterator[Finding]:
    """Whether labels of a topic of their own can find their payments."""
    from raywatch.cluster.label_topic import must_match, sample

    must_match(spec, topics)
    found = sample(log, spec, topics[spec.labels])
    where = f"{spec.name}: of the newest {found.records} records of `{spec.labels}`"
    if not found.records:
        yield ok(f"{spec.name}: `{spec.labels}` has as many partitions, and no label yet")
    elif found.labels == found.records:
        yield ok(f"{where} all are labels")
    else:
        yield warn(
            f"{where} {found.labels} are labels: {found.words}",
            "a label needs `record.id` and `record.label`, and what every record needs: a key, and "
            "`record.time` where it is set",
        )
    told: Callable[[str, str], str | None] | None = getattr(log, "setting", None)  # Kafka's alone
    for topic in spec.inputs:
        if told is not None and told(topic, STAMPS) == "CreateTime":
            yield warn(
                f"{spec.name}: `{topic}` keeps the times of producers, and by them it is settled "
                "before which payment a label comes",
                f"`{STAMPS}=LogAppendTime` on the topic: what a producer sends late comes too late",
            )


def retention(
    spec: DetectorSpec,
    bounds: Mapping[Partition, Bounds],
    committed: Mapping[Partition, Committed],
) -> Iterator[Finding]:
    """Whether every committed offset can still be read."""
    known = {each: (it.offset, bounds[each]) for each, it in committed.items() if each in bounds}
    lost = [each for each, (offset, range_) in known.items() if offset < range_.low]
    beyond = [each for each, (offset, range_) in known.items() if offset > range_.end]
    if not committed:
        yield ok(f"{spec.name}: group `{spec.group}` begins at the {spec.start} record")
    elif not lost and not beyond:
        yield ok(f"{spec.name}: what `{spec.group}` committed is retained")
    if lost and spec.lost == "continue":
        yield warn(
            f"{spec.name}: {_named(lost)} lost records to retention; it goes on at the oldest",
            "the gap is written to the audit topic",
        )
    elif lost:
        yield Finding(
            "fail",
            f"{spec.name}: {_named(lost)} lost records that were not scored to retention",
            "`lost: continue` goes on at the oldest record and audits the gap",
            EXIT_NO,
        )
    if beyond:
        yield Finding(
            "fail",
            f"{spec.name}: `{spec.group}` committed beyond the end of {_named(beyond)}",
            "was the topic deleted and made anew? Reset the group, or take another `group`",
            EXIT_NO,
        )


def _group(spec: DetectorSpec, log: Log) -> Iterator[Finding]:
    members = log.members(spec.group)
    if members:
        yield Finding(
            "fail",
            f"{spec.name}: group `{spec.group}` has {len(members)} live members: "
            f"{', '.join(members[:SHOWN_MAX])}",
            "stop them, or take another `group`: two readers would overwrite each other's offsets",
            EXIT_NO,
        )
    else:
        yield ok(f"{spec.name}: nobody else is in group `{spec.group}`")


def _outputs(spec: DetectorSpec, topics: Mapping[str, int]) -> Iterator[Finding]:
    wanted = dict.fromkeys((spec.alerts, spec.rejects, spec.audit))
    missing = [each for each in wanted if each not in topics]
    there = [each for each in wanted if each in topics]
    if there:
        yield ok(f"{spec.name}: {', '.join(there)} {'is' if len(there) == 1 else 'are'} there")
    if missing:
        yield ok(f"{spec.name}: {', '.join(missing)} will be created")


def _named(partitions: list[Partition]) -> str:
    more = len(partitions) - SHOWN_MAX
    names = ", ".join(str(each) for each in sorted(partitions)[:SHOWN_MAX])
    return names + (f" and {more} more" if more > 0 else "")
