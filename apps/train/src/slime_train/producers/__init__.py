"""Where the groups of an iteration come from: engines, data sets, or a dump of another run."""
