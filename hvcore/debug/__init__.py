"""The window: looking into a domain that runs, or did, without leaving a trace in it."""
