"""Settings of the decide stage. Every one is a promise with a unit, a default and a bound."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DecideSettings:
    """When a score becomes an alert."""

    probability: float = 1e-5  # alert where the tail probability is at or below this, 1e-12..0.1
    warmup: int = 500  # records of a key before it may alert; 0..1e6
    quiet: int = 32  # ordinary records of the key after which an incident is resolved; 1..1e5
    half_life: int = 2_000  # records over which the calibration forgets; 100..1e6
    per_day: float = 0.0  # opened incidents a day of a detector, its rarest; 0: as many as come
    update_factor: float = 1e3  # an open incident is updated when it became this much less likely


@dataclass(frozen=True, slots=True)
class MissingSettings:
    """When a key counts as silent; judged in record time by the other keys of its partition."""

    enabled: bool = True
    intervals: float = 20.0  # silent for this many of the key's usual intervals; 2..1e4
    floor_ms: int = 60_000  # and for at least this long
    records_min: int = 100  # records of a key before its silence means anything
