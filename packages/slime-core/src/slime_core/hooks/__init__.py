"""What functions of users can take over, and how they are called."""
