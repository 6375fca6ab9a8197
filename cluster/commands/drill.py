"""raywatch drill: break a part of the running service on purpose, and see it recover."""

import getpass
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raywatch.cluster.output import DetectorName, JsonFlag, result, say, table
from raywatch.models.errors import (
    EXIT_NO,
    EXIT_OK,
    EXIT_UNREACHABLE,
    ConfigError,
    RaywatchError,
    Unreachable,
)  # fmt: skip

if TYPE_CHECKING:
    from raywatch.cluster.config import Config
    from raywatch.cluster.drills.faults import Fault
    from raywatch.cluster.drills.live import Scene

app = typer.Typer(
    rich_markup_mode=None, add_completion=False, no_args_is_help=True,
    help="Break a part of the running service on purpose, and see it recover.",
)  # fmt: skip

NOTE_S = 20.0  # longest that the end of a drill waits for a supervisor that is coming back


@app.command(name="list")
def show(json: JsonFlag = False) -> None:
    """Say what can be broken, what is promised then, and what only tests may do."""
    from raywatch.cluster.drills.faults import KINDS

    found = [
        {"drill": k.name, "hurts": k.hurts, "promise": k.promise, "undone": k.undone,
         "back_s": k.back_s, "here": k.where == "live", "why_not": k.why_not}
        for k in KINDS
    ]  # fmt: skip
    result({"drills": found}, json, lambda _: _listed(found))


def _listed(found: list[dict[str, Any]]) -> list[str]:
    here = [(f["drill"], f["hurts"], f["promise"], f"{f['back_s']:.0f} s")
            for f in found if f["here"]]  # fmt: skip
    rest = [(f["drill"], f["hurts"], f["why_not"]) for f in found if not f["here"]]
    return [
        *table(("drill", "breaks", "promised", "within"), here),
        "",
        "Not on a running deployment (tests/chaos and tests/test_partition.py do them):",
        *table(("fault", "breaks", "why not here"), rest),
    ]


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="The config file of the running service.")],
    name: Annotated[str, typer.Argument(help="What to break: `raywatch drill list` tells.")],
    target: Annotated[
        str, typer.Option(help="Which owner or scorer, by its name; left out: any.")
    ] = "",
    detector: DetectorName = "",
    address: Annotated[
        str, typer.Option(help="Its Ray: `auto` where only one runs here, or host:port.")
    ] = "auto",
    wait_s: Annotated[
        float, typer.Option(min=10.0, max=600.0, help="Longest wait for the recovery, in s.")
    ] = 120.0,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, only the plan is said.")] = (
        False
    ),
    json: JsonFlag = False,
) -> None:
    """Break a part of the running service, and tell whether it recovered as promised.

    Says what would be hurt and what is expected, and hurts nothing; with `--yes` does it, watches
    until every lane works again, and judges: alerts, offsets, the journal, `status`. Needs `drills:
    allow` in the config that was deployed. Who drilled what, when and how it ended is written to
    the audit topic. Exit 0 where all was as promised, 1 where something was lost, repeated or not
    told, 2 where drills are not allowed, 3 where it did not recover in time.
    """
    from raywatch.cluster import runtime
    from raywatch.cluster.config import load

    settings = load(config)
    if settings.drills != "allow":
        raise ConfigError(
            "`drills` is `forbid`: this service must not be broken on purpose",
            hint="set `drills: allow` in the config, and deploy it again",
        )
    fault = _fault(name)
    runtime.connect(address)
    try:
        _drill(settings, fault, settings.detector(detector).name, target, wait_s, yes, json)
    finally:
        runtime.leave()


def _fault(name: str) -> "Fault":
    from raywatch.cluster.drills.faults import BY_NAME, make
    from raywatch.cluster.drills.live import possible

    known = ", ".join(kind.name for kind in possible())
    kind = BY_NAME.get(name)
    if kind is None:
        raise ConfigError(f"there is no drill `{name}`", hint=f"there are {known}")
    if kind.where != "live":
        raise ConfigError(f"`{name}` is not for a running deployment: {kind.why_not}",
                          hint=f"these are: {known}")  # fmt: skip
    return make(name, secrets.randbelow(1 << 31))


