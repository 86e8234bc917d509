"""Train small networks on planted evidence, and measure how much of the relevance lies on it.

    python -m benchmarks.planted --train
    python -m benchmarks.planted

The first command takes about four minutes on one core and keeps weights in .local/planted; the second writes
docs/results/planted.md. LXT is not among Headwater's extras, as it does not run with transformers 5 as a whole:

    pip install --target /tmp/lxt --no-deps lxt==2.1
    PYTHONPATH=/tmp/lxt python -m benchmarks.planted
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.planted.methods import has_lxt
from benchmarks.planted.page import PAGE, page, section
from benchmarks.planted.training import TASKS, accuracy, train
from headwater.files import write_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--train", action="store_true", help="train all three, instead of measuring")
    parser.add_argument("--examples", type=int, default=200, help="for each task")
    parser.add_argument("--without-lxt", action="store_true", help="leave its rows out")
    options = parser.parse_args()
    torch.set_num_threads(1)  # sums of more threads are rounded otherwise
    if options.train:
        for task in TASKS:
            print(f"{task.name}: {accuracy(train(task), task.examples(1000, 13)):.1%} of held-out examples", flush=True)
        return
    if not has_lxt() and not options.without_lxt:
        parser.error("LXT is not installed: pip install --target /tmp/lxt --no-deps lxt, or say --without-lxt")
    sections = []
    for task in TASKS:
        sections.append(section(task, options.examples))
        print(sections[-1], flush=True)
    print(write_text(PAGE, page(sections)))


if __name__ == "__main__":
    main()
