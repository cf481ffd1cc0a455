"""The only place that speaks Megatron-Core; ``startup.bootstrap.load`` has to import it first."""
