"""The editor: a refusal that says what to do, and a real one where the server has it."""

from __future__ import annotations

import pytest
from conftest import server_of_its_own
from support import bash, exposed
from test_bad_input import call, connected

TOKEN = "ddo_thisMustNeverBeLogged"
PARAMS = {"path": "/home/app", "extensions": [], "env": {"DENO_DEPLOY_SANDBOX_TOKEN": TOKEN}}


@pytest.fixture(scope="module")
def edited():
    """A server whose editor is a plain server of the directory's files."""
    editor = "exec python3 -m http.server --bind 127.0.0.1 --directory {path} {port}"
    with server_of_its_own("--editor", editor) as server:
        yield server.start()


def test_a_server_without_an_editor_says_so(shared, sdk):
    with sdk.sandbox.create() as sandbox:
        with connected(shared, sandbox.id, javascript=True) as websocket:
            error = call(websocket, "vscode", PARAMS)["result"]["error"]
        assert error["code"] == "EDITOR_NOT_CONFIGURED"
        assert "--editor" in error["message"]
        answer = shared.request("POST", f"/api/v3/sandbox/{sandbox.id}/expose/vscode", {})
        assert (answer.status_code, answer.json()["code"]) == (501, "EDITOR_NOT_CONFIGURED")
        assert "--editor" in answer.json()["hint"]


def test_the_editor_runs_until_it_is_killed(edited):
    with edited.sdk().sandbox.create() as sandbox:
        sandbox.fs.mkdir("/home/app/it's here")
        sandbox.fs.write_text_file("/home/app/it's here/file", "content")
        with connected(edited, sandbox.id, javascript=True) as websocket:
            params = PARAMS | {"path": "/home/app/it's here"}
            editor = call(websocket, "vscode", params)["result"]["ok"]
            assert set(editor) == {"pid", "port", "stdoutStreamId", "stderrStreamId"}
            script = f"curl -s http://127.0.0.1:{editor['port']}/file"
            assert bash(sandbox, script) == (0, "content", "")
            variable = f"tr '\\0' '\\n' < /proc/{editor['pid']}/environ | grep ^DENO_DEPLOY_SANDBOX"
            assert bash(sandbox, variable)[1].strip() == f"DENO_DEPLOY_SANDBOX_TOKEN={TOKEN}"
            answer = edited.request("POST", f"/api/v3/sandbox/{sandbox.id}/expose/vscode", {})
            name = {"domain": answer.json()["domain"], "port": editor["port"]}
            assert call(websocket, "exposeHttp", name, 2)["result"] == {"ok": None}
            page = exposed(f"https://{name['domain']}/file", ca=edited.data / "expose-ca.pem")
            assert (page.status_code, page.text) == (200, "content")
            # A second one gets a port of its own.
            second = call(websocket, "vscode", PARAMS, 3)["result"]["ok"]
            assert second["port"] != editor["port"]
            for one in (editor, second):
                of = {"pid": one["pid"], "vscode": True}
                assert call(websocket, "processKill", of, 4)["result"] == {"ok": None}
                status = call(websocket, "processWait", of, 5)["result"]["ok"]
                assert (status["code"], status["signal"]) == (143, "SIGTERM")
    assert TOKEN not in edited.log.read_text()


def test_an_editor_that_does_not_start(edited):
    with edited.sdk().sandbox.create() as sandbox:
        with connected(edited, sandbox.id, javascript=True) as websocket:
            error = call(websocket, "vscode", PARAMS | {"path": "/nowhere"})["result"]["error"]
            assert error["code"] == "ENOENT"
            broken = PARAMS | {"env": {"PYTHONHOME": "/nowhere"}}
            error = call(websocket, "vscode", broken, 2)["result"]["error"]
            assert "ended with code 1 before it listened" in error["message"]
            error = call(websocket, "vscode", {"path": 5, "extensions": []}, 3)["result"]["error"]
            assert error["code"] == "EINVAL"
