"""What the trainer is told: which values go together, and what follows from them."""
