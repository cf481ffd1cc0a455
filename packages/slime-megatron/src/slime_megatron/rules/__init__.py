"""What the trainer is told: which values go together, which of Megatron's flags do something."""
