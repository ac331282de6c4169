"""Configurations: reading, building on one another, overriding, and refusing."""

import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from wholegrain.config import config, dump_config, from_dict, load_config, to_dict
from wholegrain.errors import ConfigError


@config
class Circle:
    kind: Literal["circle"] = "circle"
    radius: float = 1.0
    """In pixels."""
    filled: bool = False


@config
class Rectangle:
    kind: Literal["rectangle"] = "rectangle"
    sides: tuple[int, int] = (2, 3)


@config
class Run:
    batch_size: int = Field(default=8, gt=0)
    rate: float = 1e-4
    name: str = "run"
    out: Path = Path("runs")


@config
class Corpus:
    path: str
    per_batch: int = 0


@config
class Whole:
    run: Run = Field(default_factory=Run)
    shape: Annotated[Circle | Rectangle, Field(discriminator="kind")] = Field(
        default_factory=Circle
    )
    corpora: tuple[Corpus, ...] = ()
    note: str | None = None

    def __post_init__(self) -> None:
        if self.run.batch_size == 13:
            raise ConfigError("run.batch_size is 13; choose another")


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(text: str, name: str = "a.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return make


def refused(values: dict[str, Any], *parts: str) -> str:
    """The message that refuses values; it must hold the parts."""
    with pytest.raises(ConfigError) as caught:
        from_dict(Whole, values, where="a.yaml")
    message = str(caught.value)
    for part in ("a.yaml: ", *parts):
        assert part in message
    return message


def test_defaults_and_values(write: Write) -> None:
    loaded = load_config(Whole, write("run: {batch_size: 4, out: there}\nnote: hello"))
    assert loaded == Whole(run=Run(batch_size=4, out=Path("there")), note="hello")
    assert load_config(Whole, write("")) == Whole()


def test_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Run().batch_size = 3  # type: ignore[misc]


def test_field_docstrings_are_descriptions() -> None:
    assert Circle.__pydantic_fields__["radius"].description == "In pixels."  # type: ignore[attr-defined]


def test_unknown_key_names_file_key_and_nearest_name() -> None:
    refused({"run": {"batch_sise": 4}}, "unknown key 'run.batch_sise'", "mean 'batch_size'?")
    refused({"rum": {}}, "unknown key 'rum'; did you mean 'run'?")


def test_unknown_key_without_a_neighbour_lists_the_valid_ones() -> None:
    refused({"run": {"zzz": 1}}, "'run.zzz'; valid keys: batch_size, name, out, rate")


def test_unknown_key_inside_a_union_and_a_list() -> None:
    message = refused({"shape": {"kind": "circle", "radios": 1}}, "'shape.radios'", "'radius'?")
    assert "circle.radios" not in message, "the tag is no level of the user's file"
    refused({"corpora": [{"path": "x", "pth": "y"}]}, "'corpora.0.pth'; did you mean 'path'?")


def test_every_fault_is_told_at_once() -> None:
    message = refused({"run": {"batch_size": "abc", "zzz": 1}, "note": 3})
    assert len(message.splitlines()) == 3


@pytest.mark.parametrize("value", [True, False, "abc", "8", 1.5, None, [8], float("inf")])
def test_an_integer_is_nothing_else(value: object) -> None:
    refused({"run": {"batch_size": value}}, "'run.batch_size' is ", "integer")


@pytest.mark.parametrize("value", [True, "fast", None, float("nan"), float("-inf")])
def test_a_float_is_a_finite_number(value: object) -> None:
    refused({"run": {"rate": value}}, "'run.rate' is ", "number")


@pytest.mark.parametrize("value", [1, 0, "yes", "true"])
def test_a_boolean_is_nothing_else(value: object) -> None:
    refused({"shape": {"kind": "circle", "filled": value}}, "'shape.filled' is ", "boolean")


def test_a_string_is_no_number() -> None:
    refused({"run": {"name": 3}}, "'run.name' is 3")


def test_an_integer_is_a_float_too() -> None:
    assert from_dict(Run, {"rate": 1}).rate == 1.0


def test_constructors_are_as_strict() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        Run(batch_size=True)


def test_bounds_and_missing_values() -> None:
    refused({"run": {"batch_size": 0}}, "'run.batch_size' is 0", "greater than 0")
    refused({"corpora": [{}]}, "'corpora.0.path' is missing; add it")


def test_a_classes_own_check_names_the_file() -> None:
    refused({"run": {"batch_size": 13}}, "a.yaml: run.batch_size is 13; choose another")


def test_what_json_cannot_hold() -> None:
    loop: dict[str, Any] = {}
    loop["run"] = loop
    refused(loop, "plain values")
    refused({1: 2}, "unknown key '1'")  # type: ignore[dict-item]


def test_unions_follow_their_kind() -> None:
    chosen = from_dict(Whole, {"shape": {"kind": "rectangle", "sides": [4, 5]}}).shape
    assert chosen == Rectangle(sides=(4, 5))
    refused({"shape": {"kind": "rectangle", "radius": 1}}, "'shape.radius'", "kind, sides")
    refused({"shape": {"kind": "star"}}, "'shape' is ", "'circle', 'rectangle'")
    refused({"shape": {"radius": 2}}, "'shape' does not say which kind", "`shape.kind`")


def test_overrides(write: Write) -> None:
    path = write("run: {batch_size: 4, name: a}")
    loaded = load_config(
        Whole,
        path,
        [
            "--run.batch_size=16",
            "run.rate=3e-5",
            "--note=x=y",
            "--run.name=b=c",
        ],
    )
    assert loaded.run == Run(batch_size=16, rate=3e-5, name="b=c")
    assert loaded.note == "x=y"


def test_override_with_null_lists_and_mappings(write: Write) -> None:
    path = write("note: x\ncorpora: [{path: a, per_batch: 3}, {path: b}]")
    assert load_config(Whole, path, ["--note=null"]).note is None
    whole = load_config(Whole, path, ["--corpora=[{path: c}]", "--run={batch_size: 2}"])
    assert whole.corpora == (Corpus("c"),)
    assert whole.run.batch_size == 2


def test_override_of_one_element(write: Write) -> None:
    path = write("corpora: [{path: a, per_batch: 3}, {path: b}]")
    loaded = load_config(Whole, path, ["--corpora.0.path=z", "--corpora.1.per_batch=5"])
    assert loaded.corpora == (Corpus("z", 3), Corpus("b", 5))
    with pytest.raises(ConfigError, match="no element 2 in a list of 2"):
        load_config(Whole, path, ["--corpora.2.path=z"])


def test_override_of_the_kind_drops_the_old_kinds_fields(write: Write) -> None:
    path = write("shape: {kind: circle, radius: 3}")
    assert load_config(Whole, path, ["--shape.kind=rectangle"]).shape == Rectangle()
    assert load_config(Whole, path, ["--shape.kind=circle"]).shape == Circle(radius=3)


@pytest.mark.parametrize("swap", [False, True])
def test_kind_and_fields_come_in_any_order(write: Write, swap: bool) -> None:
    overrides = ["--shape.kind=circle", "--shape.radius=5"]
    loaded = load_config(Whole, write(""), overrides[::-1] if swap else overrides)
    assert loaded.shape == Circle(radius=5)


def test_wrong_overrides_are_named(write: Write) -> None:
    path = write("")
    for override in ("--run.batch_size", "--=3", "stray"):
        with pytest.raises(ConfigError, match=re.escape(repr(override))):
            load_config(Whole, path, [override])
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(Whole, path, ["--note=[1"])
    with pytest.raises(ConfigError, match=r"a\.yaml.*'run\.batch'; did you mean 'batch_size'"):
        load_config(Whole, path, ["--run.batch=3"])


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "+1e-4", ".1e-3"])
def test_exponents_are_numbers(write: Write, text: str) -> None:
    assert load_config(Whole, write(f"run: {{rate: {text}}}")).run.rate == pytest.approx(1e-4)
    assert load_config(Whole, write(""), [f"--run.rate={text}"]).run.rate == pytest.approx(1e-4)


