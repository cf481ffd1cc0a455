"""What ranks tell each other: failures, sums, what the last pipeline stage holds."""
