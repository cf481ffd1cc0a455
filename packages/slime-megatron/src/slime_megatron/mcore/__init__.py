"""The only place that speaks Megatron-Core; ``bootstrap.load`` must run before anything in here."""
