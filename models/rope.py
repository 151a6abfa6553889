"""Rotary position embedding as a configuration: which type, with which numbers. `layers/rotary.py` computes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from models.errors import InvalidConfig, UnsupportedModel
from models.fields import Fields, shown

DEFAULT_THETA = 10_000.0


class RopeType(StrEnum):
    DEFAULT = "default"  #: No scaling.
    LINEAR = "linear"  #: All frequencies divided by the factor.
    DYNAMIC = "dynamic"  #: NTK: the base grows with the sequence, once it is past max_position_embeddings.
    LLAMA3 = "llama3"  #: Low frequencies divided by the factor, high ones kept, a ramp between.
    YARN = "yarn"  #: As llama3 with another ramp, and cosine and sine scaled by the attention factor.


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Fields that a type does not use keep their neutral value."""

    type: RopeType = RopeType.DEFAULT
    theta: float = DEFAULT_THETA
    factor: float = 1.0
    #: Length that the model was trained at before it was stretched; llama3 and yarn.
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    #: Scales cosine and sine.
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    #: Whether the ends of yarn's ramp are rounded to whole dimensions.
    truncate: bool = True


#: What `rope_parameters` may hold. Keys that a type does not use are allowed, since transformers allows them.
_KNOWN_KEYS = frozenset(
    {
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "factor",
        "finetuned",
        "high_freq_factor",
        "low_freq_factor",
        "mscale",
        "mscale_all_dim",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "rope_theta",
        "rope_type",
        "truncate",
        "type",
    }
)


def read_rope(config: Fields, max_position_embeddings: int) -> Rope:
    """Read `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta` (before), as transformers 5.23 does.

    Raises InvalidConfig and UnsupportedModel, naming the field.
    """
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    scaling = config.section(key) or Fields({}, key)
    _refuse_partial_rotation(config, "partial_rotary_factor")
    _refuse_partial_rotation(scaling, f"{key}.partial_rotary_factor")
    unknown = sorted(name for name in scaling if name not in _KNOWN_KEYS and name in scaling)
    if unknown:
        raise UnsupportedModel(
            f"config.json: {key}.{unknown[0]} is {shown(scaling.get(unknown[0]))}, which is not supported. "
            f"Supported are one object for all layers and the keys {', '.join(sorted(_KNOWN_KEYS))}."
        )
    theta = scaling.number("rope_theta", config.number("rope_theta", DEFAULT_THETA))
    if theta == 1.0:
        scaling.fail("rope_theta", "other than 1")
    name = scaling.text("rope_type", scaling.text("type", RopeType.DEFAULT))
    if name not in set(RopeType):
        raise UnsupportedModel(
            f"config.json: {key}.rope_type is {name!r}; supported are {', '.join(map(repr, RopeType))}."
        )
    match RopeType(name):
        case RopeType.DEFAULT:
            return Rope(theta=theta)
        case RopeType.LINEAR | RopeType.DYNAMIC as rope_type:
            return Rope(type=rope_type, theta=theta, factor=_factor(scaling))
        case RopeType.LLAMA3:
            return _read_llama3(config, scaling, theta, max_position_embeddings)
        case RopeType.YARN:
            return _read_yarn(config, scaling, theta, max_position_embeddings)


def _factor(scaling: Fields, default: float | None = None) -> float:
    return scaling.number("factor", default, minimum=1.0, above=False)


def _read_llama3(config: Fields, scaling: Fields, theta: float, max_position_embeddings: int) -> Rope:
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if high <= low:
        scaling.fail("high_freq_factor", f"above low_freq_factor ({low:g})")
    return Rope(
        type=RopeType.LLAMA3,
        theta=theta,
        factor=_factor(scaling),
        original_max_position_embeddings=_original_length(config, scaling, max_position_embeddings),
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _read_yarn(config: Fields, scaling: Fields, theta: float, max_position_embeddings: int) -> Rope:
    original = _original_length(config, scaling, max_position_embeddings)
    factor = _factor(scaling, max_position_embeddings / original)
    # Zero means "not set" for these, as in transformers.
    mscale = scaling.number("mscale", 0.0, above=False)
    mscale_all_dim = scaling.number("mscale_all_dim", 0.0, above=False)
    if "attention_factor" in scaling:
        attention_factor = scaling.number("attention_factor", above=False)
    elif mscale and mscale_all_dim:
        attention_factor = _magnitude(factor, mscale) / _magnitude(factor, mscale_all_dim)
    else:
        attention_factor = _magnitude(factor, 1.0)
    return Rope(
        type=RopeType.YARN,
        theta=theta,
        factor=factor,
        original_max_position_embeddings=original,
        attention_factor=attention_factor,
        beta_fast=scaling.number("beta_fast", 0.0, above=False) or 32.0,
        beta_slow=scaling.number("beta_slow", 0.0, above=False) or 1.0,
        truncate=scaling.flag("truncate", True),
    )


def _magnitude(factor: float, mscale: float) -> float:
    """YaRN's correction of the softmax temperature, equation 22 of arXiv:2309.00071."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def _original_length(config: Fields, scaling: Fields, max_position_embeddings: int) -> int:
    if "original_max_position_embeddings" in config:  # wins over the nested one, as in transformers
        return config.integer("original_max_position_embeddings")
    return scaling.integer("original_max_position_embeddings", max_position_embeddings)


def _refuse_partial_rotation(fields: Fields, name: str) -> None:
    value = fields.get("partial_rotary_factor")
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidConfig(f"config.json: {name} must be a number, but it is {shown(value)}.")
    if value != 1:
        raise UnsupportedModel(f"config.json: {name} is {value!r}; supported is 1, the rotation of whole heads.")
