"""Bad input: each refusal has its status and code, says what is wrong, and changes nothing."""

from __future__ import annotations

import base64
import json

import pytest
from deno_sandbox.errors import AuthenticationError, HTTPStatusError
from support import SMALL, new_slug, volume
from websockets.exceptions import InvalidStatus


@pytest.fixture
def unchanged(shared):
    """No volume and no running sandbox more or less after the test's requests."""

    def state():
        volumes = shared.request("GET", "/api/v2/volumes?limit=1000").json()
        return sorted(v["id"] for v in volumes), sorted(s["id"] for s in shared.running())

    before = state()
    yield
    assert state() == before


VOLUME_REFUSALS = [
    # field, body, what the message must hold
    ("capacity", {"capacity": 299_999_999}, ["capacity", "300 MB", "20 G"]),
    ("capacity", {"capacity": "1MB"}, ["capacity", "1 MB", "300 MB"]),
    ("capacity", {"capacity": "21GiB"}, ["capacity", "21 GiB"]),
    ("capacity", {"capacity": 20_000_000_001}, ["capacity", "20 GB"]),
    ("capacity", {"capacity": 0}, ["capacity"]),
    ("capacity", {"capacity": -5}, ["capacity"]),
    ("capacity", {"capacity": 1.5}, ["capacity"]),
    ("capacity", {"capacity": "lots"}, ["capacity", "lots"]),
    ("capacity", {"capacity": None}, ["capacity"]),
    ("capacity", {"capacity": [1]}, ["capacity"]),
    ("capacity", {"capacity": "99999999999999999999GB"}, ["capacity"]),
    ("slug", {"slug": ""}, ["slug"]),
    ("slug", {"slug": "a"}, ["slug", "2 to 32"]),
    ("slug", {"slug": "x" * 33}, ["slug", "2 to 32"]),
    ("slug", {"slug": "Upper"}, ["slug", "a-z"]),
    ("slug", {"slug": "../etc"}, ["slug"]),
    ("slug", {"slug": "a b"}, ["slug"]),
    ("slug", {"slug": "-ab"}, ["slug"]),
    ("slug", {"slug": "ünïcode"}, ["slug"]),
    ("slug", {"slug": 7}, ["slug"]),
    ("region", {"region": "xyz"}, ["region", "xyz", "ord", "ams"]),
    ("region", {"region": "../x"}, ["region"]),
    ("region", {"region": ""}, ["region"]),
]


@pytest.mark.parametrize(("field", "change", "expected"), VOLUME_REFUSALS)
def test_volume_fields(shared, unchanged, field, change, expected):
    body = {"slug": new_slug(), "region": "ord", "capacity": SMALL} | change
    response = shared.request("POST", "/api/v2/volumes", body)
    assert response.status_code == 400, response.text
    error = response.json()
    assert error["code"] == "INVALID_REQUEST"
    for text in expected:
        assert text in error["message"], error


