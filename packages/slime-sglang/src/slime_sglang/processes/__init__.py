"""Servers as processes: their command lines, their ports, and that none outlives the run."""
