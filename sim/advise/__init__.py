"""Which settings meet an objective at least cost: `python -m sim.advise`, or `advise` from `sim.advise.command`."""
