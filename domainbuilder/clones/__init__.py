"""Copies of domains that run, each in a process of its own, and what holds and drives them."""
