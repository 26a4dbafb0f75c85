"""The convolutions of CPU and GPU equal lax's, in value and in gradients of the first and second order."""

import functools
import json

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from ali_jax.networks import convolutions
from ali_jax.networks.convolutions import compiler_options, conv, conv_transpose, cut, lowering_for

# (height, width), kernel, stride, padding, channels, features
CASES = [
    ((7, 7), 1, 1, 0, 3, 2),
    ((1, 1), 1, 1, 0, 4, 3),
    ((4, 4), 4, 1, 0, 3, 5),  # one output, as at the top of every stack
    ((5, 5), 4, 2, 0, 3, 2),  # one output, and a row that no window reaches
    ((5, 4), 2, 1, 0, 3, 2),
    ((9, 8), 5, 1, 0, 2, 3),  # the input gradient in blocks
    ((12, 11), 5, 1, 0, 5, 3),  # and by lax
    ((8, 7), 4, 1, 2, 2, 3),
    ((10, 9), 4, 2, 0, 3, 2),
    ((13, 12), 4, 2, 1, 2, 3),
    ((13, 12), 7, 2, 0, 2, 2),
    ((11, 12), 5, 3, 1, 2, 3),
    ((8, 9), 1, 2, 0, 2, 3),  # a kernel smaller than the stride
    ((9, 8), 4, 1, 0, 32, 33),  # by Toom-Cook
]
TRANSPOSED = [
    ((7, 7), 1, 1, 0, 3, 2),
    ((1, 1), 4, 1, 0, 3, 2),
    ((4, 4), 4, 2, 0, 3, 2),
    ((7, 6), 4, 2, 1, 3, 2),
    ((3, 4), 5, 1, 2, 2, 3),
    ((6, 6), 5, 1, 0, 2, 5),
    ((5, 6), 7, 2, 0, 2, 3),
    ((2, 3), 2, 3, 0, 2, 2),
    ((6, 5), 4, 1, 0, 32, 33),
    ((9, 6), 5, 1, 0, 32, 33),
]
QUICK = {"xla_backend_optimization_level": 0}  # compiling is what takes the time here
PAIRS = [(conv, case) for case in CASES] + [(conv_transpose, case) for case in TRANSPOSED]


def name(case):
    (height, width), kernel, stride, padding, channels, features = case
    return f"{height}x{width}x{channels}-k{kernel}-s{stride}-p{padding}-{features}"


def operands(case, dtype):
    (height, width), k, _, _, channels, features = case
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, height, width, channels)), dtype)
    return x, jnp.asarray(rng.standard_normal((k, k, channels, features)), dtype)


def bind(function, case, lowering):
    _, _, stride, padding, _, _ = case
    return functools.partial(function, stride=stride, padding=padding, lowering=lowering)


def gradients(f, x, kernel):
    # The sine makes the cotangent depend on the point, as second derivatives need.
    return jax.grad(lambda x, kernel: jnp.sin(f(x, kernel)).sum(), (0, 1))(x, kernel)


def up_to_second_order(f, x, kernel):
    """Return value, both gradients, and the gradients of the gradients' squared norm."""

    def penalty(x, kernel):
        return sum((gradient**2).sum() for gradient in gradients(f, x, kernel))

    return f(x, kernel), gradients(f, x, kernel), jax.grad(penalty, (0, 1))(x, kernel)


@pytest.mark.parametrize(("function", "case"), PAIRS, ids=[f"{f.__name__}-{name(case)}" for f, case in PAIRS])
def test_cpu_and_gpu_equal_native_up_to_second_order(function, case):
    lowerings = ["native", "cpu", "gpu"]
    if case[2] > 1:  # at stride 1 the phases change nothing
        lowerings.append("+".join(("gpu", *convolutions.FORMS)))

    def each(x, kernel):
        forms = (bind(function, case, lowering) for lowering in lowerings)
        return [up_to_second_order(form, x, kernel) for form in forms]

    with jax.enable_x64(True):
        native, *others = map(
            jax.tree.leaves, jax.jit(each, compiler_options=QUICK)(*operands(case, jnp.float64))
        )
    for lowering, found in zip(lowerings[1:], others, strict=True):
        for expected, value in zip(native, found, strict=True):
            tolerance = 1e-12 * np.abs(expected).max()
            np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance, err_msg=lowering)


