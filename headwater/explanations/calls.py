"""One call, from an image to its explanation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar, overload

from PIL import Image

from headwater.data.given import GivenImage, check_image, name_of, open_given, path_of
from headwater.data.images import opened
from headwater.data.storage import StoragePath
from headwater.errors import HeadwaterError, InputError
from headwater.explanations.image import ImageExplanation
from headwater.explanations.single import contrast, predicted_classes
from headwater.methods import DEFAULT_METHOD, load_method
from headwater.models import check_takes_images, network_input, network_of, weights_digest

_OneKind = TypeVar("_OneKind", bound=GivenImage)


@overload
def explain(
    image: list[_OneKind] | tuple[_OneKind, ...],
    model: Any = None,
    method: str = DEFAULT_METHOD,
    target: int | str | None = None,
    quantize: int | None = None,
    preprocessing: Any = None,
    against: int | str | None = None,
) -> list[ImageExplanation]: ...


@overload
def explain(
    image: GivenImage,
    model: Any = None,
    method: str = DEFAULT_METHOD,
    target: int | str | None = None,
    quantize: int | None = None,
    preprocessing: Any = None,
    against: int | str | None = None,
) -> ImageExplanation: ...


def explain(
    image: GivenImage | list[Any] | tuple[Any, ...],
    model: Any = None,
    method: str = DEFAULT_METHOD,
    target: int | str | None = None,
    quantize: int | None = None,
    preprocessing: Any = None,
    against: int | str | None = None,
) -> ImageExplanation | list[ImageExplanation]:
    """Explain an image, or each image of a list.

    Args:
        image: a file's path, address or bytes; an image of Pillow's; an array ``(H, W)`` or ``(H, W, 3)`` or a tensor
            ``(3, H, W)``, uint8 or floating point from 0 to 1, which becomes 8 bits as in a file; or a list of these.
        model: a name, file or folder (see :func:`load_model`), ``hf:OWNER/NAME``, a module, or a pipeline of
            ``transformers``; ``None`` for ResNet-50 if its ImageNet weights are in torch's cache, else
            EfficientNet-Lite0 if the extra ``imagenet`` is installed, else tiny20.
        method: a name (see :func:`list_methods`).
        target: class to explain, by number or name; ``None`` for the predicted one.
        quantize: levels of heat quantization for the drawn maps.
        preprocessing: for a module of your own that has no card: a :class:`Preprocessing`, or an image processor of
            ``transformers``.
        against: explain why the target and not this class, by number or name: the map has both signs, and sums to the
            difference of the two logits. ``"headwater"`` is the method for it; ``"otsuki2024"`` hardly tells classes
            apart.

    Returns:
        An :class:`ImageExplanation`, or a list of them for a list.

    Raises:
        HeadwaterError: an image, the model, the method or a class does not fit; the message says which and why.

    >>> import headwater as hw
    >>> e = hw.explain("examples/espresso.jpg", model="tiny20")
    >>> e.card.class_name(e.predicted)
    'espresso'
    >>> e.overlay().size == e.image.size
    True
    >>> from PIL import Image
    >>> [e.name for e in hw.explain([Image.new("RGB", (80, 60)), "examples/tabby.jpg"], model="tiny20")]
    ['image-1', 'tabby.jpg']
    """
    several = isinstance(image, (list, tuple))
    images: Sequence[GivenImage] = image if isinstance(image, (list, tuple)) else [image]
    if several and not images:
        raise InputError("the list of images is empty")
    for k, one in enumerate(images):
        check_image(one, f"image {k + 1} of {len(images)}" if several else "image")
    found = list[ImageExplanation]()
    for result in explain_files(images, model, method, target, quantize, preprocessing, against=against):
        if isinstance(result, HeadwaterError):
            raise result
        found.append(result)
    return found if several else found[0]


def explain_files(
    images: Sequence[GivenImage],
    model: Any,
    method: str = DEFAULT_METHOD,
    target: int | str | None = None,
    quantize: int | None = None,
    preprocessing: Any = None,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
    against: int | str | None = None,
) -> Iterator[ImageExplanation | HeadwaterError]:
    """Explain image files in batches; for an image that cannot be explained, its error is yielded instead.

    Args and raises: as :func:`explain`; an unknown method, target or unfit model is raised at once. ``progress`` is
    called with the steps done of one batch and the steps in all.
    """
    if quantize is not None and quantize < 2:
        raise InputError(f"quantization needs at least 2 levels, got {quantize}")
    network, card = network_of(model, preprocessing)
    check_takes_images(card)
    chosen = None if target is None else card.class_index(target)
    explainer, digest = load_method(method, network), weights_digest(network)
    options = {} if against is None else contrast(explainer, method, card, chosen, against)
    one_by_one = against is not None and chosen is None  # an image may be predicted as that class: its own error
    size = 1 if one_by_one or not card.preprocessing.is_sized else batch_size

    def explanations() -> Iterator[ImageExplanation | HeadwaterError]:
        for start in range(0, len(images), size):
            part = images[start : start + size]
            names = [name_of(given, start + k if len(images) > 1 else None) for k, given in enumerate(part)]
            remote = any(isinstance(path_of(given), StoragePath) for given in part)
            found = opened([partial(_open, given, name) for given, name in zip(part, names, strict=True)], remote)
            readable = [p for p in found if not isinstance(p, HeadwaterError)]
            if readable:
                x = network_input(network, readable, card.preprocessing)
                try:
                    e = explainer(x, chosen, progress=progress, **options)
                except InputError as error:
                    if not one_by_one or x.shape[0] != 1:
                        raise
                    yield type(error)(f"{path_of(part[0]) or names[0]}: {error}")
                    continue
                predicted = predicted_classes(e.logits, card)
            position = 0
            for given, name, image in zip(part, names, found, strict=True):
                if isinstance(image, HeadwaterError):
                    yield image
                    continue
                one = e.select(position)
                position += 1
                yield ImageExplanation(
                    **vars(one),
                    path=path_of(given),
                    name=name,
                    image=image,
                    box=card.preprocessing.box(*image.size),
                    card=card,
                    method=method,
                    predicted=predicted[position - 1],
                    weights_digest=digest,
                    quantized=quantize,
                )

    return explanations()


def _open(image: GivenImage, name: str) -> Image.Image:
    check_image(image, name)
    return open_given(image, name)
