"""How sequences are divided among context-parallel ranks; plain index arithmetic."""
