"""Where answers go: the terminal, a CSV file, a video, the summary."""
