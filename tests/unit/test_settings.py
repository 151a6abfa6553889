from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ConfigurationError
from pipeline.settings import PREFIX, Settings, get_settings
from pipeline.settings_docs import render


def test_an_unknown_variable_is_an_error_that_names_it(settings_env: pytest.MonkeyPatch) -> None:
    settings_env.setenv(PREFIX + "LEASE_SECOND", "10")

    with pytest.raises(ConfigurationError, match=r"RYZANSTEIN_LEASE_SECOND\."):
        get_settings()


def test_a_wrong_value_is_an_error_that_names_the_variable(settings_env: pytest.MonkeyPatch) -> None:
    settings_env.setenv(PREFIX + "LEASE_SECONDS", "soon")

    with pytest.raises(ConfigurationError, match="RYZANSTEIN_LEASE_SECONDS: Input should be a valid number"):
        get_settings()


def test_settings_come_from_the_environment(settings_env: pytest.MonkeyPatch) -> None:
    settings_env.setenv(PREFIX + "LEASE_SECONDS", "2.5")

    assert get_settings().lease_seconds == 2.5


def test_secrets_are_not_shown() -> None:
    settings = Settings(flower_password="hunter2")

    assert "hunter2" not in repr(settings)


def test_the_page_about_the_settings_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "settings.md"

    assert page.read_text() == render(), "run: python -m pipeline.settings_docs > docs/settings.md"
