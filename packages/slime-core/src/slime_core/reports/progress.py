"""How far a generation or an evaluation has come."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """One reading; made by the rollout worker, shown by the driver."""

    what: str
    done: int
    total: int
    note: str = ""
