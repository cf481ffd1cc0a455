"""Try out what a run survives: kill or stop its processes and look at what comes of it.

It starts real runs, reads their ``events.jsonl`` and sends signals; it needs neither Ray nor an
engine itself.
"""
