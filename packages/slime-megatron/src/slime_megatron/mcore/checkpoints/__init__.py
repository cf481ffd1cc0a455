"""The whole training state on disk, written, compared with the run, and read on any layout."""
