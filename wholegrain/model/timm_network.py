"""Networks of timm by name: built from nothing, never fetched and never read from a file.

A configuration may come with a release of someone else's. timm's factory fetches a name such as
``hf-hub:owner/name`` and opens the file of an argument such as ``checkpoint_path``; so of a
configuration it gets a plain name and arguments of the network, and nothing else.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from wholegrain.errors import ConfigError

_PLAIN = re.compile(r"\w+(\.\w+)?", re.ASCII)  # an architecture, and perhaps the tag of its weights
# What timm's `create_model` and `build_model_with_cfg` take for themselves, and do not hand on to
# the network: where weights come from, what is built in place of what is named, files of timm's
# own (`pruned`), and the stages, which are another setting. All is denied, not what is known to
# fetch or to read alone; what a later timm adds is asked of its signatures before it is called.
FACTORY_ARGUMENTS = frozenset(
    {
        "model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path",
        "cache_dir", "scriptable", "exportable", "no_jit", "kwargs",
        "model_cls", "variant", "model_cfg", "feature_cfg", "pretrained_strict",
        "pretrained_filter_fn", "kwargs_filter", "pretrained_model_args",
        "pruned", "features_only", "out_indices",
    }
)  # fmt: skip


def check_plain(name: str, options: Mapping[str, Any]) -> None:
    """Refuses what could make timm fetch or read something; does not import it to pass.

    Raises:
        ConfigError: `name` is no plain name, or `options` hold an argument of timm's factory.
    """
    if not _PLAIN.fullmatch(name):
        raise ConfigError(
            f"vision.name is {name!r:.120}, which is no plain name of a timm model, and nothing is "
            f"fetched or read for it; {_nearest(name)}"
        )
    _check_options(options, FACTORY_ARGUMENTS)


def make_network(
    name: str,
    options: Mapping[str, Any],
    stages: Sequence[int],
    remedy: str,
    **fixed: Any,
) -> tuple[Any, list[int], list[int]]:
    """A network of timm that gives feature maps, with fresh weights.

    Args:
        name: in timm.
        options: arguments of the network that a configuration names.
        stages: timm's indices of the feature maps to keep.
        remedy: what the message of an error advises.
        fixed: arguments of the network that no configuration changes.

    Returns:
        The network; channels and strides of its feature maps.

    Raises:
        ConfigError: timm has no such network, or cannot make it so.
    """
    check_plain(name, options)
    import timm

    if not timm.is_model(name):
        raise ConfigError(f"vision.name is {name!r}, which timm does not have; {_nearest(name)}")
    factories = (timm.create_model, timm.models.build_model_with_cfg)
    _check_options(options, {each for f in factories for each in inspect.signature(f).parameters})
    try:
        network: Any = timm.create_model(
            name, pretrained=False, features_only=True, out_indices=stages, **fixed, **options
        )
        info = network.feature_info
        return network, list(info.channels()), list(info.reduction())
    except Exception as error:  # whatever a network makes of arguments that it was not written for
        raise ConfigError(
            f"vision.name is {name!r} with stages {tuple(stages)} and options {dict(options)}: "
            f"{type(error).__name__}: {error}; {remedy}"
        ) from error


def _check_options(options: Mapping[str, Any], denied: frozenset[str] | set[str]) -> None:
    for key, value in options.items():
        if key in denied:
            raise ConfigError(
                f"vision.options.{key} is {value!r:.120}, which timm takes for its factory and not "
                "for the network; leave it out: weights come with a release, and nothing is "
                "fetched or read beside it"
            )


def _nearest(name: str) -> str:
    """The names of timm that are meant, perhaps."""
    import timm

    wanted = re.split(r"[:/\\]", name)[-1].partition(".")[0][:80]
    near = difflib.get_close_matches(wanted, timm.list_models(), n=3)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else "see timm.list_models()"
