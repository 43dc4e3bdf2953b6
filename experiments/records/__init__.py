"""A run's folder, its record, and the versions that made it."""
