"""Ways of generating in which passes are not the prompt and then one step for each token."""

import functools
from typing import Any

from model_adapters.errors import SiteError

_REFUSED: dict[str, tuple[Any, ...]] = {
    "use_cache": (None, True),
    "prompt_lookup_num_tokens": (None,),
    "assistant_model": (None,),
    "assistant_early_exit": (None,),
    "prefill_chunk_size": (None,),
    "use_mtp": (None, False),
    "stream": (None, False),
}
"""Options of `generate`, and the values with which a graph can tell the prompt from the answer.
`stream` is MiniCPM-o's: a thread of its own answers, which does not know what it was asked."""


class GenerateWatch:
    """Refuses such options while it stands in front of a model's `generate`."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._own = vars(module).get("generate")
        generate = module.generate

        @functools.wraps(generate)
        def watched(*args: Any, **kwargs: Any) -> Any:
            config = kwargs.get("generation_config") or module.generation_config
            for name, allowed in _REFUSED.items():
                value = kwargs.get(name, getattr(config, name, None))
                if value not in allowed:
                    raise SiteError(
                        f"{name}={value!r}: with it a pass is no longer the prompt or one new "
                        "token, and a graph could not tell the prompt from the answer; leave it out"
                    )
            return generate(*args, **kwargs)

        module.generate = watched

    def remove(self) -> None:
        """Put the model's own `generate` back."""
        vars(self._module).pop("generate", None)
        if self._own is not None:
            self._module.generate = self._own
