"""Ciw: queueing networks in Python. One queue, one server, and the very jobs that ours has."""

import ciw
from turns import by_turns, mean, timed, workload

LOAD = workload()
ARRIVALS_S, SERVICES_S = LOAD["arrivals_s"], LOAD["services_s"]
GAPS_S = [end - start for start, end in zip([0.0, *ARRIVALS_S], ARRIVALS_S)]  # noqa: B905  for any Python


def play():
    network = ciw.create_network(
        arrival_distributions=[ciw.dists.Sequential([*GAPS_S, float("inf")])],
        service_distributions=[ciw.dists.Sequential(SERVICES_S)],
        number_of_servers=[1],
    )
    simulation = ciw.Simulation(network)

    def loop():
        simulation.simulate_until_max_customers(len(ARRIVALS_S))
        return simulation.get_all_records()

    records, seconds = timed(loop)
    return {
        "seconds": seconds,
        "completed": len(records),
        "wait_s": mean([record.waiting_time for record in records]),
    }


by_turns(play)
