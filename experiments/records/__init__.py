"""What a run leaves behind: its folder, its record, the versions that made it."""
