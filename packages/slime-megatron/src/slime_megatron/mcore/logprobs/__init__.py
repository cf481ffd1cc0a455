"""Log-probabilities of target tokens and entropies, straight from hidden states."""
