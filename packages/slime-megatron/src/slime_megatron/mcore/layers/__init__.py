"""The parts of a layer that are ours in Megatron's model, and layers under ``torch.compile``."""
