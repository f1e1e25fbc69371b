"""sched-sim: a discrete-event simulator of schedulers in Python, one event a step."""

from sched_sim.core.event_engine import Simulator
from sched_sim.core.request import Request
from sched_sim.hardware.presets import get_hardware_profile
from sched_sim.schedulers.factory import create_scheduler
from turns import by_turns, mean, timed, workload

LOAD = workload()


def play():
    hardware = get_hardware_profile("a100")  # with an 8B model
    simulator = Simulator(hardware, create_scheduler("chunked", hardware, token_budget=LOAD["step_tokens"]))
    requests = [
        Request(
            request_id=str(number),
            arrived_at=arrival_s,
            prompt_tokens=LOAD["prompt_tokens"],
            output_tokens=LOAD["output_tokens"],
        )
        for number, arrival_s in enumerate(LOAD["arrivals_s"])
    ]
    simulator.submit_workload(requests)
    metrics, seconds = timed(simulator.run)
    return {
        "seconds": seconds,
        "completed": metrics.completed_requests,
        "output_tokens": sum(len(request.token_timestamps) for request in requests),
        "steps": metrics.total_iterations,
        "ttft_ms": mean([request.ttft for request in requests]) * 1e3,
        "tpot_ms": mean([request.tpot for request in requests]) * 1e3,
    }


by_turns(play)
