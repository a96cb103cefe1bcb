"""In which order agents run, and how what they did is undone."""
