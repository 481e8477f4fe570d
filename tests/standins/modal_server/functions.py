"""Functions, and their variants with other options."""

from typing import TYPE_CHECKING

from google.protobuf.json_format import MessageToDict
from modal_proto import api_pb2

from modal_server.records import Function
from modal_server.service import Answer, Asker, Service

if TYPE_CHECKING:
    from modal_server.server import Server

GPUS = {
    "T4", "L4", "A10", "A10G", "L40S", "A100", "A100-40GB", "A100-80GB", "H100", "H100!", "H200", "B200", "B200+",
    "B300", "RTX-PRO-6000",
}  # fmt: skip
_DAY = 24 * 3600  # seconds; the longest timeout
_SCALARS = ("timeout_secs", "concurrency_limit", "task_idle_timeout_secs", "warm_pool_size")
_OPTIONS = {"replace_secret_ids", "secret_ids", "resources", "retry_policy", "scheduler_placement", *_SCALARS}


class Functions(Service):
    """Every function, by id."""

    def __init__(self, server: "Server") -> None:
        super().__init__(server)
        self._functions: dict[str, Function] = {}

    def __getitem__(self, id_: str) -> Function:
        if id_ not in self._functions:
            self.refuse("NOT_FOUND", f"Function {id_} not found")
        return self._functions[id_]

    def of(self, app: str) -> list[Function]:
        return [function for function in self._functions.values() if function.app == app]

    async def rpc_FunctionPrecreate(self, request: api_pb2.FunctionPrecreateRequest, container: Asker) -> Answer:
        function = self._of_id(request.existing_function_id, request.app_id, request.function_name)
        definition = api_pb2.Function(
            function_name=request.function_name,
            function_type=request.function_type,
            function_schema=request.function_schema,
            supported_input_formats=request.supported_input_formats,
            supported_output_formats=request.supported_output_formats,
        )
        metadata = self.metadata(function, definition)
        return api_pb2.FunctionPrecreateResponse(function_id=function.id, handle_metadata=metadata)

    async def rpc_FunctionCreate(self, request: api_pb2.FunctionCreateRequest, container: Asker) -> Answer:
        function = self._of_id(request.existing_function_id, request.app_id, request.function.function_name)
        self._define(function, request.function)
        data = api_pb2.FunctionData()
        known = {field.name for field in data.DESCRIPTOR.fields}
        for field, value in request.function.ListFields():
            if field.name in known and isinstance(value, int | float | str):
                setattr(data, field.name, value)
        data.ranked_functions.add(rank=0).function.CopyFrom(request.function)
        return api_pb2.FunctionCreateResponse(
            function_id=function.id,
            function=request.function,
            handle_metadata=self.metadata(function),
            function_data=data,
        )

    async def rpc_FunctionBindParams(self, request: api_pb2.FunctionBindParamsRequest, container: Asker) -> Answer:
        """A variant of a function (with_options)."""
        base, options = self[request.function_id], request.function_options
        unknown = {field.name for field, _ in options.ListFields()} - _OPTIONS
        if unknown:
            self.refuse("UNIMPLEMENTED", f"this stand-in for Modal ignores options: {', '.join(sorted(unknown))}")
        definition = api_pb2.Function()
        definition.CopyFrom(base.definition)
        if options.replace_secret_ids:
            definition.ClearField("secret_ids")
            definition.secret_ids.extend(options.secret_ids)
        if options.resources.gpu_config.count:
            definition.resources.ClearField("gpu_config")
        definition.resources.MergeFrom(options.resources)
        for name in ("retry_policy", "scheduler_placement"):
            if options.HasField(name):
                getattr(definition, name).CopyFrom(getattr(options, name))
        for name in _SCALARS:
            if options.HasField(name):
                setattr(definition, name, getattr(options, name))
        function = self._of_id("", base.app, base.name)
        function.base, function.parameters = base.id, request.serialized_params
        self._define(function, definition)
        return api_pb2.FunctionBindParamsResponse(
            bound_function_id=function.id, handle_metadata=self.metadata(function)
        )

    def metadata(
        self, function: Function, definition: api_pb2.Function | None = None
    ) -> api_pb2.FunctionHandleMetadata:
        """What a client knows of it; before it is defined, of a preliminary definition."""
        definition = definition or function.definition
        return api_pb2.FunctionHandleMetadata(
            function_name=definition.function_name,
            function_type=definition.function_type,
            app_id=function.app,
            definition_id=f"de-{function.id}",
            base_function_id=function.base or "",
            class_parameter_info=definition.class_parameter_info,
            function_schema=definition.function_schema,
            supported_input_formats=definition.supported_input_formats,
            supported_output_formats=definition.supported_output_formats,
        )

    def _of_id(self, existing: str, app: str, name: str) -> Function:
        id_ = existing or self.server.new_id("fu")
        return self._functions.setdefault(id_, Function(id_, app, name))

    def _define(self, function: Function, definition: api_pb2.Function) -> None:
        gpu = definition.resources.gpu_config
        if gpu.count and (gpu.gpu_type.upper() not in GPUS or gpu.count > 8):
            self.refuse("INVALID_ARGUMENT", f"Not a valid GPU: {gpu.gpu_type!r}:{gpu.count}")
        if definition.timeout_secs and not 1 <= definition.timeout_secs <= _DAY:
            self.refuse("INVALID_ARGUMENT", "Function timeout must be between 1 second and 24 hours")
        function.definition = definition
        self.journal.data["functions"][function.id] = self._describe(function)

    def _describe(self, function: Function) -> dict:
        """For the log."""
        definition, server = function.definition, self.server
        gpu = definition.resources.gpu_config
        return {
            "name": function.name,
            "app_id": function.app,
            "base_function_id": function.base,
            "gpu": (gpu.gpu_type + (f":{gpu.count}" if gpu.count > 1 else "")) if gpu.count else None,
            "cpu_cores": definition.resources.milli_cpu / 1000,
            "memory_mib": definition.resources.memory_mb,
            "timeout_s": definition.timeout_secs,
            "retries": MessageToDict(definition.retry_policy, preserving_proto_field_name=True),
            "single_use_containers": definition.single_use_containers,
            "regions": list(definition.scheduler_placement.regions),
            "image_commands": server.images.commands(definition.image_id),
            "secrets": [{"id": id_, "keys": sorted(server.secrets.values[id_])} for id_ in definition.secret_ids],
            "volumes": {mount.mount_path: mount.volume_id for mount in definition.volume_mounts},
            "local_files": sorted(path for id_ in definition.mount_ids for path in server.files.mounts[id_]),
        }
