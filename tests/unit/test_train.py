"""Training: the loss against autograd's, the data order, and resuming to the same weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tolbuild.train.config import ModelShape, TrainConfig
from tolbuild.train.corpus import Processes, prepare_corpus
from tolbuild.train.data import END_OF_TEXT, PackedWindows, encode_packed, train_tokenizer
from tolbuild.train.loop import learning_rate
from tolbuild.train.loss import LinearCrossEntropy
from tolbuild.train.run import train

WORDS = [
    "the", "whale", "and", "the", "sea", "and", "the", "long",
    "white", "road", "to", "the", "king", "of", "the", "islands",
]  # fmt: skip


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    path = tmp_path / "text.jsonl"
    lines = [json.dumps({"text": " ".join(generator.choice(WORDS, 60))}) for _ in range(40)]
    path.write_text("\n".join(lines))
    return path


def make_config(corpus: Path, out: Path, **changes: object) -> TrainConfig:
    shape = ModelShape(vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    config = TrainConfig(
        data=(corpus,), valid=corpus, out=out, model=shape, steps=8, warmup_steps=2, batch_sequences=2,
        sequence_length=16, log_every=2, validate_every=4, save_every=4, validation_tokens=64,
    )  # fmt: skip
    return replace(config, **changes)  # type: ignore[arg-type]


def test_chunked_loss_and_gradients_equal_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1100, 16, generator=generator, requires_grad=True)
    head = torch.randn(50, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, 50, (1100,), generator=generator)
    loss, cross_entropy = LinearCrossEntropy.apply(hidden, head, targets, 1e-2)
    logits = hidden.double() @ head.double().T
    plain = torch.nn.functional.cross_entropy(logits, targets)
    expected = plain + 1e-2 * logits.logsumexp(-1).square().mean()
    torch.testing.assert_close(cross_entropy, plain.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, expected.float(), rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(3 * loss, (hidden, head))
    theirs = torch.autograd.grad(3 * expected, (hidden, head))
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_learning_rate_warms_up_and_ends_where_stated(corpus: Path, tmp_path: Path) -> None:
    config = make_config(corpus, tmp_path, steps=10)
    assert learning_rate(config, 0) == pytest.approx(config.learning_rate / 2)
    assert learning_rate(config, 2) == pytest.approx(config.learning_rate)
    assert learning_rate(config, 9) == pytest.approx(config.final_learning_rate)


def test_windows_cover_each_pass_once_and_follow_the_seed() -> None:
    ids = np.arange(1000, dtype=np.uint32)
    windows = PackedWindows(ids, length=10, batch=4, seed=3)
    batches = [windows.batch(step) for step in range(24)]
    firsts = np.concatenate([batch[:, 0] for batch in batches])
    assert len(set(firsts.tolist())) == len(firsts)
    assert all((batch[:, 1:] - batch[:, :-1] == 1).all() for batch in batches)
    assert (PackedWindows(ids, length=10, batch=4, seed=3).batch(30) == windows.batch(30)).all()
    assert (PackedWindows(ids, length=10, batch=4, seed=4).batch(0) != windows.batch(0)).any()


def test_too_little_text_is_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="30 tokens do not fill one batch of 4 sequences of 10"):
        PackedWindows(np.zeros(30, np.uint32), length=10, batch=4, seed=0)


def test_tokenizer_round_trips_any_bytes_and_ends_documents() -> None:
    tokenizer = train_tokenizer(iter(["the sea the sea"]), 270)
    ids = encode_packed(tokenizer, iter(["naïve ☃ text", ""]))
    end = tokenizer.token_to_id(END_OF_TEXT)
    assert ids[-1] == end and ids[-2] == end
    assert tokenizer.decode(ids[:-2].tolist()) == "naïve ☃ text"


def test_resumed_run_reaches_the_same_weights(corpus: Path, tmp_path: Path) -> None:
    whole = train(make_config(corpus, tmp_path / "whole"))
    half_config = make_config(corpus, tmp_path / "half")
    interrupt_after(half_config, 4)
    resumed = train(half_config)
    for name, parameter in whole.state_dict().items():
        assert torch.equal(parameter, resumed.state_dict()[name]), name
    losses = [json.loads(line).get("loss") for line in (tmp_path / "half" / "log.jsonl").read_text().splitlines()]
    assert [loss for loss in losses if loss is not None][-1] == pytest.approx(last_loss(tmp_path / "whole"))


def last_loss(out: Path) -> float:
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return float([entry["loss"] for entry in entries if "loss" in entry][-1])


def interrupt_after(config: TrainConfig, steps: int) -> None:
    """Run until the state after `steps` is saved, then stop the way Ctrl-C does."""

    class Stop(Exception):
        pass

    import tolbuild.train.run as run

    original = run.save_state

    def save_then_stop(*args: object) -> None:
        original(*args)  # type: ignore[arg-type]
        raise Stop

    run.save_state = save_then_stop  # type: ignore[assignment]
    try:
        with pytest.raises(Stop):
            train(config)
    finally:
        run.save_state = original


def test_state_of_another_run_is_refused_by_name(corpus: Path, tmp_path: Path) -> None:
    train(make_config(corpus, tmp_path / "run"))
    with pytest.raises(ValueError, match=r"learning_rate: 0\.003 there, 0\.5 here"):
        train(make_config(corpus, tmp_path / "run", learning_rate=0.5))


def test_config_errors_name_the_numbers(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="warmup_steps 9 must be smaller than steps 8"):
        make_config(corpus, tmp_path, warmup_steps=9)
    with pytest.raises(ValueError, match=r"no such file: .*absent"):
        make_config(tmp_path / "absent", tmp_path)


def test_other_text_is_not_taken_for_the_same(corpus: Path, tmp_path: Path) -> None:
    """A start that was stopped before its first state leaves a corpus; another text makes a new one or is refused."""
    config, other = make_config(corpus, tmp_path / "run"), tmp_path / "other.jsonl"
    other.write_text(corpus.read_text() + "\n" + corpus.read_text())
    config.out.mkdir()
    first = prepare_corpus(config, Processes(0, 1))
    assert len(prepare_corpus(replace(config, data=(other,)), Processes(0, 1)).train_N) == 2 * len(first.train_N)
    train(config)
    with pytest.raises(ValueError, match="run on other --data"):
        train(replace(config, data=(other,)))


def test_a_run_can_be_made_longer(corpus: Path, tmp_path: Path) -> None:
    train(make_config(corpus, tmp_path / "run", steps=4))
    train(make_config(corpus, tmp_path / "run", steps=8))
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "loss" in entry] == [2, 4, 6, 8]
