from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from saved_models import save_bert, save_resnet

import headwater as hw
from headwater.errors import InputError

TEXT = "the film was very unkindly great"
TOKENS = ("[CLS]", "the", "film", "was", "very", "un", "##kind", "##ly", "great", "[SEP]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert"))


def test_each_token_has_its_relevance_and_all_sum_to_the_probability(folder):
    e = hw.explain_text(TEXT, model=folder, method="otsuki2024")
    assert e.tokens == TOKENS and e.text == TEXT
    assert e.heatmap.shape == (1, len(TOKENS)) and e.values.shape == (len(TOKENS),)
    model = hw.load_model(folder)
    own = model(**model.card.processor(TEXT, return_tensors="pt")).logits.softmax(1)[0]
    assert e.predicted == int(own.argmax()) and e.explained in ("negative", "positive")
    assert e.probability.item() == pytest.approx(own.max().item(), rel=1e-5)
    assert e.additive and e.values.sum() == pytest.approx(e.probability.item(), rel=1e-5)
    assert e.note == f"The values sum to {e.values.sum():.4g}; the probability is {e.probability.item():.4g}."


def test_the_default_method_is_that_of_images_and_conserves(folder):
    e = hw.explain_text(TEXT, model=folder)
    assert e.method == "headwater"
    assert e.values.sum() == pytest.approx(e.probability.item(), rel=1e-4)


def test_another_class_and_one_class_against_another(folder):
    e = hw.explain_text(TEXT, model=folder, target="positive", method="otsuki2024")
    assert e.explained == "positive" and int(e.target) == 1
    other = hw.explain_text(TEXT, model=folder, target=1 - e.predicted, method="otsuki2024")
    assert f"Predicted: {other.card.class_name(other.predicted)}" in other.note
    contrast = hw.explain_text(TEXT, model=folder, target="positive", against="negative")
    difference = (contrast.logits[0, 1] - contrast.logits[0, 0]).item()
    assert contrast.explained == "positive, not negative" and "difference of the logits" in contrast.note
    assert contrast.values.sum() == pytest.approx(difference, rel=1e-3)
    with pytest.raises(InputError, match="same class, positive"):
        hw.explain_text(TEXT, model=folder, target="positive", against=1)
    with pytest.raises(InputError, match="did you mean positive"):
        hw.explain_text(TEXT, model=folder, target="positiv")


def test_files_are_a_page_a_picture_values_and_what_they_were_made_from(folder, tmp_path):
    e = hw.explain_text(TEXT, model=folder, method="otsuki2024")
    files = {path.suffix: path for path in e.save(tmp_path)}
    assert set(files) == {".html", ".png", ".npy", ".json"}
    assert files[".html"].name.startswith("the-film-was-very-unkindly-great.")
    page = files[".html"].read_text(encoding="utf-8")
    assert page.startswith('<!doctype html>\n<meta charset="utf-8">') and e.html() in page
    assert files[".png"].read_bytes()[1:4] == b"PNG"
    assert np.array_equal(np.load(files[".npy"]), e.values)
    record = json.loads(files[".json"].read_text())
    assert [row["token"] for row in record["tokens"]] == list(TOKENS)
    assert record["conservation"]["relative_error"] < 1e-5 and record["made_from"]["text"] == TEXT
    e.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    hw.explain_text(TEXT + " not", model=folder, method="otsuki2024").save(tmp_path, stem=files[".html"].stem)
    assert len(list(tmp_path.iterdir())) == 8


def test_a_notebook_shows_the_text_the_classes_and_the_account(folder):
    shown = hw.explain_text(TEXT, model=folder)._repr_html_()
    assert "unkindly"[2:6] in shown and "negative" in shown and "positive" in shown and "relative error" in shown


def test_words_of_a_text_are_escaped(folder):
    e = hw.explain_text("good <script> film", model=folder)
    assert "<script" not in e._repr_html_()


def test_a_pipeline_a_module_and_its_name_give_the_same(folder):
    named = hw.explain_text(TEXT, model=str(folder))
    pipeline = transformers.pipeline("text-classification", str(folder))
    loaded = transformers.BertForSequenceClassification.from_pretrained(folder)
    made = transformers.BertForSequenceClassification(loaded.config)
    made.load_state_dict(loaded.state_dict())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for model, options in ((pipeline, {}), (loaded, {}), (made, {"tokenizer": tokenizer})):
        e = hw.explain_text(TEXT, model=model, **options)
        assert torch.allclose(e.heatmap, named.heatmap, atol=1e-6) and e.explained == named.explained


def test_a_text_is_read_and_cut_only_where_that_is_asked_for(folder):
    long = "the film was good " * 20
    with pytest.raises(InputError, match=r"the text has 82 tokens, .* takes 32; .*truncate=True, or --truncate"):
        hw.explain_text(long, model=folder)
    assert len(hw.explain_text(long, model=folder, truncate=True).tokens) == 32
    for text in ("", "  ", None, ["a", "b"]):
        with pytest.raises(InputError, match="text must be a string with at least one word"):
            hw.explain_text(text, model=folder)


def test_networks_that_take_no_text_are_refused(tmp_path, folder):
    with pytest.raises(InputError, match=r"takes images, not text; headwater\.explain\(image"):
        hw.explain_text(TEXT, model=save_resnet(tmp_path))
    with pytest.raises(InputError, match="tiny20 takes images, not text"):
        hw.explain_text(TEXT, model="tiny20")
    with pytest.raises(InputError, match="model must be given"):
        hw.explain_text(TEXT, model=None)
    model = hw.load_model(folder)
    made = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=16, hidden_size=12))
    with pytest.raises(InputError, match="has no tokenizer"):
        hw.explain_text(TEXT, model=made)
    with pytest.raises(InputError, match="no method is called"):
        hw.explain_text(TEXT, model=model, method="lrp")


def test_outputs_for_single_tokens_are_refused_with_what_to_call(folder, tmp_path):
    model = transformers.BertForTokenClassification(hw.load_model(folder).config).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with pytest.raises(InputError, match=r"several values of each class.*headwater\.LRP\(model\)"):
        hw.explain_text(TEXT, model=model, tokenizer=tokenizer, method="otsuki2024")
