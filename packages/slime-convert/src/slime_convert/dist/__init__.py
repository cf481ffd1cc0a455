"""Megatron's torch_dist checkpoints, written and read without Megatron, a model or a GPU."""

from slime_convert.dist.chunks import Layout
from slime_convert.dist.from_hf import hf_to_dist
from slime_convert.dist.reader import DistReader, checkpoint_in
from slime_convert.dist.to_hf import dist_to_hf

__all__ = ["DistReader", "Layout", "checkpoint_in", "dist_to_hf", "hf_to_dist"]
