"""The model run over microbatches: scores without gradient, and optimizer steps."""
