"""What the capture benchmark compares does the same work on every side."""

import torch

import model_adapters
from benchmarks import capture
from regap_interp import last_residuals


def test_output_hidden_states_are_the_states_we_capture() -> None:
    raw = capture.build_thinker(2, 64, 64)
    bare = capture.sharing_weights(raw)
    adapter = model_adapters.load(raw, processor=capture.build_tokenizer())
    chats = list(capture.prompts(8))
    ours = last_residuals(adapter, chats, layers=range(2)).float()
    batch = adapter.encode(chats).inputs
    torch.testing.assert_close(capture.hidden_states(bare, batch)[0], ours[0])


def test_prompts_have_16_to_128_tokens_spread_evenly() -> None:
    tokenizer = capture.build_tokenizer()
    lengths = [
        len(tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"])
        for chat in capture.prompts(64)
    ]
    assert (min(lengths), max(lengths)) == (16, 128)
    assert len(set(lengths)) == 64 and lengths != sorted(lengths)


def test_a_ratio_is_the_median_over_neighbouring_runs() -> None:
    assert capture.ratio([2.0, 9.0, 3.0], [1.0, 3.0, 3.0]) == {
        "value": 2.0,
        "runs": [[2.0, 1.0], [9.0, 3.0], [3.0, 3.0]],
    }
