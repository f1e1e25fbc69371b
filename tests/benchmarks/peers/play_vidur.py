"""Vidur: a simulator of clusters in Python, several events a step.

Its profiles are not in the package, they lie on a hub. Its tables are filled from a roofline instead, the same as
ours has; what is measured is the loop that looks things up in them.
"""

import os
import tempfile

os.environ["WANDB_MODE"] = "disabled"
os.environ["HF_HUB_OFFLINE"] = "1"

from turns import by_turns, mean, timed, workload
from vidur import simulator as vidur
from vidur.config import SimulationConfig
from vidur.config.config import (
    ClusterConfig,
    MetricsConfig,
    RandomForrestExecutionTimePredictorConfig,
    ReplicaConfig,
    SarathiSchedulerConfig,
)
from vidur.entities import Replica, Request
from vidur.execution_time_predictor.sklearn_execution_time_predictor import SklearnExecutionTimePredictor
from vidur.request_generator.synthetic_request_generator import SyntheticRequestGenerator

LOAD = workload()
FLOPS_PER_MS, BYTES_PER_MS = 0.5 * 312e12 / 1e3, 0.8 * 2039e9 / 1e3  # an A100 at our efficiencies
HIDDEN, FFN, KV_WIDTH = 4096, 14336, 1024  # Llama 3 8B, of which these are tables of one layer
SMALL_MS = 0.001
PRODUCTS = {
    "attn_pre_proj": HIDDEN * (HIDDEN + 2 * KV_WIDTH),
    "attn_post_proj": HIDDEN * HIDDEN,
    "mlp_up_proj": 2 * HIDDEN * FFN,
    "mlp_down_proj": HIDDEN * FFN,
}
SMALL = ("mlp_act", "attn_rope", "attn_kv_cache_save", "input_layernorm", "post_attention_layernorm", "add")


def tables(predictor):
    """What each part of a layer takes in ms, by tokens; attention by (batch, context) and (context, chunk)."""
    config = predictor._config
    tokens = range(1, config.prediction_max_tokens_per_request + 1)
    contexts = range(0, config.prediction_max_tokens_per_request + 1, config.kv_cache_prediction_granularity)
    told = {
        name: {(n,): 2 * weights * max(n / FLOPS_PER_MS, 1 / BYTES_PER_MS) for n in tokens}
        for name, weights in PRODUCTS.items()
    }
    told |= {name: {(n,): SMALL_MS for n in tokens} for name in SMALL}
    told["attn_decode"] = {
        (batch, context): 4 * KV_WIDTH * batch * context / BYTES_PER_MS
        for batch in range(1, config.prediction_max_batch_size + 1)
        for context in contexts
    }
    told["attn_prefill"] = {
        (context, chunk): 4 * HIDDEN * chunk * (context + chunk) / FLOPS_PER_MS
        for context in contexts
        for chunk in range(32, config.prediction_max_prefill_chunk_size + 1, 32)
    }
    return told


def arrivals(_generator):
    return [
        Request(
            arrived_at=arrival_s,
            num_prefill_tokens=LOAD["prompt_tokens"],
            num_decode_tokens=LOAD["output_tokens"],
        )
        for arrival_s in LOAD["arrivals_s"]
    ]


def configured(folder):
    return SimulationConfig(
        cluster_config=ClusterConfig(
            replica_config=ReplicaConfig(
                model_name="meta-llama/Llama-3-8B",
                num_pipeline_stages=1,
                tensor_parallel_size=1,
                device="a100",
                network_device="a100_dgx",
            ),
            replica_scheduler_config=SarathiSchedulerConfig(chunk_size=LOAD["step_tokens"]),
        ),
        execution_time_predictor_config=RandomForrestExecutionTimePredictorConfig(
            prediction_max_tokens_per_request=8192,
            cache_dir=folder,
            use_native_execution_time_predictor=True,
        ),
        metrics_config=MetricsConfig(output_dir=folder, store_plots=False, enable_chrome_trace=False),
    )


SklearnExecutionTimePredictor._load_predictions_from_hf = tables
SyntheticRequestGenerator.generate_requests = arrivals
vidur.Simulator._write_output = lambda _simulator: None


def play():
    Replica._id = -1  # its ids are counted over the whole process, and looked up as if they were not
    simulator = vidur.Simulator(CONFIG)
    requests = [event._request for _, event in simulator._event_queue]
    _, seconds = timed(simulator.run)
    done = [request for request in requests if request.completed]
    decoded_s = [
        (request.completed_at - request.prefill_completed_at) / (request.num_decode_tokens - 1)
        for request in done
    ]
    return {
        "seconds": seconds,
        "completed": len(done),
        "output_tokens": sum(request.num_processed_decode_tokens for request in done),
        "ttft_ms": mean([request.prefill_completed_at - request.arrived_at for request in done]) * 1e3,
        "tpot_ms": mean(decoded_s) * 1e3,
    }


with tempfile.TemporaryDirectory() as temporary:
    CONFIG = configured(temporary)
    by_turns(play)
