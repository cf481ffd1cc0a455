"""Small named rules that complete a configuration and find its contradictions.

Each takes the draft and the facts and reads only what earlier rules have settled; ``RULES`` in
``slime_train.resolve`` is their order.
"""
