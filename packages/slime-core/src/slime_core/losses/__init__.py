"""Loss functions of plain vectors: no logits, no process groups."""
