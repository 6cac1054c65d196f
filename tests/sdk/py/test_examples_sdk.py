"""The examples in the Python SDK's own texts: its README (in the installed package's metadata) and
its docstrings. They run as written, but for what `EXAMPLES` says.

The README's later blocks take `sdk` for granted, and one a program: both are supplied.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import re
from importlib.metadata import metadata

import deno_sandbox
import httpx
import pytest
from deno_sandbox.errors import HTTPStatusError, UnknownRpcMethod
from deno_sandbox.sandbox import AsyncSandboxDeno, SandboxDeno

ORD = ("us-east-1", "ord", "this server's region")

# By their order in the README: what is replaced and why, what is printed, how it must fail.
EXAMPLES: list[dict] = [
    {"prints": "Hello, World!\n"},
    {"prints": "Hello, World!\n"},
    {},
    {"prints": "2\n[2, 4, 6]\n"},
    {"prints": "config.json - is_file: True\n"},
    # The SDK has a method `download` that only asks the server for one.
    {"fails": UnknownRpcMethod},
    {"change": [ORD]},
    {"prints": "Server available at: https://"},
    {"change": [ORD]},
    {"fails": HTTPStatusError},
]

# What the README's programs presume to find.
IN_SANDBOX = "echo '1' > ~/app.js"


def readme() -> list[str]:
    return re.findall(r"```py\n(.*?)```", metadata("deno-sandbox").get_payload(), re.DOTALL)


class Prepared:
    """The SDK, whose sandboxes hold what the examples presume, and end with their block."""

    def __init__(self, sdk):
        self._sdk = sdk
        self.sandbox = self

    def __getattr__(self, name):
        return getattr(self._sdk, name)

    @contextlib.contextmanager
    def create(self, **options):
        with self._sdk.sandbox.create(**options) as sandbox:
            status = sandbox.spawn("bash", args=["-c", IN_SANDBOX]).wait()
            assert status["success"], status
            try:
                yield sandbox
            finally:
                if "timeout" in options:
                    sandbox.kill()


@pytest.fixture
def endpoints(monkeypatch, shared, tmp_path):
    """The three variables, and the local files that the examples presume."""
    monkeypatch.setenv("DENO_DEPLOY_TOKEN", shared.token)
    monkeypatch.setenv("DENO_DEPLOY_ENDPOINT", shared.url)
    monkeypatch.setenv("DENO_SANDBOX_ENDPOINT", shared.url)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local/project").mkdir(parents=True)
    package = '{"scripts": {"build": "mkdir dist && cp package.json dist"}}'
    (tmp_path / "local/project/package.json").write_text(package)
    yield shared
    shared.request("DELETE", "/api/v2/snapshots/my-snapshot")
    shared.request("DELETE", "/api/v2/volumes/my-data")


def test_the_readme_has_the_examples_that_are_listed():
    assert len(readme()) == len(EXAMPLES)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_readme(number, endpoints, capfd):
    text, rules = readme()[number], EXAMPLES[number]
    for old, new, why in rules.get("change", []):
        assert why and old in text
        text = text.replace(old, new)
    names = {"sdk": Prepared(deno_sandbox.DenoDeploy()), "__name__": "example"}
    expected = rules.get("fails")
    with pytest.raises(expected) if expected else contextlib.nullcontext() as failure:
        exec(compile(text, "<README>", "exec"), names)
    if expected is HTTPStatusError:
        assert (failure.value.status_code, failure.value.code) == (501, "NOT_SUPPORTED")
    assert rules.get("prints", "") in capfd.readouterr().out


def docstring_example(function) -> str:
    (text,) = re.findall(r"```python\n(.*?)```", inspect.getdoc(function), re.DOTALL)
    return inspect.cleandoc(text)


def test_docstring_of_deploy(endpoints):
    with pytest.raises(httpx.HTTPStatusError) as refusal:
        exec(docstring_example(SandboxDeno.deploy), {})
    assert refusal.value.response.json()["code"] == "NOT_SUPPORTED"


def test_docstring_of_async_deploy(endpoints):
    text = docstring_example(AsyncSandboxDeno.deploy)
    code = compile(text, "<docstring>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    # The SDK's client is no context manager, though the example uses it as one.
    with pytest.raises(TypeError, match="asynchronous context manager"):
        asyncio.run(eval(code, {}))


def test_no_other_docstring_has_an_example():
    from deno_sandbox import apps, env, fs, layers, process, revisions, sandbox, snapshots, volumes

    modules = [apps, env, fs, layers, process, revisions, sandbox, snapshots, volumes]
    assert sum(inspect.getsource(module).count("```python") for module in modules) == 2
