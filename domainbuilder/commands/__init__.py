"""The commands, a module each; nothing heavy is imported at a module's head."""
