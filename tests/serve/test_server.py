"""A real server, asked as its users ask: by the public client, by HTTP, by probes."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mate_edge.images import normalize
from mate_edge.runtime.predictor import Predictor

tritonclient = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")


def encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0]).save(buffer, "PNG")
    return buffer.getvalue()


def tensor(name: str, datatype: str, data: np.ndarray) -> Any:
    found = tritonclient.InferInput(name, list(data.shape), datatype)
    found.set_data_from_numpy(data)
    return found


@pytest.fixture
def client(server: Any) -> Iterator[Any]:
    """The public client, as it is."""
    with tritonclient.InferenceServerClient(f"127.0.0.1:{server.port}") as found:
        yield found


@pytest.fixture(scope="module")
def predictor(bundle_folder: Path) -> Iterator[Predictor]:
    """What the server must answer like."""
    with Predictor.load(bundle_folder, policy="balanced") as found:
        yield found


def test_the_public_client_finds_server_and_models(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert not client.is_model_ready("digits", "2")
    assert not client.is_model_ready("cats")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    config = client.get_model_config("digits")
    assert config["input"][0] == {
        "name": "images", "data_type": "TYPE_FP32", "dims": [-1, 1, 32, 32], "optional": True,
    }  # fmt: skip


def test_the_metadata_name_what_infer_takes_and_gives(client: Any, server: Any) -> None:
    found = client.get_model_metadata("digits")
    assert found["versions"] == ["1"]
    assert [(one["name"], one["datatype"], one["shape"]) for one in found["inputs"]] == [
        ("images", "FP32", [-1, 1, 32, 32]),
        ("frames", "UINT8", [-1, -1, -1, 3]),
        ("encoded", "BYTES", [-1]),
    ]
    frame = np.zeros((1, 40, 50, 3), np.uint8)
    answer = client.infer("digits", [tensor("frames", "UINT8", frame)])
    for output in found["outputs"]:
        array = answer.as_numpy(output["name"])
        assert array.ndim == len(output["shape"])
        assert (array.shape[-1] == output["shape"][-1]) == (output["shape"][-1] != -1)


@pytest.mark.parametrize("policy", ["balanced", "deepest", "exit-1", 0.9])
@pytest.mark.parametrize("kind", ["images", "frames", "encoded"])
def test_each_input_is_answered_like_in_process(
    client: Any, predictor: Predictor, images: np.ndarray, kind: str, policy: Any
) -> None:
    pre = predictor.manifest.preprocessing
    made = {
        "images": ("FP32", normalize(images, pre)),
        "frames": ("UINT8", images),
        "encoded": ("BYTES", np.array([encoded(one) for one in images], object)),
    }
    datatype, data = made[kind]
    expected = [predictor.predict(encoded(one), policy=policy) for one in images]
    together = client.infer("digits", [tensor(kind, datatype, data)], parameters={"policy": policy})
    single = client.infer(
        "digits", [tensor(kind, datatype, data[:1])], parameters={"policy": policy}
    )
    for answer, wanted in ((together, expected), (single, expected[:1])):
        assert answer.as_numpy("index").tolist() == [one.index for one in wanted]
        assert answer.as_numpy("exit").tolist() == [one.exit for one in wanted]
        assert [one.decode() for one in answer.as_numpy("label")] == [one.label for one in wanted]
        reasons = [one.decode() for one in answer.as_numpy("halted_by")]
        assert reasons == [one.halted_by for one in wanted]
        probabilities = np.stack([one.probabilities for one in wanted])
        np.testing.assert_allclose(answer.as_numpy("probabilities"), probabilities, atol=1e-5)
    parameters = single.get_response()["parameters"]
    assert parameters["exit"] == expected[0].exit
    assert parameters["halted_by"] == expected[0].halted_by
    assert parameters["ms"] > 0
    assert "parameters" not in together.get_response()


def test_json_alone_is_answered_in_json(server: Any, images: np.ndarray) -> None:
    frame = images[:1]
    document = {
        "id": "seven",
        "inputs": [
            {
                "name": "frames", "datatype": "UINT8", "shape": frame.shape,
                "data": frame.tolist(),
            }
        ],
        "outputs": [
            {"name": "label"},
            {"name": "probabilities", "parameters": {"classification": 2}},
        ],
    }  # fmt: skip
    reply = server.infer("digits", document)
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.json["id"] == "seven"
    label, best = reply.json["outputs"]
    assert best["shape"] == [1, 2]
    assert re.fullmatch(rf"[01]\.\d+:\d:{label['data'][0]}", best["data"][0])


def test_a_deadline_counts_and_the_first_exit_answers_in_any_case(
    client: Any, images: np.ndarray
) -> None:
    frames = tensor("frames", "UINT8", images[:1])
    options = {"policy": "deepest"}
    late = client.infer("digits", [frames], parameters={**options, "max_ms": 0.001})
    parameters = late.get_response()["parameters"]
    assert (parameters["exit"], parameters["halted_by"]) == (1, "deadline")
    assert parameters["deadline_missed"]
    assert parameters["ms"] > 0.001
    calm = client.infer("digits", [frames], parameters={**options, "max_ms": 10_000})
    assert calm.get_response()["parameters"]["exit"] == 3
    together = tensor("frames", "UINT8", images)
    both = [
        client.infer("digits", [together], parameters={**options, "max_ms": ms})
        for ms in (0.001, 10_000)
    ]
    assert both[0].as_numpy("exit").tolist() == [1] * len(images)
    assert both[0].as_numpy("deadline_missed").all()
    assert both[1].as_numpy("exit").tolist() == [3] * len(images)
    assert not both[1].as_numpy("deadline_missed").any()


def test_an_image_file_is_classified_raw_and_from_a_form(
    server: Any, predictor: Predictor, images: np.ndarray
) -> None:
    file = encoded(images[0])
    expected = predictor.predict(file, policy="deepest")
    raw = server.ask(
        "POST", "/v1/classify?model=digits&policy=deepest", file, {"content-type": "image/png"}
    )
    boundary = "xxBOUNDARYxx"
    form = (
        f'--{boundary}\r\ncontent-disposition: form-data; name="policy"\r\n\r\ndeepest\r\n'
        f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="a.png"\r\n'
        "content-type: image/png\r\n\r\n"
    ).encode() + file + f"\r\n--{boundary}--\r\n".encode()  # fmt: skip
    kind = f"multipart/form-data; boundary={boundary}"
    from_form = server.ask("POST", "/v1/classify?model=digits", form, {"content-type": kind})
    for reply in (raw, from_form):
        assert reply.status == 200, reply.body
        found = reply.json
        assert (found["model"], found["version"]) == ("digits", "1")
        assert (found["label"], found["exit"]) == (expected.label, 3)
        assert found["halted_by"] == "last-exit"
        assert found["confidence"] == pytest.approx(expected.confidence, abs=1e-5)
        assert len(found["probabilities"]) == 10
        assert len(found["segment_ms"]) == 3
        assert found["elapsed_ms"] > sum(found["segment_ms"])


def test_statistics_and_metrics_count_what_was_answered(
    client: Any, server: Any, images: np.ndarray
) -> None:
    def counted() -> tuple[int, int]:
        stats = client.get_inference_statistics("other", "1")["model_stats"][0]
        return stats["inference_count"], stats["inference_stats"]["success"]["count"]

    before = counted()
    client.infer("other", [tensor("frames", "UINT8", images[:3])], parameters={"policy": "exit-2"})
    client.infer(
        "other", [tensor("frames", "UINT8", images[:1])],
        parameters={"policy": "deepest", "max_ms": 0.001},
    )  # fmt: skip
    after = counted()
    assert (after[0] - before[0], after[1] - before[1]) == (4, 2)
    metrics = server.ask("GET", "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    text = metrics.body.decode()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    predictions = 'mate_edge_predictions_total{exit="2",halted_by="policy",model="other"}'
    assert float(lines[predictions]) >= 3
    assert float(lines['mate_edge_deadline_misses_total{exit="1",model="other"}']) >= 1
    assert float(lines['mate_edge_slow_down{model="other"}']) >= 1
    assert float(lines["mate_edge_queue_waiting"]) == 0
    assert float(lines['mate_edge_requests_total{status="200"}']) >= 2
    assert float(lines["mate_edge_queue_limit"]) == 2


def test_the_documents_need_no_internet(server: Any) -> None:
    document = server.ask("GET", "/openapi.json").json
    assert document["openapi"].startswith("3.1")
    for path in ("/v1/classify", "/v2/models/{name}/infer", "/metrics"):
        assert path in document["paths"]
    named = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert named == set(document["components"]["schemas"])
    for path in ("/docs", "/"):
        reply = server.ask("GET", path)
        assert reply.status == 200
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert b"http://" not in reply.body
        assert b"https://" not in reply.body


def test_every_path_of_the_openapi_document_is_served(server: Any) -> None:
    for path, methods in server.ask("GET", "/openapi.json").json["paths"].items():
        for method in methods:
            asked = path.replace("{name}", "nothing").replace("{version}", "1")
            reply = server.ask(method.upper(), asked, b"")
            assert reply.status != 405, path
            if reply.status == 404:
                assert "path" not in reply.error, path
