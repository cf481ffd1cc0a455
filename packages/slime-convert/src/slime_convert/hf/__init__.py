"""Hugging Face checkpoint directories: reading them lazily, writing them atomically."""

from slime_convert.hf.reader import HfReader
from slime_convert.hf.writer import write_hf

__all__ = ["HfReader", "write_hf"]
