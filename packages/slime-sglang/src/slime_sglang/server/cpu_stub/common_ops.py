"""Stands in for SGLang's compiled operators on a machine without CUDA; PyTorch does the work."""
