"""The processes of a run: signs of life, logs, and what happens when one is lost."""
