"""Where a conversion writes: whether there is room, and that nobody else writes there."""
