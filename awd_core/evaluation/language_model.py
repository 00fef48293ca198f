"""A causal language model: how surprised it is by a text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from awd_core.errors import AwdError
from awd_core.evaluation.encoder import tokenizer
from awd_core.lazy import torch

WINDOW = 512  # tokens that are read at once, at most


class LanguageModel:
    """Surprise of texts, in float32 and evaluation mode.

    Args:
        model: The model, giving `logits`.
        folder: Folder of the tokenizer.
        window: Tokens that are read at once.
    """

    def __init__(self, model: torch.nn.Module, folder: Path, window: int = WINDOW) -> None:
        self.model = model.eval()
        self.folder, self.window = folder, window

    @classmethod
    def from_state(
        cls, config_folder: Path | str, state: Mapping[str, torch.Tensor]
    ) -> LanguageModel:
        """The model with the given weights and the config and tokenizer of a folder.

        Raises:
            AwdError: transformers does not know the model, or the weights are not its own.
        """
        folder = Path(config_folder)
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.initialization import no_init_weights

        try:
            config = AutoConfig.from_pretrained(folder)
            with no_init_weights():
                model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            weights = {n: t.float().cpu() if t.is_floating_point() else t for n, t in state.items()}
            found = model.load_state_dict(weights, strict=False, assign=True)
        except (ValueError, KeyError, RuntimeError, OSError) as error:
            raise _refused(folder, f"{type(error).__name__}: {str(error)[:300]}") from error
        model.tie_weights()
        # A head that is tied to the embedding is no file's tensor.
        tied = getattr(config, "tie_word_embeddings", False)
        missing = [n for n in found.missing_keys if not (tied and n.endswith("lm_head.weight"))]
        if missing or found.unexpected_keys:
            wrong = [*missing, *found.unexpected_keys][:5]
            raise _refused(folder, f"tensors {', '.join(wrong)}")
        positions = getattr(config, "max_position_embeddings", None) or WINDOW
        return cls(model, folder, min(WINDOW, positions))

    def surprise(self, text: str) -> tuple[float, int]:
        """-sum log p(token | tokens before it in its window) in nats, and the number of tokens.

        The first token of a window is not predicted. Windows follow one another without overlap.
        """
        ids = torch.tensor(tokenizer(str(self.folder))(text)["input_ids"], dtype=torch.long)
        nats, count = 0.0, 0
        for part in ids.split(self.window):
            if len(part) < 2:
                continue
            with torch.inference_mode():
                logits = self.model(input_ids=part[None]).logits[0, :-1].float()
                loss = torch.nn.functional.cross_entropy(logits, part[1:], reduction="sum")
            nats += float(loss)
            count += len(part) - 1
        return nats, count


def _refused(folder: Path, received: str) -> AwdError:
    return AwdError(
        "This language model cannot be evaluated here",
        where=folder,
        received=received,
        expected="weights that transformers loads name by name",
        remedy="Write the merge and evaluate it with your own tools, for instance lm_eval.",
    )
