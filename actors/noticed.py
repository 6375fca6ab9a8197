"""What each component notices, in words."""

# A component as what it noticed. A model's own component that is not here is named as it is.
NOTICED = {
    "s": "an unfamiliar short pattern",
    "l": "an unfamiliar pattern",
    "c4": "an unfamiliar course",
    "c8": "an unfamiliar long course",
    "ls": "a shifted level",
    "lowr": "a signal gone flat",
    "vs": "a signal grown restless",
    "diff": "a sudden step",
    "z": "an unusual value",
    "residual": "a value that its past did not foretell",
    "rarity": "a rare combination of fields",
    "burst": "a sudden run of records that look alike",
    "fraud": "a payment like those that were labelled as fraud",
    "customer_amount": "an unusual amount for this customer",
    "rare": "a rare kind of line",
    "step": "an unusual order of lines",
    "pause": "an unusual pause",
    "rush": "a rush of lines of one kind",
    "number": "an unusual number in a line",
    "early": "an unusual session, which still runs",
    "session": "an unusual session",
    "slow": "a slow call",
    "slower": "calls that take longer than usual",
    "errors": "more failed calls than usual",
    "edge": "calls that it rarely or never had",
    "hour": "an unusual value for this hour",
    "hour_mean": "an unusual level for this hour",
    "hour_long": "a level that stays unusual for this hour",
    "novel": "a value that it never had",
    "count": "more or less than usual for this hour, added up",
    "week": "an unusual level for this hour of the week",
}

# Components that a partition calibrates for all of its keys.
SHARED = ("rarity", "burst", "fraud", "customer_amount")
