"""What of a config would a security reviewer ask about?

`of_config` sees the settings alone, `of_machine` what the files and processes around them allow.
Both are pure: `look` asks the machine once, and what it could not learn (a file that is not there,
a process of another user) is left out, never taken for safe or unsafe. What is wrong outright is an
error elsewhere; these are choices that run, and that somebody should know of.
"""

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from raywatch.cluster.config import Config
from raywatch.cluster.page_spec import is_loopback
from raywatch.cluster.secret import Secret, variable

PROCESSES_MAX = 100_000  # of this machine that are looked at for a Ray
ENVIRON_BYTES_MAX = 1 << 20
LOOSE = {
    "enable.ssl.certificate.verification": "false",
    "ssl.endpoint.identification.algorithm": "none",
}


@dataclass(frozen=True, slots=True)
class Risk:
    """One choice: what it allows, and what to choose instead."""

    words: str
    hint: str


@dataclass(frozen=True, slots=True)
class Machine:
    """What `look` found. Paths that are not there are left out."""

    secrets: Mapping[str, int] = field(default_factory=dict[str, int])  # path -> mode
    folders: Mapping[str, int] = field(default_factory=dict[str, int])  # what is believed -> mode
    ray_mode: str = ""  # RAY_AUTH_MODE of whoever asks
    rays: Mapping[str, bool] = field(default_factory=dict[str, bool])  # address -> asks for a token


def far_brokers(config: Config) -> list[str]:
    """Brokers that are not on this machine."""
    if config.kafka.embedded:
        return []
    brokers = config.kafka.bootstrap.split(",")
    hosts = [each.strip().rpartition(":")[0].strip("[]") for each in brokers]
    return [each for each in hosts if not is_loopback(each)]


def of_config(config: Config) -> Iterator[Risk]:
    """Choices that the settings alone show."""
    yield from _kafka(config)
    if not is_loopback(config.page.host) and not config.page.certificate:
        yield Risk(
            f"the page listens at {config.page.host} without TLS, its token travels in clear text",
            "`page.certificate` and `page.key`; or `page.host: 127.0.0.1` behind a proxy with TLS "
            "or a tunnel",
        )
    store = urlsplit(config.store)
    endpoint = parse_qs(store.query)
    host = endpoint.get("endpoint_override", [""])[0].rpartition(":")[0]
    if endpoint.get("scheme") == ["http"] and not is_loopback(host):
        yield Risk(
            "`store` is spoken to in clear text (`scheme=http`): snapshots and models can be read "
            "and changed on the way",
            "`scheme=https`, unless the network is yours alone",
        )


def _kafka(config: Config) -> Iterator[Risk]:
    far, security = far_brokers(config), config.kafka.security
    if far and security.protocol == "PLAINTEXT":
        yield Risk(
            f"`{far[0]}` is spoken to in clear text (PLAINTEXT), by whoever reaches it",
            "`kafka.security.protocol: SASL_SSL`, unless the network is yours alone",
        )
    if far and security.protocol == "SASL_PLAINTEXT":
        shown = {
            "PLAIN": "the password travels in clear text",
            "OAUTHBEARER": "the token travels in clear text",
        }.get(security.mechanism, "records and what the password can be guessed from can be read")
        yield Risk(
            f"`{far[0]}` is spoken to in clear text (SASL_PLAINTEXT): {shown}",
            "`kafka.security.protocol: SASL_SSL`",
        )
    url = urlsplit(security.token_url)
    if url.scheme == "http" and not is_loopback(url.hostname or ""):
        yield Risk(
            "`kafka.security.token_url` is no https: the client secret travels in clear text",
            "the https address of the provider",
        )
    for name, value in config.kafka.settings.items():
        if str(value).lower() == LOOSE.get(name):
            yield Risk(
                f"`{name}: {value}`: whoever answers is believed to be the broker",
                "take it out; `kafka.security.ca` names an authority of your own",
            )


