"""NVIDIA Dynamo's offline replay: its mock engine and its clock, in Rust."""

import json
import tempfile
from pathlib import Path
from time import perf_counter_ns

from dynamo.mocker import MockEngineArgs
from dynamo.replay import run_trace_replay
from turns import by_turns, timed, workload

LOAD = workload()
BLOCK_TOKENS = LOAD["block_tokens"]
ENGINE = MockEngineArgs.from_json(
    json.dumps(
        {
            "block_size": BLOCK_TOKENS,
            "num_gpu_blocks": 400_000 // BLOCK_TOKENS,
            "max_num_batched_tokens": LOAD["step_tokens"],
            "speedup_ratio": LOAD["speedup"],
        }
    )
)


def written(folder):
    """The workload as a trace: each prompt is one block of its own, so nothing is shared."""
    path = Path(folder) / "trace.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number, arrival_s in enumerate(LOAD["arrivals_s"]):
            row = {
                "timestamp": arrival_s * 1e3,
                "input_length": LOAD["prompt_tokens"],
                "output_length": LOAD["output_tokens"],
                "hash_ids": [number],
            }
            file.write(json.dumps(row) + "\n")
    return path


def play():
    def replay():
        return run_trace_replay(
            TRACE, extra_engine_args=ENGINE, num_workers=1, trace_block_size=LOAD["prompt_tokens"]
        )

    begun_ns = perf_counter_ns()
    told, seconds = timed(replay)
    share = told["wall_time_ms"] * 1e6 / (perf_counter_ns() - begun_ns)  # the rest reads the file
    return {
        "seconds": seconds * share,
        "completed": told["completed_requests"],
        "output_tokens": told["total_output_tokens"],
        "ttft_ms": told["mean_ttft_ms"],
        "tpot_ms": told["mean_tpot_ms"],
    }


with tempfile.TemporaryDirectory() as temporary:
    TRACE = written(temporary)
    by_turns(play)
