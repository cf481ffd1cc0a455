"""Everything that knows Ray or the processes of a run."""
