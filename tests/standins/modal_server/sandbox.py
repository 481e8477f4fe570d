"""A container's surroundings: the files that it sees, its environment and the arguments of its entry point."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from modal_proto import api_pb2

from modal_server.records import ENVIRONMENT, IMAGE_BUILDER, Container
from modal_server.service import Service

ENTER = Path(__file__).with_name("enter.py")
_THREADS = "OMP_NUM_THREADS"


def unshare() -> list[str] | None:
    """The command that gives another one its own mounts; None where this machine does not let us."""
    for command in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        try:
            if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
                return command
        except FileNotFoundError:
            return None
    return None


class Sandbox(Service):
    """Makes the surroundings of containers."""

    def prepare(self, container: Container) -> list[str]:
        """The command that becomes the container. Copies files, so it is for a thread."""
        function, definition = container.function, container.function.definition
        shutil.rmtree(container.folder, ignore_errors=True)  # of an earlier run with the same state
        container.control.mkdir(parents=True)
        (container.root / "root").mkdir(parents=True)
        for mount in definition.mount_ids:
            self.server.files.write_mount(mount, container.root)
        if self.server.options.startup:
            shutil.copyfile(self.server.options.startup, container.root / "root" / "sitecustomize.py")  # on PYTHONPATH
        volumes = []
        for mount in definition.volume_mounts:
            folder = self.server.volumes.copies.make(container, self.server.volumes[mount.volume_id])
            volumes.append((str(folder), mount.mount_path, mount.read_only))
        arguments = api_pb2.ContainerArguments(
            task_id=container.id,
            function_id=function.id,
            app_id=function.app,
            function_def=definition,
            serialized_params=function.parameters,
            environment_name=ENVIRONMENT,
            app_layout=self.server.apps.layout(function.app),
        )
        (container.control / "arguments").write_bytes(arguments.SerializeToString())
        spec = {
            "root": str(container.root),
            "control": str(container.control),
            "volumes": volumes,
            "interpreter": _interpreter(),
            "python": sys.executable,
            "environment": self._environment(container),
        }
        file = container.folder / "spec.json"
        file.write_text(json.dumps(spec))
        return [*self.server.unshare, sys.executable, "-I", str(ENTER), str(file)]

    def _environment(self, container: Container) -> dict[str, str]:
        """Nothing of this machine's own but its number of threads, and what image and secrets give.

        Where sums are split among threads, the last digits depend on their number. Tests compare with results of this
        machine, byte for byte.
        """
        definition = container.function.definition
        values = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "PYTHONPATH": "/root",
            "PYTHONUNBUFFERED": "1",
        }
        if _THREADS in os.environ:
            values[_THREADS] = os.environ[_THREADS]
        values |= self.server.images.environment(definition.image_id)
        for secret in definition.secret_ids:
            values |= self.server.secrets.values[secret]
        return values | {
            "MODAL_IS_REMOTE": "1",
            "MODAL_TASK_ID": container.id,
            "MODAL_IMAGE_ID": definition.image_id,
            "MODAL_ENVIRONMENT": ENVIRONMENT,
            "MODAL_CLOUD_PROVIDER": "CLOUD_PROVIDER_FAKE",
            "MODAL_REGION": "fake-region",
            "MODAL_IDENTITY_TOKEN": "",
            "MODAL_SERVER_URL": "unix:///__modal/socket",
            "MODAL_CONTAINER_ARGUMENTS_PATH": "/__modal/arguments",
            "MODAL_IMAGE_BUILDER_VERSION": IMAGE_BUILDER,
        }


def _interpreter() -> list[str]:
    """The folders of this interpreter and its packages, but for those that every container sees."""
    real = Path(sys.executable).resolve()
    folders = [Path(sys.prefix), Path(sys.base_prefix), real.parents[1]]
    return [str(folder) for folder in dict.fromkeys(folders) if not folder.is_relative_to("/usr")]
