"""The rest of ``/api``: images and tables that come in, jobs, what the workspace holds, bundles to try, events."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Body, Path, Query, Request, Response
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, HTMLResponse, StreamingResponse

from featcache.bundle.archive import pack
from featcache.errors import InputError
from featcache.extract.inputs.registry import find_input
from featcache.runtime.bundle import open_bundle
from featcache.serve.bodies import Bodies
from featcache.serve.refusals import RefusedError
from featcache.serve.studio.commands import device_formats
from featcache.serve.studio.documents import (
    PROBLEMS,
    ArtefactEntry,
    DeviceFormat,
    Failure,
    Job,
    JobRequest,
    Received,
    ReportEntry,
    Tried,
    TryWays,
)
from featcache.serve.studio.state import Studio
from featcache.serve.studio.uploads import receive, safe_path, unpack_images
from featcache.serve.studio.workspace import KINDS, check_name

_BYTES = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
# a report has its style within, and no script; wherever it comes from, it is shown and does nothing
_REPORT_HEADERS = {
    "content-security-policy": (
        "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
    )
}
Id = Annotated[int, Path(ge=0, lt=2**31, description="The job's number.")]
Folder = Annotated[str, Path(max_length=64, description="A name for the data set.")]
Bundle = Annotated[str, Query(max_length=300, description="The bundle's name in /api/bundles.")]


def workspace_router(studio: Studio) -> APIRouter:
    """Return the addresses of jobs, uploads and artefacts."""
    router = APIRouter(prefix="/api", responses=PROBLEMS)
    workspace, jobs = studio.workspace, studio.jobs
    bodies = Bodies(studio.bounds.file_bytes, seconds=60.0)

    # --- images that come in ---

    @router.put(
        "/images/{folder}/file",
        tags=["images"],
        summary="Put an image file, or a table of texts, into a folder",
        openapi_extra=_BYTES,
    )
    async def put_file(
        folder: Folder, path: Annotated[str, Query(max_length=1000, examples=["cat/1.jpg"])], request: Request
    ) -> Received:
        target = workspace.place("image", folder) / safe_path(path)
        aside = workspace.aside("images")
        size = await receive(_stream(request), target, aside=aside, most=studio.bounds.file_bytes)
        return Received(files=1, bytes=size)

    @router.put(
        "/images/{folder}/zip", tags=["images"], summary="Unpack a zip file into a folder", openapi_extra=_BYTES
    )
    async def put_zip(folder: Folder, request: Request) -> Received:
        place = workspace.place("image", folder)
        archive, aside = workspace.aside("images"), workspace.aside("images")
        try:
            size = await receive(_stream(request), archive, aside=aside, most=studio.bounds.zip_bytes)
            count, left_out = await studio.in_thread(
                lambda: unpack_images(archive, place, aside=aside, bounds=studio.bounds)
            )
        finally:
            archive.unlink(missing_ok=True)
        return Received(
            files=count, bytes=size, left_out=[Failure(path=name, reason=reason) for name, reason in left_out]
        )

    # --- jobs ---

    @router.get("/jobs", tags=["jobs"], summary="Jobs, the newest first")
    def list_jobs() -> list[Job]:
        return [Job(**job) for job in jobs.all_jobs()]

    @router.post("/jobs", tags=["jobs"], summary="Begin a job", status_code=201)
    def add_job(asked: Annotated[JobRequest, Body()]) -> Job:
        parameters = asked.model_dump(exclude={"kind"})
        if asked.kind == "map":
            collection = studio.desk.collection(asked.dataset)
            place = studio.maps.place(collection.id).relative_to(workspace.root).as_posix()
            parameters |= {
                "name": collection.dataset, "cache": collection.name, "data": collection.dataset, "place": place
            }  # fmt: skip
        elif asked.kind == "build":
            check_name(asked.name)
            if asked.images is not None and not studio.local:
                _check_inside(workspace.root, asked.images, "images")
            for named, what in ((asked.backbone, "an encoder"), (asked.weights, "weights")):
                if named is None or studio.local:
                    continue
                # as this process, or a job, which runs in the workspace, would understand it
                for path in (os.path.abspath(named), os.path.join(workspace.root, named)):
                    if os.path.exists(path):
                        _check_inside(workspace.root, path, what)
        else:
            check_name(asked.name)
            collection = studio.desk.collection(asked.dataset)
            labelled = f"{asked.name}-labelled"
            collection.save_labelled(labelled)
            parameters |= {"cache": collection.name, "labelled": labelled, "input": collection.kind.name}
        return Job(**jobs.add(asked.kind, parameters))

    @router.get("/jobs/{job}", tags=["jobs"], summary="A job")
    def one_job(job: Id) -> Job:
        return Job(**jobs.describe(job))

    @router.get("/jobs/{job}/log", tags=["jobs"], summary="What a job's commands said", response_class=Response,
                responses={200: {"content": {"text/plain": {}}}})  # fmt: skip
    def job_log(job: Id) -> Response:
        return Response(jobs.log_of(job), media_type="text/plain; charset=utf-8")

    @router.post("/jobs/{job}/cancel", tags=["jobs"], summary="Cancel a job")
    def cancel(job: Id) -> Job:
        return Job(**jobs.cancel(job))

    # --- what there is ---

    for kind in KINDS:
        _add_list(router, studio, kind)

    @router.get("/bundle.zip", tags=["artefacts"], summary="A bundle as one file", response_class=FileResponse,
                responses={200: {"content": {"application/zip": {}}}})  # fmt: skip
    def download(name: Bundle) -> FileResponse:
        place = workspace.existing("bundle", name)
        folder = workspace.aside("bundles")
        folder.mkdir()
        clear = partial(shutil.rmtree, folder)
        try:
            file = pack(place, folder / "bundle.zip")
        except BaseException:
            clear()
            raise
        return FileResponse(
            file, media_type="application/zip", filename=f"{place.name}.zip", background=BackgroundTask(clear)
        )

    @router.get("/formats", tags=["artefacts"], summary="Device formats, and which of them this machine can export")
    def formats() -> list[DeviceFormat]:
        return [
            DeviceFormat(name=one["name"], missing=None if one["installed"] else f"{one['reason']}: {one['needs']}")
            for one in device_formats()
        ]

    @router.get("/reports", tags=["artefacts"], summary="Reports of runs, and of what was tried to make models smaller")
    def reports() -> list[ReportEntry]:
        return [ReportEntry(name=name) for name in workspace.reports()]

    @router.get("/report", tags=["artefacts"], summary="A report as a page", response_class=HTMLResponse)
    def report(name: Annotated[str, Query(max_length=300, description="Its name in /api/reports.")]) -> FileResponse:
        return FileResponse(workspace.report(name), media_type="text/html; charset=utf-8", headers=_REPORT_HEADERS)

    @router.get("/web", tags=["artefacts"], summary="What a bundle takes, and where its own web export runs")
    def web(bundle: Bundle) -> TryWays:
        kind = find_input(open_bundle(workspace.existing("bundle", bundle)).preprocessing.input)
        return TryWays(input=kind.name, shown=kind.shown, address=studio.frames.address(bundle))

    @router.post("/classify", tags=["artefacts"], summary="What a bundle says of an image, or of a text in UTF-8",
                 openapi_extra=_BYTES)  # fmt: skip
    async def classify(bundle: Bundle, request: Request) -> Tried:
        async with bodies.read(request) as data:
            return Tried(**await studio.in_thread(studio.tries.classify, bundle, data))

    @router.get("/events", tags=["events"], summary="What happens, as server-sent events", response_class=Response,
                responses={200: {"content": {"text/event-stream": {}}}})  # fmt: skip
    async def events() -> StreamingResponse:
        return StreamingResponse(studio.events.listen(), media_type="text/event-stream")

    return router


def _add_list(router: APIRouter, studio: Studio, kind: str) -> None:
    @router.get(f"/{kind}s", tags=["artefacts"], summary=f"The {kind}s in the workspace", name=f"{kind}s")
    def artefacts() -> list[ArtefactEntry]:
        return [ArtefactEntry(kind=one.kind, name=one.name) for one in studio.workspace.artefacts() if one.kind == kind]


def _check_inside(root: FilePath, path: str, what: str) -> None:
    """Raise `InputError` where `path` lies outside `root`: who asks from another machine sees the workspace alone."""
    if not FilePath(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise InputError(
            f"{what} must lie in the workspace where the studio is reached from elsewhere, got {path[:100]!r}"
        )


async def _stream(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect as error:
        raise RefusedError(400, "the connection must stay open until the body has arrived, it was closed") from error
