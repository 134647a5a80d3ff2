"""Kills, outages and what must hold after them."""
