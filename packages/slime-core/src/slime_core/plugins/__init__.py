"""Code of users: where it is, whether it can be called, and its errors told to its author."""
