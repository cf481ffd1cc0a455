"""Megatron's torch_dist checkpoints, written and read without Megatron, a model or a GPU."""

from slime_convert.dist.chunks import Layout
from slime_convert.dist.convert import dist_to_hf, hf_to_dist
from slime_convert.dist.reader import DistReader, checkpoint_in

__all__ = ["DistReader", "Layout", "checkpoint_in", "dist_to_hf", "hf_to_dist"]
