"""What a run saves, which of it is kept, and where the run goes on from."""
