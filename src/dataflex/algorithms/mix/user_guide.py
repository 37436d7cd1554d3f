"""The three keys of DataFlex's user guide that set a mixture beside its mixer."""

from __future__ import annotations

from typing import Any

from dataflex.algorithms.checks import require_one_of
from dataflex.algorithms.mix.proportions import Proportions, check_proportions
from dataflex.core.errors import ConfigError, shown

RULES: dict[str, Proportions | None] = {"mixture": None, "stratified": "sizes", "uniform": "uniform"}


def initial_proportions(rule: str | None, init_mixture_proportions: Any) -> Proportions | None:
    """The initial mixture that ``mixture_sample_rule`` and ``init_mixture_proportions`` ask for; None: neither is set.

    ``mixture`` is the given numbers, ``stratified`` the data sets' sizes, ``uniform`` equal shares. Upstream ignores
    the mixer under the latter two; here they say where it starts.

    >>> initial_proportions("stratified", None), initial_proportions("mixture", [0.7, 0.3])
    ('sizes', (0.7, 0.3))

    Raises:
        ConfigError: an unknown rule, ``mixture`` without numbers, or numbers beside another rule.
    """
    if rule is not None:
        require_one_of("mixture_sample_rule", rule, tuple(RULES))
    if init_mixture_proportions is None:
        if rule == "mixture":
            raise ConfigError("mixture_sample_rule is mixture; it needs init_mixture_proportions, a number a data set")
        return RULES[rule] if rule is not None else None
    if rule not in (None, "mixture"):
        raise ConfigError(
            f"init_mixture_proportions is {shown(init_mixture_proportions)} beside mixture_sample_rule: {rule}, which "
            "does not use it; set mixture_sample_rule: mixture, or leave one out"
        )
    check_proportions("init_mixture_proportions", init_mixture_proportions)
    value = init_mixture_proportions
    return tuple(value) if isinstance(value, list) else value


def with_user_guide_keys(
    name: str,
    params: dict[str, Any],
    *,
    mixture_sample_rule: str | None = None,
    init_mixture_proportions: Any = None,
    static_mix: bool | None = None,
) -> dict[str, Any]:
    """Parameters of the mixer ``name`` with the keys of the config applied.

    The initial mixture goes to ``initial``, for ``static`` to ``proportions``; that of the config wins over the
    preset's, as any key of the config does. ``static_mix: true`` is what ``static``, ``temperature`` and steps 1 and 3
    of ``doremi`` do.

    >>> with_user_guide_keys("odm", {}, mixture_sample_rule="mixture", init_mixture_proportions=[0.7, 0.3])
    {'initial': (0.7, 0.3)}

    Raises:
        ConfigError: a value out of range; an initial mixture for a mixer that has none; ``static_mix`` of a mixer that
            decides.
    """
    if static_mix is not None and not isinstance(static_mix, bool):
        raise ConfigError(f"static_mix is {shown(static_mix)}; it must be true or false")
    is_static = name in ("static", "temperature") or (name == "doremi" and params.get("step") in (1, 3))
    if static_mix and not is_static:
        raise ConfigError(
            f"static_mix: true keeps the initial proportions, and the mixer {shown(name)} changes them; set "
            "component_name: static, or leave static_mix out"
        )
    initial = initial_proportions(mixture_sample_rule, init_mixture_proportions)
    if initial is None:
        return dict(params)
    if name in ("temperature", "stages"):
        raise ConfigError(
            f"the mixer {name} has its own first proportions; leave out mixture_sample_rule and "
            "init_mixture_proportions"
        )
    key = "proportions" if name == "static" or (name == "doremi" and params.get("step") == 3) else "initial"
    return {**params, key: initial}
