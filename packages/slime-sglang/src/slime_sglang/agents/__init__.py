"""Conversations of many turns: what was said, in tokens, whoever asks for it."""
