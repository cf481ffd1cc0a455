"""From prompt files to pending samples, and back for the unfinished."""
