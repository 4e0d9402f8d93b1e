"""What plugins of version 0.1 imported is found under its former name."""

from __future__ import annotations

import importlib
import logging

import pytest

from visual_tokenizer.errors import UserError
from visual_tokenizer.plugins.former_names import MODULES, NAMES, know_former_names


@pytest.mark.parametrize("former", MODULES)
def test_a_module_that_moved_is_found_with_a_warning(former, caplog):
    know_former_names()
    with caplog.at_level(logging.WARNING):
        module, now = importlib.import_module(former), importlib.import_module(MODULES[former])
    public = [name for name in vars(now) if not name.startswith("_")]
    assert all(getattr(module, name) is getattr(now, name) for name in public)
    assert f"{former} is now {MODULES[former]}" in caplog.text
    with pytest.raises(AttributeError):
        _ = module.nothing


@pytest.mark.parametrize("home", NAMES)
def test_a_name_that_changed_is_given_to_plugins_of_its_family(home):
    know_former_names([home.rpartition(".")[0]])
    module = importlib.import_module(home)
    for former, now in NAMES[home].items():
        assert getattr(module, former) is getattr(module, now)


def test_an_error_that_was_folded_is_a_user_error():
    know_former_names()
    module = importlib.import_module("mmlm.merge")
    assert module.VocabularyMergeError is UserError
