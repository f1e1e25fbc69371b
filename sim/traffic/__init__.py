"""Traffic: what is asked for and when, made before a run begins, so that every strategy sees the same."""

from sim.traffic.trace import BadTrace, Trace
from sim.traffic.workload import AzureWorkload, SyntheticWorkload, Workload, draw, workloads

__all__ = ["AzureWorkload", "BadTrace", "SyntheticWorkload", "Trace", "Workload", "draw", "workloads"]
