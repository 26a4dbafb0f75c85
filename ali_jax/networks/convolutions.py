"""Convolutions and transposed convolutions, in the form that each platform runs fastest.

This module owns the two linear maps and their derivatives, not biases, batch norm or initialisation. There
are three lowerings:

"native" is plain `lax`, for TPUs, and for forward-mode differentiation anywhere.
"cpu" is for XLA:CPU. Its own gradients of strided and transposed convolutions (convolutions with a dilated
input) are several times slower than their forward pass. A layer for which these forms lose is computed
natively, as `is_faster_natively` says.
"gpu" gives cuDNN the three kinds of convolution that it has: forward, input gradient and kernel gradient.
Much of what plain `lax` makes of a transposed convolution is none of them. XLA then computes it as a forward
convolution of an input that is mostly zeros.

"gpu" has further forms, `FORMS`, which multiply more and may yet be faster. "gpu+kernel_phases" and
"gpu+kernel_phases+padded_maps" use them in all layers. With "gpu+table" each layer has the forms that
`TABLE` gives it.

There are no groups: a grouped or depthwise convolution is `lax.conv_general_dilated(...,
feature_group_count=)`, or `flax.linen.Conv`, whose gradients of all orders are native on every platform.
"""

import functools
import itertools
import json
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.custom_batching
import jax.numpy as jnp
import numpy as np
from jax import lax

from ali_jax.types import Array, PyTree

Lowering: TypeAlias = str  # one of LOWERINGS; "gpu" also with forms or a table: "gpu+FORM+FORM", "gpu+table"

LOWERINGS = ("native", "cpu", "gpu")
FORMS = (
    "kernel_phases",  # strided kernel gradients as one of stride 1, from the phases of x
    "input_phases",  # strided input gradients as one of stride 1, to the phases of x
    "padded_maps",  # the input maps of a convolution filled up with zeros to whole blocks of 16 bytes
)
TABLE = Path(__file__).with_name("forms.json")  # {"layers": {`layer_name`: [FORM, ...]}, ...}, if present

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def lowering_for(platform: str, choice: Lowering = "auto") -> Lowering:
    """Return `choice` or, for "auto", the lowering for programs on `platform`, as in `device.platform`.

    Raises ValueError if there is no such lowering.
    """
    if choice == "auto":
        gpu = "gpu+table" if TABLE.exists() else "gpu"
        return {"cpu": "cpu", "gpu": gpu, "cuda": gpu, "rocm": gpu}.get(platform, "native")
    _parts(choice)
    return choice


def layer_name(image: Sequence[int], kernel: Sequence[int], *, stride: int, padding: int, dtype: Any) -> str:
    """Return the name of a layer in `TABLE`, such as "32x32x3 k4 s2 p1 64 float32".

    Args:
      image: (H, W, C) of the larger image: the input of a convolution, the output of a transposed one.
      kernel: [k, k, C, F] of the convolution. Of a transposed one the last two axes are swapped.
      stride, padding: the layer's.
      dtype: in which it computes.
    """
    height, width, channels = image
    size, features = kernel[0], kernel[3]
    dtype = jnp.dtype(dtype).name
    return f"{height}x{width}x{channels} k{size} s{stride} p{padding} {features} {dtype}"


def is_faster_natively(
    image: Sequence[int], kernel: Sequence[int], *, stride: int, padding: int, transpose: bool = False
) -> bool:
    """Whether a CPU computes a layer faster with plain `lax` than in the form "cpu", at any order.

    So it is at stride 1 with an odd kernel and an image that keeps its size, since the form "cpu" pads the
    image outside of the convolution; but not where it has a better form: for few pixels, few maps, or by
    Toom-Cook. At a stride or with even kernels plain `lax` may win with first gradients, and then takes up to
    seven times as long with the second ones that penalties need. The ratios, by `benchmarks.cpu_forms`, are
    in docs/lab/cpu_steps.md.

    Args:
      image, kernel, stride, padding: as in `layer_name`.
      transpose: whether the layer is a transposed convolution.
    """
    size, k = min(image[:2]), kernel[0]
    are_few, are_many = image[2] <= 4, min(kernel[2:]) >= 64
    if stride > 1 or k < 3 or 2 * padding != k - 1:
        return False
    if k == 3:
        return size > 2 and not are_few if transpose else size > 4
    return size > 4 and not are_few and not (k == 5 and are_many and size > 8)


