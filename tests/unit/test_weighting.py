"""Files of token counts and layer weights: what they may hold, and that the plan hash follows what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from tolbuild import count
from tolbuild.build_config import BuildConfig
from tolbuild.checkpoint import save_checkpoint
from tolbuild.config import ModelConfig
from tolbuild.model import MemoryLLM
from tolbuild.plan import make_plan
from tolbuild.train.data import encode_packed, read_texts, train_tokenizer
from tolbuild.weighting import UNIFORM, Weighting, layer_weights, load_weighting, token_weights

MODEL = ModelConfig(
    kind="memory", vocab_size=300, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48
)
CONFIG = BuildConfig(checkpoint="c", table="t", rank="bytes:40kB", codes="int8", shard_rows=128)
TEXTS = ["the whale and the séa", "a long white road", "", "the road to the islands"] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a tokenizer, and text."""
    folder = tmp_path_factory.mktemp("count")
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    tokenizer: Tokenizer = train_tokenizer(iter(TEXTS), 290)
    model = MemoryLLM(MODEL)
    model.reset_parameters(0)
    save_checkpoint(folder / "c", MODEL, model.state_dict(), tokenizer_json=tokenizer.to_str())
    return folder


@pytest.mark.parametrize("name", ["counts.json", "counts.npy"])
@pytest.mark.parametrize("add", [0.0, 1.0])
def test_counts_of_a_text_are_weights_of_its_tokens(folder: Path, name: str, add: float) -> None:
    out = folder / name
    line = ["--checkpoint", str(folder / "c"), "--data", str(folder / "text.jsonl"), "--out", str(out)]
    assert count.main([*line, "--add", str(add)]) == 0
    tokenizer = Tokenizer.from_file(str(folder / "c" / "tokenizer.json"))
    ids = encode_packed(tokenizer, read_texts([folder / "text.jsonl"]))
    expected = np.bincount(ids, minlength=300) + add
    weights = token_weights(out, 300)
    assert weights.mean() == pytest.approx(1.0)
    np.testing.assert_allclose(weights, expected / expected.mean())


def test_a_wrong_count_says_why(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["--checkpoint", str(folder / "c"), "--data", str(folder / "nowhere"), "--out", str(folder / "x")]
    assert count.main(line) == 1
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", r"shape \[2\]; the model has 3 tokens"),
        ("[1, 2, -1]", "none below zero"),
        ("[0, 0, 0]", "not all zero"),
        ("[1, 2, NaN]", "finite"),
        ("{", "cannot be read as JSON"),
        ('["a", "b", "c"]', "no list of numbers"),
        ("[[1, 2, 3]]", "shape"),
    ],
)
def test_counts_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "counts.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        token_weights(path, 3)
    path = path.rename(tmp_path / "counts.npy")
    with pytest.raises(ValueError, match=r"counts.npy cannot be read"):
        token_weights(path, 3)
    with pytest.raises(ValueError, match=r"nowhere.json cannot be read"):
        token_weights(tmp_path / "nowhere.json", 3)


def test_layer_weights(tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    path.write_text("[1, 0.5, 2e-3]")
    assert layer_weights(path, 3, "f") == (1.0, 0.5, 2e-3)
    path.write_text(json.dumps({"layer_weights": [3, 2, 1], "fingerprint": "f", "num_tokens": 7}))
    assert layer_weights(path, 3, "f") == (3.0, 2.0, 1.0)
    with pytest.raises(ValueError, match=r"measured on the checkpoint f; this one is g"):
        layer_weights(path, 3, "g")
    with pytest.raises(ValueError, match="the model has 4 layers"):
        layer_weights(path, 4, "f")
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"no list of numbers|shape"):
        layer_weights(path, 3, "f")


def test_the_plan_follows_what_the_files_say_and_not_where_they_are(tmp_path: Path) -> None:
    counts = np.arange(300) + 1.0
    np.save(tmp_path / "a.npy", counts)
    (tmp_path / "b.json").write_text(json.dumps(counts.tolist()))
    (tmp_path / "layers.json").write_text("[1, 2, 3]")

    def plan_hash(weights: str = "uniform", layers: Path | None = None, **options: object) -> str:
        config = replace(CONFIG, weights=weights, layer_weights=layers, **options)  # type: ignore[arg-type]
        return make_plan(config, MODEL, "f", load_weighting(config, 300, 3, "f")).plan_hash

    by_array = plan_hash(f"counts:{tmp_path / 'a.npy'}")
    assert by_array == plan_hash(f"counts:{tmp_path / 'b.json'}")
    others = {by_array, plan_hash(), plan_hash(layers=tmp_path / "layers.json"), plan_hash(rank="bytes:41kB")}
    others |= {plan_hash(rank=rank) for rank in ("energy:0.99", "energy:0.999", 8)}
    assert len(others) == 7
    assert plan_hash(rank="bytes:40000") == plan_hash() and plan_hash(rank="energy:0.990") in others
    np.save(tmp_path / "a.npy", counts[::-1])
    assert plan_hash(f"counts:{tmp_path / 'a.npy'}") != by_array


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "zipf"}, "--weights is 'zipf'; it must be uniform or counts:FILE"),
        ({"weights": "counts:x", "rank": "full"}, "--rank full has none"),
        ({"layer_weights": Path("x"), "rank": 8}, "needs --rank bytes:SIZE, not --rank 8"),
        ({"layer_weights": Path("x"), "rank": "energy:0.9"}, "needs --rank bytes:SIZE"),
        ({"rank": "energy:2"}, "above 0 and at most 1"),
        ({"rank": "half"}, "--rank is 'half'"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **options)  # type: ignore[arg-type]


def test_the_digest_is_of_the_weights_alone() -> None:
    assert UNIFORM.digest == "" and UNIFORM.layer_weights == ()
    one, other = (Weighting(token_weights_V=np.array(values)) for values in ([1.0, 1.0], [0.5, 1.5]))
    assert one.digest != other.digest and len(one.digest) == 16
