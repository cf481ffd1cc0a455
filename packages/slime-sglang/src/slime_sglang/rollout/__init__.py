"""From prompts to finished groups: generation, hooks, filters, what is carried on."""
