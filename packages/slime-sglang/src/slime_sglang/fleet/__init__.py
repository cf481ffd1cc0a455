"""Engines and their router: which there are, started, watched, begun again."""
