"""Settings of a config whose method measures something and trains nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataflex.cli.config import RunConfig, check_host_keys

if TYPE_CHECKING:
    from dataflex.train.settings import Settings


def measuring_settings(config: RunConfig) -> Settings:
    """What ``select``, ``embed`` and ``score`` take of a config with a method and a schedule.

    Raises:
        ConfigError: a key that neither we nor LLaMA-Factory know.
    """
    from dataflex.integrations import llamafactory
    from dataflex.train.settings import Settings

    check_host_keys(config.host, llamafactory.known_keys())
    assert config.method is not None
    assert config.schedule is not None
    return Settings(
        method=config.method,
        schedule=config.schedule,
        score_batch_tokens=config.score_batch_tokens,
        config=config.resolved,
        target_names=config.target,
        target_groups=config.target_groups,
        allow_overlap=config.allow_overlap,
    )
