"""SGLang itself: the only place that imports it, and only inside an engine's own processes."""
