"""What compressing KV does to scores, for each architecture: resumed from fp16 and int8 blocks, beside exact ones."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.cache.codec import Codec
from engine.execution import Machine
from engine.execution.torch_executor import TorchExecutor, TorchOptions
from engine.formats import open_checkpoint
from engine.settings import HardwareSettings, ModelSettings
from engine.stand_ins import designs, make_stand_ins
from engine.text import text_of
from sim.world import SimClock

pytestmark = pytest.mark.torch

NAMES = sorted(designs)
HARDWARE = HardwareSettings(
    name="x", flops=1, memory_bytes=1, memory_bytes_per_s=1, link_bytes_per_s=1, source="none"
)
CACHED, LENGTH, BLOCK = 192, 256, 16
MOST_DRIFT = {
    "fp16": 0.005,
    "int8": 0.1,
}  # relative L2 of the scores; twice what the worst architecture showed


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    files = make_stand_ins(tmp_path_factory.mktemp("models"), NAMES)
    yield dict(zip(NAMES, map(decoder, files), strict=True))
    torch.set_num_threads(before)


def decoder(path):
    checkpoint = open_checkpoint(path)
    model = ModelSettings(name=checkpoint.name, architecture=checkpoint.shape, path=str(path))
    return TorchExecutor(
        Machine(model, HARDWARE, SimClock(), 1, 1), TorchOptions(keep_converted=False)
    )._model


@torch.inference_mode()
def scores(model, tokens, form):
    """Scores (tokens, vocab) of what follows the cached part, whose KV has been through that form."""
    shape = model.shape
    kv = torch.zeros((shape.layers, 2, shape.kv_heads, len(tokens), shape.head_dim), dtype=model.dtype)
    model.prefill(tokens[:CACHED], kv, 0)
    if form != "raw":
        codec = Codec(form, 0.1)
        for start in range(0, CACHED, BLOCK):
            packed = codec.pack(kv[..., start : start + BLOCK, :].contiguous())
            assert packed.form == form
            kv[..., start : start + BLOCK, :] = Codec.unpack(packed)
    return model.logits(model.prefill(tokens[CACHED:], kv, CACHED))


@pytest.mark.parametrize("name", NAMES)
def test_scores_drift_little_and_choices_stay(decoders, name, capsys):
    model = decoders[name]
    tokens = torch.from_numpy(np.random.default_rng(1).integers(model.shape.vocab // 2, size=LENGTH))
    exact = scores(model, tokens, "raw")
    for form, bound in MOST_DRIFT.items():
        lossy = scores(model, tokens, form)
        drift = float((lossy - exact).norm() / exact.norm())
        kept = float((lossy.argmax(-1) == exact.argmax(-1)).float().mean())
        torch.nn.functional.kl_div(
            lossy.log_softmax(-1), exact.log_softmax(-1), log_target=True, reduction="batchmean"
        )
        with capsys.disabled():
            pass
        assert drift <= bound
        assert drift > 0 or form == "fp16"
        assert kept >= (0.97 if form == "fp16" else 0.8)


@pytest.mark.slow
def test_a_real_model_goes_on_as_it_would_have(capsys):
    """SmolLM2 on this repository's own prose: greedy choices kept and perplexity, resumed from compressed KV."""
    folder = os.environ.get("MODELYARD_REAL_MODELS")
    if not folder or not (found := sorted(Path(folder).glob("SmolLM2-135M-Instruct*.gguf"))):
        pytest.skip("MODELYARD_REAL_MODELS names no folder with SmolLM2-135M-Instruct")
    model = decoder(found[0])
    text = (Path(__file__).parents[3] / "docs" / "architecture.md").read_text()
    known = text_of(open_checkpoint(found[0])).tokenizer.encode(text)
    tokens = torch.tensor(known[: 2 * LENGTH])
    answers = {form: scores(model, tokens, form) for form in ("raw", "fp16", "int8")}
    truth = tokens[CACHED + 1 :]
    losses = {
        form: float(torch.nn.functional.cross_entropy(found[:-1], truth)) for form, found in answers.items()
    }
    for form, least in (("fp16", 0.99), ("int8", 0.95)):
        kept = int((answers[form].argmax(-1) == answers["raw"].argmax(-1)).sum())
        dearer = math.expm1(losses[form] - losses["raw"])
        with capsys.disabled():
            pass
        assert kept >= least * (len(truth) + 1)
        assert abs(dearer) < 0.02
