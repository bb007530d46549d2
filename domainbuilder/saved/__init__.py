"""A domain that runs becomes a file, or a stream to another process, and a domain again."""
