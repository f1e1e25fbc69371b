"""Pictures of runs, readable by colour-blind eyes: each a function that returns a matplotlib Figure.

Those in `plots` show one run, those of `several` some of them, those of `generic` plain tables. A notebook shows a
figure as it is; `save_all` writes those of a run, but for the ones that would show nothing.
"""

from sim.drawing import MARKS, pack
from sim.marks import outages
from sim.plots.beside import beside
from sim.plots.bins import MOST_BINS
from sim.plots.cache import hit_ratio_over_time, tier_bytes
from sim.plots.catalogue import CAPTIONS, drawn, left_out, plots, save_all
from sim.plots.frame import COLOURS, DPI, png
from sim.plots.gantt import gantt
from sim.plots.generic import ForestRow, Point, agreement, forest, front, heat_map, pareto, residuals
from sim.plots.latency import MOST_POINTS, latency_cdf, latency_over_time
from sim.plots.load import load_over_time, served_by_replica
from sim.plots.phases import what_the_slow_wait_for, where_time_goes
from sim.plots.quota import quota_use
from sim.plots.reality import profile_residuals, simulated_against_real
from sim.plots.several import (
    front_of,
    goodput_by_rate,
    percentiles_by_rate,
    strategy_heat_map,
    throughput_by_latency,
)

__all__ = [
    "CAPTIONS",
    "COLOURS",
    "DPI",
    "MARKS",
    "MOST_BINS",
    "MOST_POINTS",
    "ForestRow",
    "Point",
    "agreement",
    "beside",
    "drawn",
    "forest",
    "front",
    "front_of",
    "gantt",
    "goodput_by_rate",
    "heat_map",
    "hit_ratio_over_time",
    "latency_cdf",
    "latency_over_time",
    "left_out",
    "load_over_time",
    "outages",
    "pack",
    "pareto",
    "percentiles_by_rate",
    "plots",
    "png",
    "profile_residuals",
    "quota_use",
    "residuals",
    "save_all",
    "served_by_replica",
    "simulated_against_real",
    "strategy_heat_map",
    "throughput_by_latency",
    "tier_bytes",
    "what_the_slow_wait_for",
    "where_time_goes",
]
