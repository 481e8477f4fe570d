"""report: reports/index.html, one page with every sample, confusion and suspicious label, for a browser."""

from pathlib import Path

from vlm.compute.progress import ProgressBar
from vlm.config import load_params
from vlm.config.errors import reported
from vlm.report import page


def main() -> None:
    with ProgressBar() as emit:
        written = page.write(Path("reports"), load_params(), emit)
    print(f"report: reports/index.html: {written}")


if __name__ == "__main__":
    with reported():
        main()
