"""Configuration: frozen sections, each field one command-line flag; nothing here needs torch."""
