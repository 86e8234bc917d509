"""docs/results/planted.md."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.planted.measuring import CHANCE, CHOOSE, REPORT, chance, correct, differences, measure, table
from benchmarks.planted.methods import candidates, methods
from benchmarks.planted.training import Task, accuracy

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results" / "planted.md"


def section(task: Task, count: int) -> str:
    """The tables of one task."""
    network = task.trained()
    choose, report = (correct(task, network, count, seed) for seed in (CHOOSE, REPORT))
    chosen = {name: measure(method, choose) for name, method in methods(network).items()}
    found = {name: measure(method, report) for name, method in methods(network).items()}
    others = {name: measure(method, report) for name, method in candidates(network).items()}
    right = accuracy(network, task.examples(1000, 13))
    about = f"{ABOUT[task.name]}\n\nThe network is right on {right:.1%} of 1,000 held-out examples."
    parts = (
        about,
        table({**found, CHANCE: chance(report)}),
        differences(chosen, found),
        "Other rules and scales in `headwater` and `otsuki2024`:",
        table(others),
    )
    return "\n\n".join((f"## {task.name.capitalize()}", *parts))


def page(sections: Sequence[str]) -> str:
    """The whole page."""
    try:
        lxt = f"LXT {version('lxt')}"
    except PackageNotFoundError:
        lxt = "without LXT, which was not installed"
    versions = f"torch {version('torch')}, Captum {version('captum')}, {lxt}."
    return "\n\n".join([HEAD, f"Measured with {versions}", FOUND, *sections]) + "\n"


ABOUT = {
    "signals": """\
Two channels of coloured noise, 256 samples. Planted in one of them is an oscillation that slows down or that speeds up,
or a sawtooth that rises or that falls (4 classes, 24 samples); distractors are two of a steady oscillation, a bump and
a rectangle. A 1-D ResNet: a stem and three blocks, BatchNorm, ReLU, 61,000 weights.""",
    "volumes": """\
Blurred noise, 24 x 24 x 24 voxels. Planted is a ball, a shell or a cube (3 classes; the mask is the cube of 7 x 7 x 7
voxels around it); distractors are a rod and a plate. A 3-D ResNet: a stem and two blocks, BatchNorm, ReLU, 53,000
weights.""",
    "sequences": """\
[CLS], 16 to 31 tokens of a vocabulary of 60, and padding up to 32. Each of 4 classes has a pair of tokens that must
both be there, in any order and anywhere. Of each other pair one member is there too, once or twice, so that neither a
token nor a count decides: these are the distractors. A transformer of two layers, width 64, 4 heads, learned positions,
LayerNorm, GELU; the class is read from [CLS]; 73,000 weights.""",
}
HEAD = """\
# Results: planted evidence

A map may sum to the probability and still lie in the wrong place. So three small networks are trained on examples of
which it is known what decides: a shape in a signal, a blob in a volume, a pair of tokens in a sequence. Beside it lie
distractors that occur in every class. How much of the relevance lies on what was planted?

```
python -m benchmarks.planted --train
pip install --target /tmp/lxt --no-deps lxt==2.1
PYTHONPATH=/tmp/lxt python -m benchmarks.planted
```

The first command trains all three networks, with fixed seeds, in about three minutes on one core (the recipe is
`benchmarks/planted/recipes.toml`); the last one writes this page, in about four.

- **relevance mass**: part of the positive relevance that lies on the planted place. **pointing**: how often the
  strongest place lies there. **rank accuracy**: of the k strongest places, where k is the size of the planted place,
  the part that lies there. Means over 200 held-out examples that the network is right about, with the 95 % interval of
  the bootstrap. Maps are of the example's class; channels, or features of an embedding, are summed.
- **on ...**: part of the positive relevance that lies on the distractors, or on [CLS].
- **worst error**: how far the sum of a map is from what it should be, as a part of that, for the worst example: the
  relevance that the sweep began with; for integrated gradients (50 steps) the difference of the logits. Gradient x
  input and LXT promise no sum.
- **less it**: the difference to the best other method, example by example. Which one is best was chosen on 200 other
  examples.

Gradient x input and integrated gradients are Captum's, of the logit. In the transformer they begin at the sum of token
and position embeddings, as LRP counts both to the token. Integrated gradients begin at zero; in the transformer also at
`[CLS] [PAD] [PAD] ...` with its positions.

LXT as a whole does not import with transformers 5, so `lxt.efficient.patches` is imported alone, and its functions are
set on a copy of the transformer, one by one, as `monkey_patch` does to BERT: `layer_norm_forward` on every LayerNorm,
`non_linear_forward` (the identity rule) on every GELU, `wrap_attention_forward` around the attention (gradients of
query and key divided by 4, of the value by 2). The map is gradient x input at the embeddings, of the logit. CP-LRP is
the same with `cp_wrap_attention_forward`: nothing goes through the softmax."""
FOUND = """\
## What was found

- **Signals and volumes**: `headwater` has by far the best rank accuracy and puts the least on the distractors. In
  relevance mass it is ahead of all others on volumes, and slightly behind integrated gradients on signals. In pointing
  it is level with them.
- **Sequences**: the rules for images fail. `otsuki2024` is little above chance and far behind LXT and integrated
  gradients; its strongest token is hardly ever one of the pair, and yet it conserves: conservation says nothing about
  it. So for token ids the method `headwater` takes other rules, the composite `headwater-text`: epsilon at linear
  layers, signs at joins and in attention, the input's own scale alone. They were found on examples of another seed, by
  the steps that the last table shows. `headwater` is then ahead of gradient x input and of integrated gradients from
  zero, and behind CP-LRP and behind integrated gradients from [PAD]; it conserves exactly, which these do not.
- **Why**: attention's values are taken by z+, which drops the negative ones, and joins divide by absolute value, though
  in a transformer the terms of both have both signs.
- On the networks with convolutions signs do not help: epsilon raises the mass of `otsuki2024` and loses a quarter or
  more of its rank accuracy; signed joins lower both again.
- **The mean over scales costs mass** on signals and volumes: coarse cells are wider than what was planted. In a
  sequence, all relevance lies on [CLS] behind the last attention layer, so a mean over layers would show it.
- Integrated gradients of the transformer depend on where they begin, and from zero their 50 steps do not add up.

The tables below are measured; which candidate became `headwater-text` was decided on examples of another seed."""
