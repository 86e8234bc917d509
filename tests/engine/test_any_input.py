"""Signals, volumes, videos, texts, rows of features and several inputs: the same properties as for images."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

import headwater as hw
from headwater.engine.axes import place_names
from headwater.errors import InputError, TraceError


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], **options) -> None:
        super().__init__()
        self.cells = kind(5, 6, batch_first=True, **options)
        self.head = nn.Linear(6 * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


class Similarity(nn.Module):
    """Cosine similarity to prototypes, as CLIP's and face recognition's heads have it."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.prototypes = nn.Linear(10, 8), nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return 10 * nn.functional.cosine_similarity(self.features(x)[:, None], self.prototypes[None], dim=-1)


class FramesThenChannels(nn.Module):
    """A video network as transformers has them: (N, T, C, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv3d(3, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x.permute(0, 2, 1, 3, 4)).relu().mean((2, 3, 4)))


class Text(nn.Module):
    """A transformer encoder over token ids, with learned positions and a mask of padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.kinds = nn.Embedding(30, 16), nn.Embedding(12, 16), nn.Embedding(2, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None):
        h = self.words(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        h = h if token_type_ids is None else h + self.kinds(token_type_ids)
        padding = None if attention_mask is None else (1.0 - attention_mask.to(h.dtype)) * -1e4
        return self.head(self.layer(h, src_key_padding_mask=padding)[:, 0])


class Both(nn.Module):
    """An image and a row of features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dense, self.head = nn.Conv2d(3, 8, 3), nn.Linear(6, 8), nn.Linear(16, 3)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        return self.head(torch.cat([self.conv(image).relu().mean((2, 3)), self.dense(table).relu()], 1))


def signal_network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(2, 6, 7, 2, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 8, 5, 2, 2), nn.ReLU()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 4)),
    )


def volume_network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv3d(1, 4, 3, 2, 1), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(4, 6, 3, padding=1)),
        *(nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 3)),
    )


def features_network() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 3))


KINDS = {
    "features": (features_network, (10,), ("feature",)),
    "signal": (signal_network, (2, 64), ("sample",)),
    "volume": (volume_network, (1, 12, 10, 8), ("depth", "row", "column")),
    "video": (FramesThenChannels, (4, 3, 8, 10), ("frame", "row", "column")),
    "lstm": (lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), (7, 5), ("sample",)),
    "gru": (lambda: Recurrent(nn.GRU), (7, 5), ("sample",)),
    "cosine": (Similarity, (10,), ("feature",)),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def case(request):
    make, shape, axes = request.param
    torch.manual_seed(0)
    return make().eval(), torch.randn(3, *shape), axes


@pytest.mark.parametrize("name", ["otsuki2024", "headwater"])
def test_relevance_is_conserved_and_examples_stay_apart(case, name):
    model, x, axes = case
    method = hw.load_method(name, model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    e = method(x)
    assert e.relevance.shape == x.shape
    assert e.axes == axes
    assert e.heatmap.ndim == 1 + len(axes)
    assert (e.conservation.error < 1e-5).all()
    torch.testing.assert_close(e.heatmap.flatten(1).sum(1), e.probability, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(e.logits, model(x), rtol=1e-4, atol=1e-5)
    alone = method(x[1:2], target=int(e.target[1]))
    torch.testing.assert_close(alone.heatmap[0], e.heatmap[1], rtol=1e-3, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_every_cut_has_the_beginning(case):
    model, x, _ = case
    e = hw.LRP(model)(x, checkpoints="cuts")
    assert len(e.conservation.cuts) > 2
    assert all((error < 1e-5).all() for error in e.conservation.checkpoint_errors.values())
    assert all(maps.shape == e.finest.shape for maps in e.scales.values())


def test_a_class_against_another(case):
    model, x, _ = case
    e = hw.LRP(model, "headwater")(x, target=0, against=1, start="logit")
    torch.testing.assert_close(e.conservation.seed.float(), e.logits[:, 0] - e.logits[:, 1], rtol=1e-4, atol=1e-5)
    assert (e.conservation.error < 1e-5).all()


@pytest.mark.parametrize("name", ["gradient-x-input", "integrated-gradients", "random", "gradient-x-input+hq"])
def test_baselines_take_any_values(case, name):
    model, x, axes = case
    method = hw.load_method(name, model)
    e = method(x)
    assert e.heatmap.shape == hw.LRP(model)(x).heatmap.shape
    assert e.axes == axes
    torch.testing.assert_close(method(x[1:2], int(e.target[1])).heatmap[0], e.heatmap[1], rtol=1e-3, atol=1e-5)


def test_rise_masks_signals_volumes_and_videos():
    from headwater.methods.rise import Rise

    torch.manual_seed(0)
    for kind in ("signal", "volume", "video"):
        make, shape, axes = KINDS[kind]
        model, x = make().eval(), torch.randn(2, *shape)
        e = Rise(model, masks=32, cells=3)(x)
        assert e.axes == axes
        assert e.heatmap.shape == hw.LRP(model)(x).heatmap.shape
    with pytest.raises(InputError, match="masks neighbouring places of signals, images and volumes"):
        Rise(features_network(), masks=8)(torch.randn(2, 10))


@pytest.mark.parametrize("name", ["gradcam", "scorecam"])
def test_methods_for_images_alone_say_so_in_one_sentence(name):
    with pytest.raises(InputError, match=r"cannot explain inputs of shape \(2, 2, 64\): .* rows and columns"):
        hw.load_method(name, signal_network().eval())(torch.randn(2, 2, 64))


@pytest.mark.parametrize("protocol", ["published", "budget"])
def test_insertion_and_deletion_of_any_places(case, protocol):
    model, x, _ = case
    heatmap = hw.load_method("gradient-x-input", model)(x, 0).heatmap
    places = heatmap[0].numel()
    result = hw.insertion_deletion(model, x, heatmap, 0, protocol, step=max(1, places // 5))
    full = model(x).softmax(1)[:, 0]
    torch.testing.assert_close(result.insertion_curve[:, -1], full, rtol=1e-4, atol=1e-5)
    if protocol == "budget":
        torch.testing.assert_close(result.deletion_curve[:, 0], full, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(result.deletion_curve[:, -1], model(torch.zeros_like(x)).softmax(1)[:, 0])


def test_a_signal_is_enlarged_and_blurred_along_its_own_axis():
    torch.manual_seed(0)
    model, x = signal_network().eval(), torch.randn(2, 2, 64)
    small = torch.rand(2, 16)
    result = hw.insertion_deletion(model, x, small, 1, "budget", step=8, baseline="blur")
    assert result.id.shape == (2,)
    cells = hw.insertion_deletion(model, x, small, 1, "budget", step=4, resolution=(16,))
    assert cells.insertion_curve.shape == (2, 5)
    with pytest.raises(InputError, match="features have no neighbours"):
        hw.insertion_deletion(features_network(), torch.rand(2, 10), torch.rand(2, 10), 0, step=2, baseline="blur")


def test_one_channel_that_is_flattened_keeps_its_samples():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 3)).eval()
    assert hw.LRP(model)(torch.randn(2, 1, 20)).heatmap.shape == (2, 20)
    assert hw.LRP(nn.Sequential(nn.Flatten(), nn.Linear(40, 3)).eval())(torch.randn(2, 2, 20)).heatmap.shape == (2, 20)


@pytest.mark.parametrize("name", ["c3-lrp", "c1c-lrp"])
def test_masks_of_maps_are_for_images(name):
    with pytest.raises(InputError, match="contours and components are those of a picture"):
        hw.load_method(name, signal_network().eval())(torch.randn(2, 2, 64))


def test_quantizing_several_maps_at_once_is_refused():
    with pytest.raises(InputError, match="several inputs have relevance"):
        hw.load_method("gradient-x-input+hq", Both().eval())((torch.randn(2, 3, 12, 10), torch.randn(2, 6)))


def test_an_input_that_is_called_a_mask_and_alone_is_explained():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, mask: Tensor) -> Tensor:
            return self.head(mask)

    e = hw.LRP(Masked().eval())(torch.rand(2, 4))
    assert (e.conservation.error < 1e-5).all()


def test_ids_beside_values_keep_their_relevance_where_rows_are_cut_out():
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.dense, self.head = nn.Embedding(9, 4), nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, input_ids: Tensor, values: Tensor) -> Tensor:
            h = self.words(input_ids).mean(1)
            return self.head(h + self.dense(values) + torch.zeros_like(h)[:1, 0:1])

    torch.manual_seed(0)
    e = hw.LRP(Cut().eval())({"input_ids": torch.tensor([[1, 2], [3, 4]]), "values": torch.randn(2, 5)})
    assert (e.relevance["input_ids"].abs().sum(1) > 0).all()
    assert (e.conservation.error < 1e-5).all()


# -- texts -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def text():
    torch.manual_seed(0)
    ids = torch.randint(1, 30, (2, 9))
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    return Text().eval(), {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", ["otsuki2024", "headwater", "epsilon"])
def test_relevance_of_tokens(text, name):
    model, given = text
    e = hw.load_method(name, model)(given)
    assert e.axes == ("token",)
    assert e.heatmap.shape == given["input_ids"].shape
    assert set(e.relevance) == set(given)
    assert not e.relevance["attention_mask"].any()  # a mask has no relevance of its own
    if name != "epsilon":
        assert (e.conservation.error < 1e-5).all()
        torch.testing.assert_close(e.heatmap.sum(1), e.probability, rtol=1e-5, atol=1e-6)


def test_ids_may_stand_alone_by_position_or_by_keyword(text):
    model, given = text
    lrp, ids, mask = hw.LRP(model), given["input_ids"], given["attention_mask"]
    alone = lrp(ids)
    assert alone.relevance.shape == ids.shape
    by_position, by_keyword = lrp((ids, mask)), lrp(given)
    assert isinstance(by_position.relevance, tuple)
    assert torch.equal(by_position.heatmap, by_keyword.heatmap)
    assert torch.equal(lrp(OrderedDict(reversed(given.items()))).heatmap, by_keyword.heatmap)


def test_what_segment_ids_receive_counts_to_their_token(text):
    model, given = text
    kinds = (torch.arange(9) > 4).long().expand(2, 9).contiguous()
    e = hw.LRP(model)({**given, "token_type_ids": kinds})
    assert not e.relevance["token_type_ids"].any()
    torch.testing.assert_close(e.heatmap.sum(1), e.probability, rtol=1e-5, atol=1e-6)


def test_texts_of_a_batch_stay_apart_and_masks_count_per_call(text):
    model, given = text
    lrp = hw.LRP(model)
    e = lrp(given)
    alone = lrp({key: value[1:2] for key, value in given.items()}, target=int(e.target[1]))
    torch.testing.assert_close(alone.heatmap[0], e.heatmap[1], rtol=1e-3, atol=1e-5)
    other = given["attention_mask"].clone()
    other[0, 3:] = 0
    after = lrp({**given, "attention_mask": other})
    torch.testing.assert_close(after.logits, model(given["input_ids"], other), rtol=1e-4, atol=1e-5)
    assert torch.equal(lrp(given).heatmap, e.heatmap)


def test_gradients_of_ids_are_refused_in_one_sentence(text):
    model, given = text
    with pytest.raises(InputError, match="token ids have no gradient; explain their embeddings"):
        hw.load_method("integrated-gradients", model)(given)


def test_tokens_are_deleted_by_a_token(text):
    model, given = text
    heatmap = hw.LRP(model)(given).heatmap
    result = hw.insertion_deletion(model, given, heatmap, 0, "budget", step=3, baseline=0)
    empty = model(torch.zeros_like(given["input_ids"]), given["attention_mask"]).softmax(1)[:, 0]
    torch.testing.assert_close(result.insertion_curve[:, 0], empty, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="baseline of token ids is a token id"):
        hw.insertion_deletion(model, given, heatmap, 0, "budget", step=3)


# -- several inputs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["otsuki2024", "headwater", "gradient-x-input"])
def test_several_inputs_share_the_beginning(name):
    torch.manual_seed(0)
    model, image, table = Both().eval(), torch.randn(2, 3, 12, 10), torch.randn(2, 6)
    method = hw.load_method(name, model)
    e, named = method((image, table)), method({"table": table, "image": image})
    assert [tuple(r.shape) for r in e.relevance] == [(2, 3, 12, 10), (2, 6)]
    assert [tuple(m.shape) for m in e.heatmap] == [(2, 12, 10), (2, 6)]
    assert list(named.relevance) == ["table", "image"]
    torch.testing.assert_close(named.relevance["image"], e.relevance[0])
    if name != "gradient-x-input":
        assert (e.conservation.error < 1e-5).all()
        total = sum(r.flatten(1).sum(1) for r in e.relevance)
        torch.testing.assert_close(total, e.probability, rtol=1e-5, atol=1e-6)


def test_one_example_of_several_inputs_is_selected():
    torch.manual_seed(0)
    e = hw.LRP(Both().eval())((torch.randn(3, 3, 12, 10), torch.randn(3, 6))).select(1)
    assert [tuple(r.shape) for r in e.relevance] == [(1, 3, 12, 10), (1, 6)]
    assert "heatmap {0: (1, 12, 10), 1: (1, 6)}" in repr(e)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "inputs are empty"),
        ({"image": torch.zeros(2, 3, 12, 10), "table": [1, 2]}, "input 'table' must be a tensor .* return_tensors"),
        ((torch.zeros(2, 3, 12, 10), torch.zeros(3, 6)), "0 has 2, 1 has 3"),
        ({"image": torch.zeros(2, 3, 12, 10)}, "It takes image, table: give a tuple of them by position"),
        ("text", "got str"),
        (torch.tensor(1.0), "the batch first and at least one example"),
        (torch.full((2, 10), torch.inf), "NaN or infinity"),
    ],
)
def test_bad_inputs(given, message):
    with pytest.raises(InputError, match=message):
        hw.LRP(Both().eval())(given)


def test_a_network_without_values_to_explain():
    class Lengths(nn.Module):
        def forward(self, lengths: Tensor) -> Tensor:
            return (lengths[:, None] > torch.arange(3)).float()

    with pytest.raises(TraceError, match="can carry relevance: among 'lengths' are no floating-point values"):
        hw.LRP(Lengths())(torch.tensor([1, 2]))


def test_whole_numbers_may_be_pixels():
    class Bytes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x.float() / 255).relu().mean((2, 3)))

    e = hw.LRP(Bytes().eval())(torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8))
    assert e.heatmap.shape == (2, 8, 8)
    assert (e.conservation.error < 1e-5).all()


def test_a_compiled_sweep_takes_any_input(text):
    model, given = text
    torch.manual_seed(0)
    both = (torch.randn(2, 3, 12, 10), torch.randn(2, 6))
    for network, x in ((model, given), (Both().eval(), both)):
        plain, compiled = (hw.LRP(network, "headwater", compile=c)(x) for c in (False, True))
        maps = zip(
            *((e.heatmap if isinstance(e.heatmap, tuple) else (e.heatmap,)) for e in (plain, compiled)), strict=True
        )
        for one, other in maps:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_places_have_names():
    assert place_names((2, 3, 8, 8), 1) == ("row", "column")
    assert place_names((2, 8, 64), None) == ("row", "column")  # a spectrogram
    assert place_names((2, 9), None, ids=True) == ("token",)


# -- what was found by trying to break it ------------------------------------------------------------------------------


class Applied(nn.Module):
    """A network of two dense layers with something before them."""

    def __init__(self, before, features: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.a, self.b = before, nn.Linear(features, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(self.before(x)).relu().mean(1))


@pytest.mark.parametrize(
    "before",
    [
        lambda x: x.flip(1),
        lambda x: x[:, 1:],
        lambda x: nn.functional.pad(x, (0, 0, 1, 0)),
        lambda x: torch.cat([torch.zeros_like(x[:, :1]), x], 1),
        lambda x: x.tanh(),
        lambda x: x.masked_fill(torch.arange(7)[:, None] > 4, 0.5),
        lambda x: x.transpose(1, 2).clamp(-1, 1).transpose(1, 2),
    ],
)
def test_channels_are_followed_through_what_comes_before(before):
    e = hw.LRP(Applied(before).eval())(torch.randn(2, 7, 6))
    assert e.heatmap.shape == (2, 7)


class Nhwc(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.clamp(0, 1).permute(0, 3, 1, 2)).mean((2, 3))


def test_channels_may_come_last():
    assert hw.LRP(Nhwc().eval())(torch.rand(2, 8, 9, 3)).heatmap.shape == (2, 8, 9)


def test_a_forward_that_asks_for_the_number_of_examples_is_traced_for_each():
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.head(part) for part in x.split(4)])

    net = Small().eval()
    lrp, x = hw.LRP(net), torch.randn(8, 6)
    for count in (3, 8, 5, 1):
        torch.testing.assert_close(lrp(x[:count]).logits, net(x[:count]))


def test_a_forward_that_is_another_for_one_example_is_refused():
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x) * (2 if x.shape[0] == 1 else 1)

    lrp, x = hw.LRP(Alone().eval()), torch.randn(3, 6)
    lrp(x)
    with pytest.raises(TraceError, match=r"the trace of Alone returns .* where the network itself returns"):
        lrp(x[:1])


def test_arguments_may_have_no_names():
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = features_network()

        def forward(self, *given: Tensor) -> Tensor:
            return self.network(*given)

    lrp = hw.LRP(Wrapped().eval())
    assert lrp.graph(torch.randn(3, 10)).batch is None
    assert (lrp(torch.randn(2, 10)).conservation.error < 1e-5).all()


@pytest.mark.parametrize("write", [lambda h: h[:, 0].zero_(), lambda h: h[..., 2:4].fill_(1.5), lambda h: h.fill_(0.5)])
def test_constants_that_are_written_in_place(write):
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            kept = h * 2
            write(h)
            return self.b(h + kept)

    net, x = Writes().eval(), torch.randn(3, 6)
    e = hw.LRP(net)(x)
    torch.testing.assert_close(e.logits, net(x))
    assert (e.conservation.error < 1e-5).all()


def test_scales_do_not_follow_places_that_move():
    class Flipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a = nn.Conv1d(2, 8, 3, 2, 1, bias=False)
            self.b = nn.Conv1d(8, 8, 3, 2, 1, bias=False)
            self.head = nn.Linear(8, 4, bias=False)
            for weight in self.parameters():
                weight.data.abs_()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(self.a(x).relu().flip(-1)).relu().mean(2))

    x = torch.zeros(1, 2, 32)
    x[:, :, 3] = 2
    places = torch.arange(32.0)
    fine, mean = (m(x, 0).heatmap[0].clamp(min=0) for m in (hw.LRP(Flipped()), hw.load_method("headwater", Flipped())))
    centres = [(maps @ places / maps.sum()).item() for maps in (fine, mean)]
    assert abs(centres[0] - centres[1]) < 3


def test_an_output_for_the_whole_batch_is_refused():
    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

    with pytest.raises(TraceError, match="one number for the whole batch"):
        hw.LRP(Whole())(torch.rand(2, 4))
