"""The explanation of one text: relevance of its tokens, as coloured text and as files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor, nn

from headwater.errors import InputError
from headwater.explanations.single import SingleExplanation, contrast, predicted_classes, stem_of, write_files
from headwater.methods import DEFAULT_METHOD, load_method
from headwater.models import ModelCard, network_of, weights_digest
from headwater.pictures.tokens import tokens_figure, tokens_html
from headwater.report.notebook import ACCOUNT, account_cells, class_table
from headwater.report.tabular import Table

_UNLIMITED = 10**9  # a tokenizer that knows no limit says a number beyond this
_NAMED = 40  # letters of a text that its files are named after


@dataclass(frozen=True, kw_only=True, repr=False)
class TextExplanation(SingleExplanation):
    """The explanation of one text, with its tokens; ``heatmap`` is ``(1, L)``, relevance of each token.

    Attributes:
        text: as it was given.
        tokens: as the tokenizer writes them, those that it adds included (``[CLS]``).
    """

    text: str
    tokens: tuple[str, ...]

    @property
    def values(self) -> np.ndarray:
        """Relevance of each token, float32 ``(L,)``."""
        return self.heatmap[0].float().cpu().numpy()

    @property
    def additive(self) -> bool:
        """Whether the values sum to what the relevance sums to: they are it, or a mean of it over scales."""
        if self.finest is None:
            return False
        values, relevance = self.heatmap.double(), self.finest.double()
        rounding = 16 * torch.finfo(self.finest.dtype).eps * float(relevance.abs().sum())
        return abs(float(values.sum() - relevance.sum())) <= rounding

    @property
    def title(self) -> str:
        """The class and its probability, the method and the model."""
        return f"{self.explained}  {self.probability.item():.1%}; {self.method}, {self.card.name}"

    @property
    def note(self) -> str:
        """What the values sum to."""
        account = self.conservation
        if not self.additive:
            note = "This method's values do not sum to the probability."
        else:
            begun = "probability" if self.against is None else "difference of the logits"
            note = f"The values sum to {self.values.sum(dtype=np.float64):.4g}"
            note += "." if account is None else f"; the {begun} is {account.seed.item():.4g}."
        return note + self.prediction_note()

    def html(self) -> str:
        """The text with each token coloured by its relevance."""
        return tokens_html(list(self.tokens), self.values, title=self.title, note=self.note)

    def figure(self) -> bytes:
        """The same as PNG."""
        return tokens_figure(list(self.tokens), self.values, title=self.title, note=self.note)

    @property
    def stem(self) -> str:
        """``TEXT.MODEL.METHOD.TARGET`` with the beginning of the text, the name of the files of :meth:`save`."""
        return stem_of(self.text[:_NAMED], self.card, self.method, self.explained)

    def summary(self) -> dict[str, Any]:
        """Everything, in values that JSON can hold; relevance by token too."""
        pairs = zip(self.tokens, self.values.tolist(), strict=True)
        return {
            "text": self.text,
            **self.outcome({"text": self.text}),
            "tokens": [{"token": token, "relevance": value} for token, value in pairs],
        }

    def save(self, out: str | Path, stem: str | None = None) -> list[Path]:
        """Write ``STEM.html``, ``STEM.png``, ``STEM.npy`` (relevance of each token) and ``STEM.json`` to ``out``.

        Names are chosen as by :meth:`ImageExplanation.save`: files of another result are never overwritten.

        Args:
            out: the folder, created if need be.
            stem: the files' name, instead of ``TEXT.MODEL.METHOD.TARGET``.

        Raises:
            OutputError: a file cannot be written.
            InputError: ``stem`` is not a file name.
        """
        raw = io.BytesIO()
        np.save(raw, self.values)
        page = Markup('<!doctype html>\n<meta charset="utf-8">\n<title>{}</title>\n{}\n').format(
            self.title, Markup(self.html())
        )
        contents = {".html": page.encode(errors="replace"), ".png": self.figure(), ".npy": raw.getvalue()}
        return write_files(out, stem, self.stem, self.summary(), contents)

    def _repr_png_(self) -> bytes:
        return self.figure()

    def _repr_html_(self) -> str:
        """The coloured text, the most probable classes and the account, for a notebook."""
        classes = class_table(self.probabilities[0], int(self.target), self.card.class_name)
        account = Table(ACCOUNT, [account_cells(self.conservation)], "rrr").html()
        return "".join((self.html(), classes, "" if self.conservation is None else account))


def explain_text(
    text: str,
    model: Any,
    method: str = DEFAULT_METHOD,
    target: int | str | None = None,
    *,
    against: int | str | None = None,
    tokenizer: Any = None,
    truncate: bool = False,
) -> TextExplanation:
    """Explain which tokens of a text a prediction rests on.

    Args:
        text: what the network classifies.
        model: a folder of ``save_pretrained``, ``hf:OWNER/NAME``, a pipeline of ``transformers``, or a module.
        method: a name (see :func:`list_methods`).
        target: class to explain, by number or name; ``None`` for the predicted one.
        against: explain why the target and not this class, by number or name.
        tokenizer: for a module that came without one.
        truncate: explain the beginning of a text that is longer than the network takes.

    Raises:
        InputError: the text is empty or too long, the network does not classify texts, or a method or class does not
            fit.
        HeadwaterError: the network cannot be loaded; the message says why.
    """
    if not isinstance(text, str) or not text.strip():
        kind = "an empty text" if isinstance(text, str) else type(text).__name__
        raise InputError(f"text must be a string with at least one word, got {kind}; texts are explained one by one")
    if model is None:
        raise InputError("model must be given: a folder of save_pretrained, hf:OWNER/NAME, a pipeline or a module")
    network, card = network_of(model)
    if tokenizer is not None:
        card = replace(card, processor=tokenizer, takes="text")
    _check_takes_text(card)
    chosen = None if target is None else card.class_index(target)
    explainer = load_method(method, network)
    options = {} if against is None else contrast(explainer, method, card, chosen, against)
    encoded = _encoded(text, card, network, truncate)
    e = explainer(encoded, chosen, **options)
    (predicted,) = predicted_classes(e.logits, card)
    tokens = card.processor.convert_ids_to_tokens(encoded["input_ids"][0].tolist())
    return TextExplanation(
        **vars(e),
        text=text,
        tokens=tuple(map(str, tokens)),
        card=card,
        method=method,
        predicted=predicted,
        weights_digest=weights_digest(network),
    )


def _check_takes_text(card: ModelCard) -> None:
    if card.takes != "text":
        call = "headwater.explain(image, model=...)" if card.takes == "images" else "headwater.LRP(model)(inputs)"
        raise InputError(f"{card.name} takes {card.takes}, not text; {call}. A module of your own needs tokenizer=...")
    if card.processor is None:
        raise InputError(
            f"{card.name} has no tokenizer; save it beside the network, tokenizer.save_pretrained(DIR), or give "
            "tokenizer=..."
        )


def _encoded(text: str, card: ModelCard, network: nn.Module, truncate: bool) -> Mapping[str, Tensor]:
    """The text as the network takes it: ids, mask and what else the tokenizer gives, each ``(1, L)``."""
    tokenizer = card.processor
    limits = [getattr(tokenizer, "model_max_length", None), _positions(network)]
    longest = min((limit for limit in limits if limit is not None and limit < _UNLIMITED), default=None)
    cut = {"truncation": True, "max_length": longest} if truncate and longest is not None else {"truncation": False}
    try:
        encoded = tokenizer(text, return_tensors="pt", verbose=False, **cut)
    except Exception as error:  # whatever a tokenizer raises
        raise InputError(f"the tokenizer of {card.name} cannot read the text: {error}") from error
    length = encoded["input_ids"].shape[1]
    if longest is not None and length > longest:
        raise InputError(
            f"the text has {length} tokens, {card.name} takes {longest}; shorten it, or explain its beginning: "
            "truncate=True, or --truncate"
        )
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    return {key: tensor.to(device) for key, tensor in encoded.items() if isinstance(tensor, Tensor)}


def _positions(network: nn.Module) -> int | None:
    """How many positions a network has, where it says so."""
    found = getattr(getattr(network, "config", None), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None
