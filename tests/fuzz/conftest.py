"""Says at the end how many inputs each part had."""

import pytest
from fuzz import budget


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if budget.INPUTS:
        parts = ", ".join(f"{part} {count:,}" for part, count in sorted(budget.COUNT.items()))
        total = sum(budget.COUNT.values())
        terminalreporter.write_line(f"fuzz: {total:,} inputs, seed {budget.SEED} ({parts})")
