"""Domains in the background: a process each, found in a folder of the user's, and what talks to them."""
