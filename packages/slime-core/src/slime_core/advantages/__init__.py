"""Advantage estimators, one module per family; ``estimate`` picks one."""
