"""What is unusual about Gemma 3n and Gemma 4, against plain hooks and the models' own parts."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import regap_interp as ri
from model_adapters import Adapter, InputError, SelfCheckError, SiteError, load
from model_adapters.families import family_of
from model_adapters.probe import example
from model_adapters.tiny import builders

Encoding = dict[str, Any]


@pytest.fixture(scope="module")
def gemma3n() -> Adapter:
    return load(builders()["gemma3n"]())


@pytest.fixture(scope="module")
def gemma4() -> Adapter:
    return load(builders()["gemma4"]())


def encoding(adapter: Adapter, *kinds: str, size: int = 0) -> Encoding:
    return example(adapter.module, adapter.family, kinds, size=size)


class TestAltUp:
    """Layers pass on four streams; sites are those of the active one."""

    @torch.no_grad()
    def test_the_parts_of_a_layer_make_its_active_stream(self, gemma3n: Adapter) -> None:
        layer = 1
        place = gemma3n.get(f"{gemma3n.layout.layers}.{layer}")
        kept: dict[str, Tensor] = {}
        with gemma3n.trace(gemma3n.describe(**encoding(gemma3n, "audio"))):
            kept["streams"] = place.input.clone()
            kept["pre"] = gemma3n.resid_pre[layer].clone()
            kept["predicted"] = place.input_layernorm.input.clone()
            kept["laurel"] = place.laurel.output.clone()
            kept["attn"] = gemma3n.attn_out[layer].clone()
            kept["mid"] = gemma3n.resid_mid[layer].clone()
            kept["mlp"] = gemma3n.mlp_out[layer].clone()
            kept["post"] = gemma3n.resid_post[layer].clone()
        altup = gemma3n.module.get_submodule(f"{gemma3n.layout.layers}.{layer}").altup
        assert torch.equal(kept["pre"], kept["streams"][0])
        assert torch.equal(kept["predicted"], altup.predict(kept["streams"])[0])
        mid = (kept["predicted"] + kept["attn"] + kept["laurel"]) / math.sqrt(2)
        torch.testing.assert_close(kept["mid"], mid)
        activated = kept["mid"] + kept["mlp"]
        corrected = altup.correct(altup.predict(kept["streams"]), activated)[0]
        torch.testing.assert_close(kept["post"], corrected)

    @torch.no_grad()
    def test_a_write_leaves_the_other_streams(self, gemma3n: Adapter) -> None:
        layer, streams = 1, []
        place = gemma3n.module.get_submodule(f"{gemma3n.layout.layers}.{layer + 1}")
        batch = gemma3n.describe(**encoding(gemma3n))
        keep = place.register_forward_pre_hook(lambda _, args: streams.append(args[0].clone()))
        gemma3n.module(**batch.inputs)
        with gemma3n.trace(batch):
            gemma3n.resid_post[layer] = gemma3n.resid_post[layer] + 1
        keep.remove()
        before, after = streams
        torch.testing.assert_close(after[0], before[0] + 1)
        assert torch.equal(after[1:], before[1:])

    def test_a_state_alone_makes_no_logits(self, gemma3n: Adapter) -> None:
        with pytest.raises(SiteError, match="all of its streams"):
            gemma3n.unembed(torch.zeros(2, gemma3n.d_model))

    def test_sounds_of_other_lengths_are_refused_in_a_batch(self, gemma3n: Adapter) -> None:
        short, long = encoding(gemma3n, "audio"), encoding(gemma3n, "audio")
        short["input_features"] = short["input_features"][:, :18]
        short["input_features_mask"] = short["input_features_mask"][:, :18]
        with pytest.raises(InputError, match="must be of one size"):
            gemma3n.join([short, long])

    def test_pictures_are_listed_as_unverified(self, gemma3n: Adapter) -> None:
        assert gemma3n.media == {"audio"}
        assert "timm" in gemma3n.family.unverified["image"]


class TestGemma4:
    """Per-layer inputs, layers that scale the stream, shared keys and values."""

    @pytest.mark.parametrize(
        "forgotten", [{"then_adds": ()}, {"layer_scalar": None}, {"post_mlp": ()}]
    )
    def test_an_entry_without_what_is_added_is_refused(self, forgotten: dict[str, Any]) -> None:
        module = builders()["gemma4"]()
        family = dataclasses.replace(family_of(module.config), **forgotten)
        with pytest.raises(SelfCheckError, match="resid_post"):
            Adapter(module, family, model_id="tiny")

    def test_heads_of_layers_with_a_window_are_narrower(self, gemma4: Adapter) -> None:
        widths = []
        with gemma4.trace(gemma4.describe(**encoding(gemma4))):
            for layer in range(4):
                widths.append(gemma4.z[layer].shape[2:])
        assert widths == [(4, 8), (4, 16), (4, 8), (4, 16)]

    def test_a_prefill_has_the_whole_prompt_in_layers_with_shared_keys(
        self, gemma4: Adapter
    ) -> None:
        batch = gemma4.describe(**encoding(gemma4, "image"))
        seen: list[Any] = []
        answers = gemma4.generate(
            batch,
            max_new_tokens=2,
            prefill=lambda adapter: seen.append(adapter.resid_post[3].shape),
        )
        assert seen == [(1, batch.roles.shape[1], 32)]
        plain = gemma4.module.generate(**batch.inputs, max_new_tokens=2, do_sample=False)
        assert torch.equal(answers.tokens, plain[:, batch.roles.shape[1] :])

    @pytest.mark.parametrize("layer", [1, 2, 3])
    @pytest.mark.parametrize("at", ["last", "prompt", "image"])
    def test_a_generate_that_cuts_the_prompt_is_steered_alike(
        self, gemma4: Adapter, layer: int, at: Any
    ) -> None:
        # Called on the raw model, generate asks for the logits of one position; the layers with
        # shared keys then see no other. What an edit would do at those cannot reach the answer.
        batch = gemma4.describe(**encoding(gemma4, "image", size=1))
        vector = 3 * torch.randn(gemma4.d_model, generator=torch.Generator().manual_seed(layer))
        options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
        with ri.Graph(ri.add("resid_post", layer, vector, at=at, phase="prefill")).on(gemma4):
            cut = gemma4.module.generate(**batch.inputs, **options)
            whole = gemma4.module.generate(**batch.inputs, **options, logits_to_keep=0)
        place = gemma4.module.get_submodule(f"{gemma4.layout.layers}.{layer}")
        token = gemma4.module.config.image_token_id
        chosen = {
            "last": torch.arange(batch.roles.shape[1]) == batch.last[0],
            "prompt": torch.ones(batch.roles.shape[1], dtype=torch.bool),
            "image": batch.inputs["input_ids"][0] == token,
        }[at]

        def steer(module: Any, args: Any, output: Tensor) -> Tensor:
            if output.shape[1] != len(chosen):
                return output
            return output + chosen[:, None] * vector

        handle = place.register_forward_hook(steer)
        plain = gemma4.module.generate(**batch.inputs, **options, logits_to_keep=0)
        handle.remove()
        assert torch.equal(cut, plain)
        assert torch.equal(whole, plain)

    @pytest.mark.parametrize("at", ["image", "prompt", (0,)])
    def test_a_read_of_positions_that_are_cut_is_refused(self, gemma4: Adapter, at: Any) -> None:
        batch = gemma4.describe(**encoding(gemma4, "image"))
        vector = torch.ones(gemma4.d_model)
        value = ri.read("resid_post", 2, at=at)
        strength = (value if at == (0,) else value.mean()).project(vector)
        graph = ri.Graph(ri.add("resid_post", 3, vector, strength=strength))
        with graph.on(gemma4):
            with pytest.raises(ri.GraphError, match="logits_to_keep=0"):
                gemma4.module.generate(**batch.inputs, max_new_tokens=2, do_sample=False)
            gemma4.generate(batch, max_new_tokens=2)

    def test_a_video_has_a_run_for_every_picture(self, gemma4: Adapter) -> None:
        batch = gemma4.describe(**encoding(gemma4, "video"))
        ((span,),) = batch.videos
        placed = batch.inputs["input_ids"][0] == gemma4.module.config.video_token_id
        assert list(span.positions) == placed.nonzero().flatten().tolist()
        # Two pictures of one by two positions, two tokens between them.
        steps = placed.nonzero().flatten().diff().tolist()
        assert steps == [1, 3, 1]

    def test_places_that_fill_no_rectangle_are_refused(self, gemma4: Adapter) -> None:
        inputs = encoding(gemma4, "image", size=1)
        inputs["image_position_ids"][0, 0] = -1
        with pytest.raises(InputError, match="must fill rectangles"):
            gemma4.describe(**inputs)

    def test_pictures_of_a_video_must_be_all_there(self, gemma4: Adapter) -> None:
        inputs = encoding(gemma4, "video")
        inputs["num_frames_per_video"] = torch.tensor([3])
        with pytest.raises(InputError, match="do not sum up to the 2 pictures"):
            gemma4.describe(**inputs)

    @torch.no_grad()
    def test_without_token_types_pictures_would_not_see_all_of_themselves(self) -> None:
        adapter = load(builders()["gemma4_moe"]())
        inputs = encoding(adapter, "image", size=1)
        expected = adapter.module(**inputs).logits
        del inputs["mm_token_type_ids"]
        assert (adapter.module(**inputs).logits - expected).abs().max() > 0.1
        with pytest.raises(InputError, match="mm_token_type_ids"):
            adapter.describe(**inputs)
