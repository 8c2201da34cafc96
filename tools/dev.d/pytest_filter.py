"""pytest plugin of tools/dev: keeps the tests whose node id matches $REPRISE_TEST_FILTER.

A run in which nothing is left is no error: the filter may have meant C++ tests.
"""

import os
import re

import pytest


def pytest_collection_modifyitems(config, items):
    pattern = os.environ.get("REPRISE_TEST_FILTER", "")
    if not pattern:
        return
    kept = [item for item in items if re.search(pattern, item.nodeid)]
    dropped = [item for item in items if item not in kept]
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


def pytest_sessionfinish(session, exitstatus):
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK
