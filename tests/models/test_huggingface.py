from __future__ import annotations

import json
import pickle
import sys

import pytest
import torch
import transformers
from helpers import EXAMPLES
from PIL import Image
from safetensors.torch import load_file, save_file
from saved_models import CLASSES, bert_config, labels, save_bert, save_resnet, save_vit

import headwater as hw
from headwater.errors import CheckpointError, DownloadError, InputError, MissingDependencyError
from headwater.models import card_of, huggingface, network_input, network_of


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, without a connection."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_a_folder_gives_the_network_its_classes_and_its_preprocessing(tmp_path):
    model = hw.load_model(save_resnet(tmp_path))
    assert isinstance(model, transformers.ResNetForImageClassification) and not model.training
    assert model.card.classes == CLASSES and model.card.name == model.card.weights == str(tmp_path)
    assert (model.card.preprocessing.resize, model.card.preprocessing.crop) == (36, 32)
    assert model.card.preprocessing.described() == "short side to 36, centre 32 x 32, bicubic"
    assert model.card.takes == "images"
    stored = load_file(tmp_path / "model.safetensors")
    assert torch.equal(model.classifier[1].weight, stored["classifier.1.weight"])


def test_a_map_of_a_folders_network_sums_to_the_networks_own_probability(tmp_path):
    model = hw.load_model(save_vit(tmp_path))
    image = Image.open(EXAMPLES / "tabby.jpg")
    x = model.card.processor(images=image, return_tensors="pt")["pixel_values"]
    e = hw.explain(EXAMPLES / "tabby.jpg", model=tmp_path, method="otsuki2024")
    own = model(x).logits.softmax(1)[0, e.predicted].item()
    assert e.heatmap.shape == (1, 32, 48)
    assert e.probability.item() == pytest.approx(own, abs=1e-3)  # resized in 8 bits by torch and by Pillow
    assert e.heatmap.sum().item() == pytest.approx(e.probability.item(), rel=1e-5)


def test_a_class_may_be_given_by_one_of_its_synonyms(tmp_path):
    card = hw.load_model(save_resnet(tmp_path)).card
    assert card.class_index("tabby cat") == card.class_index("Tabby") == 0
    assert card.class_index("tabby, tabby cat") == 0
    with pytest.raises(InputError, match=r"no class 'tab'; did you mean tabby, tabby cat"):
        card.class_index("tab")


def test_classes_that_are_only_numbered_have_no_names(tmp_path):
    save_resnet(tmp_path, **labels(("LABEL_0", "LABEL_1")))
    assert hw.load_model(tmp_path).card.classes is None


def test_the_network_is_in_single_precision_whatever_it_was_saved_in(tmp_path):
    save_resnet(tmp_path)
    model = transformers.ResNetForImageClassification.from_pretrained(tmp_path, dtype=torch.float16)
    model.save_pretrained(tmp_path)
    assert {p.dtype for p in hw.load_model(tmp_path).parameters()} == {torch.float32}


def test_a_text_network_has_its_tokenizer_and_refuses_images(tmp_path):
    model = hw.load_model(save_bert(tmp_path))
    assert model.card.takes == "text" and model.card.classes == ("negative", "positive")
    assert model.card.processor("the film").input_ids == [2, 5, 6, 3]
    with pytest.raises(InputError, match=r"takes text, not images; headwater\.explain_text"):
        hw.explain(EXAMPLES / "tabby.jpg", model=model)
    with pytest.raises(InputError, match="takes text, not images"):
        _ = model.card.preprocessing.size


def test_networks_for_sound_and_for_single_tokens_are_loaded(tmp_path):
    config = transformers.Wav2Vec2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, conv_dim=(8,), conv_kernel=(4,),
        conv_stride=(4,), num_feat_extract_layers=1, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        classifier_proj_size=4,
    )  # fmt: skip
    transformers.Wav2Vec2ForSequenceClassification(config).save_pretrained(tmp_path / "sound")
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "sound")
    card = hw.load_model(tmp_path / "sound").card
    assert card.takes == "audio" and type(card.processor).__name__ == "Wav2Vec2FeatureExtractor"
    transformers.BertForTokenClassification(bert_config()).save_pretrained(tmp_path / "tokens")
    assert hw.load_model(tmp_path / "tokens").card.takes == "text"


