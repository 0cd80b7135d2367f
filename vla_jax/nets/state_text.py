"""The robot's state as words of the prompt (pi0-FAST, arXiv 2501.09747; pi0.5, arXiv 2504.16054).

    Task: pick up the cup, State: 12 200 127;
    `------ prompt ------------' `- numbers -' `- end

Every entry of the normalized state becomes the number of its bin. The table of the numbers' tokens is part of the
config, so the words are put together inside the jit, where every simulator and server has the state already.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vla_jax.core import errors


@dataclasses.dataclass(frozen=True)
class StateText:
    numbers: tuple[tuple[int, ...], ...]  # token ids of bin 0, 1, ..., each with the space before it
    end: tuple[int, ...]  # token ids that close the prompt

    def __post_init__(self):
        if len(self.numbers) < 2 or not all(self.numbers):
            raise errors.ConfigError("StateText.numbers", expected="tokens for at least 2 bins", found=self.numbers)

    @property
    def num_bins(self) -> int:
        return len(self.numbers)

    def num_tokens(self, state_dim: int) -> int:
        """Length of what `tokens` returns; shorter numbers leave gaps under a False mask."""
        return state_dim * max(map(len, self.numbers)) + len(self.end)

    def tokens(self, state: Float[Array, "b s"]) -> tuple[Int[Array, "b n"], Bool[Array, "b n"]]:
        """Token ids and the mask of the real ones.

        Bins cut [-1, 1] evenly; what lies beyond gets the outer ones. (openpi writes "-1" below the range.)
        """
        ids, mask = self._table()
        bins = bin_of(state, self.num_bins)
        numbers, is_real = jnp.asarray(ids)[bins], jnp.asarray(mask)[bins]
        rows = (state.shape[0], -1)
        end = jnp.broadcast_to(jnp.asarray(self.end, jnp.int32), (state.shape[0], len(self.end)))
        return (
            jnp.concatenate([numbers.reshape(rows), end], axis=1),
            jnp.concatenate([is_real.reshape(rows), jnp.ones(end.shape, bool)], axis=1),
        )

    def _table(self) -> tuple[Int[np.ndarray, "bins k"], Bool[np.ndarray, "bins k"]]:
        lengths = np.array(list(map(len, self.numbers)))
        mask = np.arange(lengths.max())[None] < lengths[:, None]
        ids = np.zeros(mask.shape, np.int32)
        ids[mask] = np.concatenate(self.numbers)
        return ids, mask


def bin_of(state: Float[Array, "*b s"], num_bins: int) -> Int[Array, "*b s"]:
    """The even bin of [-1, 1] that an entry falls into, lower edge included; the outer bins take what lies beyond."""
    return jnp.clip(jnp.floor((state + 1) * (num_bins / 2)), 0, num_bins - 1).astype(jnp.int32)


def state_text(pieces: Callable[[str], Sequence[int]], end: str = ";\n", num_bins: int = 256) -> StateText:
    """The table for one tokenizer: `pieces(text)` are the ids of a text in the middle of another, nothing added.

    Raises ConfigError when numbers written one after the other are not the tokens of the text as a whole, because such
    a tokenizer cannot be used number by number.
    """
    numbers = tuple(tuple(map(int, pieces(f" {k}"))) for k in range(num_bins))
    table = StateText(numbers, tuple(map(int, pieces(end))))
    bins = [0, num_bins - 1, num_bins // 2, min(7, num_bins - 1), num_bins // 3]
    whole = list(pieces("State:" + "".join(f" {k}" for k in bins) + end))
    apart = [*pieces("State:"), *(token for k in bins for token in numbers[k]), *table.end]
    if whole != apart:
        raise errors.ConfigError(
            "this tokenizer joins a state's numbers with what stands beside them",
            expected=f"tokens {whole}",
            found=f"{apart}, number by number",
            fix="use a tokenizer that splits numbers from their neighbours, as PaliGemma's does",
        )
    return table
