"""Rules and arguments that families share: dense layers, layers with experts, latent attention."""
