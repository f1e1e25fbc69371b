"""What loading a model takes where it is modelled: log-normal when cold, drawn from a stream of the model's own."""

from math import exp, log

from engine.clock import to_ns
from engine.fleet import LoadTimes
from engine.settings import LoadingSettings
from sim.streams import stream

Z_90 = 1.2815515655446004  # the standard normal's 90th percentile


def drawn_load_times(settings: LoadingSettings, seed: int) -> LoadTimes:
    """The load times of a run: the first load of a model is cold, every later one comes from local disk.

    The draw of a model does not depend on what others do, nor on when it is loaded: every strategy meets the same.
    """
    sigma = log(settings.cold_p90_s / settings.cold_median_s) / Z_90

    def load_ns(key: str, number: int) -> int:
        if number:
            return to_ns(settings.warm_s)
        return to_ns(settings.cold_median_s * exp(sigma * stream(seed, f"load.{key}").standard_normal()))

    return load_ns