def test_segmentation_is_refused_by_explain_with_what_to_call(tmp_path):
    config = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 8], patch_sizes=[3, 3], strides=[2, 2],
        num_attention_heads=[1, 1], mlp_ratios=[1, 1], decoder_hidden_size=8, **labels(CLASSES),
    )  # fmt: skip
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    transformers.SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"several values of each class; .*headwater\.LRP\(model\)"):
        hw.explain(EXAMPLES / "tabby.jpg", model=tmp_path, method="otsuki2024")


def test_without_a_processor_the_network_loads_and_images_are_refused(tmp_path):
    save_resnet(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    model = hw.load_model(tmp_path)
    with pytest.raises(InputError, match="no image processor"):
        hw.explain(EXAMPLES / "tabby.jpg", model=model)
    e = hw.explain(EXAMPLES / "tabby.jpg", model=model, preprocessing=hw.Preprocessing(36, 32), method="otsuki2024")
    assert e.heatmap.shape == (1, 32, 32)


def test_a_folder_without_a_configuration_names_both_kinds_of_folder(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"no card\.json\), and no network of save_pretrained \(no config\.json\)"
    ):
        hw.load_model(tmp_path)


def test_pickled_weights_are_refused_unread(tmp_path):
    save_resnet(tmp_path)
    (tmp_path / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self):
            return (print, ("this code was run",))

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, which may hold code and is never loaded"):
        hw.load_model(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"has no weights \(model\.safetensors\)"):
        hw.load_model(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_code_of_a_folder_is_never_run(tmp_path, file):
    save_resnet(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('this code was run')")
    content = json.loads((tmp_path / file).read_text())
    names = {"AutoModelForImageClassification": "evil.Model", "AutoImageProcessor": "evil.Processor"}
    (tmp_path / file).write_text(json.dumps(content | {"auto_map": names}))
    with pytest.raises(CheckpointError, match=rf"needs Python code of its own \(auto_map in {file}\)"):
        hw.load_model(tmp_path)


def test_an_attention_kernel_of_the_hub_is_not_fetched(tmp_path):
    save_vit(tmp_path)
    edit_config(tmp_path, attn_implementation="someone/kernel", _attn_implementation="someone/kernel")
    assert hw.load_model(tmp_path).config._attn_implementation == "sdpa"


def test_a_network_without_the_fast_attention_has_the_plain_one(tmp_path):
    config = transformers.DebertaV2Config(
        vocab_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.DebertaV2ForSequenceClassification(config).save_pretrained(tmp_path)
    assert hw.load_model(tmp_path).config._attn_implementation == "eager"


def test_quantised_weights_and_adapters_are_refused(tmp_path):
    save_resnet(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is an adapter; merge it"):
        hw.load_model(tmp_path)
    edit_config(tmp_path, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(CheckpointError, match="quantised weights"):
        hw.load_model(tmp_path)


def test_weights_that_the_file_lacks_are_named(tmp_path):
    save_resnet(tmp_path)
    state = load_file(path := tmp_path / "model.safetensors")
    save_file({name: t for name, t in state.items() if not name.startswith("classifier")}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks weights of ResNetForImageClassification: classifier\.1\.bias"):
        hw.load_model(tmp_path)


def test_what_transformers_cannot_load_is_an_error_of_our_own(tmp_path):
    save_resnet(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot be loaded by transformers"):
        hw.load_model(tmp_path)
    edit_config(tmp_path, model_type="unheard-of")
    with pytest.raises(CheckpointError, match="cannot be loaded by transformers"):
        hw.load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not readable as JSON"):
        hw.load_model(tmp_path)


@pytest.mark.parametrize("kind", ["ResNetModel", "BertForMaskedLM", None])
def test_networks_for_other_tasks_are_refused_with_what_is_accepted(tmp_path, kind):
    save_bert(tmp_path)
    edit_config(tmp_path, architectures=None if kind is None else [kind])
    found = kind or "BertForSequenceClassification or BertForTokenClassification"
    with pytest.raises(InputError, match=f"holds {found}; loaded are networks for image classification"):
        hw.load_model(tmp_path)


def test_weights_and_architecture_go_with_other_models(tmp_path):
    save_resnet(tmp_path)
    with pytest.raises(InputError, match="has weights of its own"):
        hw.load_model(tmp_path, weights="none")
    with pytest.raises(InputError, match="says itself which network it holds"):
        hw.load_model(tmp_path, arch="resnet50")


def test_a_repository_of_the_cache_needs_no_connection(cache):
    commit, repository = "0123456789abcdef" * 2 + "01234567", cache / "models--someone--tiny"
    save_resnet(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    card = hw.load_model("hf:someone/tiny").card
    assert (card.name, card.weights) == ("hf:someone/tiny", "hf:someone/tiny@0123456789ab")
    assert hw.load_model(f"hf:someone/tiny@{commit}").card.classes == CLASSES
    (repository / "snapshots" / commit / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="may have none in that format"):
        hw.load_model("hf:someone/tiny")


def test_without_a_connection_a_repository_that_is_not_cached_says_what_to_do(cache):
    expected = r"not in the cache .*there is no connection.*hf download someone/tiny --local-dir DIR.*--model DIR"
    with pytest.raises(DownloadError, match=expected):
        hw.load_model("hf:someone/tiny")
    with pytest.raises(DownloadError, match="--revision v2"):
        hw.load_model("hf:someone/tiny@v2")
    with pytest.raises(InputError, match="hf:OWNER/NAME"):
        hw.load_model("hf:tiny")


def test_code_is_refused_before_weights_are_downloaded(cache, monkeypatch, tmp_path):
    import huggingface_hub

    save_resnet(tmp_path / "there")
    edit_config(tmp_path / "there", auto_map={"AutoModel": "evil.Model"})
    asked = []

    def download(repository, revision, allow_patterns):
        asked.append(allow_patterns)
        return str(tmp_path / "there")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match="needs Python code"):
        hw.load_model("hf:someone/tiny")
    assert len(asked) == 1 and not any("safetensors" in pattern or "bin" in pattern for pattern in asked[0])


def test_without_transformers_the_extra_is_named(tmp_path, monkeypatch):
    save_resnet(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in (tmp_path, "hf:someone/tiny"):
        with pytest.raises(MissingDependencyError, match=r"pip install 'headwater\[hf\]'"):
            hw.load_model(name)


def test_a_pipeline_is_explained_and_not_changed(tmp_path):
    pipeline = transformers.pipeline("image-classification", str(save_resnet(tmp_path)))
    names = set(vars(pipeline.model))
    e = hw.explain(EXAMPLES / "tabby.jpg", model=pipeline, method="otsuki2024")
    best = pipeline(Image.open(EXAMPLES / "tabby.jpg"), top_k=1)[0]
    assert best["label"] == e.card.class_name(e.predicted)
    assert best["score"] == pytest.approx(e.probability.item(), abs=1e-3)
    assert set(vars(pipeline.model)) == names and e.card.weights == "given"


def test_a_pipeline_for_another_task_is_refused(tmp_path):
    save_bert(tmp_path)
    model = transformers.BertForMaskedLM(bert_config())
    pipeline = transformers.pipeline("fill-mask", model, tokenizer=hw.load_model(tmp_path).card.processor)
    with pytest.raises(InputError, match="the pipeline is for fill-mask, by BertForMaskedLM"):
        network_of(pipeline)


def test_a_module_finds_its_processor_where_it_was_loaded_from(tmp_path):
    folder = save_resnet(tmp_path)
    model = transformers.ResNetForImageClassification.from_pretrained(folder)
    card = card_of(model)
    assert card.classes == CLASSES and card.preprocessing == hw.load_model(folder).card.preprocessing
    assert card_of(model) is card
    made = transformers.ResNetForImageClassification(transformers.ResNetConfig(hidden_sizes=[8, 16], depths=[1, 1]))
    with pytest.raises(InputError, match="no image processor"):
        network_input(made, [Image.new("RGB", (64, 64))])


def test_a_processor_is_taken_as_the_preprocessing(tmp_path):
    model = transformers.ResNetForImageClassification.from_pretrained(save_resnet(tmp_path))
    processor = transformers.ViTImageProcessor(size={"height": 24, "width": 40})
    e = hw.explain(EXAMPLES / "tabby.jpg", model=model, preprocessing=processor, method="otsuki2024")
    assert e.heatmap.shape == (1, 24, 40)
    with pytest.raises(InputError, match="image processor of transformers, got str"):
        hw.explain(EXAMPLES / "tabby.jpg", model=model, preprocessing="imagenet")


def test_what_is_no_model_is_refused():
    with pytest.raises(InputError, match="or a pipeline of transformers, got dict"):
        hw.explain(EXAMPLES / "tabby.jpg", model={})


def test_the_librarys_logging_is_left_as_it_was(tmp_path):
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hw.load_model(save_resnet(tmp_path))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert huggingface.PREFIX == "hf:"
