"""The conformance guests are run, and reported on."""
