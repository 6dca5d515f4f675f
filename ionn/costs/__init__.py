"""What layers cost on a device: cost models, profiles, and how they come about."""
