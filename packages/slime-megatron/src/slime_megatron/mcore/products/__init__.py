"""Matrix products that add weight gradients to Megatron's sums, and the gate between two."""
