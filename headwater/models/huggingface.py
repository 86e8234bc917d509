"""Networks of Hugging Face's ``transformers``: from a folder of ``save_pretrained``, from the hub, from a pipeline.

Weights are read from safetensors files alone, and no code of a folder or repository is ever run.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headwater.data.preprocessing import NoImages, Preprocessing
from headwater.errors import CheckpointError, DownloadError, HeadwaterError, InputError, MissingDependencyError
from headwater.files import is_file
from headwater.models.card import ModelCard, Takes, imagenet_wnids
from headwater.models.hub import hub, patience
from headwater.models.processors import from_processor

PREFIX = "hf:"
"""Of the name of a repository on the hub: ``hf:OWNER/NAME``, or ``hf:OWNER/NAME@REVISION``."""
CONFIG = "config.json"
"""The file by which a folder of ``save_pretrained`` is known."""
_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_WEIGHTS, _SHARDS = "model.safetensors", "model-*.safetensors"
_PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
_DESCRIBING = ("*.json", "*.txt", "*.model")  # of a repository's files: configurations and vocabularies
_ATTENTION = ("sdpa", "eager")
"""Asked for in this order, whatever a configuration names: that may be compiled code, to be fetched from the hub."""
_TAKES: dict[str, Takes] = {
    "IMAGE_CLASSIFICATION": "images",
    "SEMANTIC_SEGMENTATION": "images",
    "VIDEO_CLASSIFICATION": "video",
    "AUDIO_CLASSIFICATION": "audio",
    "SEQUENCE_CLASSIFICATION": "text",
    "TOKEN_CLASSIFICATION": "text",
}
"""Tasks of ``transformers`` whose networks are loaded, and what these take."""
_UNNAMED = re.compile(r"LABEL_\d+")


def is_saved(folder: Path) -> bool:
    """Whether a folder is one of ``save_pretrained``."""
    return is_file(folder / CONFIG)


def from_hub(name: str, progress: bool = True) -> tuple[nn.Module, ModelCard]:
    """A network of the hub, from its local cache or downloaded.

    Args:
        name: ``OWNER/NAME``, or ``OWNER/NAME@REVISION``.
        progress: show a bar while downloading.

    Raises:
        InputError: that is no name of a repository, or its network is of a kind that is not loaded.
        DownloadError: it is not in the cache and cannot be downloaded.
        CheckpointError: it has no safetensors weights, needs code of its own, or does not fit ``transformers``.
        MissingDependencyError: ``transformers`` is not installed.
    """
    found = _REPOSITORY.fullmatch(name)
    if found is None:
        raise InputError(f"a network of the hub is {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION, not {name!r}")
    _transformers()
    repository, revision = found[1], found[2]
    folder = _download(repository, revision, _DESCRIBING, progress)
    _check(folder, f"{PREFIX}{name}")  # before its weights are fetched
    folder = _download(repository, revision, (*_DESCRIBING, _WEIGHTS, _SHARDS), progress)
    return from_folder(folder, f"{PREFIX}{name}", f"{PREFIX}{repository}@{folder.name[:12]}")


def _download(repository: str, revision: str | None, files: tuple[str, ...], progress: bool) -> Path:
    """The folder of the hub's cache with these files of a repository."""
    import huggingface_hub
    from huggingface_hub import constants

    bars: Any = huggingface_hub.utils
    quiet = bars.are_progress_bars_disabled()
    if not (progress and sys.stderr.isatty()):
        bars.disable_progress_bars()
    try:
        with patience(), hub():
            return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # the hub's library and the one below it raise many kinds
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = "there is no connection" if isinstance(error, FileNotFoundError) else said
        at = f"{repository} --revision {revision}" if revision else repository
        raise DownloadError(
            f"{PREFIX}{repository} is not in the cache ({constants.HF_HUB_CACHE}) and could not be downloaded "
            f"({reason}). On a connected machine: hf download {at} --local-dir DIR; then give the folder: --model DIR"
        ) from error
    finally:
        if not quiet:
            bars.enable_progress_bars()


