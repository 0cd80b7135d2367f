"""What the dims of kernels are, read from their names."""

import pytest

from tests.nets import examples
from vla_jax.core import errors, functional
from vla_jax.nets.vla_transformer import VlaTransformer
from vla_jax.training import kernels


@pytest.mark.parametrize(
    ("shape", "names", "sides"),
    [
        ((3, 5), (None, None), ((), 3, 5)),
        ((2, 3, 5), ("layers", "embed", "mlp"), ((2,), 3, 5)),
        ((2, 6, 4, 8), ("layers", "embed", "heads", "head_dim"), ((2,), 6, 32)),
        ((2, 4, 8, 6), ("layers", "heads", "head_dim", "embed"), ((2,), 32, 6)),
        ((7, 2, 6, 5), ("ensemble", "layers", "embed", "embed"), ((7, 2), 6, 5)),
        ((3, 3, 4, 8), (None, None, None, None), ((), 36, 8)),  # a convolution
    ],
)
def test_a_kernel_is_a_stack_of_matrices(shape, names, sides):
    dims = kernels.kernel_dims(shape, names)
    assert (dims.stacked, dims.inputs, dims.outputs) == sides


@pytest.mark.parametrize(
    ("shape", "names"),
    [((4,), ("embed",)), ((2, 4), ("layers", "embed")), ((2, 4, 8), ("layers", "heads", "head_dim")), ((), ())],
)
def test_norms_and_biases_are_no_kernels(shape, names):
    assert kernels.kernel_dims(shape, names) is None


def test_every_kernel_of_a_transformer_is_found_and_nothing_else():
    def constructor(rngs):
        return VlaTransformer(examples.transformer_config(), rngs)

    _, params = functional.describe(constructor)
    found = kernels.find(params, functional.logical_axes(constructor))
    query = found["mixture/suffix_layers/query/kernel"]
    assert (query.stacked, query.inputs, query.outputs) == ((2,), 12, 32)
    assert all(path.endswith("kernel") for path in found) and len(found) == 2 * 7 + 6 + 3


def test_a_pattern_that_matches_nothing_names_the_closest():
    assert kernels.matching(["a/b/kernel", "c/kernel"], ("a/*",), "int8") == {"a/b/kernel"}
    with pytest.raises(errors.ConfigError, match=r"int8 pattern 'd/kernel'(?s:.*)did you mean 'c/kernel'"):
        kernels.matching(["a/b/kernel", "c/kernel"], ("d/kernel",), "int8")
