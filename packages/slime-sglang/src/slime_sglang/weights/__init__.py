"""The engines' end of a publish: receivers that live in the trainer's process."""