def _drill(
    settings: "Config", fault: "Fault", detector: str, target: str, wait_s: float, yes: bool,
    json: bool,
) -> None:  # fmt: skip
    from raywatch.actors.runtime import open_log
    from raywatch.cluster.deployment import log_spec
    from raywatch.cluster.drills import live

    scene = _scene(settings, detector, open_log(log_spec(settings)))
    try:
        able = live.targets(fault.kind, scene.ask("posts"), detector, scene.supervisor)
        hurt = live.victims(fault, able, target)
        plan = {
            "drill": fault.name, "seed": fault.seed, "target": ", ".join(hurt),
            "hurts": fault.kind.hurts, "lasts_s": fault.seconds, "promise": fault.kind.promise,
            "undone": fault.kind.undone, "within_s": fault.kind.back_s,
        }  # fmt: skip
        if not yes:
            found = {**plan, "held": False}
            result(found, json, lambda _: [*_planned(plan), "nothing was hurt; say --yes"])
            return
        for words in _planned(plan):
            say(words)
        told = _held(scene, live.Drill(scene, fault, hurt), plan, wait_s)
    finally:
        scene.log.close()
    result({**plan, **told}, json, _lines)
    codes = {"held": EXIT_OK, "broken": EXIT_NO, "late": EXIT_UNREACHABLE}
    raise typer.Exit(codes[told["verdict"]])


def _scene(settings: "Config", detector: str, log: Any) -> "Scene":
    from raywatch.actors import runtime as actors
    from raywatch.actors.clock import SystemClock
    from raywatch.cluster import runtime
    from raywatch.cluster.drills import live

    def ask(method: str, *arguments: Any) -> Any:
        return runtime.call(runtime.supervisor(), method, *arguments, timeout_s=live.ASK_S)

    spec = settings.spec(detector, unsettled=True)
    return live.Scene(ask, runtime.Grip, log, spec, SystemClock(), actors.SUPERVISOR)


def _held(scene: "Scene", drill: Any, plan: Mapping[str, Any], wait_s: float) -> dict[str, Any]:
    """The drill between its two records in the audit topic."""
    who = getpass.getuser()
    note = {"drill": plan["drill"], "target": plan["target"], "who": who, "seed": plan["seed"]}
    words = f"drill {plan['drill']} on {plan['target']} begins (asked by {who})"
    scene.ask("drill", {**note, "state": "begins", "lasts_s": wait_s + 60.0, "words": words})
    ended: dict[str, Any] = {"verdict": "broken", "broken": ["the drill itself failed"]}
    try:
        ended = drill.run(wait_s, say)
    finally:
        words = f"drill {plan['drill']} on {plan['target']} ended: {ended['verdict']}"
        last = {**note, "state": "ends", "verdict": ended["verdict"], "words": words,
                "back_s": ended.get("back_s")}  # fmt: skip
        _noted(scene, last)
    return ended


def _noted(scene: "Scene", note: Mapping[str, Any]) -> None:
    """Write down the end, with patience: the supervisor may be what was hurt."""
    until = scene.clock.monotonic() + NOTE_S
    while True:
        try:
            scene.ask("drill", dict(note))
            return
        except Unreachable as error:
            if scene.clock.monotonic() > until:
                say(f"the end of the drill could not be written down: {error.message}")
                return
            scene.clock.sleep(0.5)
        except RaywatchError as error:
            say(f"the end of the drill could not be written down: {error.message}")
            return


def _planned(plan: Mapping[str, Any]) -> list[str]:
    lasts = f" for {plan['lasts_s']:.1f} s" if plan["lasts_s"] else ""
    return [
        f"{plan['drill']}: breaks {plan['hurts']}{lasts}: {plan['target']}",
        f"  expected: {plan['promise']}; every lane works again within {plan['within_s']:.0f} s",
        f"  undone: {plan['undone']}",
    ]


def _lines(found: Mapping[str, Any]) -> list[str]:
    back, first = found.get("back_s"), found.get("first_alert_s")
    after = "-" if back is None else f"{back:.1f} s"
    came = "none came" if first is None else f"the first one after {first:.1f} s"
    lines = [
        f"{found['verdict']}: {found['drill']} on {found['target']}",
        f"every lane works again after {after}; {found.get('alerts', 0)} alerts, {came}",
    ]
    meanwhile: Mapping[str, list[str]] = found.get("meanwhile") or {}
    lines += [f"  {who}: {words}" for who, said in meanwhile.items() for words in said[:10]]
    return [*lines, *(f"  wrong: {words}" for words in [*found["broken"], *found["late"]][:20])]
