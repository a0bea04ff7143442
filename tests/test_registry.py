from __future__ import annotations

import contextlib
import string
import subprocess
import sys
import textwrap

import made_up_kernels
import pytest
import torch
from torch import nn

from normbench import registry
from normbench.registry import Param, RegistryError


@pytest.fixture
def catalogue(monkeypatch):
    """The catalogue, restored afterwards."""
    registry.list_methods()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setattr(registry, "_BROKEN_PLUGINS", {})
    return registry._METHODS


class Layer(nn.Module):
    """Does nothing.

    At length.
    """

    def __init__(self, num_features, *, act=None, strength: float = 0.5, mode: str = "a"):
        super().__init__()


PARAMS = {
    "strength": Param("how much", minimum=0, maximum=1, exclusive_minimum=False),
    "mode": Param("which way", str, choices=("a", "b")),
}


def enter(name="new_method", builder=Layer, **changes):
    arguments = {"title": "T", "family": "test", "equation": "y = x", "params": PARAMS} | changes
    return registry.register(name, **arguments)(builder)


def test_the_first_methods_are_there():
    assert set(registry.list_methods()) >= {
        "none", "batch_norm", "batch_renorm", "moving_average_norm", "group_norm",
        "layer_norm_chw", "layer_norm_channels", "instance_norm", "proxy_norm",
        "weight_standardization",
    }  # fmt: skip


def test_list_by_family():
    assert registry.list_methods("layer") == [
        "layer_norm_channels", "layer_norm_chw", "layer_norm_chw_triton", "rms_norm",
    ]  # fmt: skip


def test_a_registered_method_is_built_with_its_defaults(catalogue):
    enter()
    assert isinstance(registry.build("new_method", 4), Layer)
    assert registry.get("new_method").summary == "Does nothing."
    assert registry.resolve_params("new_method") == {"strength": 0.5, "mode": "a"}


def test_a_taken_name_is_refused(catalogue):
    with pytest.raises(RegistryError, match=r"already registered by .*\.group_norm"):
        enter("group_norm")


def test_registering_the_same_builder_again_is_a_reload(catalogue):
    enter()
    enter()


@pytest.mark.parametrize("name", ["NewMethod", "new-method", "2nd", ""])
def test_names_are_snake_case(catalogue, name):
    with pytest.raises(RegistryError, match="lower_snake_case"):
        enter(name)


def test_signature_and_params_must_name_the_same(catalogue):
    with pytest.raises(RegistryError, match="the signature has"):
        enter(params={"strength": Param("how much")})


def test_who_fuses_the_residual_consumes_the_activation_after_it(catalogue):
    with pytest.raises(RegistryError, match="fuses_residual needs consumes_activation"):
        enter(fuses_residual=True)


def test_a_parameter_without_default_is_refused(catalogue):
    def builder(num_features, *, act=None, strength):
        return Layer(num_features)

    with pytest.raises(RegistryError, match=r"without a default: \['strength'\]"):
        enter(builder=builder, params={"strength": PARAMS["strength"]})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: registry.get("batchnorm"), "did you mean 'batch_norm'?"),
        (lambda: registry.get("xyzzy"), "valid: adaptive_batch_norm"),
        (lambda: registry.build("group_norm", 8, grups=4), "did you mean 'groups'?"),
        (lambda: registry.build("group_norm", 8, groups=0), "groups is 0; expected ≥ 1"),
        (lambda: registry.build("group_norm", 8, groups=1.5), "is 1.5; expected int"),
        (lambda: registry.build("group_norm", 8, groups=True), "is True; expected int"),
        (lambda: registry.build("batch_norm", 8, eps=0.0), "eps is 0.0; expected > 0"),
        (lambda: registry.build("batch_norm", 8, eps=float("nan")), "eps is nan; expected > 0"),
        (lambda: registry.build("batch_renorm", 8, rmax=float("inf")), "rmax is inf; expected ≥ 1"),
        (lambda: registry.build("batch_norm", 8, momentum=2), "momentum is 2.0; expected 0 to 1"),
        (lambda: registry.build("batch_norm", 8, affine=1), "affine is 1; expected bool"),
        (lambda: registry.build("batch_norm", 8, momentum=None), "is None; expected float"),
        (
            lambda: registry.build("batch_renorm", 8, schedule="epochs"),
            "of 'steps', 'fraction'",
        ),
        (lambda: registry.build("batch_norm", 0), "num_features is 0"),
    ],
)
def test_mistakes_end_with_a_sentence(call, message):
    with pytest.raises(RegistryError) as caught:
        call()
    assert message in str(caught.value)


def test_a_parameter_is_stored_in_its_own_type():
    assert isinstance(registry.resolve_params("batch_norm", {"eps": 1})["eps"], float)
    assert isinstance(registry.resolve_params("group_norm", {"groups": 8.0})["groups"], int)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "group_norm"),
        ({"groups": 32}, "group_norm"),
        ({"groups": 8, "eps": 1e-3}, "group_norm(eps=0.001, groups=8)"),
    ],
)
def test_variant_shows_what_differs_from_the_defaults(given, text):
    assert registry.variant("group_norm", given) == text


