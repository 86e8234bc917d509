"""Networks of transformers: what stood in their way, each by the network that showed it."""

from __future__ import annotations

import pytest
import torch

import headwater as hw
from headwater.errors import TraceError

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 3}
VIDEO = {**SMALL, "image_size": 32, "num_frames": 2}


def ids(end: int | None = None) -> dict[str, torch.Tensor]:
    """Two texts, of which the second ends with padding."""
    generator = torch.Generator().manual_seed(0)
    found, mask = torch.randint(5, 40, (2, 8), generator=generator), torch.ones(2, 8, dtype=torch.long)
    if end is not None:
        found[:, -1] = end
        return {"input_ids": found, "attention_mask": mask}
    mask[1, 5:] = 0
    found[1, 5:] = 0
    return {"input_ids": found, "attention_mask": mask}


def pixels(*shape: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))}


CASES = {
    "an encoder of texts": (
        lambda t: t.BertForSequenceClassification(t.BertConfig(**SMALL, vocab_size=40)),
        ids,
    ),
    "positions made of the ids": (
        lambda t: t.RobertaForSequenceClassification(t.RobertaConfig(**SMALL, vocab_size=40, pad_token_id=0)),
        ids,
    ),
    "a key-value cache among the outputs, the last token read": (
        lambda t: t.GPT2ForSequenceClassification(
            t.GPT2Config(
                n_embd=16, n_layer=1, n_head=2, vocab_size=40, num_labels=3,
                pad_token_id=0, bos_token_id=1, eos_token_id=2,
            )
        ),
        ids,
    ),
    "grouped attention, positions by rotation": (
        lambda t: t.LlamaForSequenceClassification(
            t.LlamaConfig(**SMALL, num_key_value_heads=1, vocab_size=40, pad_token_id=0)
        ),
        ids,
    ),
    "experts": (
        lambda t: t.MixtralForSequenceClassification(
            t.MixtralConfig(**SMALL, num_key_value_heads=1, num_local_experts=3, vocab_size=40, pad_token_id=0)
        ),
        ids,
    ),
    "ids shifted into a decoder": (
        lambda t: t.BartForSequenceClassification(
            t.BartConfig(
                d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=40, num_labels=3, pad_token_id=1, eos_token_id=2,
            )
        ),
        lambda: ids(end=2),
    ),
    "a class for each token": (
        lambda t: t.BertForTokenClassification(t.BertConfig(**SMALL, vocab_size=40)),
        ids,
    ),
    "an image": (
        lambda t: t.ViTForImageClassification(t.ViTConfig(**SMALL, image_size=32, patch_size=8)),
        lambda: pixels(3, 32, 32),
    ),
    "a residual network": (
        lambda t: t.ResNetForImageClassification(
            t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
        ),
        lambda: pixels(3, 32, 32),
    ),
    "features far below one": (
        lambda t: t.MobileViTForImageClassification(
            t.MobileViTConfig(
                image_size=64, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32], num_labels=3
            )
        ),
        lambda: pixels(3, 64, 64),
    ),
    "frames before channels": (
        lambda t: t.VideoMAEForVideoClassification(t.VideoMAEConfig(**VIDEO)),
        lambda: pixels(2, 3, 32, 32),
    ),
    "class tokens taken from the first rows": (
        lambda t: t.TimesformerForVideoClassification(t.TimesformerConfig(**VIDEO)),
        lambda: pixels(2, 3, 32, 32),
    ),
    "hidden states collected by hooks": (
        lambda t: t.SegformerForSemanticSegmentation(
            t.SegformerConfig(
                num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3],
                strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, num_labels=3,
            )
        ),
        lambda: pixels(3, 32, 32),
    ),
    "audio": (
        lambda t: t.ASTForAudioClassification(t.ASTConfig(**SMALL, max_length=32, num_mel_bins=32)),
        lambda: {"input_values": torch.randn(2, 32, 32)},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "inputs"), CASES.values(), ids=CASES)
def test_it_is_explained_at_once_and_the_second_time_without_a_trace(make, inputs, monkeypatch):
    torch.manual_seed(0)
    network, x = make(transformers).eval(), inputs()
    with torch.no_grad():
        logits = network(**x).logits  # called before, as people do
    for name in ("otsuki2024", "headwater"):
        method = hw.load_method(name, network)
        e = method(x)
        assert (e.conservation.error < 1e-5).all()
        own = logits.movedim(-1, 1) if "Token" in type(network).__name__ else logits
        torch.testing.assert_close(e.logits, own, rtol=1e-3, atol=1e-5)
        monkeypatch.setattr("headwater.engine.traces.trace_of", lambda *_: pytest.fail("traced again"))
        again = method(x)
        assert torch.equal(again.heatmap, e.heatmap)
    alone = method({key: value[1:] for key, value in x.items()}, int(e.target[1]))
    torch.testing.assert_close(alone.heatmap[0], e.heatmap[1], rtol=1e-2, atol=1e-5)


def test_a_changed_configuration_is_noticed():
    torch.manual_seed(0)
    network = transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, vocab_size=40)).eval()
    lrp, x = hw.LRP(network), ids()
    before = lrp(x).logits
    network.bert.encoder.layer[0].attention.self.scaling *= 3
    assert not torch.equal(lrp(x).logits, before)
    torch.testing.assert_close(lrp(x).logits, network(**x).logits, rtol=1e-4, atol=1e-5)


def test_what_depends_on_the_values_of_a_mask_says_so():
    config = transformers.LongformerConfig(**SMALL, vocab_size=40, attention_window=4, max_position_embeddings=64)
    network = transformers.LongformerForSequenceClassification(config).eval()
    with pytest.raises(TraceError, match=r"could not be traced .* run the same operations for every input"):
        hw.LRP(network)(ids())
