"""Evaluation: the figures are training's, bytes are counted exactly, and a table's rows do what dense networks do."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from tolbuild.build_config import BuildConfig
from tolbuild.checkpoint import load_model, open_checkpoint, save_checkpoint
from tolbuild.config import ModelConfig
from tolbuild.drive.driver import build_table
from tolbuild.evaluate.__main__ import main
from tolbuild.evaluate.config import EvaluateConfig
from tolbuild.evaluate.generate import generate
from tolbuild.evaluate.perplexity import Score, measure
from tolbuild.evaluate.run import evaluate
from tolbuild.evaluate.text import pack
from tolbuild.evaluate.variant import Variant, dense_rows
from tolbuild.model import MemoryLLM
from tolbuild.train.data import END_OF_TEXT, encode_packed, read_texts, train_tokenizer
from tolbuild.train.loop import validation_loss

WORDS = [
    "the",
    "whale",
    "and",
    "the",
    "séa",
    "and",
    "the",
    "löng",
    "white",
    "road",
    "to",
    "the",
    "鯨",
    "of",
    "the",
    "😀",
    "islands",
]
WINDOW = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a checkpoint with a tokenizer of it, and the full-rank fp32 table of that."""
    folder = tmp_path_factory.mktemp("evaluate")
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS, 40)) for _ in range(8)]
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    tokenizer: Tokenizer = train_tokenizer(iter(texts), 300)
    config = ModelConfig(
        kind="memory", vocab_size=300, hidden_size=32, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=WINDOW, bos_token_id=0, eos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    model = MemoryLLM(config)
    model.reset_parameters(5)
    save_checkpoint(folder / "c", config, model.state_dict(), tokenizer_json=tokenizer.to_str())
    build_table(
        BuildConfig(checkpoint=str(folder / "c"), table=str(folder / "t"), codes="fp32", no_ray=True, workers=1)
    )
    return folder


def scores_of(folder: Path, *variants: Variant, limit: int | None = None) -> list[Score]:
    checkpoint = open_checkpoint(folder / "c")
    text = pack(checkpoint.tokenizer(), read_texts([folder / "text.jsonl"]))
    return list(measure(load_model(checkpoint), variants, text, length=WINDOW, limit=limit, batch=3))[-1]


def test_perplexity_is_that_of_training(folder: Path) -> None:
    checkpoint = open_checkpoint(folder / "c")
    packed = encode_packed(checkpoint.tokenizer(), read_texts([folder / "text.jsonl"]))
    ids_N = torch.from_numpy(packed.astype(np.int64))
    for limit in (None, 100):
        expected = validation_loss(load_model(checkpoint), ids_N, length=WINDOW, limit=limit)
        (score,) = scores_of(folder, Variant(name="dense"), limit=limit)
        assert score.loss_nats / score.num_tokens == pytest.approx(expected, rel=1e-6)
        assert score.num_tokens == min(len(ids_N) - 1, limit or len(ids_N)) // WINDOW * WINDOW
        assert score.byte_perplexity == pytest.approx(math.exp(score.loss_nats / score.num_bytes))


def test_bytes_of_every_stretch_are_counted() -> None:
    texts = ["the séa 鯨", "", "😀 whale"]
    tokenizer = train_tokenizer(iter([" ".join(WORDS)] * 3), 270)
    text = pack(tokenizer, texts)
    assert text.ids_N.tolist() == encode_packed(tokenizer, iter(texts)).tolist()
    total = sum(len(one.encode()) for one in texts)
    assert text.ends_N[-1] == total
    first = len(tokenizer.decode([int(text.ids_N[0])]).encode())
    assert text.num_bytes(len(text.ids_N) - 1) == total - first
    assert (np.diff(text.ends_N) >= 0).all()
    with pytest.raises(ValueError, match="no text"):
        pack(tokenizer, [])


def test_rows_scaled_dropped_or_looked_up_are_the_models(folder: Path) -> None:
    model = load_model(open_checkpoint(folder / "c"))

    def rows_of(ids_N: np.ndarray) -> torch.Tensor:  # type: ignore[type-arg]
        with torch.inference_mode():
            return dense_rows(model, torch.from_numpy(ids_N))

    dense, same, none, dropped, half = scores_of(
        folder,
        Variant(name="dense"),
        Variant(name="looked up", rows_of=rows_of),
        Variant(name="nothing", alpha=0),
        Variant(name="all dropped", drop_layers=(0, 1, 2)),
        Variant(name="half", alpha=0.5),
    )
    assert same.loss_nats == pytest.approx(dense.loss_nats, rel=1e-6)
    assert dropped.loss_nats == none.loss_nats
    assert len({round(score.loss_nats, 3) for score in (dense, none, half)}) == 3


def test_a_table_gives_the_dense_perplexity(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--checkpoint", str(folder / "c"), "--data", str(folder / "text.jsonl"), "--table", str(folder / "t")]
    assert main(given) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    dense, table = result["results"]
    assert (dense["variant"], table["variant"], result["version"]) == ("dense", "table", 1)
    assert table["perplexity_per_token"] == pytest.approx(dense["perplexity_per_token"], rel=1e-4)
    assert lines[-2] == f"on {result['num_tokens']:,} tokens, {result['num_bytes']:,} bytes of text"
    assert main([*given, "--alpha", "0.5", "--drop-layers", "1", "2", "--limit", "64"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["results"][1]["variant"] == "table, alpha 0.5, without layers 1 2"
    assert result["num_tokens"] == 64


def test_samples_follow_seed_and_temperature(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, dense = load_model(open_checkpoint(folder / "c")), Variant(name="dense")

    def sample(temperature: float, seed: int, prompt: tuple[int, ...] = (0, 7)) -> list[int]:
        return list(generate(model, dense, prompt, max_tokens=20, temperature=temperature, seed=seed))

    greedy = sample(0, 0)
    with torch.inference_mode():
        for count, token_id in enumerate(greedy):
            context = [0, 7, *greedy[:count]][-WINDOW:]
            assert token_id == int(model(torch.tensor([context]))[0, -1].argmax())
    assert sample(1.0, 1) == sample(1.0, 1)
    assert len({tuple(sample(1.0, seed)) for seed in range(4)}) > 1
    assert sample(1e-4, 9) == greedy
    with pytest.raises(ValueError, match="prompt is empty"):
        sample(0, 0, ())
    result = evaluate(
        EvaluateConfig(checkpoint=str(folder / "c"), limit=0, prompt=("the whale", "to"), max_tokens=5, temperature=0.7)
    )
    assert [one["prompt"] for one in result["samples"]] == ["the whale", "to"]  # type: ignore[attr-defined]
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result


def test_a_sample_ends_before_the_end_of_text(folder: Path) -> None:
    model = load_model(open_checkpoint(folder / "c"))
    with torch.no_grad():
        model.model.norm.weight.zero_()  # all logits equal: the most probable token is the first, END_OF_TEXT
    assert list(generate(model, Variant(name="dense"), [3], max_tokens=5)) == []
    assert open_checkpoint(folder / "c").tokenizer().token_to_id(END_OF_TEXT) == 0


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, checkpoint = str(folder / "text.jsonl"), str(folder / "c")
    base = ModelConfig(kind="base", vocab_size=300, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                       intermediate_size=8)  # fmt: skip
    model = MemoryLLM(base)
    model.reset_parameters(0)
    save_checkpoint(tmp_path / "base", base, model.state_dict())
    for given, message in (
        (["--checkpoint", checkpoint, "--data", "none.jsonl"], "no such file: none.jsonl"),
        (["--checkpoint", checkpoint, "--data", text, "--drop-layers", "3"], "layers [3] cannot be dropped"),
        (["--checkpoint", checkpoint, "--data", text, "--sequence-length", "100000"], "fill one window of 100000"),
        (["--checkpoint", str(tmp_path / "base"), "--alpha", "0.5"], "a base model has no memory"),
        (["--checkpoint", str(tmp_path / "base"), "--table", str(folder / "t")], "is a table of the checkpoint"),
        (["--checkpoint", checkpoint, "--table", str(tmp_path / "none")], "none"),
    ):  # fmt: skip
        assert main(given) == 1
        assert message in capsys.readouterr().err, message
    with pytest.raises(ValueError, match=r"--batch is 0; it must be at least 1"):
        EvaluateConfig(checkpoint=checkpoint, batch=0)
