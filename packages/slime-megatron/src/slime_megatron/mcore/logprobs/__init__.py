"""What the end of the model gives: log-probabilities and entropies of targets, logits, values."""
