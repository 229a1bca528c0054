"""HTML pages: what every page shares, the report, and the player of two videos in step."""
