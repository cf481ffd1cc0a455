"""Tensors on their way: read ahead, into memory that is used again, looked at, and counted."""
