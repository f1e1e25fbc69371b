"""Traffic: what is asked for and when, made before a run begins, so that every strategy sees the same."""

from sim.traffic.azure import AzureWorkload
from sim.traffic.chains import Chains
from sim.traffic.closed import ClosedWorkload
from sim.traffic.files import TraceWorkload
from sim.traffic.generator import GeneratedWorkload
from sim.traffic.merged import MergedWorkload
from sim.traffic.mixes import MixWorkload
from sim.traffic.servegen import ServeGenWorkload
from sim.traffic.synthetic import SyntheticWorkload
from sim.traffic.trace import BadTrace, Trace
from sim.traffic.workload import Workload, draw, workloads

__all__ = [
    "AzureWorkload",
    "BadTrace",
    "Chains",
    "ClosedWorkload",
    "GeneratedWorkload",
    "MergedWorkload",
    "MixWorkload",
    "ServeGenWorkload",
    "SyntheticWorkload",
    "Trace",
    "TraceWorkload",
    "Workload",
    "draw",
    "workloads",
]
