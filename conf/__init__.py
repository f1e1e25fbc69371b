"""Every number, as YAML: Hydra's configuration groups, shipped as package data."""