@pytest.mark.parametrize("missing", ["slug", "capacity"])
def test_volume_fields_missing(shared, unchanged, missing):
    body = {"slug": new_slug(), "region": "ord", "capacity": SMALL}
    del body[missing]
    response = shared.request("POST", "/api/v2/volumes", body)
    assert response.status_code == 400, response.text
    assert missing in response.json()["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"x"'])
def test_bodies_that_are_not_objects(shared, unchanged, body):
    import httpx

    response = httpx.post(
        f"{shared.url}/api/v2/volumes",
        content=body,
        headers={"Authorization": f"Bearer {shared.token}", "Content-Type": "application/json"},
        trust_env=False,
    )
    assert response.status_code == 400, response.text
    assert isinstance(response.json()["code"], str)


def test_through_the_sdk(shared, sdk, unchanged):
    with pytest.raises(HTTPStatusError) as refused:
        sdk.volumes.create(slug=new_slug(), region="ord", capacity="1MB")
    assert (refused.value.status_code, refused.value.code) == (400, "INVALID_REQUEST")
    assert "capacity" in refused.value.message


def test_duplicate_slug(shared, sdk):
    with volume(shared) as made:
        for region in ("ord", "ams"):
            with pytest.raises(HTTPStatusError) as refused:
                sdk.volumes.create(slug=made["slug"], region=region, capacity=SMALL)
            assert (refused.value.status_code, refused.value.code) == (409, "SLUG_ALREADY_IN_USE")
            assert made["slug"] in refused.value.message
        assert sdk.volumes.get(made["slug"])["id"] == made["id"]


@pytest.mark.parametrize(
    "name", ["no-such-volume", "vol_ord_00000000000000000000", "vol_ord_short", "%2e%2e", "x" * 5000]
)
def test_unknown_volume(shared, unchanged, name):
    for method in ("GET", "DELETE"):
        response = shared.request(method, f"/api/v2/volumes/{name}")
        assert response.status_code in (404, 400, 414), response.text
        if len(name) < 100:
            assert response.status_code == 404
            assert response.json()["code"] == "VOLUME_NOT_FOUND"


def test_unknown_volume_in_a_sandbox(shared, sdk, unchanged):
    status, error, _ = shared.create_raw({"volumes": [{"volume": "nowhere", "path": "/v"}]})
    assert (status, error["code"]) == (404, "VOLUME_NOT_FOUND")
    assert "nowhere" in error["message"]
    with pytest.raises(InvalidStatus, match="404"):
        with sdk.sandbox.create(volumes={"/v": "nowhere"}):
            pass


def test_one_bad_volume_among_good_ones(shared, sdk):
    with volume(shared) as good:
        status, error, _ = shared.create_raw({"volumes": {"/a": good["id"], "/b": "nowhere"}})
        assert (status, error["code"]) == (404, "VOLUME_NOT_FOUND")
        # The good one was not taken.
        with sdk.sandbox.create(volumes={"/a": good["id"]}):
            pass


def test_volume_attached_elsewhere(shared, sdk):
    with volume(shared) as made:
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as holder:
            status, error, _ = shared.create_raw({"volumes": {"/v": made["slug"]}})
            assert (status, error["code"]) == (409, "VOLUME_IS_MOUNTED")
            assert holder.id in error["message"]
            response = shared.request("DELETE", f"/api/v2/volumes/{made['id']}")
            assert response.status_code == 409
            assert response.json()["code"] == "VOLUME_IS_MOUNTED"
            assert holder.id in response.json()["message"]
            # The holder has noticed nothing.
            holder.fs.write_text_file("/v/still", "here")
            assert holder.fs.read_text_file("/v/still") == "here"


def test_one_volume_twice_in_one_sandbox(shared, unchanged):
    with volume(shared) as made:
        status, error, _ = shared.create_raw({"volumes": {"/a": made["id"], "/b": made["slug"]}})
        assert status in (400, 409), error


def test_wrong_region(shared, sdk):
    with volume(shared, region="ams") as made:
        status, error, _ = shared.create_raw({"region": "ord", "volumes": {"/v": made["slug"]}})
        assert (status, error["code"]) == (409, "REGION_MISMATCH")
        assert "ord" in error["message"]
        assert "ams" in error["message"]
        address = shared.url.removeprefix("http://")
        port = address.rsplit(":", 1)[1]
        status, error, _ = shared.create_raw(
            {"volumes": {"/v": made["slug"]}}, host=f"ord.localhost:{port}"
        )
        assert (status, error["code"]) == (409, "REGION_MISMATCH")


def test_two_regions_in_one_sandbox(shared, unchanged):
    with volume(shared, region="ams") as here, volume(shared, region="ord") as there:
        status, error, _ = shared.create_raw({"volumes": {"/a": here["id"], "/b": there["id"]}})
        assert (status, error["code"]) == (409, "REGION_MISMATCH")


def test_a_region_is_taken_from_host_name_setting_and_volumes(shared):
    address = shared.url.removeprefix("http://")
    port = address.rsplit(":", 1)[1]
    with volume(shared, region="ams") as made:
        for config, host, region in [
            ({}, f"ams.localhost:{port}", "ams"),
            ({}, f"ord.localhost:{port}", "ord"),
            ({"region": "ams"}, None, "ams"),
            ({"volumes": {"/v": made["id"]}}, None, "ams"),
            ({}, None, "ord"),
        ]:
            status, error, socket = shared.create_raw(config, host=host)
            assert status == 101, error
            sandbox_id = socket.response.headers["x-deno-sandbox-id"]
            shared.end(sandbox_id)
            socket.close()
            assert sandbox_id.startswith(f"sbx_{region}_"), (config, host, sandbox_id)


SANDBOX_REFUSALS = [
    ({"memory_mb": -1}, ["memory"]),
    ({"memory_mb": "big"}, ["memory"]),
    ({"timeout": "0s"}, ["timeout"]),
    ({"timeout": "soon"}, ["timeout", "soon"]),
    ({"timeout": "-5s"}, ["timeout"]),
    ({"timeout": "99999999999999999999m"}, ["timeout"]),
    ({"stop_at_ms": 1}, ["stop_at_ms"]),
    ({"stop_at_ms": "x"}, ["stop_at_ms"]),
    ({"labels": {str(n): "" for n in range(6)}}, ["labels", "5"]),
    ({"labels": {"k" * 65: "v"}}, ["labels", "64"]),
    ({"labels": {"key": "v" * 129}}, ["labels", "key", "128"]),
    ({"labels": {"": "v"}}, ["labels"]),
    ({"labels": {"k": 5}}, ["labels"]),
    ({"labels": ["a"]}, ["labels"]),
    ({"region": "xyz"}, ["region", "xyz"]),
]


@pytest.mark.parametrize(("config", "expected"), SANDBOX_REFUSALS)
def test_sandbox_fields(shared, unchanged, config, expected):
    status, error, _ = shared.create_raw(config)
    assert status == 400, error
    assert error["code"] == "INVALID_REQUEST"
    for text in expected:
        assert text in error["message"], error


@pytest.mark.parametrize(
    ("config", "code", "expected"),
    [
        ({"memory_mb": 767}, "MEMORY_OUT_OF_RANGE", ["memory", "767", "768", "4096"]),
        ({"memory_mb": 4097}, "MEMORY_OUT_OF_RANGE", ["memory", "4097"]),
        ({"timeout": "31m"}, "LIFETIME_TOO_LONG", ["timeout", "1800 s"]),
        ({"stop_at_ms": 9_999_999_999_999}, "LIFETIME_TOO_LONG", ["stop_at_ms"]),
    ],
)
def test_what_the_server_does_not_allow(shared, unchanged, config, code, expected):
    shared.refuses_sandbox(config, (400, code), *expected)


@pytest.mark.parametrize(
    "path",
    ["/", "//", "", "data", "./data", "/data/../etc", "/etc", "/proc/1", "/usr/local", "/dev/shm",
     "/home", "/tmp", "/sys/fs", "/run/x", "/a\x00b", "/" + "x" * 2000],
)  # fmt: skip
def test_mount_paths(shared, sdk, path):
    with volume(shared) as made:
        status, error, _ = shared.create_raw({"volumes": [{"volume": made["id"], "path": path}]})
        assert status == 400, error
        assert error["code"] == "INVALID_REQUEST"
        assert "volumes" in error["message"]
        # Deleting works, so nothing holds it.
        sdk.volumes.delete(made["id"])


@pytest.mark.parametrize(
    "text",
    ["", "!!!", base64.b64encode(b"{").decode(), base64.b64encode(b"[]").decode(),
     base64.b64encode(json.dumps({"volumes": 5}).encode()).decode(),
     base64.b64encode(json.dumps({"volumes": [{"volume": "x"}]}).encode()).decode(),
     base64.b64encode(json.dumps({"volumes": {"/v": None}}).encode()).decode()],
)  # fmt: skip
def test_configurations_that_are_none(shared, unchanged, text):
    status, error, _ = shared.create_raw(text)
    assert status == 400, error
    assert isinstance(error["message"], str)


def test_bad_tokens(shared, unchanged):
    for token in ("ddo_wrong", "ddp_personal", "x", shared.token[:-1], shared.token + "x"):
        response = shared.request("GET", "/api/v2/volumes", token=token)
        assert response.status_code == 401, token
        assert response.json()["code"] == "INVALID_TOKEN"
        status, error, _ = shared.create_raw({}, token=token)
        assert (status, error["code"]) == (401, "INVALID_TOKEN")
    import httpx

    assert httpx.get(f"{shared.url}/api/v2/volumes", trust_env=False).status_code == 401
    with pytest.raises(HTTPStatusError) as refused:
        shared.sdk("ddo_wrong").volumes.list()
    assert refused.value.code == "INVALID_TOKEN"
    with pytest.raises(AuthenticationError):
        with shared.sdk("ddo_wrong").sandbox.create():
            pass


def test_unknown_sandboxes(shared, sdk, unchanged):
    ghost = "sbx_ord_00000000000000000000"
    for method, path in [
        ("DELETE", f"/api/v3/sandbox/{ghost}"),
        ("DELETE", f"/api/v3/sandboxes/{ghost}"),
        ("PATCH", f"/api/v3/sandbox/{ghost}"),
        ("DELETE", "/api/v3/sandbox/nonsense"),
    ]:
        response = shared.request(method, path, {"stop_at_ms": 1})
        assert response.status_code == 404, (method, path, response.text)
        assert response.json()["code"] == "SANDBOX_NOT_FOUND"
    with pytest.raises(InvalidStatus, match="404"):
        with sdk.sandbox.connect(ghost):
            pass


def test_what_is_not_there(shared, unchanged):
    response = shared.request("GET", "/api/v2/nothing")
    assert (response.status_code, response.json()["code"]) == (404, "ROUTE_NOT_FOUND")
    response = shared.request("PUT", "/api/v2/volumes", {})
    assert (response.status_code, response.json()["code"]) == (405, "METHOD_NOT_ALLOWED")
