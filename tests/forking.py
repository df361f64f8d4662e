# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The option `--alone`: each test in a process of its own, forked from one that has imported everything."""

import gc
import json
import os
import signal
import warnings
from collections.abc import Iterator

import pytest
from _pytest.runner import runtestprotocol


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption('--alone', action='store_true', help='run each test in a forked process of its own')


def pytest_collection_finish(session: pytest.Session) -> None:
    """Import what tests import only when they run; share it, and the temporary folder, with all children."""
    if session.config.getoption('alone'):
        import torchgeo.main  # noqa: F401

        session.config._tmp_path_factory.getbasetemp()
        gc.collect()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Run a test in a child process, its fixtures of every scope included."""
    if not item.config.getoption('alone'):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _reports(item: pytest.Item) -> Iterator[pytest.TestReport]:
    """Reports of a test's phases; a process that dies or exceeds pytest-timeout's limit is a failure."""
    receiver, sender = os.pipe()
    with warnings.catch_warnings():
        # A worker of xdist has threads, which hold no lock that a test takes.
        warnings.filterwarnings('ignore', '.*multi-threaded.*fork', DeprecationWarning)
        child = os.fork()
    if child == 0:
        _run(item, receiver, sender)
    os.close(sender)
    try:
        with open(receiver, encoding='utf-8') as file:
            text = file.read()
    except pytest.fail.Exception as timeout:  # raised by pytest-timeout
        os.kill(child, signal.SIGKILL)
        text, reason = '', str(timeout)
    else:
        reason = 'its process died'
    _, status = os.waitpid(child, 0)
    if text and status == 0:
        for data in json.loads(text):
            yield item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
    else:
        message = f'{item.nodeid}: {reason}, exit code {os.waitstatus_to_exitcode(status)}'
        yield pytest.TestReport(item.nodeid, item.location, {}, 'failed', message, 'call')


def _run(item: pytest.Item, receiver: int, sender: int) -> None:
    """Run the test and end the process."""
    code = 1
    try:
        os.close(receiver)
        reports = runtestprotocol(item, log=False, nextitem=None)
        serializable = item.config.hook.pytest_report_to_serializable
        with open(sender, 'w', encoding='utf-8') as file:
            json.dump([serializable(config=item.config, report=report) for report in reports], file)
        code = 0
    finally:
        os._exit(code)
