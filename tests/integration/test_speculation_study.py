"""benchmarks/speculative_rows: the study runs, and its trace pairs each guess with the token that came."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from tolbuild.checkpoint import load_model, open_checkpoint

STUDY = Path(__file__).parents[2] / "benchmarks" / "speculative_rows" / "study.py"


def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("speculation_study", STUDY)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_last_estimate_is_the_model_and_hits_are_counted_by_hand() -> None:
    module = study()
    trace = module.make_trace("builtin:tiny", Path("data"), num_windows=1, num_documents=3)
    last = trace.guesses["behind layer 6 of 6"]
    assert all(len(guesses) == len(trace.tokens) - 1 for guesses in trace.guesses.values())
    model = load_model(open_checkpoint("builtin:tiny"))
    with torch.inference_mode():
        logits = model(torch.from_numpy(trace.tokens[None, :40]))
    assert (logits[0].argmax(-1).numpy() == last[:40, 0]).all()
    figures = module.hit_shares(trace)["behind layer 6 of 6"]["0 on the device"]
    assert figures["absent"] == 1.0
    hits = np.mean([token in guesses[:4] for guesses, token in zip(last, trace.tokens[1:], strict=True)])
    assert figures["k4"]["found"] == round(float(hits), 4)
    assert figures["k4"]["rows_a_step"] == 4.0
