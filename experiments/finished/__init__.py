"""Use finished runs (certify, export, recommend), judge lists of other systems, and describe data."""
