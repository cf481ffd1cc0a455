"""Weights a rank holds, as those of the whole model: loaded, put aside, frozen, exported."""
