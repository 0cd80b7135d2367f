import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from vla_jax.training.plan import counting


def abstract(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_products_count_two_operations_per_entry():
    assert counting.count(lambda a, b: a @ b, abstract(3, 5), abstract(5, 7)) == 2 * 3 * 5 * 7
    batched = counting.count(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), abstract(4, 3, 5), abstract(4, 5, 7))
    assert batched == 4 * 2 * 3 * 5 * 7


def test_a_convolution_counts_its_window():
    def conv(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert counting.count(conv, abstract(2, 8, 8, 3), abstract(3, 3, 3, 16)) == 2 * (2 * 8 * 8 * 16) * (3 * 3 * 3)


def test_a_scan_counts_its_length_and_a_conditional_its_dearest_branch():
    def layers(x, kernels):
        return jax.lax.scan(lambda x, k: (x @ k, None), x, kernels)[0]

    assert counting.count(layers, abstract(2, 4), abstract(6, 4, 4)) == 6 * 2 * 2 * 4 * 4

    def either(flag, x, k):
        return jax.lax.cond(flag, lambda: x @ k, lambda: (x @ k) @ k)

    assert counting.count(either, jax.ShapeDtypeStruct((), bool), abstract(2, 4), abstract(4, 4)) == 2 * (2 * 2 * 4 * 4)


def test_a_gradient_with_recomputation_costs_four_forward_passes():
    # x is the data: the first layer needs no gradient of its input, so two of three layers pay the full price.
    def loss(kernels, x):
        body = jax.checkpoint(lambda x, k: (jnp.tanh(x @ k), None))
        return jax.lax.scan(body, x, kernels)[0].sum()

    forward = 3 * 2 * 8 * 16 * 16
    assert counting.count(loss, abstract(3, 16, 16), abstract(8, 16)) == forward
    assert counting.count(jax.grad(loss), abstract(3, 16, 16), abstract(8, 16)) == 4 * forward


def test_a_kernel_counts_its_body_at_every_point_of_its_grid():
    def body(x, k, out):
        out[...] = x[...] @ k[...]

    def product(x, k):
        tile = pl.BlockSpec((8, 16), lambda i: (i, 0))
        whole = pl.BlockSpec((16, 32), lambda i: (0, 0))
        out = pl.BlockSpec((8, 32), lambda i: (i, 0))
        shape = jax.ShapeDtypeStruct((32, 32), jnp.float32)
        return pl.pallas_call(body, shape, grid=(4,), in_specs=[tile, whole], out_specs=out, name="tiles")(x, k)

    def twice(x, k):
        return product(x, k) + jax.jit(product)(x, k)

    arguments = (abstract(32, 16), abstract(16, 32))
    assert counting.count(product, *arguments) == 2 * 32 * 16 * 32
    assert counting.kernels(twice, *arguments) == {"tiles": 2 * 32 * 16 * 32}
