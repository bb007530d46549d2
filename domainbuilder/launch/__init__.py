"""A domain runs and is talked to: console, expectations, terminal, outcome, statistics, crash report."""
