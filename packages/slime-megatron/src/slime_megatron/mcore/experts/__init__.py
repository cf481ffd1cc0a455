"""Layers of experts: who goes where, products done together, losses on routers."""