def forms_of(lowering: Lowering, layer: str) -> tuple[str, ...]:
    """Return the forms that a lowering gives to the layer of this name."""
    forms = _parts(lowering)[1:]
    return _table(TABLE).get(layer, ()) if forms == ("table",) else forms


def _parts(lowering: Lowering) -> tuple[str, ...]:
    """Return a lowering's first word and its forms; raise a ValueError if it is none."""
    first, *forms = lowering.split("+")
    known = first in LOWERINGS and (
        not forms or (first == "gpu" and (forms == ["table"] or {*forms} <= {*FORMS}))
    )
    if not known:
        raise ValueError(
            f"convolution: unknown lowering {lowering!r}; choose one of {', '.join(LOWERINGS)}, 'gpu+table', "
            f"or gpu with any of its forms {', '.join(FORMS)}, as in 'gpu+{FORMS[0]}+{FORMS[1]}'."
        )
    return first, *forms


@functools.cache
def _table(path: Path) -> dict[str, tuple[str, ...]]:
    """Read the forms of layers from a file; raise a ValueError for a form that does not exist."""
    try:
        layers = {name: tuple(forms) for name, forms in json.loads(path.read_text())["layers"].items()}
    except FileNotFoundError:
        raise ValueError(
            f"lowering 'gpu+table' needs the file {path}, which is missing; use 'gpu'."
        ) from None
    for name, forms in layers.items():
        if not {*forms} <= {*FORMS}:
            raise ValueError(
                f"{path}: {name!r} has the forms {', '.join(forms)}; known are {', '.join(FORMS)}."
            )
    return layers


def platform_of(tree: PyTree = None) -> str:
    """Return the platform of the first JAX array in a tree; without one, the platform of new arrays."""
    arrays = (leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array))
    return next(iter(next(arrays, jnp.zeros(())).devices())).platform


def conv(
    x: Array, kernel: Array, *, stride: int = 1, padding: int = 0, lowering: Lowering = "native"
) -> Array:
    """Convolve x [B, H, W, C] with kernel [k, k, C, F] into [B, H', W', F].

    y[b, i, j] = sum over a, c of x[b, stride i + a - padding, stride j + c - padding] @ kernel[a, c],
    H' = (H + 2 padding - k) // stride + 1. "cpu" and "gpu" differentiate in reverse mode only, to any order.
    There are no groups.
    Raises ValueError for arguments that do not fit together.
    """
    _check(x, kernel, stride, padding, lowering)
    size = kernel.shape[0]
    if min(x.shape[1:3]) + 2 * padding < size:
        raise ValueError(
            f"conv: a {size}x{size} kernel does not fit an image of {x.shape[1]}x{x.shape[2]} "
            f"with padding {padding}; use a smaller kernel or more padding."
        )
    layer: dict[str, Any] = {"stride": stride, "padding": padding}
    if lowering == "cpu" and is_faster_natively(x.shape[1:], kernel.shape, **layer):
        lowering = "native"
    if lowering == "native":
        return _lax_conv(x, kernel, stride, padding)
    if lowering == "cpu":  # its forms do not pad
        return _conv(_Form("cpu", stride, 0), _crop_or_pad(x, padding), kernel)
    name = layer_name(x.shape[1:], kernel.shape, dtype=x.dtype, **layer)
    forms = forms_of(lowering, name)
    if "padded_maps" in forms:
        x, kernel = _fill_maps(x, kernel)
    return _conv(_Form("gpu", stride, padding, forms), x, kernel)


