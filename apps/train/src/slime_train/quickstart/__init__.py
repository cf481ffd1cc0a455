r"""A whole run on a laptop: a small model, its warm-up, and reinforcement learning.

The task is to add two numbers of two digits where no column carries ("12+34=?" is answered by
"\boxed{46}"): 1,980 problems, of which 198 are held out for evaluation. The model is a Qwen3 of
two layers, hidden size 128 and random weights, half a million parameters, whose tokenizer knows
one token per character.

The demonstrations of the warm-up come from a careless teacher: each digit of a sum is wrong with
probability 0.3. A model that imitates it perfectly answers like it, right in 0.7^2 = 49 % of the
cases at temperature 1, which is what evaluation samples at. What the rewards add is everything
above that: no label is shown to the model after the warm-up, only whether an answer was right.

The warm-up sees each of 20,480 demonstrations once, in 640 steps of 32. Reinforcement learning
(GRPO, no KL term, learning rate 1e-3) takes 40 iterations of 32 prompts with 8 responses each.
"""
