"""From prompts to finished groups: requests, hooks, filters, what is carried on."""
