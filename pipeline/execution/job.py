"""The job of another runner: what is noted of it in `_run.json`, and how to meet it again, so that no second one runs beside it.

A launcher may leave (`--detach`), be killed, or sit on another machine: whoever has the record can wait for the job, or cancel it.
"""

from typing import cast

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, PortableOptions, StandardOptions
from apache_beam.runners.runner import PipelineResult, PipelineState

from patchpack.schemas.run import JobRecord

# servers and workers that live in the launcher's process, and end with it
IN_THIS_PROCESS = "embed"
WORKERS_HERE = "LOOPBACK"


def check_detachable(options: PipelineOptions | None) -> None:
    """Checks that a job can be left alone.

    Raises:
        ValueError: it runs in this process, or needs it.
    """
    if options is None:
        raise ValueError(
            "--detach: this build runs on this machine, and ends with its command; --detach is for other runners; name one behind "
            "--, or start the command with nohup"
        )
    portable = options.view_as(PortableOptions)
    if portable.job_endpoint == IN_THIS_PROCESS or portable.environment_type == WORKERS_HERE:
        what = (
            f"--job_endpoint {IN_THIS_PROCESS}"
            if portable.job_endpoint == IN_THIS_PROCESS
            else "--environment_type LOOPBACK"
        )
        raise ValueError(
            f"--detach: {what} is in this very process, and a job that is left needs none; leave one of them out"
        )
    runner = options.view_as(StandardOptions).runner
    if runner != "DataflowRunner" and not portable.job_endpoint:
        raise ValueError(
            f"--detach: --runner {runner} starts a job server that ends with this command; a job that is left needs one of its own; "
            "start it, and name it with --runner PortableRunner --job_endpoint HOST:PORT"
        )


def template_of(options: PipelineOptions | None) -> str | None:
    """Returns where a job is to be stored instead of run, or None."""
    location: str | None = None if options is None else options.view_as(GoogleCloudOptions).template_location
    return location


def stored_as(options: PipelineOptions | None) -> JobRecord:
    """Returns the record of a job that was stored and has no id."""
    return {"runner": "DataflowRunner", "id": template_of(options) or "", "endpoint": "", "project": "", "region": ""}


def record_of(result: PipelineResult, options: PipelineOptions) -> JobRecord | None:
    """Returns what finds a job again that was submitted, or None where its runner has no such thing."""
    cloud = options.view_as(GoogleCloudOptions)
    if template_of(options):
        return None
    job_id = getattr(result, "_job_id", None) or (result.job_id() if hasattr(result, "job_id") else None)
    endpoint = options.view_as(PortableOptions).job_endpoint or ""
    if not isinstance(job_id, str) or endpoint == IN_THIS_PROCESS or not (endpoint or cloud.project):
        return None
    return {
        "runner": options.view_as(StandardOptions).runner or "",
        "id": job_id,
        "endpoint": endpoint,
        "project": cloud.project or "",
        "region": cloud.region or "",
    }


def met_again(record: JobRecord) -> PipelineResult | None:
    """Returns a job that was submitted before, running or not, or None where its service does not know it any more.

    Raises:
        OSError: the service does not answer.
    """
    return _of_dataflow(record) if record["runner"] == "DataflowRunner" else _of_job_server(record)


def is_running(result: PipelineResult) -> bool:
    """Returns whether a job has not ended yet."""
    return not PipelineState.is_terminal(result.state)


def _of_dataflow(record: JobRecord) -> PipelineResult | None:
    from apache_beam.runners.dataflow.dataflow_runner import DataflowPipelineResult, DataflowRunner
    from apache_beam.runners.dataflow.internal import apiclient

    runner, options = (
        DataflowRunner(),
        PipelineOptions([f"--project={record['project']}", f"--region={record['region']}"]),
    )
    runner.dataflow_client = apiclient.DataflowApplicationClient(options)
    job = runner.dataflow_client.get_job(record["id"])
    return cast(PipelineResult, DataflowPipelineResult(job, runner))


def _of_job_server(record: JobRecord) -> PipelineResult | None:
    import grpc
    from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc
    from apache_beam.runners.portability.portable_runner import PipelineResult as PortableResult

    service = beam_job_api_pb2_grpc.JobServiceStub(grpc.insecure_channel(record["endpoint"]))
    request = beam_job_api_pb2.GetJobStateRequest(job_id=record["id"])
    try:
        service.GetState(request, timeout=15)
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN):
            return None
        raise OSError(f"--job_endpoint {record['endpoint']}: does not answer ({error.code().name})") from error
    messages = service.GetMessageStream(beam_job_api_pb2.JobMessagesRequest(job_id=record["id"]))
    return cast(PipelineResult, PortableResult(service, record["id"], messages, service.GetStateStream(request)))
