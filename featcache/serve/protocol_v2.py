"""The Open Inference Protocol, version 2, under ``/v2``: health, metadata, and tensors in and out."""

from __future__ import annotations

from importlib.metadata import version as version_of
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request, Response

from featcache.heads.base import sigmoid, softmax
from featcache.serve.documents import (
    INFER_BODY,
    InferenceAnswer,
    Liveness,
    ModelMetadata,
    ModelReadiness,
    Readiness,
    ServerMetadata,
    answers,
)
from featcache.serve.served import Answer, ServedModel
from featcache.serve.service import Service, json_response, settled
from featcache.serve.tensors import OUTPUT_TYPE, read_request, write_answer

LENGTH_HEADER = "inference-header-content-length"


def v2_router(service: Service) -> APIRouter:
    """Return the endpoints."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol v2"])

    @router.get("", response_model=ServerMetadata, summary="What this server is")
    async def server_metadata() -> Response:
        return json_response(
            {"name": "featcache", "version": version_of("featcache"), "extensions": ["binary_tensor_data"]}
        )

    @router.get("/health/live", response_model=Liveness, summary="Whether the server lives")
    async def live() -> Response:
        return json_response({"live": True})

    @router.get("/health/ready", response_model=Readiness, responses={503: {"model": Readiness}},
                summary="Whether requests will be answered")  # fmt: skip
    async def ready() -> Response:
        return json_response({"ready": not service.stopping}, status=503 if service.stopping else 200)

    def metadata(name: str, version: str | None) -> Response:
        return json_response(_metadata(service.models.get(name, version), service.models.versions(name)))

    def readiness(name: str, version: str | None) -> Response:
        model = service.models.get(name, version)
        return json_response({"name": model.place.name, "ready": not service.stopping})

    async def infer(name: str, version: str | None, request: Request) -> Response:
        with (model := service.models.get(name, version)).in_use():
            service.check_room()
            async with service.bodies.read(request) as body:
                asked = read_request(
                    body,
                    header_length=request.headers.get(LENGTH_HEADER),
                    inputs=model.form.tensors,
                    outputs=_outputs_of(model),
                    most=service.settings.max_queue,
                    noun=model.form.noun,
                )
                inputs = model.form.read_tensor(asked.name, asked.values)
                with service.room_for(len(inputs), model.form.noun):
                    found = await settled(model.run(inputs))
        described = {"model_name": model.place.name, "model_version": model.place.version}
        if asked.id is not None:
            described["id"] = asked.id
        data, length = write_answer(described, _tensors(model, found), asked.outputs)
        if length is None:
            return Response(data, media_type="application/json")
        return Response(data, headers={LENGTH_HEADER: str(length)}, media_type="application/octet-stream")

    of_model: dict[str, Any] = {"response_model": ModelMetadata, "responses": answers(404)}
    of_readiness: dict[str, Any] = {"response_model": ModelReadiness, "responses": answers(404)}
    of_answer: dict[str, Any] = {
        "response_model": InferenceAnswer,
        "responses": answers(400, 404, 408, 413, 503),
        "openapi_extra": {"requestBody": INFER_BODY},
    }

    @router.get("/models/{name}", summary="What the newest version takes and gives", **of_model)
    async def metadata_newest(name: str) -> Response:
        return metadata(name, None)

    @router.get("/models/{name}/versions/{version}", summary="What a version takes and gives", **of_model)
    async def metadata_version(name: str, version: str) -> Response:
        return metadata(name, version)

    @router.get("/models/{name}/ready", summary="Whether a model will answer", **of_readiness)
    async def ready_newest(name: str) -> Response:
        return readiness(name, None)

    @router.get("/models/{name}/versions/{version}/ready", summary="Whether a version will answer", **of_readiness)
    async def ready_version(name: str, version: str) -> Response:
        return readiness(name, version)

    @router.post("/models/{name}/infer", summary="Run the newest version on tensors", **of_answer)
    async def infer_newest(name: str, request: Request) -> Response:
        return await infer(name, None, request)

    @router.post("/models/{name}/versions/{version}/infer", summary="Run a version on tensors", **of_answer)
    async def infer_version(name: str, version: str, request: Request) -> Response:
        return await infer(name, version, request)

    return router


def _outputs_of(model: ServedModel) -> list[str]:
    """Return the names of the outputs; a regression has values and no probabilities."""
    return ["logits"] if model.classifier.task == "regression" else ["logits", "probabilities"]


def _metadata(model: ServedModel, versions: list[str]) -> dict[str, Any]:
    classes = len(model.classifier.classes)
    return {
        "name": model.place.name,
        "versions": versions,
        "platform": f"featcache_{model.classifier.format}",
        "inputs": [
            {"name": tensor.name, "datatype": tensor.datatype, "shape": [-1, *tensor.shape]}
            for tensor in model.form.tensors
        ],
        "outputs": [
            {"name": name, "datatype": OUTPUT_TYPE, "shape": [-1, classes]} for name in _outputs_of(model)
        ],
    }  # fmt: skip


def _tensors(model: ServedModel, found: list[Answer | BaseException]) -> dict[str, npt.NDArray[np.float32]]:
    """Return the model's outputs by name; raises what its run ended with."""
    rows = []
    for one in found:
        if isinstance(one, BaseException):
            raise one
        model.metrics.count("cached" if one.cached else "computed")
        rows.append(one.logits)
    logits = np.stack(rows)
    if model.classifier.task == "regression":
        return {"logits": logits}
    return {"logits": logits, "probabilities": (sigmoid if model.classifier.task == "multilabel" else softmax)(logits)}
