"""Samples end to end: packed, cut among ranks, as kernels want them."""