def from_folder(folder: Path, name: str | None = None, weights: str | None = None) -> tuple[nn.Module, ModelCard]:
    """The network in a folder of ``save_pretrained``, in float32, with its processor.

    Args:
        folder: holds ``config.json``, safetensors weights, and the files of the processor or tokenizer.
        name: what the network is called; the folder if not given.
        weights: where the weights come from; the folder if not given.

    Raises:
        InputError: the network is of a kind that is not loaded.
        CheckpointError: a file is missing or broken, weights are pickled or quantised, or code would have to be run.
        MissingDependencyError: ``transformers`` is not installed.
    """
    name = name or str(folder)
    _check(folder, name)
    _check_weights(folder, name)
    transformers = _transformers()
    with _offline(name):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    kind = _network_class(config, name)
    with _offline(name):
        model, report = _loaded(getattr(transformers, kind), folder, config)
    missing = sorted(str(key) for key in report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{name} lacks weights of {kind}: {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''} "
            f"({len(missing)}); they would be random. Train it, or save the network with its classifier"
        )
    takes = _takes(kind) or "images"
    card = _card(model, takes, _processor_in(folder, takes, name), name, weights or str(folder))
    return model.eval(), card


def _loaded(network: Any, folder: Path, config: Any) -> tuple[Any, Mapping[str, Any]]:
    """The network and a report of its weights, with the first kind of attention that it has."""
    for attention in _ATTENTION:
        try:
            return network.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                attn_implementation=attention,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except ValueError as error:
            if attention == _ATTENTION[-1] or "scaled_dot_product_attention" not in str(error):
                raise
    raise AssertionError("the last kind of attention is returned or raises")


def from_pipeline(pipeline: Any) -> tuple[nn.Module, ModelCard]:
    """The network of a ``transformers`` pipeline, which is not changed, and its card.

    Raises:
        InputError: its network is of a kind that cannot be explained.
    """
    model = pipeline.model
    takes = _takes(type(model).__name__)
    if takes is None:
        raise InputError(f"the pipeline is for {pipeline.task}, by {type(model).__name__}; {_accepted()}")
    held = {"images": "image_processor", "text": "tokenizer", "audio": "feature_extractor", "video": "video_processor"}
    processor = getattr(pipeline, held[takes], None) or getattr(pipeline, "image_processor", None)
    name = getattr(model, "name_or_path", "") or type(model).__name__
    return model, _card(model, takes, processor, name, "given")


def is_pipeline(given: object) -> bool:
    """Whether this is a ``transformers`` pipeline; without importing that library."""
    library = sys.modules.get("transformers")
    return library is not None and isinstance(given, library.Pipeline)


def card_of_given(model: nn.Module) -> ModelCard | None:
    """The card of a network of ``transformers`` that the user has loaded; ``None`` for other modules.

    Its processor or tokenizer is looked for where the network came from, in a folder or the hub's cache. Nothing is
    downloaded.
    """
    library = sys.modules.get("transformers")
    if library is None or not isinstance(model, library.PreTrainedModel):
        return None
    takes = _takes(type(model).__name__)
    if takes is None:
        return None
    source, processor = str(getattr(model, "name_or_path", "")), None
    if source and (is_saved(Path(source)) or _REPOSITORY.fullmatch(source)):
        try:
            processor = _processor_in(source, takes, source)
        except HeadwaterError:
            processor = None
    return _card(model, takes, processor, type(model).__name__, "given")


def _card(model: Any, takes: Takes, processor: Any, name: str, weights: str) -> ModelCard:
    preprocessing: Preprocessing
    if takes != "images":
        preprocessing = NoImages(f"{name} takes {takes}, not images; {_INSTEAD[takes]}")
    elif processor is None:
        preprocessing = NoImages(
            f"{name} has no image processor (preprocessor_config.json), so it is not known how images are resized and "
            "normalised; save it beside the network, AutoImageProcessor.from_pretrained(...).save_pretrained(DIR), or "
            "give preprocessing=headwater.Preprocessing(...)"
        )
    else:
        preprocessing = from_processor(processor)
    classes = _classes(model.config)
    wnids = None if classes is None else imagenet_wnids(classes)
    return ModelCard(name, weights, preprocessing, classes, wnids, takes=takes, processor=processor)


_INSTEAD: dict[str, str] = {
    "text": "headwater.explain_text('...', model=...), or headwater explain-text",
    "audio": "prepare them with model.card.processor and call headwater.LRP(model)(inputs)",
    "video": "prepare them with model.card.processor and call headwater.LRP(model)(inputs)",
}


def _classes(config: Any) -> tuple[str, ...] | None:
    """Names of the classes; ``None`` where the configuration only numbers them."""
    names: Mapping[int, str] = getattr(config, "id2label", None) or {}
    if sorted(names) != list(range(len(names))) or all(_UNNAMED.fullmatch(str(name)) for name in names.values()):
        return None
    return tuple(str(names[k]) for k in range(len(names)))


