"""A CLIP with adapters: what travels, what is frozen, and what the seeds decide."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch

if not all(map(find_spec, ("transformers", "peft"))):  # found, not loaded: collecting takes seconds
    pytest.skip("needs flwr-afuic[multimodal]", allow_module_level=True)

from flwr_afuic.calibration.blocks import Blocks
from flwr_afuic.data.multimodal import make_pair_phantoms, split_places
from flwr_afuic.errors import ConfigError, DataError, LayoutError
from flwr_afuic.federation.layout import Layout
from flwr_afuic.models.arrays import array_kinds, get_arrays, set_arrays
from flwr_afuic.models.clip import SmallCLIP, build_small_clip, load_clip
from flwr_afuic.models.pretraining import Pretraining, pretrain
from flwr_afuic.models.tokens import build_tokenizer, encode
from flwr_afuic.unlearning.pairs import score_pairs, similarities

torch.set_num_threads(1)
TINY = SmallCLIP(
    image_size=32, patch=16, length=24, width=16, layers=2, heads=2, projection=8, vocabulary=300
)
PAIRS = make_pair_phantoms(0, {"north": 6, "elsewhere": 10})


@pytest.fixture(scope="module")
def backbone():
    return build_small_clip(TINY, build_tokenizer(PAIRS.captions, vocabulary=300), seed=0)


@pytest.fixture
def model(backbone):
    return backbone.with_adapters(rank=2, seed=1)


def disturb(model, by=0.3):
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter += by * torch.randn(parameter.shape, generator=generator)


def test_only_adapters_travel(model):
    names = [name for name, _ in array_kinds(model)]
    assert names == list(model.state_dict())
    # Two towers of two layers, two projections of each, A and B of each.
    assert len(names) == 2 * 2 * 2 * 2
    assert all(".lora_A.weight" in n or ".lora_B.weight" in n for n in names)
    assert {kind for _, kind in array_kinds(model)} == {"trained"}
    layout = Layout.of(names, get_arrays(model))
    assert {spec.kind for spec in layout.specs} == {"trained"}
    assert list(Blocks(names, [s.size for s in layout.specs])) == [
        "text/0",
        "text/1",
        "vision/0",
        "vision/1",
    ]
    assert [tuple(p.shape) for p in model.parameters()] == [s.shape for s in layout.specs]


def test_arrays_go_there_and_back(backbone, model):
    disturb(model)
    other = backbone.with_adapters(rank=2, seed=5)
    set_arrays(other, get_arrays(model))
    data = backbone.encode(PAIRS)
    assert torch.equal(similarities(model, data), similarities(other, data))
    third = backbone.with_adapters(rank=2, seed=6)
    third.load_state_dict(model.state_dict())
    assert torch.equal(similarities(model, data), similarities(third, data))
    with pytest.raises(LayoutError, match="same rank"):
        backbone.with_adapters(rank=3).load_state_dict(model.state_dict())
    with pytest.raises(LayoutError, match="names"):
        third.load_state_dict({})


def test_a_fresh_model_is_the_base_model_and_so_is_one_with_adapters_off(backbone, model):
    data = backbone.encode(PAIRS)
    fresh = similarities(model, data)
    with model.adapters_off():
        assert torch.equal(similarities(model, data), fresh)
    disturb(model)
    moved = similarities(model, data)
    assert float((moved - fresh).abs().max()) > 1e-3
    with model.adapters_off():
        assert torch.allclose(similarities(model, data), fresh, atol=1e-6)
    assert torch.equal(similarities(model, data), moved)
    assert all(p.requires_grad for p in model.parameters())


def test_training_moves_adapters_and_nothing_else(backbone, model):
    data = backbone.encode(PAIRS)
    before = {n: p.detach().clone() for n, p in model.clip.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model.train()
    for _ in range(2):
        logits = model(data.images, data.tokens, data.mask)
        optimizer.zero_grad()
        logits.diagonal().sum().neg().backward()
        optimizer.step()
    for name, parameter in model.clip.named_parameters():
        assert torch.equal(parameter, before[name]) != ("lora" in name), name
    assert not any(module.training for module in model.modules())


def test_seeds_decide_and_the_global_generator_is_left_alone():
    tokenizer = build_tokenizer(PAIRS.captions, vocabulary=300)
    state = torch.get_rng_state()
    one = build_small_clip(TINY, tokenizer, seed=3).with_adapters(rank=2, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    same = build_small_clip(TINY, tokenizer, seed=3).with_adapters(rank=2, seed=4)
    for a, b in zip(one.clip.parameters(), same.clip.parameters(), strict=True):
        assert torch.equal(a, b)
    other = build_small_clip(TINY, tokenizer, seed=4).with_adapters(rank=2, seed=4)
    assert not torch.equal(one.clip.visual_projection.weight, other.clip.visual_projection.weight)


def test_the_tokenizer_knows_every_text_and_cuts_long_ones():
    tokenizer = build_tokenizer(["Small opacity in the left zone."], vocabulary=280)
    again = build_tokenizer(["Small opacity in the left zone."], vocabulary=280)
    text = "Überraschung: 肺炎, left!"
    assert tokenizer(text)["input_ids"] == again(text)["input_ids"]
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text.lower()
    tokens, mask = encode(tokenizer, ["left " * 50, "left"], 12)
    assert tokens.shape == mask.shape == (2, 12)
    assert tokens[0, -1] == tokenizer.eos_token_id
    assert mask.sum(dim=1)[0] == 12
    assert mask.sum(dim=1)[1] < 12
    assert len(encode(tokenizer, [], 12)[0]) == 0
    with pytest.raises(DataError, match="no caption"):
        build_tokenizer([" "])
    with pytest.raises(ConfigError, match="259"):
        build_tokenizer(["a"], vocabulary=100)


def test_embeddings_of_a_caption_do_not_depend_on_the_batch(backbone, model):
    data = backbone.encode(PAIRS)
    together = model.embed_texts(data.tokens, data.mask)
    alone = torch.cat([model.embed_texts(data.tokens[i : i + 1], data.mask[i : i + 1])
                       for i in range(4)])  # fmt: skip
    assert torch.allclose(together[:4], alone, atol=1e-5)
    assert torch.allclose(together.norm(dim=1), torch.ones(len(data)), atol=1e-5)


def test_pretraining_teaches_repeats_and_is_kept(tmp_path):
    public = split_places(PAIRS, ["north"]).public
    settings = Pretraining(shape=TINY, steps=25, batch_size=10, lr=1e-2, shift=0)
    made = pretrain(public, settings, seed=0, cache_dir=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert (folder / "model.safetensors").is_file()
    found = pretrain(public, settings, seed=0, cache_dir=tmp_path)
    anew = pretrain(public, settings, seed=0)
    data = anew.encode(public)
    numbers = [similarities(b.with_adapters(), data) for b in (made, found, anew)]
    assert torch.equal(numbers[0], numbers[1])
    assert torch.equal(numbers[0], numbers[2])
    assert torch.equal(found.encode(public).tokens, data.tokens)
    assert made.fingerprint == found.fingerprint == anew.fingerprint
    untrained = build_small_clip(TINY, anew.tokenizer, seed=0).with_adapters()
    trained = anew.with_adapters()
    assert score_pairs(trained, data).loss < 0.8 * score_pairs(untrained, data).loss
    other = pretrain(public, settings, seed=1, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert other.fingerprint != made.fingerprint


def test_a_backbone_is_loaded_from_a_folder_also_one_with_three_channels(tmp_path, backbone):
    from transformers import CLIPModel

    backbone.clip.config.vision_config.num_channels = 1
    backbone.save(tmp_path / "grey")
    loaded = load_clip(tmp_path / "grey")
    data = loaded.encode(PAIRS)
    assert np.allclose(
        similarities(loaded.with_adapters(rank=2), data),
        similarities(backbone.with_adapters(rank=2), data),
    )
    config = backbone.clip.config.to_dict()
    config["vision_config"]["num_channels"] = 3
    colour = CLIPModel(type(backbone.clip.config)(**config))
    colour.save_pretrained(tmp_path / "colour")
    backbone.tokenizer.save_pretrained(tmp_path / "colour")
    three = load_clip(tmp_path / "colour")
    assert len(three.mean) == 3
    assert bool(similarities(three.with_adapters(rank=2), data).isfinite().all())


def test_what_cannot_be_loaded_is_said(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="no CLIP could be loaded from"):
        load_clip(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="rank"):
        build_small_clip(TINY, build_tokenizer(["a b"]), seed=0).with_adapters(rank=0)
    with pytest.raises(ConfigError, match="multiple"):
        SmallCLIP(image_size=60, patch=16)
    wrong = make_pair_phantoms(0, {"north": 2}, size=16)
    tiny = build_small_clip(TINY, build_tokenizer(["a b"]), seed=0)
    with pytest.raises(DataError, match="size=32"):
        tiny.encode(wrong)
