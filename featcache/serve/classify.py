"""``POST /models/NAME/classify``: image files or texts in, label and probabilities out."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from featcache.errors import FeatcacheError, SampleError
from featcache.runtime.prediction import describe
from featcache.serve.documents import CLASSIFY_BODY, ClassifiedInput, ServedName, answers
from featcache.serve.multipart import UploadedFile
from featcache.serve.served import Answer, ServedModel
from featcache.serve.service import Service, json_response, settled

Top = Annotated[int, Query(ge=1, le=10_000, description="How many classes to list.")]


def classify_router(service: Service) -> APIRouter:
    """Return the endpoints."""
    router = APIRouter(tags=["classify"])

    @router.get("/models", response_model=list[ServedName], responses=answers(), summary="List the models")
    async def list_models() -> Response:
        return json_response([description_of(model) for model in service.models.all()])

    async def classify(name: str, version: str | None, top: int, request: Request) -> Response:
        with (model := service.models.get(name, version)).in_use():
            service.check_room()
            async with service.bodies.read(request) as body:
                files, lone = model.form.read_body(body, request.headers.get("content-type", ""))
                with service.room_for(len(files), model.form.noun):
                    found = await settled([model.classify(file.data) for file in files])
        entries = _entries(model, files, found, top=top)
        if lone and isinstance(found[0], FeatcacheError):
            raise found[0]
        return json_response(entries)

    described: dict[str, Any] = {
        "response_model": list[ClassifiedInput],
        "responses": answers(400, 404, 408, 413, 415, 422, 503),
        "openapi_extra": {"requestBody": CLASSIFY_BODY},
    }

    @router.post("/models/{name}/classify", summary="Classify images or texts by the newest version", **described)
    async def classify_newest(name: str, request: Request, top: Top = 5) -> Response:
        return await classify(name, None, top, request)

    @router.post(
        "/models/{name}/versions/{version}/classify", summary="Classify images or texts by one version", **described
    )
    async def classify_version(name: str, version: str, request: Request, top: Top = 5) -> Response:
        return await classify(name, version, top, request)

    return router


def description_of(model: ServedModel) -> dict[str, Any]:
    """Return what a client wants to know of a model, as JSON values."""
    classifier = model.classifier
    return {
        "name": model.place.name,
        "version": model.place.version,
        "task": classifier.task,
        "classes": list(classifier.classes),
        "format": classifier.format,
        "input": classifier.input.preprocessing.input,
        **model.form.described(),
        "answers_from_cache": model.known is not None,
    }


def _entries(
    model: ServedModel, files: list[UploadedFile], found: list[Answer | BaseException], *, top: int
) -> list[dict[str, Any]]:
    """Return an entry for each file, in their order; raises what is no fault of the input."""
    for one in found:
        if isinstance(one, BaseException) and not isinstance(one, SampleError):
            raise one
    good = [(i, one) for i, one in enumerate(found) if isinstance(one, Answer)]
    entries: list[dict[str, Any]] = [{"file": file.name} for file in files]
    classifier = model.classifier
    if good:
        logits = np.stack([answer.logits for _, answer in good])
        predictions = describe(
            [""] * len(good), logits, classifier.classes, classifier.task, top=top, unknown=classifier.unknown
        )
        for (i, answer), prediction in zip(good, predictions, strict=True):
            model.metrics.count("cached" if answer.cached else "computed")
            values = prediction.to_json()
            entries[i] |= {
                "label": values["label"], "probability": values["probability"], "unknown": prediction.unknown,
                "top": values["top"], "cached": answer.cached,
            }  # fmt: skip
    for entry, one in zip(entries, found, strict=True):
        if isinstance(one, SampleError):
            model.metrics.count("failed")
            entry["error"] = " ".join(str(one).split())
    return entries