@pytest.mark.parametrize(("function", "case"), [(conv, CASES[9]), (conv_transpose, TRANSPOSED[3])])
def test_members_of_a_population_are_convolved_one_by_one_on_a_gpu(function, case):
    """`vmap` gives what each member gives, in second order too, and no grouped convolution."""
    f = functools.partial(up_to_second_order, bind(function, case, "gpu"))
    with jax.enable_x64(True):
        x, kernel = operands(case, jnp.float64)
        kernels = jnp.stack([kernel, 2 * kernel, -kernel])
        together = jax.vmap(f, (None, 0))
        both = jax.jit(lambda: (together(x, kernels), [f(x, k) for k in kernels]), compiler_options=QUICK)
        found, alone = jax.tree.map(np.asarray, both())
        jaxpr = jax.make_jaxpr(together)(x, kernels)
    for k, expected in enumerate(alone):
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(b[k], a, rtol=0, atol=1e-12 * np.abs(a).max())
    groups = [
        equation.params["feature_group_count"] * equation.params["batch_group_count"]
        for equation in equations(jaxpr.jaxpr)
        if equation.primitive.name == "conv_general_dilated"
    ]
    assert groups
    assert set(groups) == {1}


@pytest.mark.parametrize("lowering", ["native", "cpu", "gpu"])
def test_conv_transpose_is_the_adjoint_of_conv(lowering):
    def products(case):
        x, kernel = operands(case, jnp.float64)
        y = bind(conv_transpose, case, lowering)(x, kernel)
        other = jnp.asarray(np.random.default_rng(1).standard_normal(y.shape))
        back = bind(conv, case, lowering)(other, kernel.swapaxes(2, 3))
        return jnp.vdot(y, other), jnp.vdot(x, back)

    with jax.enable_x64(True):
        for left, right in jax.jit(lambda: [products(case) for case in TRANSPOSED], compiler_options=QUICK)():
            np.testing.assert_allclose(left, right, rtol=1e-10)


def test_conv_transpose_spreads_every_pixel_by_the_kernel():
    x, kernel = jnp.asarray([[[[1.0], [10.0]]]]), jnp.arange(9.0).reshape(3, 3, 1, 1)
    y = conv_transpose(x, kernel, stride=2)[0, :, :, 0]
    expected = [[0, 1, 2, 10, 20], [3, 4, 35, 40, 50], [6, 7, 68, 70, 80]]
    np.testing.assert_array_equal(y, np.asarray(expected, np.float32))


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def test_no_convolution_of_the_cpu_form_dilates_its_input():
    def dilated(function, case, lowering):
        f = functools.partial(up_to_second_order, bind(function, case, lowering))
        jaxpr = jax.make_jaxpr(f)(*operands(case, jnp.float32))
        convs = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "conv_general_dilated"]
        return [e for e in convs if e.params["lhs_dilation"] != (1, 1)]

    assert dilated(conv, ((10, 9), 4, 2, 0, 3, 2), "native")
    strided = [(function, case) for function, case in PAIRS if case[2] > 1]
    assert not [found for function, case in strided for found in dilated(function, case, "cpu")]


def shapes_of(function, lowering, case, dtype=jnp.float32):
    """Return (x, kernel, strides, dilations of both) of the convolutions of the value and its gradients."""
    f = bind(function, case, lowering)
    jaxpr = jax.make_jaxpr(lambda x, kernel: (f(x, kernel), gradients(f, x, kernel)))(*operands(case, dtype))
    found = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "conv_general_dilated"]
    numbers = ("window_strides", "lhs_dilation", "rhs_dilation")
    return [(*(v.aval.shape for v in e.invars), *(e.params[n] for n in numbers)) for e in found]


STRIDED = ((10, 9), 4, 2, 1, 3, 2)


@pytest.mark.parametrize(
    ("lowering", "kinds"),
    [
        ("gpu", ["forward", "of kernel", "of x"]),
        ("gpu+kernel_phases", ["forward", "of x", "plain"]),
        ("gpu+input_phases", ["forward", "of kernel", "plain"]),
        ("gpu+input_phases+kernel_phases", ["forward", "plain", "plain"]),
    ],
)
def test_phases_take_strides_out_of_gradients(lowering, kinds):
    kind = {
        ((2, 2), (1, 1), (1, 1)): "forward",
        ((1, 1), (2, 2), (1, 1)): "of x",
        ((1, 1), (1, 1), (2, 2)): "of kernel",
        ((1, 1), (1, 1), (1, 1)): "plain",
    }
    found = set(shapes_of(conv, lowering, STRIDED))  # the value is there twice
    assert sorted(kind[tuple(numbers)] for _, _, *numbers in found) == kinds


@pytest.mark.parametrize(("dtype", "maps"), [(jnp.float32, 4), (jnp.bfloat16, 8)])
def test_maps_are_filled_up_to_sixteen_bytes(dtype, maps):
    """No other axis has three elements: two images of 10x9, a kernel of 4x4, and an output of 5x4x2."""
    plain, filled = (shapes_of(conv, lowering, STRIDED, dtype) for lowering in ("gpu", "gpu+padded_maps"))
    assert any(3 in x + w for x, w, *_ in plain)
    assert not any(3 in x + w for x, w, *_ in filled)
    assert filled[0][0] == (2, 10, 9, maps)


