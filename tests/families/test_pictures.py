"""Positions of pictures and videos: any size, released models, and inputs that are wrong."""

from typing import Any

import pytest
import torch
import transformers

from model_adapters import Adapter, InputError, load
from model_adapters.collate import collate
from model_adapters.families import Medium, family_of
from model_adapters.families.forms_anyres import AnyRes
from model_adapters.probe import example
from model_adapters.tiny import builders

Encoding = dict[str, Any]


def tiny(name: str) -> Adapter:
    return load(builders()[name]())


def encoding(adapter: Adapter, kind: str, size: int = 0) -> Encoding:
    return example(adapter.module, adapter.family, (kind,), size=size)


def medium(adapter: Adapter, kind: str = "image") -> Medium:
    return next(one for one in adapter.family.media if one.kind == kind)


@pytest.mark.parametrize(
    "name", ["llava_next", "llava_next_video", "llava_onevision", "granite4_vision"]
)
def test_pictures_of_any_size_take_what_the_model_packs(name: str) -> None:
    adapter = tiny(name)
    module, config, image = adapter.module, adapter.module.config, medium(adapter)
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(3, 70, (80, 2), generator=generator)
    assert isinstance(image, AnyRes)
    side = image.edge(config)
    package = transformers.models.llava_next.modeling_llava_next
    tiles = [
        package.image_size_to_num_patches(
            size, config.image_grid_pinpoints, config.vision_config.image_size
        )
        for size in sizes
    ]
    option = {"vision_feature_select_strategy": config.vision_feature_select_strategy}
    if name == "llava_onevision":
        option = {"vision_aspect_ratio": config.vision_aspect_ratio}
    packed = module.model.pack_image_features(
        [torch.zeros(n, side * side, adapter.d_model) for n in tiles],
        sizes,
        image_newline=torch.ones(adapter.d_model),
        **option,
    )
    packed = packed[0] if isinstance(packed, tuple) else packed
    inputs = {image.values: torch.zeros(80, max(tiles), 1), "image_sizes": sizes}
    items = image.items(inputs, config)
    pairs = list(zip(items[::2], items[1::2], strict=True))
    assert len(pairs) == 80
    for (overview, rest), vectors in zip(pairs, packed, strict=True):
        assert overview.grid is not None and rest.grid is not None
        assert overview.grid == (1, side, side)
        assert overview.positions + rest.positions == len(vectors)
        _, rows, cols = rest.grid
        # What the model adds after each row is the last column of the grid, and nothing else.
        newlines = vectors[overview.positions :, 0].reshape(rows, cols)
        assert torch.equal(newlines[:, -1], torch.ones(rows))
        assert not newlines[:, :-1].any()


def test_features_of_granite_enter_before_three_layers() -> None:
    adapter = tiny("granite4_vision")
    # Those before the first layer stand in `embed`; the others make the stream jump.
    assert adapter.discontinuities == (0, 1)


