"""What engines are asked for a sample, and what becomes of their answers."""
