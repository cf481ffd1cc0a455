"""Megatron's optimizer and its schedule, torch's Adam inside it, and ours in host memory."""