def test_a_table_gives_forms_layer_by_layer(tmp_path, monkeypatch):
    name = convolutions.layer_name((10, 9, 3), (4, 4, 3, 2), stride=2, padding=1, dtype=jnp.float32)
    assert name == "10x9x3 k4 s2 p1 2 float32"
    table = tmp_path / "forms.json"
    monkeypatch.setattr(convolutions, "TABLE", table)
    assert lowering_for("cuda") == "gpu"
    with pytest.raises(ValueError, match=r"needs the file .*forms\.json, which is missing; use 'gpu'"):
        shapes_of(conv, "gpu+table", STRIDED)
    table.write_text(json.dumps({"device": "a card", "layers": {name: ["kernel_phases"]}}))
    assert lowering_for("cuda") == "gpu+table"
    assert shapes_of(conv, "gpu+table", STRIDED) == shapes_of(conv, "gpu+kernel_phases", STRIDED)
    other = ((10, 9), 5, *STRIDED[2:])
    assert shapes_of(conv, "gpu+table", other) == shapes_of(conv, "gpu", other)
    # A transposed convolution has the name of its adjoint: that with the larger image as its input.
    height, width = (2 * (n - 1) + 4 - 2 for n in (5, 4))
    assert (height, width) == (10, 8)
    up = ((5, 4), 4, 2, 1, 2, 3)
    name = convolutions.layer_name((10, 8, 3), (4, 4, 3, 2), stride=2, padding=1, dtype=jnp.float32)
    table = tmp_path / "another.json"
    monkeypatch.setattr(convolutions, "TABLE", table)
    table.write_text(json.dumps({"layers": {name: ["input_phases"]}}))
    assert shapes_of(conv_transpose, "gpu+table", up) == shapes_of(conv_transpose, "gpu+input_phases", up)
    table = tmp_path / "wrong.json"
    monkeypatch.setattr(convolutions, "TABLE", table)
    table.write_text(json.dumps({"layers": {name: ["winograd"]}}))
    with pytest.raises(ValueError, match="has the forms winograd; known are kernel_phases"):
        shapes_of(conv_transpose, "gpu+table", up)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_cpu_keeps_the_dtype_and_its_precision(dtype):
    case = ((9, 9), 4, 1, 0, 32, 32)
    x, kernel = operands(case, dtype)

    def value_and_pullback(lowering, x, kernel):
        y, pullback = jax.vjp(bind(conv, case, lowering), x, kernel)
        return y, *pullback(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype))

    found = jax.jit(functools.partial(value_and_pullback, "cpu"), compiler_options=QUICK)(x, kernel)
    expected = value_and_pullback("native", x.astype(jnp.float32), kernel.astype(jnp.float32))
    tolerance = 4e-6 if dtype == jnp.float32 else 4e-3  # bfloat16 rounds to 2^-9
    for a, b in zip(expected, found, strict=True):
        assert b.dtype == dtype
        assert np.linalg.norm(b.astype(np.float32) - a) <= tolerance * np.linalg.norm(a)


def test_native_has_a_forward_mode():
    case = ((7, 6), 4, 2, 0, 2, 3)
    for function in (conv, conv_transpose):
        f, (x, kernel) = bind(function, case, "native"), operands(case, jnp.float32)
        _, tangent = jax.jvp(lambda x, f=f, kernel=kernel: f(x, kernel), (x,), (x,))
        np.testing.assert_allclose(tangent, f(x, kernel), rtol=1e-6, atol=1e-6)  # linear: its own derivative


def test_lowering_follows_the_platform():
    assert lowering_for("cpu") == "cpu"
    assert [lowering_for(platform) for platform in ("gpu", "cuda", "rocm")] == ["gpu"] * 3
    assert lowering_for("tpu") == "native"
    assert lowering_for("cuda", "native") == "native"


def test_compiler_options_are_accepted_on_cpu_and_empty_elsewhere():
    assert compiler_options("gpu") == compiler_options("tpu") == {}
    options = compiler_options("cpu")
    x, kernel = operands(((5, 5), 2, 1, 0, 2, 2), jnp.float32)
    np.testing.assert_allclose(
        jax.jit(conv, compiler_options=options)(x, kernel), conv(x, kernel), rtol=1e-5, atol=1e-5
    )
    options["mine"] = 1
    assert "mine" not in compiler_options("cpu")