def test_several_pictures_of_a_request_are_not_cut_by_onevision() -> None:
    adapter = tiny("llava_onevision")
    one = encoding(adapter, "image")
    tiled = one["pixel_values"]
    assert tiled.shape[1] == 5
    several = {
        "pixel_values": torch.cat([tiled, tiled])[:, :1],
        "image_sizes": torch.cat([one["image_sizes"]] * 2),
        "batch_num_images": torch.tensor([2]),
    }
    items = medium(adapter).items(several, adapter.module.config)
    assert [item.positions for item in items] == [9, 1, 9, 1]
    token = adapter.module.config.image_token_id
    ids = torch.tensor([[5, *[token] * 10, 6, *[token] * 10, 7]])
    together = {**several, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch = adapter.join([one, together])
    assert [[len(span) for span in row] for row in batch.images] == [[9, 28], [9, 1, 9, 1]]
    assert [span.newlines for span in batch.images[1]] == [False, True, False, True]
    with torch.no_grad():
        logits = adapter.module(**batch.inputs).logits[1, -1]
        assert torch.allclose(logits, adapter.module(**together).logits[0, -1], atol=1e-5)


RELEASED = {
    # Prompt positions of one picture, or tile, as the released checkpoints' processors lay it out.
    "Llava": 576,
    "VipLlava": 576,
    "InternVL": 256,
    "Gemma3": 256,
    "Janus": 576,
    "GotOcr2": 256,
}


@pytest.mark.parametrize("name", RELEASED)
def test_pictures_of_released_sizes(name: str) -> None:
    config = getattr(transformers, f"{name}Config")()
    image = family_of(config).media[0]
    (item,) = image.items({image.values: torch.empty(1)}, config)
    assert item.positions == RELEASED[name]
    edge = round(RELEASED[name] ** 0.5)
    assert item.grid == (1, edge, edge)


RELEASED_TOWERS = {
    "PaliGemma": ({"image_size": 224, "patch_size": 14}, 256),
    "AyaVision": ({"image_size": 364, "patch_size": 14}, 169),
    "Cohere2Vision": ({"image_size": 512, "patch_size": 16}, 256),
    "DeepseekVL": ({"image_size": 384, "patch_size": 16}, 576),
    "Llama4": ({"image_size": 336, "patch_size": 14}, 144),
    "Ovis2": ({"image_size": 448, "patch_size": 14, "hidden_stride": 2}, 256),
}


@pytest.mark.parametrize("name", RELEASED_TOWERS)
def test_pictures_of_released_towers(name: str) -> None:
    vision, expected = RELEASED_TOWERS[name]
    config = getattr(transformers, f"{name}Config")()
    for option, value in vision.items():
        setattr(config.vision_config, option, value)
    image = family_of(config).media[0]
    (item,) = image.items({image.values: torch.empty(1)}, config)
    assert item.positions == expected


def test_tiles_of_released_idefics_models() -> None:
    idefics3 = transformers.Idefics3Config(vision_config={"image_size": 364, "patch_size": 14})
    smolvlm = transformers.SmolVLMConfig(
        vision_config={"image_size": 512, "patch_size": 16}, scale_factor=4
    )
    for config, expected in ((idefics3, 169), (smolvlm, 64)):
        image = family_of(config).media[0]
        tiles = torch.ones(1, 2, 3, 1, 1)
        assert [item.positions for item in image.items({image.values: tiles}, config)] == [
            expected,
            expected,
        ]


@pytest.mark.parametrize("name", ["llava with Pixtral", "mistral3"])
def test_rows_of_pixtral_are_parted_by_breaks(name: str) -> None:
    adapter = tiny(name)
    given = encoding(adapter, "image", 1)
    batch = adapter.describe(**given)
    ((span,),) = batch.images
    assert span.grid == (1, 2, 3)
    assert span.gaps == (span.start + 3,)
    assert given["input_ids"][0, span.gaps[0]] == 12
    assert batch.inputs["input_ids"][0, span.stop] == 13
    assert not batch.mask("image")[0, span.gaps[0]]


def test_paligemma_without_types_would_depend_on_padding() -> None:
    adapter = tiny("paligemma")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    padded = torch.tensor([[0, 0, 5, 6, 7, 8, 9]])
    mask = (padded > 0).long()
    with torch.no_grad():
        alone = adapter.module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        filled = adapter.module(input_ids=padded, attention_mask=mask).logits[:, 2:]
    assert not torch.allclose(alone, filled, atol=0.1)  # the reason for what follows
    with pytest.raises(InputError, match="token_type_ids must have the shape"):
        adapter.describe(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_videos_of_one_batch_have_equally_many_frames() -> None:
    for name in ("llava_next_video", "llava_onevision", "video_llava"):
        adapter = tiny(name)
        short, long = encoding(adapter, "video"), encoding(adapter, "video")
        long["pixel_values_videos"] = long["pixel_values_videos"].repeat(1, 2, 1, 1, 1)
        with pytest.raises(InputError, match="must be of one size"):
            collate([short, long], adapter.family, pad_id=0, sides=["left", "left"])


WRONG: list[tuple[str, str, dict[str, Any], str]] = [
    ("llava", "image", {"pixel_values": torch.ones(1, 3, 8, 8)}, r"takes \[items, 3, 12, 12\]"),
    ("llava", "image", {"pixel_values": torch.ones(3, 12, 12)}, r"takes \[items, 3, 12, 12\]"),
    ("mistral3", "image", {"image_sizes": torch.tensor([[99, 8]])}, "does not hold pictures of"),
    ("mistral3", "image", {"image_sizes": None}, "without image_sizes"),
    ("llava_next", "image", {"image_sizes": torch.tensor([[9, 9, 9]])}, "each needs a height"),
    ("llava_next", "image", {"pixel_values": torch.ones(1, 2, 3, 12, 12)}, "holds 2"),
    ("llava_next", "image", {"pixel_values": torch.ones(2, 3, 12, 12)}, "tiles, 3, 12, 12"),
    ("llava_onevision", "image", {"batch_num_images": torch.tensor([2])}, "there are 2 pictures"),
    ("llava_next_video", "video", {"pixel_values_videos": torch.ones(2, 3, 16, 16)}, "frames, 3"),
    ("idefics3", "image", {"pixel_values": torch.ones(1, 3, 16, 16)}, "rows, items, 3"),
    ("idefics3", "image", {"pixel_values": torch.zeros(1, 1, 3, 16, 16)}, "will emit 0 tokens"),
    ("idefics2", "image", {"pixel_attention_mask": torch.ones(1, 2, 24, 24)}, "rows, items, h"),
    ("lfm2_vl", "image", {"spatial_shapes": torch.tensor([[2, 2]])}, "true patches"),
    ("lfm2_vl", "image", {"spatial_shapes": torch.tensor([[1, 8]])}, "multiples of 2"),
    ("deepseek_vl_hybrid", "image", {"high_res_pixel_values": torch.ones(2, 3, 32, 32)}, "beside"),
    ("deepseek_vl_hybrid", "image", {"high_res_pixel_values": None}, "without high_res"),
    ("fast_vlm", "image", {"pixel_values": torch.ones(1, 3, 64, 65)}, "multiples of 64"),
    ("perception_lm", "image", {"pixel_values": torch.ones(1, 3, 16, 16)}, "frames, 3, 16, 16"),
    ("aria", "image", {"pixel_mask": torch.ones(1, 4, 4)}, r"\[items, height, width\]"),
]


@pytest.mark.parametrize("name, kind, change, message", WRONG)
def test_inputs_that_do_not_belong_together_are_refused(
    name: str, kind: str, change: Encoding, message: str
) -> None:
    adapter = tiny(name)
    with pytest.raises(InputError, match=message):
        adapter.describe(**{**encoding(adapter, kind), **change})


def test_sides_that_idefics3_cannot_shuffle_are_refused() -> None:
    adapter = tiny("idefics3")
    given = encoding(adapter, "image")
    given |= {
        "pixel_values": torch.ones(1, 1, 3, 16, 24),
        "pixel_attention_mask": torch.ones(1, 1, 16, 24),
    }
    with pytest.raises(InputError, match="16 by 16"):
        adapter.describe(**given)


def test_sizes_that_aria_has_no_queries_for_are_refused() -> None:
    adapter = tiny("aria")
    given = encoding(adapter, "image")
    given |= {"pixel_values": torch.ones(1, 3, 8, 8), "pixel_mask": torch.ones(1, 8, 8)}
    with pytest.raises(InputError, match="4 patches a picture; this model takes 9 or 36"):
        adapter.describe(**given)
