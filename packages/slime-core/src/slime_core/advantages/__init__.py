"""Advantage estimators, one module per family; ``estimate`` picks one."""

from slime_core.advantages.estimators import estimate

__all__ = ["estimate"]
