"""Who trains on what, when: steps, microbatches and data-parallel ranks."""
