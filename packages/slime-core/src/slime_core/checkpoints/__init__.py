"""What a run saves, whole or not at all, and where it goes on from."""
