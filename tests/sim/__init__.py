"""The simulator: production code in a world with one thread, its own clock, and faults.

    make sim SEED=0 LIVES=1000               lives from seed 0 on; the first that goes wrong is told
    make sim SEED=12 LIVES=1 BUG="fences"    the same life, with a bug of `bugs.py` planted

What runs is what is shipped: `Owner`, `Lane`, `Flow` and `PaymentsFlow`, `Ledger`, checkpoints,
`RemotePool`, `Saver`, `KafkaLog` with its Source and Sink, `Joined`, `Keeper` and `rollout.step`.
What is simulated is what they stand on: the clock and threads (`hub.py`), the client library
(`client.py`) and the network (`network.py`), the brokers (`broker.py`), scorers (`scorers.py`), the
store (`store.py`), Ray (`world.py`).

A life (`life.py`) follows from its seed: `setup.py` says what it is made of, telemetry or payments
whose labels have a topic of their own (`labelled.py`), `feeding.py` what is written to it. Faults
(`faults.py`) are drawn at every call over those borders, and a few befall the world by itself. They
stop, the life has to drain within a bound, and a pure checker (`check.py`) judges its history. A
life that goes wrong is shrunk to the fewest faults that still do it, and told in sentences
(`shrink.py`). `coverage.py` counts what lives went
through, `bugs.py` and `class_bugs.py` prove that the checker bites.

In the manner of TigerBeetle's VOPR (seeds, faults as values), of Jepsen (the history first, the
verdict after it; an unknown outcome stays unknown) and of FoundationDB's simulation.
"""
