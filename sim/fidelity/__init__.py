"""Fidelity: how far simulation is from reality, measured on the same load with the same engine."""
