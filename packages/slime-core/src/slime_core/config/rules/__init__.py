"""Small named rules that complete a configuration and find its contradictions.

Each takes the draft and the facts and reads only what earlier rules have settled. Rules about
Megatron and SGLang are in their packages; the application puts all of them in order.
"""