def test_text_that_looks_like_an_exponent_stays_text(write: Write) -> None:
    assert load_config(Whole, write("note: e5\n")).note == "e5"
    assert load_config(Whole, write("note: 1e-4b\n")).note == "1e-4b"


def test_defaults_chain(write: Write) -> None:
    write("run: {batch_size: 2, name: low}\nshape: {kind: circle, radius: 2}", "base/low.yaml")
    write("defaults: low.yaml\nrun: {name: middle}", "base/middle.yaml")
    top = write("defaults: base/middle.yaml\nshape: {kind: circle, filled: true}")
    assert load_config(Whole, top) == Whole(
        run=Run(batch_size=2, name="middle"), shape=Circle(radius=2, filled=True)
    )
    other = write("defaults: base/middle.yaml\nshape: {kind: rectangle}", "b.yaml")
    assert load_config(Whole, other).shape == Rectangle()


def test_defaults_that_never_end(write: Write) -> None:
    path = write("defaults: a.yaml")
    with pytest.raises(ConfigError, match=r"a\.yaml: `defaults` files form a chain of over 5"):
        load_config(Whole, path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: [", "not valid YAML"),
        ("- 1\n- 2", "holds a list"),
        ("just text", "holds a str"),
        ("run: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("defaults: absent.yaml", r"absent\.yaml: cannot be read"),
    ],
)
def test_broken_files_are_named(write: Write, text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=rf"\.yaml.*{match}|{match}"):
        load_config(Whole, write(text))


def test_not_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"b\.yaml: not valid YAML"):
        load_config(Whole, path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(Whole, tmp_path)


@pytest.mark.parametrize(
    "whole",
    [
        Whole(),
        Whole(shape=Rectangle(sides=(7, 8)), corpora=(Corpus("ä", 2),), note="1e-4: yes"),
        Whole(run=Run(rate=1e-7, name="true", out=Path("a/b"))),
    ],
)
def test_dump_is_read_back(write: Write, whole: Whole) -> None:
    assert load_config(Whole, write(dump_config(whole))) == whole
    assert from_dict(Whole, to_dict(whole)) == whole
    assert "batch_size: 8" in dump_config(whole), "defaults are shown"
