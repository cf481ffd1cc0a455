"""One iteration of the trainer: signals, advantages, losses, optimizer steps."""