@pytest.mark.parametrize(
    "text",
    ["", "group norm", "group_norm(8)", "group_norm(groups=8", "a.b", "f(x=y.z)", "f(x={[]: 1})",
     "group_norm(groups=8)(eps=1)", "f(x=\0)", "lambda: 0"],
)  # fmt: skip
def test_text_that_is_no_variant_is_refused(text):
    with pytest.raises(RegistryError, match="expected name or name"):
        registry.parse_variant(text)


def test_a_parameter_given_twice_is_refused():
    with pytest.raises(RegistryError, match="gives a parameter twice"):
        registry.parse_variant("group_norm(groups=8, groups=4)")


def test_any_variant_is_read_back_as_it_was():
    hypothesis = pytest.importorskip("hypothesis", reason="property test needs hypothesis")
    st = hypothesis.strategies

    def values(param: Param) -> st.SearchStrategy:
        if param.choices:
            return st.sampled_from(param.choices)
        if param.kind is bool:
            return st.booleans()
        low = param.minimum
        high = param.maximum if param.maximum is not None else 10_000
        if param.kind is int:
            return st.integers(int(low or 0), int(high))
        return st.floats(
            low, high, exclude_min=param.exclusive_minimum, allow_nan=False, allow_infinity=False
        )

    @hypothesis.given(st.data())
    def round_trip(data):
        name = data.draw(st.sampled_from(registry.list_methods()))
        params = registry.get(name).params
        chosen = data.draw(st.sets(st.sampled_from(sorted(params)))) if params else set()
        given = {key: data.draw(values(params[key])) for key in sorted(chosen)}
        parsed_name, parsed = registry.parse_variant(registry.variant(name, given))
        assert parsed_name == name
        assert registry.resolve_params(name, parsed) == registry.resolve_params(name, given)

    round_trip()


def test_any_text_is_read_or_refused():
    hypothesis = pytest.importorskip("hypothesis", reason="property test needs hypothesis")
    st = hypothesis.strategies

    @hypothesis.given(st.text(string.printable))
    def never_another_error(text):
        with contextlib.suppress(RegistryError):
            registry.parse_variant(text)

    never_another_error()


def plugin(tmp_path, name, source):
    """A distribution with one entry point, on the path."""
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
    info = tmp_path / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[normbench.methods]\n{name} = {name}\n")


def test_a_plugin_adds_its_method(catalogue, tmp_path, monkeypatch):
    plugin(
        tmp_path,
        "plugged_norm",
        '''
        from torch import nn
        from normbench.registry import register

        @register("plugged_norm", title="P", family="test", equation="y = x")
        class Plugged(nn.Module):
            """From elsewhere."""
            def __init__(self, num_features, *, act=None):
                super().__init__()
        ''',
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry._load_all.cache_clear()
    assert "plugged_norm" in registry.list_methods()
    assert registry.get("plugged_norm").module == "plugged_norm"
    assert len(registry.get("plugged_norm").code_hash()) == 16


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError"),
        ("raise SystemError('no')", "SystemError: no"),
        (
            "from normbench.registry import register\n"
            "register('group_norm', title='', family='', equation='')(lambda c, act=None: None)",
            "already registered",
        ),
    ],
)
def test_a_broken_plugin_costs_only_itself(catalogue, tmp_path, monkeypatch, source, reason):
    name = f"broken_norm_{abs(hash(source))}"
    plugin(tmp_path, name, source)
    monkeypatch.syspath_prepend(tmp_path)
    registry._load_all.cache_clear()
    with pytest.warns(UserWarning, match=f"plugin '{name}' .* did not load"):
        names = registry.list_methods()
    assert "batch_norm" in names
    with pytest.raises(RegistryError, match=f"broken plugin: .*{reason}"):
        registry.get(name)


def test_the_catalogue_loads_without_the_heavy_packages():
    code = (
        "import sys; from normbench import registry; registry.list_methods();"
        "print([m for m in ('polars', 'pydantic', 'wandb', 'datasets', 'typer', 'timm', 'triton')"
        " if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_a_method_without_kernels_has_nothing_to_fall_back_from():
    cpu = torch.device("cpu")
    assert registry.get("batch_norm").why_eager(cpu, torch.float32) == ""


@pytest.mark.parametrize(
    ("device", "dtype", "why"),
    [
        ("cpu", torch.float32, made_up_kernels.NO_CUDA),
        ("cuda", torch.bfloat16, ""),
        ("cuda", torch.float64, "no kernels for torch.float64"),
    ],
)
def test_a_method_with_kernels_says_where_they_do_not_run(catalogue, device, dtype, why):
    info = registry.get(made_up_kernels.register())
    assert info.why_eager(torch.device(device), dtype) == why


def test_an_answer_that_cannot_be_had_counts_as_a_fallback(catalogue):
    info = registry.get(made_up_kernels.register(made_up_kernels.breaks))
    why = info.why_eager(torch.device("cpu"), torch.float32)
    assert why == "it is not known whether its kernels run: KeyError: 'cpu'"
