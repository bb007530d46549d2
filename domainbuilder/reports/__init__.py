"""The JSON that the commands print, as pydantic models, and what all of it shares."""
