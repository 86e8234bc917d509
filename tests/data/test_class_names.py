from __future__ import annotations

import pytest
import torchvision

import headwater as hw
from headwater.data.classes import match_classes
from headwater.errors import DataError
from headwater.models.card import imagenet_wnids


def test_a_folder_may_be_called_by_a_synonym_of_the_networks_class():
    classes = ("tabby, tabby cat", "Egyptian cat", "crane", "crane, lifting device")
    assert match_classes(["001.Tabby_Cat", "Egyptian cat"], classes, None, "a network") == (0, 1)
    assert match_classes(["crane", "lifting device"], classes, None, "a network") == (2, 3)
    with pytest.raises(DataError, match="does not know 1 of the data's 1 classes: cat"):
        match_classes(["cat"], classes, None, "a network")
    with pytest.raises(DataError, match="has 2 classes called 'heron'"):
        match_classes(["heron"], ("white heron, heron", "blue heron, heron"), None, "a network")


def test_imagenets_classes_are_known_also_with_synonyms():
    names = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    listed = [f"{name}, another name" for name in names]
    listed[517] = "crane2"
    numbers = imagenet_wnids(names)
    assert numbers is not None and numbers[281] == "n02123045"
    assert imagenet_wnids(listed) == numbers
    assert imagenet_wnids(listed[::-1]) is None and imagenet_wnids(listed[:-1]) is None
    assert hw.load_model("resnet18", weights="none").card.wnids is None
