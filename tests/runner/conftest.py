"""Lets the asserts of the helpers tell what they compared."""

import pytest

pytest.register_assert_rewrite("tests.runner.support", "tests.runner.chaos")