def test_compiler_options_leave_out_what_this_jaxlib_does_not_know(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("No such compile option")

    monkeypatch.setattr(jax, "jit", refuse)
    assert convolutions._cpu_options.__wrapped__() == {}


@pytest.mark.parametrize(
    ("function", "case", "is_native"),
    [
        (conv, ((16, 16), 3, 1, 1, 16, 16), True),
        (conv, ((16, 16), 3, 1, 0, 16, 16), False),
        (conv, ((4, 4), 3, 1, 1, 16, 16), False),
        (conv, ((16, 16), 4, 1, 1, 64, 64), False),
        (conv, ((16, 16), 5, 1, 1, 16, 16), False),
        (conv, ((16, 16), 5, 1, 2, 16, 16), True),
        (conv, ((16, 16), 5, 1, 2, 64, 64), False),  # by Toom-Cook
        (conv, ((8, 8), 5, 1, 2, 64, 64), True),
        (conv, ((4, 4), 5, 1, 2, 64, 64), False),
        (conv, ((16, 16), 5, 1, 2, 3, 16), False),
        (conv, ((16, 16), 1, 1, 0, 32, 32), False),
        (conv, ((16, 16), 3, 2, 1, 32, 32), False),
        (conv_transpose, ((16, 16), 3, 1, 1, 32, 16), True),
        (conv_transpose, ((4, 4), 3, 1, 1, 32, 16), True),
        (conv_transpose, ((2, 2), 3, 1, 1, 32, 16), False),
        (conv_transpose, ((16, 16), 3, 1, 1, 32, 3), False),
        (conv_transpose, ((16, 16), 4, 1, 1, 64, 64), False),
        (conv_transpose, ((8, 8), 4, 2, 1, 64, 64), False),
        (conv_transpose, ((8, 8), 3, 2, 1, 64, 64), False),
    ],
)
def test_a_cpu_computes_natively_the_layers_for_which_its_forms_lose(function, case, is_native):
    """Where an odd kernel keeps the size at stride 1, native is faster, and so it is the program of "cpu"."""
    cpu, native = (
        str(jax.make_jaxpr(functools.partial(f, *operands(case, jnp.float32)))())
        for f in (bind(function, case, "cpu"), bind(function, case, "native"))
    )
    assert (cpu == native) == is_native


@pytest.mark.parametrize(
    ("function", "x", "kernel", "options", "message"),
    [
        (conv, (1, 5, 5, 2), (3, 3, 4, 1), {}, "same C"),
        (conv, (1, 5, 5, 2), (3, 2, 2, 1), {}, "k, k, C, F"),
        (conv, (5, 5, 2), (3, 3, 2, 1), {}, "B, H, W, C"),
        (conv, (1, 5, 5, 2), (7, 7, 2, 1), {}, "use a smaller kernel"),
        (conv, (1, 5, 5, 2), (3, 3, 2, 1), {"stride": 0}, "stride >= 1"),
        (conv_transpose, (1, 5, 5, 2), (3, 3, 2, 1), {"padding": -1}, "padding >= 0"),
        (conv_transpose, (1, 1, 1, 2), (4, 4, 2, 1), {"padding": 2}, "use a smaller padding"),
        (conv_transpose, (1, 5, 5, 2), (3, 3, 2, 1), {"lowering": "tpu"}, "choose one of"),
        (conv, (1, 5, 5, 2), (3, 3, 2, 1), {"lowering": "cpu+kernel_phases"}, "choose one of"),
        (conv, (1, 5, 5, 2), (3, 3, 2, 1), {"lowering": "gpu+phases"}, "kernel_phases, input_phases"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(function, x, kernel, options, message):
    with pytest.raises(ValueError, match=message):
        function(jnp.zeros(x), jnp.zeros(kernel), **options)


def test_mixed_dtypes_are_refused():
    with pytest.raises(ValueError, match="cast one"):
        conv(jnp.zeros((1, 5, 5, 2)), jnp.zeros((3, 3, 2, 1), jnp.bfloat16))


def test_a_cut_keeps_elementwise_work_out_of_what_reads_it():
    def gradient(x, lowering):
        rows = lambda x: jnp.sum(jnp.sin(cut(jnp.exp(x), lowering)), axis=0)  # noqa: E731
        y, pullback = jax.vjp(rows, x)
        return y, *pullback(y)

    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 8)), jnp.float32)
    options = compiler_options("cpu")
    assert "xla_disable_hlo_passes" in options
    programs = {
        lowering: jax.jit(functools.partial(gradient, lowering=lowering), compiler_options=options)
        .lower(x)
        .compile()
        for lowering in ("native", "cpu")
    }
    cuts = {lowering: program.as_text().count("opt-barrier(") for lowering, program in programs.items()}
    assert cuts == {"native": 0, "cpu": 2}  # one forward, one backward
    for expected, found in zip(programs["native"](x), programs["cpu"](x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
