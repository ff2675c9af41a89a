"""AMCT's historical import paths: names only."""
