"""Ours: the loop, and the requests table that it leaves."""

from turns import by_turns, mean, timed, workload

from sim.config import read
from sim.stage import Stage
from sim.traffic import draw

RUN = read(workload()["lines"])
TRACE = draw(RUN.workload, RUN.seed, [model.name for model in RUN.engine.fleet.models])


def play():
    stage = Stage(RUN.engine, TRACE)

    def loop():
        stage.play()
        return stage.recorder.requests()

    requests, seconds = timed(loop)
    steps = sum(replica.num_steps for replica in stage.engine.replicas.values())
    stage.close()
    rows = requests[requests["outcome"] == "completed"]
    decoded_ns = (rows["finished_ns"] - rows["first_token_ns"]) / (rows["output_tokens"] - 1).clip(lower=1)
    return {
        "seconds": seconds,
        "completed": len(rows),
        "output_tokens": int(rows["output_tokens"].sum()),
        "steps": steps,
        "ttft_ms": mean(rows["first_token_ns"] - rows["arrival_ns"]) / 1e6,
        "tpot_ms": mean(decoded_ns) / 1e6,
        "wait_s": mean(rows["started_ns"] - rows["arrival_ns"]) / 1e9,
    }


by_turns(play)