def conv_transpose(
    x: Array, kernel: Array, *, stride: int = 1, padding: int = 0, lowering: Lowering = "native"
) -> Array:
    """Spread x [B, H, W, C] with kernel [k, k, C, F] into [B, H', W', F].

    y[b, stride i + a - padding, stride j + c - padding] += x[b, i, j] @ kernel[a, c],
    H' = stride (H - 1) + k - 2 padding: `padding` crops each side. The adjoint of `conv` with the kernel's
    last two axes swapped. "cpu" and "gpu" differentiate in reverse mode only, to any order.
    Raises ValueError for arguments that do not fit together.
    """
    _check(x, kernel, stride, padding, lowering)
    size = kernel.shape[0]
    height, width = (stride * (n - 1) + size for n in x.shape[1:3])
    if min(height, width) <= 2 * padding:
        raise ValueError(
            f"conv_transpose: padding {padding} crops all of the {height}x{width} output; "
            "use a smaller padding."
        )
    image = (height - 2 * padding, width - 2 * padding, kernel.shape[3])
    layer: dict[str, Any] = {"stride": stride, "padding": padding}
    if lowering == "cpu" and is_faster_natively(image, kernel.shape, transpose=True, **layer):
        lowering = "native"
    if lowering == "native":
        margin = size - 1 - padding
        return lax.conv_general_dilated(
            x,
            kernel[::-1, ::-1],
            (1, 1),
            [(margin, margin)] * 2,
            lhs_dilation=(stride, stride),
            dimension_numbers=_DIMENSIONS,
        )
    kernel = kernel.swapaxes(2, 3)
    if lowering == "cpu":
        form = _Form("cpu", stride, 0)
        return _crop_or_pad(_input_gradient(form, (height, width), x, kernel), -padding)
    name = layer_name(image, kernel.shape, dtype=x.dtype, **layer)
    return _input_gradient(_Form("gpu", stride, padding, forms_of(lowering, name)), image[:2], x, kernel)


def cut(x: PyTree, lowering: Lowering) -> Any:
    """Return x, an array or a tree of them; "cpu" computes all of x before anything that reads it.

    The same holds for its gradient. XLA:CPU fuses elementwise work into the transpositions and sums that read
    it, where it goes through memory in strides, once for each reader: ten times slower than on its own.
    `compiler_options` are needed for this to have an effect. On other platforms fusion is what makes such
    work cheap.
    """
    return lax.optimization_barrier(x) if lowering == "cpu" else x


def compiler_options(platform: str) -> dict[str, Any]:
    """Return the options for `jax.jit(..., compiler_options=)` that suit programs with these convolutions.

    On CPU: keep YNNPACK for dots but not for convolutions, which it makes 1.7 to 4 times slower; and keep
    what `cut` puts in, which XLA:CPU otherwise drops before it fuses. Only what the installed jaxlib knows.
    """
    return dict(_cpu_options()) if platform == "cpu" else {}


@functools.cache
def _cpu_options() -> dict[str, Any]:
    options = {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT",
        "xla_disable_hlo_passes": "cse_barrier_expander",
    }
    return {name: value for name, value in options.items() if _compiles({name: value})}


def _compiles(options: dict[str, Any]) -> bool:
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(lambda: cut(jnp.zeros(()), "cpu"), compiler_options=options).lower().compile()
    except RuntimeError:  # an unknown option, or no CPU backend to ask
        return False
    return True


