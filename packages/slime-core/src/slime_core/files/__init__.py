"""Files that are whole or not there, on disk before anything says so, with one writer."""
