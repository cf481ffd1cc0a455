"""Users' functions: found, checked before anything starts, called as their authors expect."""