def _check(x: Array, kernel: Array, stride: int, padding: int, lowering: str) -> None:
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[0] != kernel.shape[1] or x.shape[3] != kernel.shape[2]:
        raise ValueError(
            f"convolution: x has shape {x.shape} and the kernel {kernel.shape}; "
            "they must be [B, H, W, C] and [k, k, C, F] with the same C."
        )
    if x.dtype != kernel.dtype:
        raise ValueError(
            f"convolution: x is {x.dtype} but the kernel {kernel.dtype}; cast one to the other's dtype."
        )
    if stride < 1 or padding < 0:
        raise ValueError(
            f"convolution: stride {stride}, padding {padding}; need stride >= 1 and padding >= 0."
        )
    _parts(lowering)


def _lax_conv(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=_DIMENSIONS
    )


def _fill_maps(x: Array, kernel: Array) -> tuple[Array, Array]:
    """Fill up the C input maps of a convolution with zeros to a multiple of 16 bytes, as tensor cores want.

    Outside the maps and their gradients: x is filled up once for all of them.
    """
    missing = -x.shape[3] % (16 // x.dtype.itemsize)
    return jnp.pad(x, ((0, 0),) * 3 + ((0, missing),)), jnp.pad(
        kernel, ((0, 0),) * 2 + ((0, missing), (0, 0))
    )


def _crop_or_pad(x: Array, rows: int) -> Array:
    """Add `rows` of zeros on each side of an image, or take them away where negative."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (rows, rows, 0), (rows, rows, 0), (0, 0, 0)])


# With T(x, w, g) = sum(conv(x, w) * g), trilinear, the three maps below are dT/dg, dT/dx and dT/dw. The
# gradient of each is made of the other two: no order of differentiation leaves the platform's own forms.


class _Form(NamedTuple):
    """What is static of a convolution besides the size of its operands."""

    lowering: Lowering  # "cpu" or "gpu"
    stride: int
    padding: int  # 0 for "cpu"
    forms: tuple[str, ...] = ()


def _is_of_pixels(form: _Form, k: int) -> bool:
    """Whether a convolution is a product of single pixels with a matrix."""
    return form.padding == 0 and k == 1 and (form.stride == 1 or form.lowering == "cpu")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(form: _Form, x: Array, w: Array) -> Array:
    """dT/dg: x [B, H, W, C], w [k, k, C, F] -> [B, H', W', F]."""
    k, stride = w.shape[0], form.stride
    if _is_of_pixels(form, k):
        return jnp.einsum("bijc,cf->bijf", x[:, ::stride, ::stride], w[0, 0])
    if form.padding == 0 and _output_size(x.shape, k, stride) == (1, 1):
        return (_rows(x[:, :k, :k]) @ w.reshape(-1, w.shape[3]))[:, None, None]
    return _of_members(form, lambda x, w: _lax_conv(x, w, stride, form.padding))(x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _input_gradient(form: _Form, size: tuple[int, int], g: Array, w: Array) -> Array:
    """dT/dx: g [B, H', W', F], w [k, k, C, F] -> [B, *size, C]."""
    k, stride, padding = w.shape[0], form.stride, form.padding
    if _is_of_pixels(form, k):
        x = jnp.einsum("bijf,cf->bijc", g, w[0, 0])
        gaps = [(0, 0, 0), (0, 0, stride - 1), (0, 0, stride - 1), (0, 0, 0)]
        return _fit(lax.pad(x, jnp.zeros((), x.dtype), gaps), size)
    if g.shape[1:3] == (1, 1):
        x = (g[:, 0, 0] @ w.reshape(-1, w.shape[3]).T).reshape(-1, k, k, w.shape[2])
        return _fit(x[:, padding:, padding:], size)
    if form.lowering == "gpu":
        return _of_members(form, lambda g, w: _transposed_in_x(form, size, g, w))(g, w)
    x = _spread(g, w) if stride == 1 else _depth_to_space(_spread(g, _phases(stride, w)), stride, stride)
    return _fit(x, size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _kernel_gradient(form: _Form, k: int, x: Array, g: Array) -> Array:
    """dT/dw: x [B, H, W, C], g [B, H', W', F] -> [k, k, C, F]."""
    if _is_of_pixels(form, k):
        return jnp.einsum("bijc,bijf->cf", x[:, :: form.stride, :: form.stride], g)[None, None]
    if form.padding == 0 and g.shape[1:3] == (1, 1):
        return (_rows(x[:, :k, :k]).T @ g[:, 0, 0]).reshape(k, k, x.shape[3], -1)
    return _of_members(form, lambda x, g: _transposed_in_w(form, k, x, g))(x, g)


def _transposed_in_x(form: _Form, size: tuple[int, int], g: Array, w: Array) -> Array:
    """Return dT/dx as XLA transposes a convolution: one of a reversed kernel, which cuDNN knows."""
    x = jax.ShapeDtypeStruct((g.shape[0], *size, w.shape[2]), g.dtype)
    conv = _conv_of_phases if "input_phases" in form.forms else _lax_conv
    return jax.linear_transpose(lambda x: conv(x, w, form.stride, form.padding), x)(g)[0]


def _transposed_in_w(form: _Form, k: int, x: Array, g: Array) -> Array:
    w = jax.ShapeDtypeStruct((k, k, x.shape[3], g.shape[3]), x.dtype)
    conv = _conv_of_phases if "kernel_phases" in form.forms else _lax_conv
    return jax.linear_transpose(lambda w: conv(x, w, form.stride, form.padding), w)(g)[0]


def _conv_of_phases(x: Array, w: Array, stride: int, padding: int) -> Array:
    """Convolve the phases of x, as s^2 sets of maps, with those of the kernel, at stride 1.

    It multiplies (s ceil(k / s))^2 / k^2 as much as needed. Its gradients have no dilation, which those of a
    strided convolution have.
    """
    k, taps = w.shape[0], -(-w.shape[0] // stride)
    x = _crop_or_pad(x, padding)
    rows, columns = (n + taps - 1 for n in _output_size(x.shape, k, stride))
    x = _fit(x, (stride * rows, stride * columns))
    x = x.reshape(-1, rows, stride, columns, stride, x.shape[3]).transpose(0, 1, 3, 2, 4, 5)
    return _lax_conv(x.reshape(*x.shape[:3], -1), _phases(stride, w), 1, 0)


def _of_members(form: _Form, body: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """Return `body` such that on a GPU `vmap` runs it once per member of a population.

    Otherwise `vmap` would make it a grouped convolution. cuDNN has these of the forward kind only, so that
    gradients would be computed on zeros again.
    """
    if form.lowering != "gpu":
        return body
    single = jax.custom_batching.custom_vmap(body)

    def rule(members: int, batched: Sequence[bool], *operands: Array) -> tuple[Array, bool]:
        outputs = [
            single(*(a[k] if is_batched else a for a, is_batched in zip(operands, batched, strict=True)))
            for k in range(members)
        ]
        return jnp.stack(outputs), True

    single.def_vmap(rule)
    return single


def _conv_backward(form: _Form, xw: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, w = xw
    return _input_gradient(form, x.shape[1:3], g, w), _kernel_gradient(form, w.shape[0], x, g)


def _input_gradient_backward(
    form: _Form, size: tuple[int, int], gw: tuple[Array, Array], x: Array
) -> tuple[Array, Array]:
    g, w = gw
    return _conv(form, x, w), _kernel_gradient(form, w.shape[0], x, g)


def _kernel_gradient_backward(form: _Form, k: int, xg: tuple[Array, Array], w: Array) -> tuple[Array, Array]:
    x, g = xg
    return _input_gradient(form, x.shape[1:3], g, w), _conv(form, x, w)


_conv.defvjp(lambda form, x, w: (_conv(form, x, w), (x, w)), _conv_backward)
_input_gradient.defvjp(
    lambda form, size, g, w: (_input_gradient(form, size, g, w), (g, w)), _input_gradient_backward
)
_kernel_gradient.defvjp(
    lambda form, k, x, g: (_kernel_gradient(form, k, x, g), (x, g)), _kernel_gradient_backward
)


def _spread(g: Array, w: Array) -> Array:
    """Return the stride-1 input gradient x[i + a] += w[a] @ g[i], [B, H + k - 1, W + k - 1, C].

    The padded convolution multiplies (H + k - 1)^2 / H^2 as much as needed. What the other forms take of its
    CPU-seconds (2 Zen 5 cores, float32, batch 64): dots 0.6 for 2x2 taps on 4x4x256 -> 512; Toom-Cook 0.35
    for 4x4 taps on 10x10x128 -> 64 and 0.6 for 5x5 on 28x28x32 -> 32, but 1.3 for 4x4 on 28x28x64 -> 64 at
    batch 32, where its transforms outgrow the cache; blocks 0.35 for 5x5 taps on 28x28x32 -> 3.
    """
    k, _, channels, features = w.shape
    size = max(g.shape[1:3])
    if size <= 4:
        return _spread_by_dots(g, w)
    if min(channels, features) >= 32 and jnp.finfo(g.dtype).bits >= 32:
        if k == 4 and size <= 16:
            return _spread_by_toom_cook(g, w, tile=2)
        if k == 5 and size <= 32:
            return _spread_by_toom_cook(g, w, tile=4)
    if k >= 4 and channels <= 4:
        return _spread_in_blocks(g, w)
    return _lax_conv(g, _adjoint(w), 1, k - 1)


def _spread_by_dots(g: Array, w: Array) -> Array:
    """Take all taps of a pixel in one dot, then add them where they overlap."""
    k, _, channels, features = w.shape
    taps = range(k)
    x = (g.reshape(-1, features) @ w.reshape(-1, features).T).reshape(*g.shape[:3], k, k, channels)
    return _overlap_add([_overlap_add([x[:, :, :, a, b] for b in taps], 1, 2) for a in taps], 1, 1)


def _spread_by_toom_cook(g: Array, w: Array, tile: int) -> Array:
    """Multiply tiles of tile x tile pixels by the taps, then add the results where they overlap.

    Toom-Cook (Lavin & Gray, arXiv 1509.09308): evaluate both as polynomials, multiply, interpolate. That is
    25 products for a tile of 2x2 and 4x4 taps instead of 64, and 64 for 4x4 and 5x5 instead of 400. In
    float32 the rounding error is about 1e-6 and 2e-5 of the result's deviation.
    """
    k, height, width = w.shape[0], *g.shape[1:3]
    evaluate_tile, evaluate, interpolate = _toom_cook(tile, k)
    g = _fit(g, (height + -height % tile, width + -width % tile))
    rows = _combine(evaluate_tile, [g[:, a::tile] for a in range(tile)])
    tiles = [_combine(evaluate_tile, [row[:, :, b::tile] for b in range(tile)]) for row in rows]
    evaluate = jnp.asarray(evaluate, w.dtype)
    kernels = jnp.einsum("pa,qb,abcf->pqfc", evaluate, evaluate, w)
    products = [[part @ kernels[p, q] for q, part in enumerate(row)] for p, row in enumerate(tiles)]
    columns = [_overlap_add(_combine(interpolate, row), tile, 2) for row in products]
    return _fit(_overlap_add(_combine(interpolate, columns), tile, 1), (height + k - 1, width + k - 1))


@functools.cache
def _toom_cook(tile: int, taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return three matrices for the product of polynomials of `tile` and `taps` coefficients.

    Two evaluate the factors at n = tile + taps - 1 points, of which the last is infinity; the third finds the
    product's n coefficients from its values there (Lagrange).
    """
    points = np.array([0, 1, -1, 2, -2, 1 / 2, -1 / 2])[: tile + taps - 2]
    others = [np.delete(points, i) for i in range(len(points))]
    basis = [np.append(0, np.poly(o) / np.prod(p - o)) for p, o in zip(points, others, strict=True)]

    def evaluate(length: int) -> np.ndarray:
        return np.vstack([np.vander(points, length, increasing=True), np.eye(length)[-1]])

    return evaluate(tile), evaluate(taps), np.stack([*basis, np.poly(points)], axis=1)[::-1]


def _spread_in_blocks(g: Array, w: Array) -> Array:
    """Compute 2x4 pixels as 8 C outputs of a strided convolution: so few as C would waste the vector unit."""
    k, _, channels, features = w.shape
    height, width = g.shape[1] + k - 1, g.shape[2] + k - 1
    shifted = [
        jnp.pad(_adjoint(w), ((a, 1 - a), (b, 3 - b), (0, 0), (0, 0)))
        for a, b in itertools.product(range(2), range(4))
    ]
    kernel = jnp.stack(shifted, axis=3).reshape(k + 1, k + 3, features, 8 * channels)
    padding = [(k - 1, k - 1 + height % 2), (k - 1, k - 1 + -width % 4)]
    x = lax.conv_general_dilated(g, kernel, (2, 4), padding, dimension_numbers=_DIMENSIONS)
    return _fit(_depth_to_space(x, 2, 4), (height, width))


def _phases(stride: int, w: Array) -> Array:
    """Return w [k, k, C, F] as ceil(k / stride) taps with one set of C channels per phase of the stride.

    Row stride * n + phase of x and tap a = stride * m + phase belong to g's row n - m.
    """
    k, _, channels, features = w.shape
    taps = -(-k // stride)
    missing = taps * stride - k
    w = jnp.pad(w, ((0, missing), (0, missing), (0, 0), (0, 0)))
    w = w.reshape(taps, stride, taps, stride, channels, features).transpose(0, 2, 1, 3, 4, 5)
    return w.reshape(taps, taps, stride * stride * channels, features)


def _depth_to_space(x: Array, rows: int, columns: int) -> Array:
    """Lay out the channels [rows, columns, C] of each pixel as a block of pixels."""
    batch, height, width, depth = x.shape
    x = x.reshape(batch, height, width, rows, columns, depth // (rows * columns)).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * rows, width * columns, -1)


def _rows(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def _adjoint(w: Array) -> Array:
    return w[::-1, ::-1].swapaxes(2, 3)


def _combine(matrix: np.ndarray, arrays: list[Array]) -> list[Array]:
    """Return the linear combinations of the arrays that the matrix's rows name, without its zeros."""
    return [
        functools.reduce(operator.add, [float(c) * x for c, x in zip(row, arrays, strict=True) if c])
        for row in matrix
    ]


def _overlap_add(parts: list[Array], step: int, axis: int) -> Array:
    """Return y[step * i + a] += parts[a][i] along `axis` of [B, H, W, C], its length a multiple of step."""
    last = -(-len(parts) // step) - 1

    def shift(part: Array, blocks: int) -> Array:
        return jnp.pad(part, [(blocks, last - blocks) if n == axis else (0, 0) for n in range(4)])

    phases = [
        functools.reduce(
            operator.add, [shift(part, blocks) for blocks, part in enumerate(parts[phase::step])]
        )
        for phase in range(step)
    ]
    shape = phases[0].shape
    return jnp.stack(phases, axis + 1).reshape(*shape[:axis], step * shape[axis], *shape[axis + 1 :])


def _fit(x: Array, size: tuple[int, int]) -> Array:
    """Cut the image at `size` or fill it up with zeros: windows of a stride need not reach the last rows."""
    rows, columns = size[0] - x.shape[1], size[1] - x.shape[2]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, rows, 0), (0, columns, 0), (0, 0, 0)])


def _output_size(shape: tuple[int, ...], k: int, stride: int) -> tuple[int, int]:
    return (shape[1] - k) // stride + 1, (shape[2] - k) // stride + 1
