"""The language of faults: what may go wrong at a call, and what happens to the world by itself.

A fault is a value: where (`site`, which names who calls whom), the how manieth call there, what,
and how much (0..1). Whether a call meets one follows from the seed, the site and the number of the
call alone, and from nothing that happened before: so one fault can be taken out of a life and the
others stay, which is what shrinking needs. Each life enables its own part of the kinds and its own
rate (swarm testing: Groce et al. 2012, ISSTA).
"""

import zlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

MASK = 2**64 - 1

RPC = (
    "request lost", "request lost", "reply lost", "reply lost", "slow", "twice", "late twin",
    "killed before", "killed after", "frozen before", "frozen after", "cut off", "leader moves",
)  # fmt: skip
KINDS: dict[str, tuple[str, ...]] = {
    "init": (*RPC, "all replies lost"),
    "offsets": (*RPC, "abortable", "hangs"),
    "produce": (*RPC, "undelivered"),
    "commit": (
        *RPC, "reply lost", "all replies lost", "all replies lost", "all replies lost",
        "all replies lost", "hangs", "frozen after",
    ),
    "abort": RPC,
    "committed": (*RPC, *4 * ("all replies lost",)),
    "bounds": RPC,
    "plain commit": RPC,
    "fetch": (
        "slow", "few", "few", "killed before", "frozen before", "passing error", "cut off",
    ),
    "put": (
        "fails", "fails late", "slow", "torn", "lost", "killed before", "killed after",
        "frozen before", "frozen after",
    ),
    "get": ("fails", "nothing", "slow", "killed before", "frozen after"),
    "names": ("fails", "stale", "slow", "killed before", "frozen after"),
    "delete": ("fails", "lost", "killed before", "frozen before"),
    "score": ("dies", "hangs", "late", "late", "twice", "other version"),
    "enlist": ("request lost", "late"),
    "report": ("request lost", "late"),
    "end": ("request lost",),
}  # fmt: skip
# How many of 1,000 calls meet a fault in a life of middle intensity.
RATE = {
    "init": 60, "offsets": 25, "produce": 25, "commit": 60, "abort": 60, "committed": 80,
    "bounds": 25, "plain commit": 40, "fetch": 5, "put": 80, "get": 60, "names": 40, "delete": 60,
    "score": 40, "enlist": 60, "report": 20, "end": 500,
}  # fmt: skip
# What a store does that lies: it said "written" and it was not. See `Setup.honest_store`.
LIES = frozenset({("put", "torn"), ("put", "lost"), ("names", "stale"), ("get", "nothing")})
# What happens to the world by itself.
WORLD = (
    "owner killed", "owner killed", "owner frozen", "owner frozen", "owner lost", "scorer killed",
    "scorer frozen", "all scorers killed", "supervisor killed", "leader moves",
    "coordinator moves", "owner cut off", "owner unheard",
    "retention",
)  # fmt: skip


class Key(NamedTuple):
    """Where and when a fault may strike."""

    site: str
    number: int


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that went wrong."""

    key: Key
    kind: str
    size: float  # 0..1
    at_s: float = 0.0

    @property
    def words(self) -> str:
        """As a sentence's end."""
        return f"{self.key.site}, call {self.key.number}: {self.kind} ({self.size:.2f})"


def mix(seed: int, site: int, number: int) -> int:
    """64 bits that look random (the finaliser of splitmix64, Steele et al. 2014)."""
    x = (seed * 0x9E3779B97F4A7C15 + site * 0xBF58476D1CE4E5B9 + number * 0x94D049BB133111EB) & MASK
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK
    return x ^ x >> 31


class Chance:
    """Numbers that follow from a seed and a name; for what a life is made of."""

    def __init__(self, seed: int, name: str) -> None:
        self._seed, self._site, self._number = seed, zlib.crc32(name.encode()), 0

    def bits(self) -> int:
        """The next 64."""
        self._number += 1
        return mix(self._seed, self._site, self._number)

    def below(self, limit: int) -> int:
        """0..limit-1."""
        return self.bits() % limit

    def share(self) -> float:
        """0..1."""
        return (self.bits() >> 11) / 2**53

    def of(self, few: "tuple[object, ...] | list[object]") -> object:
        """One of them."""
        return few[self.below(len(few))]


@dataclass
class Plan:
    """Which faults strike in one life."""

    seed: int
    intensity: float
    without: frozenset[tuple[str, str]] = frozenset()  # (operation, kind) that cannot be here
    only: Collection[Key] | None = None  # None: all that the seed says
    quiet: bool = False  # faults have stopped
    struck: list[Fault] = field(default_factory=list[Fault])
    now_s: "object" = None  # a callable: seconds

    def __post_init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._sites: dict[str, int] = {}
        self._kinds: dict[str, list[str]] = {}
        self._rates: dict[str, int] = {}
        chance = Chance(self.seed, "swarm")
        for operation, kinds in KINDS.items():
            kept = [
                kind
                for kind in kinds
                if (operation, kind) not in self.without and chance.below(10) < 7
            ]
            self._kinds[operation] = kept
            rate = RATE[operation] * self.intensity if kept else 0.0
            self._rates[operation] = min(round(rate * 65.536), 40_000)

    def draw(self, site: str, operation: str) -> Fault | None:
        """What this call meets."""
        number = self._counts[site] = self._counts.get(site, 0) + 1
        if self.quiet:
            return None
        code = self._sites.get(site)
        if code is None:
            code = self._sites[site] = zlib.crc32(site.encode())
        bits = mix(self.seed, code, number)
        if bits & 0xFFFF >= self._rates[operation]:
            return None
        key = Key(site, number)
        if self.only is not None and key not in self.only:
            return None
        kinds = self._kinds[operation]
        fault = Fault(
            key, kinds[(bits >> 16 & 0xFFFF) % len(kinds)], (bits >> 32 & 0xFFFF) / 65_536,
            self.now_s(),
        )  # fmt: skip
        self.struck.append(fault)
        return fault

    def jitter(self, site: str) -> float:
        """0..1, for how long things take; not a fault.

        Each site has numbers of its own, so that a fault taken out of a life shifts no other site.
        """
        number = self._counts[site] = self._counts.get(site, 0) + 1
        code = self._sites.get(site)
        if code is None:
            code = self._sites[site] = zlib.crc32(site.encode())
        return (mix(self.seed, code, number) & 0xFFFF) / 65_536
