"""Megatron in a process: imported, on a CPU too, told its command line, its ranks joined."""
