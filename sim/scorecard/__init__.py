"""The tables that an earlier system published, made anew by this one: `python -m sim.scorecard`.

What is measured and on what stands in each table's text: the earlier system's workload is not known, so ours stands
beside its figures, never instead of them.
"""