def of_machine(machine: Machine) -> Iterator[Risk]:
    """Choices that files and processes show."""
    for path, mode in machine.secrets.items():
        if mode & stat.S_IRWXO:
            yield Risk(
                f"the secret in `{path}` can be {_may(mode)} by everybody on this machine "
                f"(mode {stat.S_IMODE(mode):04o})",
                f"chmod 600 {path}",
            )
    for path, mode in machine.folders.items():
        if mode & stat.S_IWOTH:
            yield Risk(
                f"`{path}` can be written by everybody on this machine "
                f"(mode {stat.S_IMODE(mode):04o}): what lies there is believed",
                f"chmod o-w {path}",
            )
    if machine.ray_mode.lower() == "disabled":
        yield Risk(
            "RAY_AUTH_MODE=disabled: whoever reaches this machine's Ray runs code on it",
            "unset it: a Ray on one machine then makes a token for itself",
        )
    for address, guarded in machine.rays.items():
        if not guarded:
            yield Risk(
                f"the Ray cluster at {address} asks nobody for a token: whoever reaches it runs "
                "code on it, and reads the secrets of what is deployed there",
                "`ray get-auth-token --generate` and RAY_AUTH_MODE=token, as in configs/ray-*.yaml",
            )


def _may(mode: int) -> str:
    able = [word for bit, word in ((stat.S_IROTH, "read"), (stat.S_IWOTH, "written")) if mode & bit]
    return " and ".join(able) or "run"


# ---- asking the machine ---------------------------------------------------------------------


def secret_files(config: Config) -> list[str]:
    """Every file of a config that holds a secret."""
    kafka, page = config.kafka.security, config.page
    named: list[Secret | None] = [kafka.password, kafka.key_password, page.token]
    named += [each.record.pseudonym_key for each in config.detectors]
    found = [each.file for each in named if each is not None]
    return [each for each in (*found, kafka.key, page.key) if each]


def look(config: Config, path: Path | None = None) -> Machine:
    """The machine as this process sees it; `path` is where the config lies."""
    models = Path(config.models)
    believed = [models, *_folders(models)]
    if "://" not in config.store:
        believed.append(Path(config.store))
    if path is not None:
        believed.append(path)
    token = Path.home() / ".ray" / "auth_token"
    return Machine(
        secrets=_modes([*map(Path, secret_files(config)), token]),
        folders=_modes(believed),
        ray_mode=variable("RAY_AUTH_MODE"),
        rays=_rays(),
    )


def _modes(paths: list[Path]) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in paths:
        try:
            found[str(each)] = each.stat().st_mode
        except OSError:
            continue
    return found


def _folders(models: Path) -> list[Path]:
    try:
        return sorted(each for each in models.iterdir() if each.is_dir())
    except OSError:
        return []


def _rays() -> dict[str, bool]:
    """Heads of Ray clusters on this machine, and whether they ask for a token.

    From the processes themselves: what a head was started with decides, not what is set now.
    """
    found: dict[str, bool] = {}
    try:
        processes = [each for each in Path("/proc").iterdir() if each.name.isdigit()]
    except OSError:
        return {}
    for each in processes[:PROCESSES_MAX]:
        try:
            words = (each / "cmdline").read_bytes().split(b"\0")
            if not words[0].endswith(b"/gcs_server"):
                continue
            with (each / "environ").open("rb") as file:
                given = file.read(ENVIRON_BYTES_MAX).split(b"\0")
        except OSError:
            continue  # gone, or of another user
        found[_address(words)] = b"RAY_AUTH_MODE=token" in given
    return dict(sorted(found.items()))


def _address(words: list[bytes]) -> str:
    """Where a head is, out of its command line; a port of 0 is one that it chose."""
    texts = [each.decode("utf-8", "replace").lstrip("-") for each in words]
    named = {name: value for name, _, value in (each.partition("=") for each in texts)}
    host, port = named.get("node-ip-address", "?"), named.get("gcs_server_port", "0")
    return host if port == "0" else f"{host}:{port}"