def _check(folder: Path, name: str) -> None:
    """Refuse a folder that has no configuration, or needs code or an adapter, from what its JSON files say.

    Raises:
        CheckpointError: it is so.
    """
    if not is_saved(folder):
        raise CheckpointError(f"{name} has no {CONFIG}; a network of transformers is saved by save_pretrained")
    for file in (CONFIG, "preprocessor_config.json", "processor_config.json", "tokenizer_config.json"):
        said = _json(folder / file, name)
        if "auto_map" in said:
            raise CheckpointError(
                f"{name} needs Python code of its own (auto_map in {file}), which is never run; load it yourself and "
                "give the module"
            )
        if "quantization_config" in said:
            raise CheckpointError(
                f"{name} has quantised weights (quantization_config in {file}); relevance needs the network in "
                "floating point: save it dequantised"
            )
    if is_file(folder / "adapter_config.json"):
        raise CheckpointError(f"{name} is an adapter; merge it, model.merge_and_unload(), and save the whole network")


def _json(path: Path, name: str) -> dict[str, Any]:
    """A JSON file's content; empty if there is no such file."""
    if not is_file(path):
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name}: {path.name} is not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{name}: {path.name} holds no settings")
    return content


def _check_weights(folder: Path, name: str) -> None:
    """Check that there are safetensors weights.

    Raises:
        CheckpointError: there are none.
    """
    if is_file(folder / _WEIGHTS) or any(folder.glob(_SHARDS)):
        return
    pickled = [path.name for pattern in _PICKLED for path in sorted(folder.glob(pattern))]
    if pickled:
        raise CheckpointError(
            f"{name} has its weights as {pickled[0]}, which may hold code and is never loaded; if you trust it, load "
            "it with transformers and save it again: model.save_pretrained(DIR) writes safetensors"
        )
    raise CheckpointError(
        f"{name} has no weights ({_WEIGHTS}); a repository may have none in that format, which is the only one that is "
        "loaded. model.save_pretrained(DIR) writes it"
    )


def _network_class(config: Any, name: str) -> str:
    """Name of the class of ``transformers`` that a configuration is of.

    Raises:
        InputError: it is none that can be explained.
    """
    stated = list(getattr(config, "architectures", None) or ())
    if not stated:  # timm's networks, and configurations that were written by hand
        stated = [names[0] for task in _TAKES for kind, names in _mapping(task).items() if kind == config.model_type]
    if len(stated) != 1 or _takes(stated[0]) is None:
        found = " or ".join(stated) or f"a network of type {config.model_type}"
        raise InputError(f"{name} holds {found}; {_accepted()}")
    return stated[0]


def _accepted() -> str:
    tasks = ", ".join(task.replace("_", " ").lower() for task in _TAKES)
    return f"loaded are networks for {tasks}; any other as a module of your own: headwater.LRP(module)(inputs)"


def _takes(class_name: str) -> Takes | None:
    """What a network takes, by the name of its class; ``None`` where it is for none of the tasks."""
    for task, takes in _TAKES.items():
        if any(class_name in names for names in _mapping(task).values()):
            return takes
    return None


def _mapping(task: str) -> dict[str, tuple[str, ...]]:
    """Names of the classes for a task, by the type of their configuration."""
    from transformers.models.auto import modeling_auto

    given: Mapping[str, str | tuple[str, ...]] = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES")
    return {kind: (names,) if isinstance(names, str) else tuple(names) for kind, names in given.items()}


def _processor_in(folder: Path | str, takes: Takes, name: str) -> Any:
    """The processor of a network: for images, video or audio, or the tokenizer; ``None`` if there is none."""
    transformers = _transformers()
    auto = {
        "images": transformers.AutoImageProcessor,
        "video": transformers.AutoImageProcessor,
        "audio": transformers.AutoFeatureExtractor,
        "text": transformers.AutoTokenizer,
    }[takes]
    if isinstance(folder, Path) and not any(is_file(folder / file) for file in _PROCESSED_BY[takes]):
        return None
    with _offline(name):
        return auto.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


_PREPARING = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_PROCESSED_BY: dict[str, tuple[str, ...]] = {
    "images": _PREPARING,
    "video": _PREPARING,
    "audio": _PREPARING,
    "text": ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model"),
}


@contextmanager
def _offline(name: str) -> Iterator[None]:
    """Let ``transformers`` load from files, silently and without the hub; its errors become Headwater's."""
    logging = _transformers().utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with hub(offline=True):
            yield
    except HeadwaterError:
        raise
    except Exception as error:  # whatever a library raises on files that are broken or not for it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        version = _transformers().__version__
        raise CheckpointError(f"{name} cannot be loaded by transformers {version}: {reason}") from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            "networks of Hugging Face need transformers: pip install 'headwater[hf]'"
        ) from error
    return transformers
